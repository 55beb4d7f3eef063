-- outbox relay: a processor that delivers to one of the destinations that come with outbox.

local core = require("outbox.core")
local database = require("outbox.command.database")
local new_log = require("outbox.command.log")
local outbox = require("outbox")
local problem = require("outbox.problem")

local UNDELIVERED = 4 -- the status

-- Seconds from one word on how it goes to the next, on a terminal and in a log.
local ON_TERMINAL, IN_LOG = 1, 10
-- To count takes the longer the more there is; but no more than this part of the time.
local SHARE = 1 / 20

--- What it tells ------------------------------------------------------------------------------

local Progress = {}
Progress.__index = Progress

function Progress.new(store, processor, log)
  local least = log.terminal and ON_TERMINAL or IN_LOG
  return setmetatable({ store = store, processor = processor, log = log, least = least,
    every = least, since = core.clock.now(), delivered = 0, batches = 0 }, Progress)
end

local function say(self, seconds)
  local stats, done = self.store:stats(), self.processor:stats()
  local rate = (done.delivered - self.delivered) / seconds
  if self.log.terminal then
    self.log:say(("%d delivered, %.1f/s, %d retried, %d dead; %d ready, %d delayed"):format(
      done.delivered, rate, done.retried, done.dead, stats.ready, stats.delayed))
  elseif done.batches > self.batches then
    self.log:write("progress", "delivered", done.delivered, "rate", rate, "retried", done.retried,
      "dead", done.dead, "ready", stats.ready, "delayed", stats.delayed)
  end
  self.delivered, self.batches = done.delivered, done.batches
end

-- Says how it goes, if it is time for that.
function Progress:tick()
  local now = core.clock.now()
  if now < self.since then -- the clock was put back
    self.since = now
  elseif now >= self.since + self.every then
    pcall(say, self, now - self.since) -- what fails now, the processor will tell
    self.since = now
    self.every = math.max(self.least, (core.clock.now() - now) / SHARE)
  end
end

-- Hooks that write what happens in the log.
local function add_hooks(options, log, verbose)
  function options.on_retry(entry, reason, delay)
    log:write("retry", "id", entry.id, "namespace", entry.namespace, "key", entry.key,
      "attempts", entry.attempts + 1, "delay", delay, "reason", reason)
  end
  function options.on_dead(entry, reason)
    log:write("dead", "id", entry.id, "namespace", entry.namespace, "key", entry.key,
      "reason", reason)
  end
  function options.on_error(raised)
    log:write("error", "code", raised.code, "namespace", raised.namespace,
      "message", raised.message)
  end
  if verbose then
    function options.on_delivered(entry)
      log:write("delivered", "id", entry.id, "namespace", entry.namespace, "key", entry.key,
        "latency", core.clock.now() - entry.created_at)
    end
  end
end

--- What it is made of -------------------------------------------------------------------------

-- What follows an @ is in that file: other users of the machine can read arguments.
local function read_value(text)
  local path = text:match("^@(.+)$")
  if not path then
    return text
  end
  local file <close>, reason = io.open(path)
  local held, unread
  if file then
    held, unread = file:read("a") -- nil of a directory
  end
  if not held then
    error(problem.new("usage", reason or ("%s: %s"):format(path, unread)), 0)
  end
  return (held:gsub("%s+$", ""))
end

-- `--to NAMESPACE=URL`, or a URL, for all namespaces that have no destination of their own.
local function read_route(text)
  local namespace, url = text:match("^([^=:]*)=(.*)$")
  return { namespace = namespace or "*", url = read_value(url or text), options = {} }
end

-- A number, true or false, if it looks like one and the destination takes no string there.
local function typed(url, name, text)
  if pcall(outbox.publisher, url, { [name] = text }) then
    return text
  end
  return tonumber(text) or text == "true" or text ~= "false" and text
end

