-- Helpers of the specs that run for minutes if OUTBOX_LONG is set, and for seconds otherwise.

local outbox = require("outbox")
local process = require("process")

local M = {
  long = os.getenv("OUTBOX_LONG") ~= nil,
  seed = tonumber(os.getenv("OUTBOX_SEED")) or os.time(),
}

local children = {}

--- Forks a child that runs fn with its own seed. `kill_all` ends all children. Returns the pid.
function M.fork(fn)
  local number = math.random(0)
  local pid = process.fork(function()
    math.randomseed(M.seed, number)
    fn()
  end)
  children[pid] = true
  return pid
end

function M.wait(pid)
  children[pid] = nil
  return (process.wait(pid))
end

function M.kill_all()
  for pid in pairs(children) do
    process.kill(pid)
    M.wait(pid)
  end
end

--- Opens a log, to which several processes append records.
function M.log(path)
  local file = assert(io.open(path, "a"))
  file:setvbuf("no")
  return file
end

--- Appends a record of words to the log in one write, so that records of several processes do not
-- mix. A kill may cut a record short. Only a complete record counts.
function M.note(log, ...)
  assert(log:write("\n" .. table.concat({ ... }, " "):gsub("[\n;]", ",") .. ";"))
end

--- Waits until some more bytes have been written to the log, or for a while.
function M.wait_for_a_moment(log)
  local now = outbox.clock.now
  local size, time = log:seek("end") + math.random(0, 5000), now() + 0.3 * math.random()
  repeat
    outbox.clock.sleep(0.001)
  until log:seek("end") >= size or now() >= time
end

--- Iterates over the complete records of a log, each a list of words.
function M.records(path)
  local file <close> = assert(io.open(path))
  local next_record = file:read("a"):gmatch("\n([^\n;]*);")
  return function()
    local record = next_record()
    if record then
      local words = {}
      for word in record:gmatch("%S+") do
        words[#words + 1] = word
      end
      return words
    end
  end
end

--- Prints a text in a long run.
function M.say(text)
  if M.long then
    io.write("\n", text, "\n")
  end
end

--- Prints the result of a long run as a line that tools/torture reads.
function M.tally(kind, cases, lost, phantom)
  M.say(("TALLY\t%s\t%d\t%d\t%d"):format(kind, cases, lost, phantom))
end

return M
