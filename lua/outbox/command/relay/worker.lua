-- A worker of `outbox relay`: a process with a processor. Without a supervisor it is the only one.

local core = require("outbox.core")
local database = require("outbox.command.common.database")
local new_progress = require("outbox.command.relay.progress")
local outbox = require("outbox")
local routes = require("outbox.command.relay.routes")

local M = {}

--- The exit status if something that was due is not delivered.
M.UNDELIVERED = 4

-- The arguments that are options of a processor. Their targets begin with "processor_" or "retry_".
local function read_options(arguments, share)
  local options = { retry = {}, namespaces = share.namespaces }
  for _, given in ipairs({ arguments, share.settings }) do
    for name, value in pairs(given) do
      local group, option = name:match("^(%l+)_(.*)$")
      if group == "processor" then
        options[option] = value
      elseif group == "retry" then
        options.retry[option] = value
      end
    end
  end
  if options.processor_id and share.suffix then
    options.processor_id = options.processor_id .. share.suffix
  end
  return options
end

--- Waits until a worker has ended. Returns its exit status, as a shell counts signals; and how it
-- ended, as `await_worker` of the core does.
function M.await(pid)
  local how, number = core.await_worker(pid)
  return how == "exit" and number or 128 + number, how, number
end

--- Makes what a worker needs, and unmakes it: so a supervisor finds out what is wrong.
function M.rehearse(arguments, share)
  local store <close> = database.open(arguments)
  store:stats() -- raises if the tables are missing
  local publisher <close> = routes.publisher(share.routes)
  local options = read_options(arguments, share)
  options.store, options.publisher = store, publisher
  outbox.processor(options)
end

--- Delivers the share of the routes until a signal comes or, with --once, nothing more is due.
-- Returns the exit status.
function M.run(arguments, share, log)
  local store <close> = database.open(arguments, "normal")
  local before = store:stats() -- raises if the tables are missing
  local publisher <close> = routes.publisher(share.routes)
  local options = read_options(arguments, share)
  local processor, progress, stopping, unread

  -- Sleeps until there is something to do. The first signal ends the sleep and stops the processor.
  local function sleep(seconds, fd)
    if stopping then
      core.clock.sleep(seconds)
      return
    end
    stopping = core.await_signal(seconds, fd)
    if stopping then
      log:write("stopping", "signal", stopping)
      processor:stop()
    end
  end

  log:add_hooks(options, arguments.verbose)
  local log_error = options.on_error
  function options.on_error(raised)
    log_error(raised)
    if type(raised.cause) == "table" and raised.cause.code == "unread" then
      unread = raised.cause
      processor:stop()
    end
  end
  function options.on_batch(batch)
    if arguments.verbose then
      log:write("batch", "size", batch.size, "delivered", batch.delivered, "retried", batch.retried,
        "dead", batch.dead, "seconds", batch.seconds)
    end
    progress:tick()
    sleep(0)
  end
  options.store, options.publisher = store, publisher
  processor = outbox.processor(options)
  progress = new_progress(store, processor, log, share)
  core.catch_signals()
  log:write("started", "database", database.shown(arguments.database), "processor",
    processor.options.processor_id, "ready", before.ready, "delayed", before.delayed, "dead",
    before.dead)
  if arguments.once then
    local _, seconds
    repeat
      _, seconds = processor:pump()
      sleep(seconds or 0)
    until not seconds or stopping
  else
    for seconds in processor.step, processor do
      progress:tick()
      sleep(log.terminal and math.min(seconds, progress.every) or seconds, processor:pollfd())
    end
  end
  local after, done = store:stats(), processor:stats()
  log:hide_status()
  log:write("stopped", "delivered", done.delivered, "retried", done.retried, "deferred",
    done.deferred, "dead", done.dead, "errors", done.errors, "ready", after.ready, "delayed",
    after.delayed)
  if unread then
    error(unread, 0)
  end
  local left = done.retried + done.deferred + done.dead + done.errors > 0
  return arguments.once and left and M.UNDELIVERED or 0
end

return M
