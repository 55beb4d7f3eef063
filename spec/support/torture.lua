-- What the specs share that go on for minutes where OUTBOX_LONG is set, and for seconds elsewhere.

local process = require("process")

local M = {
  long = os.getenv("OUTBOX_LONG") ~= nil,
  seed = tonumber(os.getenv("OUTBOX_SEED")) or os.time(),
}

local children = {}

--- A child that runs fn, with a seed of its own. None outlives `kill_all`.
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

--- Opens a file that several processes add records to.
function M.log(path)
  local file = assert(io.open(path, "a"))
  file:setvbuf("no")
  return file
end

--- Adds a record of words to it, in one write, so that it is not mixed up with another's. A kill
-- may cut it short: it counts only if its end is there.
function M.note(log, ...)
  assert(log:write("\n" .. table.concat({ ... }, " "):gsub("[\n;]", ",") .. ";"))
end

--- Iterates over the records of a log, each a list of words.
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

--- Tells what a long run came to.
function M.say(text)
  if M.long then
    io.write("\n", text, "\n")
  end
end

--- The same in a line for programs.
function M.tally(kind, cases, lost, phantom)
  M.say(("TALLY\t%s\t%d\t%d\t%d"):format(kind, cases, lost, phantom))
end

return M
