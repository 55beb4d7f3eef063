-- outbox relay: processors that deliver to the destinations of outbox.publisher.

local convert = require("outbox.command.common.convert")
local core = require("outbox.core")
local database = require("outbox.command.common.database")
local new_log = require("outbox.command.relay.log")
local routes = require("outbox.command.relay.routes")
local supervise = require("outbox.command.relay.supervisor")
local worker = require("outbox.command.relay.worker")

local M = {
  summary = "Deliver messages.",
  description = "Delivers all messages that are due, and those that are published later, until it "
    .. "is told to stop. With several destinations each has a process of its own: one that hangs, "
    .. "is down or crashes stops no other. SIGINT, SIGTERM or SIGHUP let it finish the batches in "
    .. "hand and release its claims. A second signal, two seconds later or more, ends it at once. "
    .. "Events are logged to standard error.",
  epilog = routes.help,
}

function M.define(command)
  database.define(command)
  local function option(name, target, argname, converter, description)
    return command:option(name, description):target(target):argname(argname):convert(converter)
  end
  command:option("--to", "The URL of a destination. May be repeated, with NAMESPACE=URL for one "
    .. "namespace: --to redis://localhost --to audit=file:audit.jsonl"):argname("URL"):count("1+")
    :convert(routes.read)
  command:option("--option", "An option of the destination before it. May be repeated.")
    :argname("NAME=VALUE"):count("*"):convert(convert.pair):action(routes.add_option)
  command:flag("--once", "Deliver what is due, then exit. The status is 4 if something that was "
    .. "due failed, waits for an entry that failed, or is claimed by another processor.")
  command:option("--log", "The format of the log, default text."):choices({ "text", "json" })
  command:flag("--verbose", "Also log each batch and each delivery.")
  option("--workers", "workers", "COUNT", convert.count,
    "How many processes each destination has, default 1. They share its messages.")
  option("--batch-size", "processor_batch_size", "COUNT", convert.count,
    "How many messages the destination before it gets at a time; before the first --to, all "
    .. "destinations. The default is 20, or 100 for brokers, file: and stdout:."):action(routes.set)
  option("--batch-bytes", "processor_batch_bytes", "BYTES", convert.count,
    "The most bytes that it gets at a time, likewise, unless one message has more. The default is "
    .. "8388608."):action(routes.set)
  option("--rate", "processor_rate", "COUNT", convert.rate,
    "How many messages of a namespace it gets in a second at most, likewise. The default is any "
    .. "number."):action(routes.set)
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

-- Whether something is ready in the namespaces that the routes serve, and not paused.
local function is_any_left(arguments)
  local store <close> = database.open(arguments)
  local namespaces = routes.namespaces(arguments.to)
  if not namespaces then
    return store:stats().oldest_age ~= nil
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

-- Finds out what is wrong with the arguments, or the database, in a process of its own: many
-- clients do not survive a fork, so a supervisor must not load them. Returns the exit status; and
-- true in that process.
local function rehearse(arguments, shares)
  local pid, pipe = core.fork()
  if pid == 0 then
    for _, share in ipairs(shares) do
      worker.rehearse(arguments, share)
    end
    return 0, true
  end
  core.close_pipe(pipe)
  return (worker.await(pid))
end

function M.run(arguments)
  -- A whole batch becomes garbage at once, so a cycle of the collector may start half as often.
  collectgarbage("incremental", 400)
  pcall(collectgarbage, "param", "pause", 400) -- Lua 5.5 ignores the number above
  local shares = routes.shares(arguments.to, arguments.workers or 1)
  local log = new_log(arguments.log == "json", arguments.to)
  local status, is_worker
  if shares[2] then
    status, is_worker = rehearse(arguments, shares)
    if not is_worker and status == 0 then
      status, is_worker = supervise(arguments, shares, log)
    end
  else
    status = worker.run(arguments, shares[1], log)
  end
  if arguments.once and status == 0 and not is_worker and is_any_left(arguments) then
    return worker.UNDELIVERED
  end
  return status
end

return M
