--- The processor: claims waiting entries, hands them to a publisher, deletes the delivered ones,
-- retries the failed ones, and makes a dead letter of an entry that fails too often. Made by
-- `outbox.processor`.
--
-- It needs no event loop: `run` blocks until `stop`. In an event loop call `step`, which does not
-- block, whenever `pollfd` is readable, and after the number of seconds that `step` returned. The
-- processor has the methods by which cqueues polls an object.
-- @classmod outbox.processor

local core = require("outbox.core")
local hooks = require("outbox.processor.hooks")
local new_agenda = require("outbox.processor.agenda")
local new_signals = require("outbox.signals")
local new_work = require("outbox.processor.work")
local options = require("outbox.processor.options")
local option = require("outbox.options")
local retry = require("outbox.retry")

local min = math.min

-- How to back off when the database fails; how often to try to settle before a stop gives it up;
-- and the errors that trying again cannot fix.
local DATABASE_BACKOFF = { base = 0.05, factor = 2, cap = 5 }
local STOP_TRIES = 5
local FATAL = { closed = true, forked = true, moved = true }

local Processor = {}
Processor.__index = Processor
Processor.__name = "outbox.processor"

--- The loop -----------------------------------------------------------------------------------

-- Seconds until there is something to do, unless a commit wakes it before. Work that is there, or
-- `wake`, cuts a pause short, unless the pause is there because the database failed.
local function rest(self)
  local paused = self.agenda:paused_for()
  if paused == 0 and self.rung then
    self.rung = false
    self.work:wake()
  end
  if paused > 0 and self.failures > 0 then
    return paused
  elseif self.work:is_pending() or self.work.stopping then
    return 0
  elseif paused > 0 then
    return paused
  end
  return min(self.agenda:next(), self.work:until_probe())
end

-- Runs a function that may fail because of the database. Then the error is reported, and the loop
-- backs off. An error without a code does not come from the database but from the clock, for
-- example, or from Ctrl-C: it is raised again.
local function attempt(self, fn, object)
  local ok, trouble = pcall(fn, object)
  if ok then
    self.failures = 0
    return true
  elseif type(trouble) ~= "table" or trouble.code == nil or FATAL[trouble.code] then
    error(trouble, 0)
  end
  self.failures = self.failures + 1
  self.work:wake()
  self.agenda:pause(retry.backoff(DATABASE_BACKOFF, self.failures))
  self.hooks:report(trouble)
  return false
end

-- Returns true if it has to be tried again, nil when all is settled.
local function finish(self)
  local work = self.work
  if work.outcome and not attempt(self, work.settle, work) then
    if self.failures < STOP_TRIES then
      return true
    end
    work:abandon()
  end
  if not attempt(self, work.release, work) and self.failures < STOP_TRIES then
    return true -- what it has in hand would be charged
  end
  work.stopping, self.failures = false, 0
  self.agenda:resume()
  return nil
end

local function look(self)
  local rung, again = self.store:wait(0)
  if rung then
    self.work:wake()
  end
  self.look_again = again
end

-- Returns whether there is something to do at once.
local function listen(self)
  if rest(self) == 0 then
    return true
  elseif self.agenda:paused_for() > 0 then
    local ok, rung = pcall(self.store.wait, self.store, 0) -- else the descriptor stays readable
    self.rung = self.rung or ok and rung
  else
    attempt(self, look, self)
  end
  return rest(self) == 0
end

-- Returns nil when `stop` was called and all is settled, else true; and whether there is something
-- to do at once.
local function step(self)
  local work = self.work
  self.look_again = nil
  if work.stopping then
    local is_waiting = self.failures > 0 and self.agenda:paused_for() > 0
    return is_waiting or finish(self)
  end
  local is_busy = listen(self)
  if is_busy then
    self.agenda:resume()
    attempt(self, work.cycle, work)
    is_busy = listen(self) -- the descriptor shows only commits that came after the first listening
  end
  return true, is_busy
end

-- Seconds after which to step again, even if the descriptor is silent.
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

--- Does the next thing that there is to do, at most one batch. It does not block unless the
-- publisher does. When it is called from the publisher, or from another coroutine while a step or
-- `run` is under way, it does nothing.
-- @function processor:step
-- @treturn ?number seconds after which to call it again, or sooner when `pollfd` is readable; nil
-- when `stop` was called and all is settled
-- @raise `closed`, `forked`, `moved`; other failures of the database are reported and tried again
---@return number?
function Processor:step()
  if self.busy then
    return self.options.process_interval
  end
  local busy <close> = enter(self) -- luacheck: no unused
  return step(self) and pause(self)
