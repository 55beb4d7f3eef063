-- outbox relay: a processor that delivers to the destinations of outbox.publisher.

local convert = require("outbox.command.common.convert")
local core = require("outbox.core")
local database = require("outbox.command.common.database")
local new_log = require("outbox.command.common.log")
local new_progress = require("outbox.command.common.progress")
local outbox = require("outbox")
local routes = require("outbox.command.common.routes")

local UNDELIVERED = 4 -- the exit status

local M = {
  summary = "Deliver messages.",
  description = "Delivers all messages that are due, and those that are published later, until it "
    .. "is told to stop. SIGINT, SIGTERM or SIGHUP let it finish the batch in hand and release its "
    .. "claim. A second signal, two seconds later or more, ends it at once. Events are logged to "
    .. "standard error.",
  epilog = routes.help,
}

function M.define(command)
  database.define(command)
  local function option(name, target, argname, converter, description)
    return command:option(name, description):target(target):argname(argname):convert(converter)
  end
  command:option("--to", "The URL of a destination. May be repeated, with NAMESPACE=URL for one "
    .. "namespace."):argname("URL"):count("1+"):convert(routes.read)
  command:option("--option", "An option of the destination before it. May be repeated.")
    :argname("NAME=VALUE"):count("*"):convert(convert.pair):action(routes.add_option)
  command:flag("--once", "Deliver what is due, then exit. The status is 4 if something that was "
    .. "due failed, waits for an entry that failed, or is claimed by another processor.")
  command:option("--log", "The format of the log, default text."):choices({ "text", "json" })
  command:flag("--verbose", "Also log each batch and each delivery.")
  option("--batch-size", "processor_batch_size", "COUNT", convert.count,
    "How many messages the destination gets at a time. The default is 20, or 100 for redis:, file: "
    .. "and stdout:.")
  option("--batch-bytes", "processor_batch_bytes", "BYTES", convert.count,
    "The most bytes that it gets at a time, unless one message has more. The default is 8388608.")
  command:option("--ordering", "Which entries wait behind an entry that is to be retried: those "
    .. "with its key (the default), none, or all (strict)."):target("processor_ordering")
    :choices({ "key", "none", "strict" })
  option("--limit", "processor_limit", "COUNT", function()
    return nil, "there is no option --limit any more: processors of the same namespaces share the "
      .. "work without it"
  end):hidden(true)
  option("--retry-base", "retry_base", "SECONDS", convert.number,
    "The longest delay before the first retry, default 1.")
  option("--retry-factor", "retry_factor", "NUMBER", convert.number,
    "The factor by which the delay grows with each further retry, default 2.")
  option("--retry-cap", "retry_cap", "SECONDS", convert.number,
    "The longest delay before any retry, default 300.")
  option("--max-attempts", "retry_max_attempts", "COUNT", convert.count,
    "An entry becomes a dead letter after this many attempts, default 10.")
  option("--claim-duration", "processor_claim_duration", "SECONDS", convert.number,
    "How long other processors wait after a crash of this one, default 2.")
  option("--publish-timeout", "processor_publish_timeout", "SECONDS", convert.number,
    "If the destination takes longer for a batch, others may take it over, default 60.")
  option("--process-interval", "processor_process_interval", "SECONDS", convert.number,
    "The longest sleep, default 10.")
  command:option("--processor-id", "A name that no other live processor has, default generated.")
    :target("processor_processor_id"):argname("ID")
end

-- The arguments that are options of a processor. Their targets begin with "processor_" or "retry_".
local function processor_options(arguments)
  local options = { retry = {} }
  for name, value in pairs(arguments) do
    local group, option = name:match("^(%l+)_(.*)$")
    if group == "processor" then
      options[option] = value
    elseif group == "retry" then
      options.retry[option] = value
    end
  end
  return options
end

-- Whether something is ready in the namespaces that it serves, and not paused.
local function is_any_left(store, namespaces, stats)
  if not namespaces then
    return stats.oldest_age ~= nil
  end
  local is_paused = {}
  for _, paused in ipairs(store:paused()) do
    is_paused[paused.namespace] = true
  end
  for _, namespace in ipairs(namespaces) do
    local first = store:ready_entries({ namespace = namespace, limit = 1 })[1]
    if first and not is_paused[namespace] then
      return true
    end
  end
  return false
end

function M.run(arguments)
  -- A whole batch becomes garbage at once, so a cycle of the collector may start half as often.
  collectgarbage("incremental", 400)
  pcall(collectgarbage, "param", "pause", 400) -- Lua 5.5 ignores the number above
  local store <close> = database.open(arguments, "normal")
  local before = store:stats() -- raises if the tables are missing
  local publisher <close> = routes.publisher(arguments.to)
  local log = new_log(arguments.log == "json", arguments.to)
  local options = processor_options(arguments)
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
  progress = new_progress(store, processor, log)
  core.catch_signals()
  log:write("started", "database", arguments.database, "processor", processor.options.processor_id,
    "ready", before.ready, "delayed", before.delayed, "dead", before.dead)
  if arguments.once then
    processor:pump()
  else
    for seconds in processor.step, processor do
      progress:tick()
      sleep(log.terminal and math.min(seconds, progress.every) or seconds, processor:pollfd())
    end
  end
  local after, done = store:stats(), processor:stats()
  log:write("stopped", "delivered", done.delivered, "retried", done.retried, "dead", done.dead,
    "errors", done.errors, "ready", after.ready, "delayed", after.delayed)
  if unread then
    error(unread, 0)
  end
  local left = done.retried + done.deferred + done.dead + done.errors > 0
    or is_any_left(store, publisher.namespaces, after)
  return arguments.once and left and UNDELIVERED or 0
end

return M
