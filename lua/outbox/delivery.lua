-- How a processor hands a batch to its publisher, and what the answer means. Writes nothing: the
-- outcome is settled afterwards, in one transaction with the taking of the next batch.
--
-- A batch holds the `entries`, which are the publisher's from the moment it gets them, and what is
-- to be known of them whatever it does to them: by index their `ids`, `keys`, `created` and, of
-- those that failed before, `attempts`; the `calls` to be made, each a list of indexes with its
-- `namespace`; and `from`, after which seq it was read.
--
-- An outcome holds the indexes `delivered`; failures to be `retried` or made `dead`; entries that
-- step `aside` for a while, uncharged; ids that may come `back` from there at once; what was
-- `raised`; whether others are to be read again: all after `from` (`rewind`), or from the beginning
-- (`rewind_all`); and `idle`, when the publisher was not called at all.

local core = require("outbox.core")
local problem = require("outbox.problem")

local text = problem.text

-- The longest wait between two probes of a destination that is down, in seconds; and the longest
-- that one who stepped aside is away: no more than that is left to whoever comes next.
local PROBE_CAP = 30
local ASIDE_CAP = 60
-- The longest wait for a retry, whoever asks for more: a year.
local DELAY_CAP = 365 * 86400

local M = {}

--- A time from nothing up to base * factor ^ (n - 1) seconds, or the cap: full jitter.
function M.backoff(retry, n)
  return math.random() * math.min(retry.cap, retry.base * retry.factor ^ (n - 1))
end

--- Batches ------------------------------------------------------------------------------------

