-- Delivers a batch, and reports the outcome of each entry. It writes nothing: the outcome is
-- settled afterwards, in one transaction with the reading of the next batch.
--
-- An outcome holds its `batch`; the indexes `delivered`; the failures to be `retried` or made
-- `dead`; the entries that are `deferred` for a while, uncharged; the deferred entries that
-- are now `recalled`, because their destination answers again; the errors that calls `raised`, and
-- those about failures with a fault; the `seconds` that it took; whether entries are to be read
-- again, all after the batch's `from` (`rewind`) or all from the first (`rewind_all`); and whether
-- the publisher was not called at all (`idle`).
--
-- A call is made in waves, unless the publisher keeps the order itself.

local core = require("outbox.core")
local answer = require("outbox.processor.answer")
local errors = require("outbox.error")
local split = require("outbox.processor.waves")

local understand = answer.understand

-- A failure that asks for a shorter delay, in seconds, does not say how long to wait. Otherwise a
-- message would use up all its attempts in an instant.
local MIN_DELAY = 0.001

local Delivery = {}
Delivery.__index = Delivery

local function call_publisher(self, batch, call)
  local count, entries = #call, batch.entries
  local messages = count == #batch.ids and { table.unpack(entries) } or {}
  for j = #messages + 1, count do
    messages[j] = entries[call[j]]
  end
  return answer.ask(self.publish, messages, call.namespace)
end