end

-- Sleeps, and stops the processor if a signal has come before or comes meanwhile. Returns whether
-- one did.
local function sleep_or_stop(self, seconds)
  if seconds > 0 then
    self.hooks:count_wait()
  end
  if self.sleep and seconds > 0 then
    self.sleep(seconds)
    seconds = 0
  end
  local fd = self.agenda:paused_for() == 0 and self.store:pollfd() or nil
  local name = core.await_signal(seconds, fd)
  if name then
    self:stop()
  end
  return name ~= nil
end

local function run_until_signal(self)
  local signals <close> = new_signals()
  local is_caught = false
  while step(self) do
    if is_caught then
      core.clock.sleep(rest(self))
    else
      is_caught = sleep_or_stop(self, pause(self))
    end
  end
  return signals:caught()
end

local RUN_OPTIONS = { signals = { default = false, check = option.boolean } }

local function sleep(self, seconds)
  self.hooks:count_wait()
  if self.sleep then
    self.sleep(seconds)
  elseif self.agenda:paused_for() > 0 then
    core.clock.sleep(seconds)
  else
    attempt(self, function()
      if self.store:wait(seconds) then
        self.work:wake()
      end
    end)
  end
end

--- Processes entries until `stop`: first the waiting ones, then new ones. Blocks. It sleeps until a
-- commit of any process, `wake` from a signal handler, the next entry that falls due, or the end of
-- the interval. If the store's clock has a `sleep` of its own, it sleeps with that alone.
--
-- With `signals = true` it also ends with SIGTERM or SIGINT, as after `stop`: the batch in hand is
-- finished, the claim is given back, and no attempt is charged. A second signal, two seconds later
-- or more, ends the process at once. When `run` returns, the signals do again what they did before.
-- Signals that were ignored stay ignored.
-- @function processor:run
-- @tparam[opt] table options `signals`, default false
-- @treturn ?string with `signals`: the name of the signal that came, nil if none did
-- @raise `closed`, `forked`, `moved`; other failures of the database are reported and tried again
---@param given? { signals?: boolean }
---@return string?
function Processor:run(given)
  if given ~= nil and type(given) ~= "table" then
    error(("bad argument #1 to 'run' (table expected, got %s)"):format(type(given)), 2)
  end
  local wrong = {}
  local how = option.check(RUN_OPTIONS, given or {}, "", wrong)
  option.refuse(wrong, "argument #1 to 'run'")
  local busy <close> = enter(self) -- luacheck: no unused
  if how.signals then
    return run_until_signal(self)
  end
  local is_alive, is_busy = step(self)
  while is_alive do
    local seconds = is_busy and 0 or rest(self)
    if seconds > 0 then
      sleep(self, seconds)
    end
    is_alive, is_busy = step(self)
  end
end

--- Processes all entries that can be delivered now, then gives the claim back and returns. Entries
-- that failed are left for the next time.
-- @function processor:pump
-- @treturn integer how many entries were delivered
-- @treturn ?number in how many seconds to call it again, because a `rate` holds entries back; nil
-- if none does
-- @raise what the store raises
---@return integer, number?
function Processor:pump()
  local busy <close> = enter(self) -- luacheck: no unused
  local work, counters = self.work, self.hooks.counters
  local before = counters.delivered
  work:wake()
  self.failures = 0
  self.agenda:resume()
  repeat
    work:cycle()
  until work.stopping or not work:is_pending()
  work:release()
  work.stopping = false
  return counters.delivered - before, work:until_paced()
end

--- Makes `run` return, or `step` return nil, once the batch in hand is settled and the claim is
-- given back. May be called from anywhere: a hook, the publisher, a signal handler, another
-- coroutine.
-- @function processor:stop
function Processor:stop()
  self.work.stopping = true
end

--- Makes the processor look for work at the next `step`. From a signal handler it also ends the
-- sleep of `run`.
-- @function processor:wake
function Processor:wake()
  self.work:wake()
end

--- What the processor has done, as a copy: the numbers of entries that were `delivered`, `retried`,
-- `deferred` (for a while, uncharged) and `dead`; of `batches`, `errors`, `lost` claims and
-- `waits`; `latency`, the seconds from created to delivered, as `count`, `sum` and `max`; and
-- `last_delivered_at`, seconds since the epoch, nil before the first. `down`: an array of the
-- namespaces whose destinations it has found down, each with `namespace`, `down_since`, `error`,
-- why, and `probe_at`, when it tries the next message.
-- @function processor:stats
-- @treturn table
---@return outbox.processor_stats
function Processor:stats()
  local stats = self.hooks:stats()
  stats.down = self.work.jury:down()
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

