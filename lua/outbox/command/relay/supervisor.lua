-- The supervisor of `outbox relay`: it has a worker process for each share of the work, shows their
-- logs, and starts one again that has died. It has no store open itself while it forks.

local core = require("outbox.core")
local database = require("outbox.command.common.database")
local format = require("outbox.command.common.format")
local errors = require("outbox.error")
local worker = require("outbox.command.relay.worker")

-- Seconds until a worker that has died is started again: at first, at most, and after how long a
-- life it counts as the first time.
local FIRST_DELAY, LAST_DELAY, HEALTHY = 1, 30, 60

-- With these exit statuses a worker would only die again: wrong arguments, the database was moved,
-- nobody reads standard output any more.
local FINAL = { [2] = true, [5] = true, [141] = true }

-- A signal for all that comes just after the fork, when the worker does not catch it yet.
local EARLY = { [1] = true, [2] = true, [15] = true }

-- The widest label to which those of the other status lines are widened, in bytes.
local MAX_LABEL = 24

-- Of two exit statuses, the one that tells more: undelivered messages are not as bad as a failure.
local function worse(a, b)
  if a == 0 or a == worker.UNDELIVERED and b ~= 0 then
    return b
  end
  return a
end

-- A worker is started later; the next time it waits for twice as long.
local function put_off(one)
  one.due_at = core.clock.now() + one.delay
  one.delay = math.min(2 * one.delay, LAST_DELAY)
end

-- Starts a worker. In the worker, returns its log.
local function start(self, one)
  local ok, pid, pipe = pcall(core.fork)
  if not ok then
    self.log:write("error", "route", one.share.name, "message", errors.text(pid))
    put_off(one)
    return nil
  elseif pid == 0 then
    for _, other in ipairs(self.workers) do
      if other.fd then
        core.close_pipe(other.fd)
      end
    end
    return self.log:of_worker(pipe, one.share.name, one.share.number)
  end
  one.pid, one.fd, one.started_at = pid, pipe, core.clock.now()
  one.rest, one.begun = "", false
  return nil
end

local function stop(self)
  self.stopping = true
  for _, one in ipairs(self.workers) do
    if one.pid then
      core.stop_worker(one.pid)
    end
  end
end

-- Notes that a worker has ended.
local function bury(self, one)
  core.close_pipe(one.fd)
  local status, how, number = worker.await(one.pid)
  one.pid, one.fd, one.ended = nil, nil, true
  if self.stopping and not one.begun and how == "signal" and EARLY[number] then
    status = 0
  end
  if self.stopping or self.arguments.once or FINAL[status] then
    self.status = worse(self.status, status)
    if FINAL[status] and not self.stopping then
      stop(self)
    end
    return
  end
  if core.clock.now() - one.started_at >= HEALTHY then
    one.delay = FIRST_DELAY
  end
  self.log:write("died", "route", one.share.name, "worker", one.share.number, how, number,
    "restart", one.delay)
  one.ended = false
  put_off(one)
end

-- Reads a worker's pipe, and shows its lines.
local function listen(self, one, index)
  local bytes = core.read_pipe(one.fd)
  if not bytes then
    if one.rest ~= "" then
      self.log:print(one.rest) -- it died in the middle of a line
    end
    bury(self, one)
    return
  end
  local text = one.rest .. bytes
  one.rest, one.begun = text:match("[^\n]*$"), true
  for line in text:gmatch("([^\n]*)\n") do
    self.log:show(line, index, one.label)
  end
end

-- Waits for the workers or a signal, at most until one is to be started again.
local function wait(self)
  local now, seconds, fds = core.clock.now(), 3600, {}
  for _, one in ipairs(self.workers) do
    if one.fd then
      fds[#fds + 1] = one.fd
    elseif not one.ended then
      seconds = math.min(seconds, one.due_at - now)
    end
  end
  if self.stopping then
    core.await_pipes(seconds, table.unpack(fds))
    return
  end
  core.await_pipes(seconds, core.signal_fd(), table.unpack(fds))
  local signal = core.await_signal(0)
  if signal then
    stop(self)
    self.log:write("stopping", "signal", signal)
  end
end

-- Starts the workers that are due. Returns, in a worker, its share and its log; in the supervisor,
-- whether any is left.
local function start_due(self)
  local now, any = core.clock.now(), false
  for _, one in ipairs(self.workers) do
    if not one.pid and not one.ended then
      if self.stopping then
        one.ended = true
      elseif one.due_at <= now then
        local log = start(self, one)
        if log then
          return one.share, log
        end
      end
    end
    any = any or not one.ended
  end
  return any
end

-- Runs a worker. Writes the error that ends it to its log, and raises it again, because the exit
-- status depends on it.
local function work(arguments, share, log)
  local ok, result = pcall(worker.run, arguments, share, log)
  if ok then
    return result
  elseif type(result) == "table" then
    log:write("error", "code", result.code, "message", errors.text(result))
    result.is_logged = true
  end
  error(result, 0)
end

--- Supervises a worker for each share until all have ended. Returns the exit status; and true in a
-- worker, which has this status itself.
return function(arguments, shares, log)
  local self = { arguments = arguments, log = log, workers = {}, status = 0 }
  local width = 0
  for i, share in ipairs(shares) do
    local label = format.line(share.name) .. (share.number and "#" .. share.number or "")
    width = math.max(width, math.min(#label, MAX_LABEL))
    self.workers[i] = { share = share, label = label, delay = FIRST_DELAY, due_at = -math.huge }
  end
  for _, one in ipairs(self.workers) do
    one.label = one.label .. (" "):rep(width - #one.label + 2)
  end
  core.catch_signals()
  log:write("started", "database", database.shown(arguments.database), "workers", #shares)
  while true do
    local share, worker_log = start_due(self)
    if worker_log then
      return work(arguments, share, worker_log), true
    elseif not share then
      log:hide_status()
      log:write("stopped")
      return self.status
    end
    wait(self)
    for i, one in ipairs(self.workers) do
      if one.fd then
        listen(self, one, i)
      end
    end
  end
end