-- `--option NAME=VALUE`, or `--option NAME.FIELD=VALUE`, belongs to the `--to` before it.
local function add_option(arguments, _, option)
  local route, value = arguments.to[#arguments.to], read_value(option.value)
  if not route then
    error(problem.new("usage", "--option comes after the --to that it belongs to"), 0)
  end
  local name, field = option.name:match("^(.-)%.(.+)$")
  if not name then
    route.options[option.name] = typed(route.url, option.name, value)
    return
  end
  local fields = route.options[name] or {}
  if type(fields) ~= "table" then
    error(problem.new("usage", ("--option %s has a value, and so no fields"):format(name)), 0)
  end
  route.options[name], fields[field] = fields, value
end

local function make_publisher(routes)
  local publishers = {}
  for _, route in ipairs(routes) do
    if publishers[route.namespace] then
      error(problem.new("usage", ("two destinations of '%s'"):format(route.namespace)), 0)
    end
    publishers[route.namespace] = outbox.publisher(route.url, route.options)
  end
  return outbox.publisher(publishers)
end

-- The arguments that are a processor's options, "processor_" or "retry_" before their names.
local function processor_options(arguments)
  local options = { retry = {} }
  for name, value in pairs(arguments) do
    local whose, option = name:match("^(%l+)_(.*)$")
    if whose == "processor" then
      options[option] = value
    elseif whose == "retry" then
      options.retry[option] = value
    end
  end
  return options
end

--- Running ------------------------------------------------------------------------------------

local function relay(arguments)
  collectgarbage("incremental", 400) -- a batch is garbage all at once: half as often will do
  local store <close> = database.open(arguments, "normal")
  local before = store:stats() -- fails if the tables are not there
  local publisher <close> = make_publisher(arguments.to)
  local log = new_log(arguments.log == "json", arguments.to)
  local options = processor_options(arguments)
  local processor, progress, stopping, unread

  -- Sleeps, until there is something to do, or a signal comes if none has come yet: then the
  -- processor is told to stop.
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

  add_hooks(options, log, arguments.verbose)
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
  progress = Progress.new(store, processor, log)
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
  local left = done.retried + done.deferred + done.dead + done.errors + after.ready > 0
  return arguments.once and left and UNDELIVERED or 0
end

return function(parser, convert)
  local command = parser:command("relay")
    :summary("Deliver what is published.")
    :description("Delivers what is published: what is there, and what comes, until it is told to "
      .. "stop. SIGINT, SIGTERM or SIGHUP let it finish the batch in hand and give its claim back; "
      .. "another one, two seconds later, ends it at once. Events are logged to standard error.")
    :epilog("Destinations: redis://HOST, http://HOST/PATH, https://HOST/PATH, exec:COMMAND, "
      .. "file:PATH, stdout: (see docs/destinations.md). @FILE in place of a URL, or of a value, "
      .. "is what that file holds.")
    :action(function(options)
      options.run = relay
    end)
  database.define(command)
  local function option(name, target, argname, converter, description)
    return command:option(name, description):target(target):argname(argname):convert(converter)
  end
  command:option("--to", "Where to deliver: the URL of a destination. May be repeated, with "
    .. "NAMESPACE=URL for one namespace."):argname("URL"):count("1+"):convert(read_route)
  command:option("--option", "An option of the destination before it. May be repeated.")
    :argname("NAME=VALUE"):count("*"):convert(convert.pair):action(add_option)
  command:flag("--once", "Deliver what is there, then exit: with 4 if something that was due "
    .. "failed, or waits for what failed, or for another processor.")
  command:option("--log", "How to log, default text."):choices({ "text", "json" })
  command:flag("--verbose", "Log each batch and each delivery too.")
  option("--batch-size", "processor_batch_size", "COUNT", convert.count,
    "Messages per call of the destination, default 20, and 100 to "
    .. "redis:, file: and stdout:.")
  command:option("--ordering", "What waits behind an entry that is to be retried: those of its key "
    .. "(the default), none or all (strict)."):target("processor_ordering")
    :choices({ "key", "none", "strict" })
  option("--limit", "processor_limit", "COUNT", convert.count,
    "With --ordering none: entries claimed at a time, for several processors to share a backlog.")
  option("--retry-base", "retry_base", "SECONDS", convert.number,
    "The longest delay of the first retry, default 1.")
  option("--retry-factor", "retry_factor", "NUMBER", convert.number,
    "How it grows with each one that follows, default 2.")
  option("--retry-cap", "retry_cap", "SECONDS", convert.number,
    "The longest delay of any, default 300.")
  option("--max-attempts", "retry_max_attempts", "COUNT", convert.count,
    "After so many an entry is a dead letter, default 10.")
  option("--claim-duration", "processor_claim_duration", "SECONDS", convert.number,
    "After a crash others wait for that long, default 2.")
  option("--publish-timeout", "processor_publish_timeout", "SECONDS", convert.number,
    "A call of the destination that takes longer loses its claim, default 60.")
  option("--process-interval", "processor_process_interval", "SECONDS", convert.number,
    "The longest sleep, default 10.")
  command:option("--processor-id", "Unique among those that are alive, default made up.")
    :target("processor_processor_id"):argname("ID")
end