-- Calls of one namespace each; in strict order one ends where the namespace changes.
local function group(entries, strict)
  local list, by_namespace, current = {}, {}, nil
  for i = 1, #entries do
    local namespace = entries[i].namespace
    if not current or current.namespace ~= namespace then
      current = not strict and by_namespace[namespace]
      if not current then
        current = { namespace = namespace }
        by_namespace[namespace] = current
        list[#list + 1] = current
      end
    end
    current[#current + 1] = i
  end
  return list
end

-- The numbers up to `count`, made once: most calls are of a whole batch.
local numbers = {}

local function all(count, namespace)
  for i = #numbers + 1, count do
    numbers[i] = i
  end
  return { namespace = namespace, table.unpack(numbers, 1, count) }
end

--- Makes a batch of the entries that were read. Also returns the index of the first that must not
-- share a publisher's call with others, if there are any: one that its processor died with, one of
-- a call that raised, or any whose destination may be down.
function M.batch(self, entries, from)
  local suspects, outages, lapsed = self.suspects, self.outages, core.LAPSED
  local calm = next(suspects) == nil and next(outages) == nil
  local ids, keys, created = core.columns(entries, "id", "key", "created_at")
  local namespace, uniform, alone = entries[1] and entries[1].namespace, true, nil
  local attempts = {}
  for i = 1, #entries do
    local entry = entries[i]
    local other, last_error = entry.namespace, entry.last_error
    if last_error then
      attempts[i] = entry.attempts
    end
    if other ~= namespace then
      uniform = false
    end
    if not alone
      and (last_error == lapsed or not calm and (suspects[ids[i]] or outages[other])) then
      alone = i
    end
  end
  local first = entries[1]
  return {
    entries = entries, from = from, ids = ids, keys = keys, created = created, attempts = attempts,
    lapsed = first and first.last_error == lapsed,
    calls = uniform and { all(#entries, namespace) }
      or group(entries, self.options.ordering == "strict"),
  }, alone
end

--- Calling ------------------------------------------------------------------------------------

-- Calls the publisher. Returns the failures by index in the call, nil for none; or nil and what was
-- raised. `nil, reason` and false are how Lua's own libraries fail: they must not pass for success.
local function publish(self, batch, call)
  local count, entries = #call, batch.entries
  local messages = count == #batch.ids and { table.unpack(entries) } or {}
  for j = #messages + 1, count do
    messages[j] = entries[call[j]]
  end
  local ok, result, reason = pcall(self.publish, messages, call.namespace)
  local wrong
  if not ok then
    return nil, problem.new("publisher", text(result), result)
  elseif result == true or (result == nil and reason == nil) then
    return nil
  elseif result == nil or result == false then
    return nil, problem.new("publisher", text(reason), reason)
  elseif type(result) ~= "table" then
    wrong = ("a %s, not true, nothing or a table of failures"):format(type(result))
  else
    for j in pairs(result) do
      if math.type(j) ~= "integer" or j < 1 or j > count then
        wrong = ("a failure of message %s, of %d"):format(text(j), count)
      end
    end
  end
  if wrong then
    return nil, problem.new("publisher", "the publisher returned " .. wrong)
  end
  return result
end

--- What the answer means ----------------------------------------------------------------------

-- What a publisher says of a failure: the reason's text, whether it is permanent, the delay, and
-- whether nothing is held against the message.
local function read_failure(failure)
  local reason, permanent, delay = failure.reason, failure.permanent, failure.retry_after
  local uncharged = failure.uncharged
  if reason == nil and permanent == nil and delay == nil and uncharged == nil then
    return text(failure)
  end
  return text(reason), permanent, tonumber(delay), uncharged and not permanent
end

local function understand(failure)
  if type(failure) == "table" then
    local ok, reason, permanent, delay, uncharged = pcall(read_failure, failure)
    if ok then
      return reason, permanent, delay, uncharged
    end
  end
  return text(failure)
end

-- How long a failure says to wait, in seconds; nil where it does not say.
local function delay_of(failure)
  local _, _, delay = understand(failure)
  return delay and delay == delay and math.max(0, math.min(delay, DELAY_CAP)) or nil
end

-- Counts a failed delivery. Returns whether there will be another.
local function fail(self, outcome, i, answer)
  local batch, retry = outcome.batch, self.options.retry
  local reason, permanent = understand(answer)
  local failure = { id = batch.ids[i], entry = batch.entries[i], reason = reason }
  local attempts = (batch.attempts[i] or 0) + 1
  if permanent or attempts >= retry.max_attempts then
    outcome.dead[#outcome.dead + 1] = failure
    outcome.rewind = true -- those behind it are free
    self.suspects[failure.id] = nil
    return false
  end
  failure.delay = delay_of(answer) or math.min(M.backoff(retry, attempts), DELAY_CAP)
  outcome.retried[#outcome.retried + 1] = failure
  return true
end

-- What an entry waits in line with.
local function line_of(self, batch, i)
  local ordering = self.options.ordering
  return ordering == "strict" or ordering == "key" and batch.keys[i]
end

-- The destination answers again: those that stepped aside need not wait any longer, and those that
-- were left out meanwhile are read.
local function end_outage(self, outcome, namespace)
  self.outages[namespace] = nil
  outcome.rewind_all = true
  for id, suspect in pairs(self.suspects) do
    if suspect.aside and suspect.namespace == namespace then
      suspect.aside = nil
      outcome.back[#outcome.back + 1] = id
    end
  end
end

local function note_delivered(self, outcome, i)
  local batch = outcome.batch
  outcome.delivered[#outcome.delivered + 1] = i
  if batch.attempts[i] then
    outcome.rewind = true -- those behind it are free
  end
  self.suspects[batch.ids[i]] = nil
end

local function note_all_delivered(self, outcome, call)
  if #outcome.delivered == 0 and next(self.suspects) == nil and next(outcome.batch.attempts) == nil
  then
    outcome.delivered = call
  else
    for j = 1, #call do
      note_delivered(self, outcome, call[j])
    end
  end
end

-- A call of which something failed. What stands in line behind an entry that will be retried waits
-- for it, even if it was delivered: it will be again, so that the last is the last. Returns whether
-- none is to be retried, and the uncharged that said how long to wait.
local function note_failures(self, outcome, call, failures)
  local batch, waiting, put_off = outcome.batch, {}, {}
  for j = 1, #call do
    local i, failure = call[j], failures[j]
    local line = line_of(self, batch, i)
    if line and waiting[line] then
      outcome.rewind = true
      if failure then
        local _, permanent = understand(failure)
        if permanent then
          fail(self, outcome, i, failure)
        end
      end
    elseif failure == nil or failure == false then
      note_delivered(self, outcome, i)
    elseif select(4, understand(failure)) then
      local delay = delay_of(failure)
      outcome.rewind = true -- it is handed out again
      if delay then
        put_off[#put_off + 1] = { id = batch.ids[i], delay = delay }
      end
      if line then
        waiting[line] = true
      end
    else
      self.suspects[batch.ids[i]] = nil
      if fail(self, outcome, i, failure) and line then
        waiting[line] = true
      end
    end
  end
  return next(waiting) == nil, put_off
end

-- A call that told what became of each message. Returns whether none is to be retried; or nil and
-- what is as good as raised, where nothing got through and nothing is held against any message, and
-- the time to wait if the destination has named one.
local function note_answer(self, outcome, call, failures)
  local namespace, before, whole, put_off = call.namespace, #outcome.delivered, true, {}
  local settled = before + #outcome.retried + #outcome.dead
  if failures then
    whole, put_off = note_failures(self, outcome, call, failures)
  else
    note_all_delivered(self, outcome, call)
  end
  if #outcome.delivered + #outcome.retried + #outcome.dead == settled then
    local delay
    for _, entry in ipairs(put_off) do
      delay = math.max(delay or 0, entry.delay)
    end
    return nil, problem.new("publisher", (understand(failures[1])), failures[1]), delay
  end
  table.move(put_off, 1, #put_off, #outcome.aside + 1, outcome.aside)
  if #outcome.delivered > before then
    self.successes[namespace] = (self.successes[namespace] or 0) + 1
  end
  if self.outages[namespace] then
    end_outage(self, outcome, namespace)
  end
  return whole
end

-- One that raised alone before, and again though another got through since, is charged: its
-- destination is up.
local function is_guilty(self, id)
  local suspect = self.suspects[id]
  return suspect and suspect.successes < (self.successes[suspect.namespace] or 0)
end

-- Until the next probe: up to `crowd` times the cap, so that many who take turns are no hot loop.
local function probe_delay(retry, n, crowd)
  local cap = math.min(retry.cap, PROBE_CAP) * crowd
  return M.backoff({ base = retry.base, factor = retry.factor, cap = cap }, n)
end

local function step_aside(self, outcome, suspect)
  local delay = math.min(self:left(suspect.aside), ASIDE_CAP)
  outcome.aside[#outcome.aside + 1] = { id = suspect.id, delay = delay }
  outcome.rewind = true
end

-- That of a namespace whose destination may be down, from now on.
local function outage_of(self, namespace)
  local outage = self.outages[namespace] or { probes = 0 }
  self.outages[namespace] = outage
  return outage
end

-- The destination has said when to come again, which is no trial of any message. It may be that it
-- wants to wait with this one only: where it has said so before, another is probed at once.
local function rest(self, outcome, call, delay)
  local outage = outage_of(self, call.namespace)
  outage.probes = outage.probes + 1
  if delay < 0.001 then
    delay = probe_delay(self.options.retry, outage.probes, 1)
  end
  if #call == 1 then
    local id, told = outcome.batch.ids[call[1]], outage.told or {}
    outcome.aside[#outcome.aside + 1] = { id = id, delay = math.min(delay, ASIDE_CAP) }
    if told[id] then
      return
    end
    told[id], outage.told = true, told
  end
  outage.span = self:span(delay)
end

-- A call that raised has told nothing about any message, so none is charged. All are tried again
-- one by one; one that raises alone steps aside, so that the next probe is of another key.
local function note_raised(self, outcome, call, raised, delay)
  local batch, namespace, retry = outcome.batch, call.namespace, self.options.retry
  local successes = self.successes[namespace] or 0
  outcome.rewind = true
  raised.namespace = namespace
  outcome.raised[#outcome.raised + 1] = raised
  if delay then
    rest(self, outcome, call, delay)
    return
  end
  local first = batch.ids[call[1]]
  if #call == 1 and is_guilty(self, first) then
    self.suspects[first].successes = successes
    fail(self, outcome, call[1], raised.message)
    return
  end
  for j = 1, #call do
    local id = batch.ids[call[j]]
    local suspect = self.suspects[id] or { id = id, namespace = namespace, raises = 0 }
    suspect.successes = successes
    self.suspects[id] = suspect
  end
  local outage = outage_of(self, namespace)
  if #call == 1 then
    local suspect = self.suspects[first]
    if suspect.raises == 0 then -- one that raised before tells nothing new: another is probed
      outage.probes = outage.probes + 1
      outage.span = self:span(probe_delay(retry, outage.probes, 1))
    end
    suspect.raises = suspect.raises + 1
    suspect.aside = self:span(probe_delay(retry, suspect.raises, math.max(1, outage.probes)))
    step_aside(self, outcome, suspect)
  end
end

--- Delivering ---------------------------------------------------------------------------------

--- Hands a batch to the publisher; returns the outcome.
function M.deliver(self, batch)
  local outcome =
    { batch = batch, delivered = {}, retried = {}, dead = {}, aside = {}, back = {}, raised = {} }
  local first, strict = batch.ids[1], self.options.ordering == "strict"
  local suspect, start = self.suspects[first], self.now()
  if batch.lapsed and batch.attempts[1] >= self.options.retry.max_attempts then
    outcome.dead[1] =
      { id = first, entry = batch.entries[1], reason = core.LAPSED, counted = true }
    outcome.rewind = true
  elseif suspect and suspect.aside and self:left(suspect.aside) > 0 then
    step_aside(self, outcome, suspect) -- it came back before its time
    outcome.idle = true
  else
    for _, call in ipairs(batch.calls) do
      local failures, raised = publish(self, batch, call)
      local whole, delay = false, nil
      if not raised then
        whole, raised, delay = note_answer(self, outcome, call, failures)
      end
      if raised then
        note_raised(self, outcome, call, raised, delay)
      end
      if strict and not whole then
        outcome.rewind = true
        break
      end
    end
  end
  outcome.seconds = self.now() - start
  return outcome
end

return M