--- Making a processor --------------------------------------------------------------------------

--- Makes a processor. One error says all that is wrong with the options.
--
-- The publisher is a function `(messages, namespace)`, or a table with it as a method `publish`
-- and, optionally, the `batch_size` that suits it, `ordered = true`, and the `namespaces` that it
-- serves. It gets entries of one namespace, in order, and at most one of a key, unless it is
-- `ordered`: then it gets all, and after a failed one must send nothing more of that key. It
-- returns nothing or true when all were delivered, or a table `{[i] = reason}` of those that failed
-- (false: it was delivered). A reason is any value, or a table with `reason` and any of `permanent
-- = true` (the message becomes a dead letter at once), `retry_after` (seconds until the next
-- attempt) and `uncharged = true` (it is not to blame: with `retry_after` it waits so long, for an
-- hour at most; without, there was no answer). When the publisher raises, or returns false or `nil,
-- reason`, or there was no answer for any message, no message is charged, because the destination
-- may be down: its messages are tried again, each alone, and others meanwhile. A message is charged
-- for that only where it fails alone again and again while others get through. The
-- publisher may yield, if the loop around it can.
--
-- `retry` says how long an entry waits after a failed delivery. It is a table of numbers for an
-- exponential backoff with full jitter, or a function `(entry, attempts)`. The function returns the
-- seconds until the next attempt (a negative number is 0, at most a year counts), or nil to make
-- the entry a dead letter. `attempts` is the number of failed deliveries, this one included. The
-- function is also asked when a processor died with the entry in hand: then nil makes it a dead
-- letter, and a number means that it is delivered again at once. A `retry_after` of the publisher
-- takes precedence over the delay, and a `permanent` failure is a dead letter without asking. If
-- the function raises, or returns something else, `on_error` is told, and the entry waits as by
-- default.
-- @function outbox.processor
-- @tparam table options `store`, of which each processor needs its own, and `publisher`;
-- `processor_id`, unique among the live processors, default made of host, process and a random
-- part; `batch_size`, in entries, default what suits the publisher, or 20; `batch_bytes`, the most
-- bytes of a batch that has more than one entry, default 8 MiB; `claim_duration`, after which
-- others take over if it dies, default 2 s; `publish_timeout`, for how long at most the claim is
-- kept while one batch is being published, default 60 s; `process_interval`, the longest sleep,
-- default 10 s; `ordering`, which entries are held back by an entry that is to be retried: "key"
-- (the default: later ones of its namespace and key), "none" or "strict" (all later ones);
-- `namespaces`, an array of those to serve, or `{ except = array }`, default what the publisher
-- serves, or all; `rate`, `{ per_second = number }`, how many messages of a namespace are handed
-- out in a second, default the publisher's field `rate`, or any number; `retry`: a function, or a
-- table with `base` (default 1 s), `factor` (2), `cap` (300 s) and `max_attempts` (10); hooks:
-- `on_delivered(entry)`, `on_retry(entry, reason, delay)`, `on_dead(entry, reason)`,
-- `on_batch{size, delivered, retried, dead, seconds}`, `on_error(problem)`, whose default writes to
-- stderr
-- @treturn outbox.processor
local function new(given)
  if type(given) ~= "table" then
    error(("bad argument #1 to 'processor' (table expected, got %s)"):format(type(given)), 2)
  end
  local settings, wrong = options.read(given)
  option.refuse(wrong, "argument #1 to 'processor'")
  local clock = settings.store:clock()
  local agenda, told = new_agenda(clock.now), hooks.new(settings, clock.now)
  local policy = retry.policy(settings.retry, settings.backoff, function(trouble)
    told:report(trouble)
  end)
  return setmetatable({
    store = settings.store,
    options = settings,
    sleep = clock.sleep ~= core.clock.sleep and clock.sleep or nil,
    agenda = agenda,
    hooks = told,
    work = new_work(settings, agenda, told, policy),
    -- The fields above stay as they are, these change.
    busy = false, -- whether a step, `run` or `pump` is under way
    failures = 0, -- of the database, in a row
    rung = false, -- whether somebody has committed while it paused
    look_again = nil, -- seconds after which to listen again, as the store's `wait` said
  }, Processor)
end

return new
