--- The processor: claims what waits, hands it to a publisher, deletes what was delivered, retries
-- what failed, and makes a dead letter of what fails too often. Made by `outbox.processor`.
--
-- It needs no event loop: `run` blocks until `stop`. In a loop of any kind call `step`, which does
-- not block, whenever `pollfd` is readable and after the seconds that `step` returned. It has the
-- methods that cqueues polls an object by.
-- @classmod outbox.processor

local core = require("outbox.core")
local delivery = require("outbox.delivery")
local option = require("outbox.options")
local problem = require("outbox.problem")

local max, min, random = math.max, math.min, math.random

-- How long one that stands by does not listen: the bell rings at every commit of the one who works.
local STANDBY = 0.01
-- Failures of the database: how to back off, how often to try to settle before a stop gives it up,
-- and which of them no patience cures.
local DATABASE_RETRY = { base = 0.05, factor = 2, cap = 5 }
local STOP_TRIES = 5
local FATAL = { closed = true, forked = true }
local NO_THREAD = { error = true, nomem = true }
-- The most entries that are claimed at a time where several share a backlog.
local MOST_CLAIMED = 100000

local Processor = {}
Processor.__index = Processor
Processor.__name = "outbox.processor"

-- A span of time from now on.
function Processor:span(seconds)
  return { since = self.now(), seconds = seconds }
end

-- Less than a microsecond, which is what the database can tell, is nothing.
local function round(seconds)
  return seconds < 0.5e-6 and 0 or seconds
end

-- What is left of a span. One that began in the future has ended: the clock was put back since.
function Processor:left(span)
  local passed = self.now() - span.since
  return passed < 0 and 0 or round(span.seconds - passed)
end

--- Hooks --------------------------------------------------------------------------------------

-- The default of on_error: what goes wrong is seen even where no hook was set.
local function complain(trouble)
  io.stderr:write(problem.text(trouble), "\n")
end

local function report(self, trouble)
  self.counters.errors = self.counters.errors + 1
  local ok, again = pcall(self.options.on_error, trouble)
  if not ok then
    complain(trouble)
    complain(problem.new("hook", "on_error raised: " .. problem.text(again), again))
  end
end

local function call_hook(self, name, ...)
  local hook = self.options[name]
  if hook then
    local ok, cause = pcall(hook, ...)
    if not ok then
      report(self, problem.new("hook", name .. " raised: " .. problem.text(cause), cause))
    end
  end
end

--- Taking -------------------------------------------------------------------------------------