-- Makes a dead letter of an entry. Reads again the entries behind it, which are free.
local function bury(outcome, failure)
  outcome.dead[#outcome.dead + 1] = failure
  outcome.rewind = true
end

-- Charges an entry with a failed delivery. Returns whether the entry will be delivered again.
local function charge(self, outcome, i, reason, permanent, delay)
  local batch = outcome.batch
  local failure = { id = batch.ids[i], seq = batch.seqs[i], entry = batch.entries[i],
    reason = reason }
  local own_delay = not permanent and self.retry(failure.entry, (batch.attempts[i] or 0) + 1)
  if not own_delay then
    bury(outcome, failure)
    self.outages:acquit(failure.seq)
    return false
  end
  failure.delay = delay and delay >= MIN_DELAY and delay or own_delay
  outcome.retried[#outcome.retried + 1] = failure
  return true
end

-- The line in which an entry of a call waits: later entries of a line are held back by an earlier
-- one. Nil or false where it waits in none.
local LINE_OF = {
  key = function(batch, i)
    return batch.keys[i]
  end,
  strict = function()
    return true
  end,
  none = function()
    return nil
  end,
}

local function note_delivered(self, outcome, i)
  local batch = outcome.batch
  outcome.delivered[#outcome.delivered + 1] = i
  if batch.attempts[i] then
    outcome.rewind = true -- the entries behind it are free
  end
  self.outages:acquit(batch.seqs[i])
end

-- Notes a call of which all got through.
local function note_all_delivered(self, outcome, call)
  if #outcome.delivered == 0 and next(outcome.batch.attempts) == nil
    and not self.outages:has_suspects() then
    outcome.delivered = call
  else
    for j = 1, #call do
      note_delivered(self, outcome, call[j])
    end
  end
end

-- Notes a failure. Returns whether the entry will be handed out again, and what is wrong with the
-- failure. Adds the entry to `deferred` if it is uncharged and says how long to wait.
local function note_failure(self, outcome, i, failure, deferred)
  local reason, permanent, delay, uncharged, fault = understand(failure)
  local id, seq = outcome.batch.ids[i], outcome.batch.seqs[i]
  if not uncharged then
    self.outages:acquit(seq)
    return charge(self, outcome, i, reason, permanent, delay), fault
  end
  outcome.rewind = true -- so that it is handed out again
  if delay then
    deferred[#deferred + 1] = { id = id, seq = seq, delay = delay }
  end
  return true, fault
end

-- Reports what is wrong with a failure. The failure itself counts all the same.
local function report_fault(outcome, call, failure, fault)
  local wrong = answer.new_error(fault, failure)
  wrong.namespace = call.namespace
  outcome.raised[#outcome.raised + 1] = wrong
end

-- Notes a failure of an entry that waits behind another one: it counts only if it is permanent.
local function charge_permanent(self, outcome, i, failure)
  local reason, permanent = understand(failure)
  if permanent then
    charge(self, outcome, i, reason, permanent)
  end
end

-- Notes a call in which some messages failed. An entry in line behind one that will be retried
-- waits for it, even if it was delivered: it will be delivered again, so that the last one remains
-- the last. Adds to `waiting` the lines that wait. Returns whether there are none; and the
-- uncharged entries that said how long to wait.
local function note_failures(self, outcome, call, failures, waiting)
  local deferred, reported, line_of = {}, false, self.line_of
  for j = 1, #call do
    local i, failure = call[j], failures[j]
    local line = line_of(outcome.batch, i)
    if line and waiting[line] then
      outcome.rewind = true
      if failure then
        charge_permanent(self, outcome, i, failure)
      end
    elseif not failure then
      note_delivered(self, outcome, i)
    else
      local is_waiting, fault = note_failure(self, outcome, i, failure, deferred)
      if is_waiting and line then
        waiting[line] = true
      end
      if fault and not reported then -- one report for a call, which may have many failures
        reported = true
        report_fault(outcome, call, failure, fault)
      end
    end
  end
  return next(waiting) == nil, deferred
end

-- How many entries of a batch were delivered, are dead, or have a time for their retry.
local function count_settled(outcome)
  return #outcome.delivered + #outcome.retried + #outcome.dead
end

-- An answer that is as good as raised: nothing got through, and no message is charged. Returns the
-- error; and the seconds to wait, if the destination has named any.
local function read_refusal(first, deferred)
  local delay
  for _, entry in ipairs(deferred) do
    delay = math.max(delay or 0, entry.delay)
  end
  return errors.new("publisher", (understand(first)), first), delay
end

local function note_up(self, outcome, namespace)
  local entries = self.outages:finish(namespace)
  if entries then
    outcome.rewind_all = true -- to read the entries that were left out meanwhile
    table.move(entries, 1, #entries, #outcome.recalled + 1, outcome.recalled)
  end
end

-- Notes a call whose answer says what became of each message. Returns whether none is to be
-- retried; or nil, the error and the seconds to wait, if that is as good as raised.
local function note_answer(self, outcome, call, failures, waiting)
  if not failures then
    note_all_delivered(self, outcome, call)
    self.outages:count_success(call.namespace)
    note_up(self, outcome, call.namespace)
    return true
  end
  local before, settled = #outcome.delivered, count_settled(outcome)
  local whole, deferred = note_failures(self, outcome, call, failures, waiting)
  if count_settled(outcome) == settled then
    return nil, read_refusal(failures[1], deferred)
  end
  table.move(deferred, 1, #deferred, #outcome.deferred + 1, outcome.deferred)
  if #outcome.delivered > before then
    self.outages:count_success(call.namespace)
  end
  note_up(self, outcome, call.namespace)
  return whole
end

-- Notes a call that raised, or an answer as good as that. It says nothing about any single message,
-- so none is charged, unless it is poison. `delay` is the seconds to wait, if the destination has
-- named any.
local function note_raised(self, outcome, call, raised, delay)
  local entries, namespace = {}, call.namespace
  for j = 1, #call do
    local i = call[j]
    entries[j] = { id = outcome.batch.ids[i], seq = outcome.batch.seqs[i] }
  end
  outcome.rewind = true
  raised.namespace = namespace
  outcome.raised[#outcome.raised + 1] = raised
  local is_poison, deferred
  if delay then
    deferred = self.outages:ask_to_wait(namespace, #entries == 1 and entries[1].seq, delay)
  else
    is_poison, deferred = self.outages:blame(namespace, entries)
  end
  if is_poison then
    charge(self, outcome, call[1], raised.message)
  elseif deferred then
    local entry = entries[1]
    outcome.deferred[#outcome.deferred + 1] = { id = entry.id, seq = entry.seq, delay = deferred }
  end
end

-- Makes one call. Returns whether nothing of it is to be retried, and the error if it raised.
local function make_call(self, outcome, call, waiting)
  local failures, raised, fault = call_publisher(self, outcome.batch, call)
  local whole, delay = false, nil
  if fault then
    fault.namespace = call.namespace
    outcome.raised[#outcome.raised + 1] = fault
  end
  if not raised then
    whole, raised, delay = note_answer(self, outcome, call, failures, waiting)
  end
  if raised then
    note_raised(self, outcome, call, raised, delay)
  end
  return whole, raised
end

-- Returns a wave without the messages that wait for one of an earlier wave.
local function leave_out(self, outcome, wave, waiting)
  if next(waiting) == nil then
    return wave
  end
  local free = { namespace = wave.namespace }
  for j = 1, #wave do
    local line = self.line_of(outcome.batch, wave[j])
    if not (line and waiting[line]) then
      free[#free + 1] = wave[j]
    end
  end
  outcome.rewind = outcome.rewind or #free < #wave
  return free
end

-- The calls of a batch, each in one or more waves. Returns how many were made.
local function make_calls(self, outcome)
  local strict, batch, made = self.ordering == "strict", outcome.batch, 0
  for _, call in ipairs(batch.calls) do
    local waves, waiting = not self.ordered and split(self.ordering, batch, call) or { call }, {}
    for _, wave in ipairs(waves) do
      local free = leave_out(self, outcome, wave, waiting)
      if free[1] then
        if made > 0 and not self.may_go_on() then
          outcome.rewind = true
          return made
        end
        made = made + 1
        local whole, raised = make_call(self, outcome, free, waiting)
        if strict and not whole then
          outcome.rewind = true
          return made
        elseif raised then
          break
        end
      end
    end
  end
  return made
end

-- Whether a batch is one entry with which processors have died too often.
local function is_given_up(self, batch)
  return batch.lapsed and not self.retry(batch.entries[1], batch.attempts[1])
end

--- Hands a batch to the publisher; returns the outcome.
function Delivery:deliver(batch)
  local outcome = {
    batch = batch,
    delivered = {}, retried = {}, dead = {}, deferred = {}, recalled = {}, raised = {},
  }
  local first, seq, start = batch.ids[1], batch.seqs[1], self.now()
  local deferred = self.outages:deferred_for(seq)
  if is_given_up(self, batch) then
    bury(outcome, { id = first, seq = seq, entry = batch.entries[1], reason = core.LAPSED,
      charged = true })
  elseif deferred then -- it came back before its time
    outcome.deferred[1] = { id = first, seq = seq, delay = deferred }
    outcome.rewind, outcome.idle = true, true
  else
    if make_calls(self, outcome) > 1 then
      table.sort(outcome.delivered) -- neighbours are deleted together
    end
  end
  outcome.seconds = self.now() - start
  return outcome
end

--- Makes an object that delivers batches. Of the settings it takes `publish`, `ordering` and
-- `ordered`. `retry(entry, attempts)` is the policy, which never raises; `outages` the memory of
-- destinations that are down; `now` the clock's function; and `may_go_on()` says whether the next
-- call of a batch may be made.
return function(settings, retry, outages, now, may_go_on)
  return setmetatable({ publish = settings.publish, ordering = settings.ordering,
    ordered = settings.ordered, line_of = LINE_OF[settings.ordering], retry = retry,
    outages = outages, now = now, may_go_on = may_go_on }, Delivery)
end
