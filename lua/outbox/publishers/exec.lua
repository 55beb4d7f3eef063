--- A program in any language, run through luv: `exec:COMMAND`. `/bin/sh` runs the command.
--
-- The program is started with the first batch and kept running. It reads one line of JSON for each
-- message, as `outbox.publishers.file` writes it. It answers each message with one line, in the
-- same order:
--
--    ok
--    error REASON
--    {"reason": "no such order", "permanent": true, "retry_after": 30}
--
-- The third form is a failure, too; other fields are ignored. The program must flush its output,
-- and must not wait for more messages before it answers. It must end when its standard input ends:
-- `close` waits for that. Its standard error is that of this process.
--
-- Option `timeout`: seconds for each answer, default 30. If the program ends, does not answer in
-- time, or answers anything else, then it and all processes that it has started are killed. The
-- next batch starts it again. No attempt is counted for messages without an answer.
--
-- In a running luv loop, call `processor:step` in a coroutine: it yields until all messages are
-- answered.
-- @module outbox.publishers.exec

local need = require("outbox.need")
local option = require("outbox.options")

local format, uv -- need lua-cjson and luv, so `new` loads them

local M = {
  summary = { url = "exec:COMMAND", text = "a program" },
  OPTIONS = { timeout = { default = 30, check = option.seconds } },
}

local Exec = { __name = "outbox.publisher" }
Exec.__index = Exec

--- Waiting ------------------------------------------------------------------------------------

-- Runs the loop until `wake` is called. If the loop is already running, yields to it instead.
local function wait(self, call)
  while not call.done do
    if uv.loop_mode() then
      self.coroutine = coroutine.running()
      coroutine.yield()
    else
      uv.run("once")
    end
  end
end

local function wake(self, call)
  local waiting = self.coroutine
  call.done, self.coroutine = true, nil
  if waiting and coroutine.status(waiting) == "suspended" then -- else the coroutine was closed
    assert(coroutine.resume(waiting))
  end
end

--- The program --------------------------------------------------------------------------------

-- Closes the program's output, and its input, so that the program ends.
local function release(self, child)
  self.child = nil
  child.stdin:close()
  child.stdout:close()
end

-- Kills the program and ends the call that waits for its answers.
local function stop(self, child, reason)
  if not child or self.child ~= child then
    return -- the program has ended already
  end
  release(self, child)
  uv.kill(-child.pid, "sigkill")
  local call = self.call
  if call then
    call.reason = reason
    wake(self, call)
  end
end

-- Returns the failure that an answer reports, nil for "ok"; or nil and true if the line is not a
-- valid answer.
local function read_answer(line)
  if line == "ok" then
    return nil
  end
  local reason = line:match("^error%s*(.*)$")
  if reason then
    return reason
  end
  local is_json, failure = format.decode(line)
  if not is_json or type(failure) ~= "table" then
    return nil, true
  end
  return {
    reason = type(failure.reason) == "string" and failure.reason or line,
    permanent = failure.permanent == true, retry_after = tonumber(failure.retry_after),
  }
end

local function note_answer(self, child, line)
  local call = self.call
  local failure, is_wrong = read_answer(line)
  if not call or call.answered == call.count or is_wrong then
    stop(self, child, ("the program answered '%s'"):format(line))
    return
  end
  call.answered = call.answered + 1
  call.failures[call.answered] = failure
  if call.answered == call.count then
    wake(self, call)
  else
    self.timer:again()
  end
end

local function read(self, child, chunk)
  local text, from = child.rest .. chunk, 1
  local to = text:find("\n", 1, true)
  while to and self.child == child do
    note_answer(self, child, (text:sub(from, to - 1):gsub("\r$", "")))
    from, to = to + 1, text:find("\n", to + 1, true)
  end
  child.rest = text:sub(from)
end

local function start(self)
  local child = { stdin = uv.new_pipe(false), stdout = uv.new_pipe(false), rest = "" }
  local process, pid = uv.spawn("/bin/sh", {
    args = { "-c", self.command }, stdio = { child.stdin, child.stdout, 2 }, detached = true,
  }, function(code, signal)
    child.process:close()
    self.running = self.running - 1
    local how = signal ~= 0 and "was killed by signal " .. signal or "ended with status " .. code
    stop(self, child, "the program " .. how)
  end)
  child.process, child.pid = assert(process, pid), pid
  child.stdout:read_start(function(_, chunk)
    if chunk then
      read(self, child, chunk)
    end
  end)
  process:unref() -- neither the process nor its output may keep the application's loop running
  child.stdout:unref()
  self.child, self.last, self.running = child, child, self.running + 1
end

--- The publisher ------------------------------------------------------------------------------

local function open(self)
  self.timer, self.sigpipe = uv.new_timer(), uv.new_signal()
  self.sigpipe:start("sigpipe", function() end) -- else this process ends if the program has ended
  self.sigpipe:unref()
end

-- The loop's own time is that of its last turn, which may be long ago.
local function start_timer(self, fn)
  uv.update_time()
  self.timer:start(self.timeout, self.timeout, fn)
end

function Exec:publish(messages)
  if uv.loop_mode() and not coroutine.isyieldable() then
    return nil, "the exec publisher, in a loop of luv, must be called in a coroutine"
  end
  if self.call then -- the last call was cut off, so its answers may still arrive
    stop(self, self.child, "the program is used by another call")
  end
  if not self.timer then
    open(self)
  end
  start_timer(self, function()
    stop(self, self.child, "the program has not answered in time")
  end)
  if not uv.loop_mode() then
    uv.run("nowait") -- the program may have ended since the last call
  end
  if not self.child then
    start(self)
  end
  local call = { count = #messages, answered = 0, failures = {} }
  self.call = call
  self.child.stdin:write(format.lines(messages))
  wait(self, call)
  self.timer:stop()
  self.call = nil
  for i = call.answered + 1, call.count do
    call.failures[i] = { reason = call.reason, uncharged = true }
  end
  return call.failures
end

-- Waits until no process is left, not even a zombie. Kills a program that does not end in time.
local function wait_for_end(self)
  start_timer(self, function()
    uv.kill(-self.last.pid, "sigkill")
  end)
  while self.running > 0 do
    uv.run("once")
  end
end

function Exec:close()
  if not self.timer then
    return
  end
  if self.child then
    release(self, self.child)
  end
  if not uv.loop_mode() then
    wait_for_end(self)
  end
  self.timer:close()
  self.sigpipe:close()
  self.timer = nil
  if not uv.loop_mode() then
    uv.run("nowait") -- luv crashes when this process ends while a handle is still being closed
  end
end

Exec.__close = Exec.close

function M.parse(_, rest)
  return rest:find("%S") and rest or nil, "the command after 'exec:' is missing"
end

function M.new(command, options)
  format = require("outbox.publishing.format")
  uv = need("luv", "the exec publisher needs luv", "luv", "lua-luv")
  return setmetatable({
    command = command, timeout = math.ceil(options.timeout * 1000), running = 0,
  }, Exec)
end

return M