-- The namespaces whose destination is down and not to be probed yet.
local function resting(self)
  local list = {}
  for namespace, outage in pairs(self.outages) do
    if outage.span then
      list[#list + 1] = namespace
    end
  end
  return list
end

local function read(self, size, selection)
  local entries, after = self.store:get_claimed_entries(self.options.processor_id, size, selection)
  local batch, alone = delivery.batch(self, entries, self.after)
  return batch, after, alone
end

-- Reads the next batch, and notes in the claim that it is in hand: one entry that must be alone, or
-- some of which none must. Also returns up to where it has read.
local function take(self)
  local options, except = self.options, resting(self)
  if options.ordering == "strict" and #except > 0 then
    return nil -- none may pass the one whose destination is down
  end
  local selection =
    { ordering = options.ordering, after = self.after, except = except, hold = true }
  local batch, after, alone = read(self, options.batch_size, selection)
  if alone and #batch.ids > 1 then
    batch, after = read(self, max(alone - 1, 1), selection)
  end
  return batch, after
end

-- Whether it is time to claim again, for what falls due and for what others have brought back.
local function is_stale(self)
  return self:left(self.fresh) == 0 or self.again_at and self.again_at <= self.now()
end

-- Renews the claim and takes the next batch, in one transaction with what `write` writes between:
-- no lock is waited for after the deadline was set, and what is noted as in hand is what will be
-- handed out. Returns whether the claim was still there; one that is lost ends the work.
local function go_on(self, write)
  local store, options, had_batch = self.store, self.options, self.batch ~= nil
  local lease, renewed, batch, after
  store:transaction(function()
    lease = self:span(options.claim_duration)
    renewed = store:renew_claim(options.processor_id, lease.since + lease.seconds)
    if write then
      write(renewed)
    end
    if renewed and not self.stopping and not (write and is_stale(self)) then
      batch, after = take(self)
    end
  end)
  self.lease, self.claimed = lease, renewed
  self.batch, self.more = nil, false
  if batch then
    self.batch = batch.ids[1] and batch
    -- A reading that found nothing may have ended early, among many that wait for others.
    self.more = self.batch ~= nil or after ~= (self.after or math.mininteger)
    self.after = after
  end
  -- Before it rests: is there more to claim, or a claim to give back?
  self.woken = self.woken or not renewed or had_batch and not self.more
  return renewed
end

local function claim(self)
  local options, shared = self.options, self.options.ordering == "none"
  local kept = self.claimed and self:left(self.lease) > 0 -- nobody else has been at it since
  local look_at_all = shared or not kept or self:left(self.net) == 0
  self.interval = self:span(options.process_interval * (0.75 + 0.25 * random()))
  self.fresh = self:span(options.claim_duration / 2)
  if shared and not resting(self)[1] then
    self.claim_options.limit = options.limit or 10 * options.batch_size
  end
  local claimed, again_at, restored_from, refused = self.store:claim_entries(options.processor_id,
    self.now() + options.claim_duration, self.claim_options)
  self.claimed, self.again_at, self.deaf, self.more = claimed, again_at, nil, false
  if look_at_all or not claimed then
    self.after = nil -- somebody may have changed anything before it
    self.net = self:span(options.process_interval)
  elseif restored_from and self.after and restored_from <= self.after then
    self.after = restored_from - 1
  end
  if claimed then
    go_on(self)
  elseif refused then
    self.deaf = self:span(STANDBY)
  end
end

--- Settling -----------------------------------------------------------------------------------

local function count(self, outcome)
  local counters, latency, now = self.counters, self.counters.latency, self.now()
  local delivered, created = outcome.delivered, outcome.batch.created
  local sum, most = latency.sum, latency.max
  for j = 1, #delivered do
    local seconds = now - created[delivered[j]]
    sum = sum + seconds
    if seconds > most then
      most = seconds
    end
  end
  latency.count, latency.sum, latency.max = latency.count + #delivered, sum, most
  counters.batches = counters.batches + 1
  counters.delivered = counters.delivered + #delivered
  if #delivered > 0 then
    counters.last_delivered_at = now
  end
end

local function tell_failures(self, failures, counter, hook)
  for _, failure in ipairs(failures) do
    if failure.found then -- else it was somebody else's by then
      self.counters[counter] = self.counters[counter] + 1
      call_hook(self, hook, failure.entry, failure.reason, failure.delay)
    end
  end
end

local function tell(self, outcome)
  for _, raised in ipairs(outcome.raised) do
    report(self, raised)
  end
  if self.options.on_delivered then
    for _, i in ipairs(outcome.delivered) do
      call_hook(self, "on_delivered", outcome.batch.entries[i])
    end
  end
  self.counters.put_off = self.counters.put_off + #outcome.aside
  tell_failures(self, outcome.retried, "retried", "on_retry")
  tell_failures(self, outcome.dead, "dead", "on_dead")
  call_hook(self, "on_batch", {
    size = #outcome.batch.ids,
    delivered = #outcome.delivered,
    retried = #outcome.retried,
    dead = #outcome.dead,
    seconds = outcome.seconds,
  })
end

-- The ids of what was delivered; those of a whole batch as they were read.
local function delivered_ids(outcome)
  local ids, delivered = outcome.batch.ids, outcome.delivered
  if #delivered == #ids then
    return ids
  end
  local list = {}
  for j, i in ipairs(delivered) do
    list[j] = ids[i]
  end
  return list
end

-- Puts an entry off, and remembers to claim when it falls due.
local function delay(self, id, seconds, reason)
  local due_at = self.now() + seconds
  self.again_at = min(self.again_at or due_at, due_at)
  return self.store:retry_entry(id, due_at, reason)
end

local function write_failures(self, outcome)
  for _, failure in ipairs(outcome.retried) do
    failure.found = delay(self, failure.id, failure.delay, failure.reason)
  end
  for _, failure in ipairs(outcome.dead) do
    failure.found =
      self.store:bury_entry(failure.id, not failure.counted and failure.reason or nil)
  end
  for _, aside in ipairs(outcome.aside) do
    delay(self, aside.id, aside.delay)
  end
  for _, id in ipairs(outcome.back) do
    delay(self, id, 0)
  end
end

local function report_loss(self)
  self.counters.lost = self.counters.lost + 1
  report(self, problem.new("lost", "another processor took over while a batch was in hand"))
end

-- Writes the outcome down, and goes on.
local function settle(self)
  local store, outcome = self.store, self.outcome
  local ids = delivered_ids(outcome)
  local renewed = go_on(self, function(renewed)
    store:delete_entries(table.unpack(ids))
    if renewed then -- else a failure is the business of whoever has taken over
      write_failures(self, outcome)
    end
    if outcome.rewind_all then
      self.after = nil
    elseif outcome.rewind and self.after then -- else it begins anew as it is
      self.after = outcome.batch.from
    end
  end)
  self.outcome = nil
  if not outcome.idle then
    count(self, outcome)
    tell(self, outcome)
  end
  if not renewed then
    report_loss(self)
  end
end

--- The loop -----------------------------------------------------------------------------------

-- Closes when the delivery ends, in whatever way: the claim is kept no longer. If it was cut off,
-- as in a coroutine that is closed, the batch stays in hand, and the next claim charges it.
local Delivering = {
  __close = function(self)
    local processor = self.processor
    processor.store:stop_keeping()
    if not processor.outcome then
      processor.batch, processor.more, processor.after, processor.woken = nil, false, nil, true
    end
  end,
}

-- Without a thread to keep it, the claim must last for as long as the publisher takes.
local function keep_claim(self)
  local store, options = self.store, self.options
  local ok, trouble = pcall(store.keep_claim, store, options.processor_id,
    options.claim_duration / 2, options.publish_timeout)
  if not ok and (type(trouble) ~= "table" or not NO_THREAD[trouble.code]) then
    error(trouble, 0)
  elseif not ok then
    report(self, trouble)
  end
end

local function deliver(self)
  keep_claim(self)
  local delivering <close> = setmetatable({ processor = self }, Delivering) -- luacheck: no unused
  self.outcome = delivery.deliver(self, self.batch)
end

-- The claim must last until the thread that keeps it renews it, after half of its time. What lay in
-- hand for longer may be somebody else's by now.
local function keep_fresh(self)
  if self:left(self.lease) < 0.75 * self.options.claim_duration then
    self.after = self.after and self.batch.from
    if not go_on(self) then
      report_loss(self)
    end
  end
end

-- Of a shared backlog its part holds nothing to deliver. Where that is because a destination is
-- down, a larger part may hold something. Else it does not listen for a while: its renewals wake
-- others with nothing to deliver either, whose renewals wake it again.
local function share(self)
  local limit = self.claim_options.limit
  if resting(self)[1] and limit < MOST_CLAIMED then
    self.claim_options.limit = min(2 * limit, MOST_CLAIMED)
    self.fresh.seconds, self.woken = 0, true
  else
    self.deaf = self:span(min(1, self.options.process_interval))
  end
end

-- Does what there is to do now: at most one batch.
local function cycle(self)
  if not self.outcome and not self.batch then
    self.woken = false
    if not self.more or not self.claimed or is_stale(self) or not go_on(self) then
      claim(self)
    end
    if self.options.ordering == "none" and self.claimed and not self.more then
      share(self)
    end
  end
  if self.batch and not self.outcome then
    keep_fresh(self)
  end
  if self.batch and not self.outcome then
    deliver(self)
  end
  if self.outcome then
    settle(self)
  end
end

-- Seconds until the next destination that is down is to be probed.
local function rest_of_outages(self)
  local seconds = math.huge
  for _, outage in pairs(self.outages) do
    if outage.span then
      local left = self:left(outage.span)
      seconds = min(seconds, left)
      if left == 0 then -- from now on it is read again, from the beginning
        outage.span, self.after, self.woken = nil, nil, true
      end
    end
  end
  return seconds
end

-- Seconds until there is something to do, unless a bell rings before.
local function rest(self)
  if self.paused then
    return self:left(self.paused)
  elseif self.batch or self.outcome or self.more or self.woken or self.stopping then
    return 0
  elseif self.deaf and self:left(self.deaf) > 0 then
    return self:left(self.deaf)
  end
  self.deaf = nil
  local seconds = self:left(self.interval)
  if self.again_at then
    seconds = min(seconds, round(self.again_at - self.now()))
  end
  if self.claimed then -- for entries that wait, and others are kept from them
    seconds = min(seconds, round(self:left(self.lease) - self.options.claim_duration / 2))
  end
  return min(seconds, rest_of_outages(self))
end

-- Runs what may fail for the database's sake: then it is reported, and the loop backs off. What
-- has no code is none of that: an error in the clock, or somebody who has pressed Ctrl-C.
local function attempt(self, fn)
  local ok, trouble = pcall(fn, self)
  if ok then
    self.failures, self.paused = 0, nil
    return true
  elseif type(trouble) ~= "table" or trouble.code == nil or FATAL[trouble.code] then
    error(trouble, 0)
  end
  self.failures = self.failures + 1
  self.paused = self:span(delivery.backoff(DATABASE_RETRY, self.failures))
  report(self, trouble)
  return false
end

-- What was never handed out goes back, so that others need not wait for the deadline.
local function release(self)
  self.batch, self.more, self.after, self.woken = nil, false, nil, true
  if self.claimed then
    self.store:release_claim(self.options.processor_id)
    self.claimed = false
  end
end

local function finish(self)
  if self.outcome and not attempt(self, settle) then
    if self.failures < STOP_TRIES then
      return true
    end
    report(self, problem.new("lost", "stopped before it could delete what it has delivered"))
    self.outcome, self.claimed = nil, false -- the claim is left to lapse
  end
  attempt(self, release)
  self.stopping, self.failures, self.paused = false, 0, nil
  return nil
end

local function look(self)
  local rung, again = self.store:wait(0)
  self.woken = self.woken or rung
  self.look_again = again
end

local function listen(self)
  if rest(self) == 0 then
    return
  elseif self.paused or self.deaf then
    pcall(self.store.wait, self.store, 0) -- lest the descriptor stays readable all that time
  else
    attempt(self, look)
  end
end

-- Returns nil when it was told to stop, and all is settled.
local function step(self)
  self.look_again = nil
  if self.stopping then
    return finish(self)
  end
  rest_of_outages(self)
  listen(self)
  if rest(self) == 0 then
    self.paused = nil
    attempt(self, cycle)
    listen(self) -- the descriptor tells only what came after it was first listened to
  end
  return true
end

-- Seconds after which to step again, though the descriptor is silent.
local function pause(self)
  return min(rest(self), self.look_again or math.huge)
end

-- One at a time: a publisher that yields, or calls back, must not start a second batch.
local Busy = {
  __close = function(self)
    self.processor.busy = false
  end,
}

local function enter(self)
  if self.busy then
    error("the processor is at work already", 3)
  end
  self.busy = true
  return setmetatable({ processor = self }, Busy)
end

--- Does the next thing that there is to do, at most one batch, and does not block unless the
-- publisher does. Called from the publisher, or another coroutine meanwhile, it does nothing.
-- @function processor:step
-- @treturn ?number seconds after which to call it again, or sooner when `pollfd` is readable; nil
-- when `stop` was called and all is settled
-- @raise `closed`, `forked`; other failures of the database are reported and tried again
---@return number?
function Processor:step()
  if self.busy then
    return self.options.process_interval
  end
  local busy <close> = enter(self) -- luacheck: no unused
  return step(self) and pause(self)
end

local function sleep(self, seconds)
  self.counters.waits = self.counters.waits + 1
  if self.sleep then
    self.sleep(seconds)
  elseif self.paused or self.deaf then
    core.clock.sleep(seconds)
  else
    attempt(self, function()
      self.woken = self.store:wait(seconds) or self.woken
    end)
  end
end

--- Processes what there is and what comes, until `stop`. First what waits already. Blocks; sleeps
-- until a commit of any process, `wake` from a signal handler, the next entry that falls due, or
-- the interval. Where the store's clock has a `sleep` of its own, it sleeps with that alone.
-- @function processor:run
-- @raise `closed`, `forked`; other failures of the database are reported and tried again
function Processor:run()
  local busy <close> = enter(self) -- luacheck: no unused
  while step(self) do
    local seconds = rest(self)
    if seconds > 0 then
      sleep(self, seconds)
    end
  end
end

--- Processes all that can be delivered now, then gives the claim back and returns. What failed is
-- left for the next time.
-- @function processor:pump
-- @treturn integer how many entries were delivered
-- @raise what the store raises
---@return integer
function Processor:pump()
  local busy <close> = enter(self) -- luacheck: no unused
  local before = self.counters.delivered
  rest_of_outages(self)
  self.woken, self.paused = true, nil
  repeat
    cycle(self)
  until self.stopping or not (self.batch or self.more or self.woken)
  release(self)
  self.stopping = false
  return self.counters.delivered - before
end

--- Makes `run` return, or `step` return nil, once the batch in hand is settled; the claim is given
-- back. May be called from anywhere: a hook, the publisher, a signal handler, another coroutine.
-- @function processor:stop
function Processor:stop()
  self.stopping = true
end

--- Makes it look for work at the next `step`, or end the sleep of `run` if a signal did.
-- @function processor:wake
function Processor:wake()
  self.woken = true
end

--- What it has done: `delivered`, `retried`, `put_off` (uncharged, for a while) and `dead`
-- (entries), `batches`, `errors`, `lost` (claims), `waits`; `latency`, from created to delivered:
-- `count`, `sum` and `max` in seconds; and `last_delivered_at`, seconds since the epoch, nil before
-- the first. A copy.
-- @function processor:stats
-- @treturn table
---@return outbox.processor_stats
function Processor:stats()
  local stats = {}
  for name, value in pairs(self.counters) do
    stats[name] = value
  end
  local latency = self.counters.latency
  stats.latency = { count = latency.count, sum = latency.sum, max = latency.max }
  return stats
end

--- The descriptor that becomes readable when somebody commits; nil where there is none.
-- @function processor:pollfd
-- @treturn ?integer
---@return integer?
function Processor:pollfd()
  return self.store:pollfd()
end

--- What to poll the descriptor for, as cqueues asks.
-- @function processor:events
-- @treturn string "r"
---@return string
function Processor:events() -- luacheck: no self
  return "r"
end

--- Seconds after which to call `step` even if the descriptor is silent, as cqueues asks.
-- @function processor:timeout
-- @treturn number
---@return number
function Processor:timeout()
  if self.busy then
    return self.options.process_interval
  end
  return pause(self)
end

--- Options ------------------------------------------------------------------------------------

local ORDERINGS = { key = true, none = true, strict = true }

local seconds, integer = option.seconds, option.count

local RETRY = {
  base = { default = 1, check = seconds },
  factor = { default = 2, check = option.number(1, "a number") },
  cap = { default = 300, check = seconds },
  max_attempts = { default = 10, check = integer },
}

local OPTIONS = {
  store = { required = true, check = option.store },
  publisher = { required = true, check = option.publisher },
  processor_id = { check = option.string },
  batch_size = { check = integer },
  claim_duration = { default = 2, check = seconds },
  publish_timeout = { default = 60, check = seconds },
  process_interval = { default = 10, check = seconds },
  ordering = { default = "key", check = function(value)
    return ORDERINGS[value] ~= nil, '"key", "none" or "strict"'
  end },
  limit = { check = integer },
  retry = { default = {}, check = function(value)
    return type(value) == "table", "a table"
  end },
  on_delivered = { check = option.callback },
  on_retry = { check = option.callback },
  on_dead = { check = option.callback },
  on_batch = { check = option.callback },
  on_error = { default = complain, check = option.callback },
}

--- Makes a processor. All that is wrong with the options is told in one error.
--
-- The publisher is a function `(messages, namespace)`, or a table with it as a method `publish`
-- and, if it likes, the `batch_size` that suits it. It gets entries of one namespace, in order, and
-- returns nothing or true when all were delivered, or a table `{[i] = reason}` of those that
-- failed; a reason is any value, or a table with `reason` and `permanent = true` (straight to the
-- dead letters), `retry_after` (seconds), or `uncharged = true` (it was not sent, or it is not its
-- fault: it is handed out again, after `retry_after`). When it raises, or returns false or
-- `nil, reason`, or all failed uncharged, nothing is held against any message: the destination may
-- be down. It may yield, where the loop around it can.
-- @function outbox.processor
-- @tparam table options `store`, of which each processor needs its own, and `publisher`;
-- `processor_id`, unique among those that are alive, default made of host, process and chance;
-- `batch_size`, default what suits the publisher, or 20 entries; `claim_duration`, after which
-- others take over if it dies, default 2 s; `publish_timeout`, up to which the claim is kept while
-- one batch is being published, default 60 s; `process_interval`, the longest sleep,
-- default 10 s; `ordering`: what waits behind an entry that is to be retried, "key" (the default:
-- entries of its namespace and key), "none" or "strict" (all); `limit`, with "none" only: how many
-- entries to claim at a time, so that several processors share a backlog, default ten batches;
-- `retry`: `base` (1 s), `factor` (2), `cap` (300 s) of the exponential backoff, and `max_attempts`
-- (10); hooks: `on_delivered(entry)`, `on_retry(entry, reason, delay)`, `on_dead(entry, reason)`,
-- `on_batch{size, delivered, retried, dead, seconds}`, `on_error(problem)`, whose default writes to
-- stderr
-- @treturn outbox.processor
local function new(options)
  if type(options) ~= "table" then
    error(("bad argument #1 to 'processor' (table expected, got %s)"):format(type(options)), 2)
  end
  local wrong = {}
  local retry = type(options.retry) == "table" and options.retry or {}
  options = option.check(OPTIONS, options, "", wrong)
  options.retry = option.check(RETRY, retry, "retry.", wrong)
  if options.limit and options.ordering ~= "none" then
    wrong[#wrong + 1] = 'limit needs ordering = "none"'
  end
  option.refuse(wrong, "argument #1 to 'processor'")
  options.processor_id = options.processor_id
    or ("%s-%s"):format(core.process_name(), core.uuid_v4():sub(1, 8))
  local clock, publisher = options.store:clock(), options.publisher
  options.batch_size = options.batch_size or option.default_batch_size(publisher)
  local self = setmetatable({
    store = options.store,
    options = options,
    now = clock.now,
    sleep = clock ~= core.clock and clock.sleep or nil,
    publish = publisher,
    claim_options = options.ordering ~= "none" and { exclusive = true }
      or { limit = options.limit or 10 * options.batch_size },
    suspects = {}, -- by id: entries of a call that raised, and that are to be tried alone
    outages = {}, -- by namespace: destinations that may be down
    successes = {}, -- by namespace: calls that got something through
    failures = 0, -- of the database, in a row
    woken = true,
    counters = {
      delivered = 0, retried = 0, put_off = 0, dead = 0, batches = 0, errors = 0, lost = 0,
      waits = 0,
      latency = { count = 0, sum = 0, max = 0 },
    },
  }, Processor)
  if type(publisher) == "table" then
    function self.publish(messages, namespace)
      return publisher:publish(messages, namespace)
    end
  end
  self.interval, self.net, self.fresh, self.lease =
    self:span(0), self:span(0), self:span(0), self:span(0)
  return self
end

return new
