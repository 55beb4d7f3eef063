-- Delivers a batch, and reports the outcome of each entry. It writes nothing.
--
-- A call is made in waves, unless the publisher keeps the order itself.

local core = require("outbox.core")
local answer = require("outbox.processor.answer")
local errors = require("outbox.error")
local outcomes = require("outbox.processor.outcome")
local split = require("outbox.processor.waves")

local understand = answer.understand

-- A failure that asks for a shorter delay, in seconds, does not say how long to wait. Otherwise a
-- message would use up all its attempts in an instant.
local MIN_DELAY = 0.001

local Delivery = {}
Delivery.__index = Delivery

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

-- Makes a call. Returns what `answer.ask` returns, and how many seconds it took.
local function ask(self, messages, namespace)
  local start = self.now()
  local failures, raised, fault = answer.ask(self.publish, messages, namespace)
  return failures, raised, fault, math.max(self.now() - start, 0)
end

local function messages_of(batch, call)
  local messages = {}
  for j = 1, #call do
    messages[j] = batch.entries[call[j]]
  end
  return messages
end

-- Reports what is wrong with a failure. The failure itself counts all the same.
local function report_fault(outcome, call, failure, fault)
  local wrong = answer.new_error(fault, failure)
  wrong.namespace = call.namespace
  outcome.raised[#outcome.raised + 1] = wrong
end

-- Notes one failure. Returns whether the entry will be handed out again, and what is wrong with the
-- failure.
local function note_failure(outcome, heard, i, failure)
  local reason, permanent, delay, uncharged, fault = understand(failure)
  local noted = outcome:failure(i, reason)
  if uncharged then
    noted.delay = delay
    local list = delay and heard.told or heard.unanswered
    list[#list + 1] = noted
    return true, fault
  end
  heard.charged = heard.charged + 1
  heard.places[#heard.places + 1] = noted.seq
  return outcome:charge(noted, permanent, delay and delay >= MIN_DELAY and delay or nil), fault
end

-- Notes a failure of an entry that waits behind another one: it counts only if it is permanent.
local function charge_permanent(outcome, heard, i, failure)
  local reason, permanent = understand(failure)
  if permanent then
    heard.charged = heard.charged + 1
    heard.places[#heard.places + 1] = outcome.batch.seqs[i]
    outcome:charge(outcome:failure(i, reason), true)
  end
end

-- Whether a failure may mean no more than that the message was not sent.
local function is_unsent(failure)
  local _, _, delay, uncharged = understand(failure)
  return uncharged and not delay
end

-- `waiting` has, of each line of a namespace, the index of the first entry that is handed out
-- again. Later ones of the line must wait for it, in whatever call of the batch they are.
local function wait(self, outcome, waiting, i)
  local line = self.line_of(outcome.batch, i)
  if line then
    waiting[line] = math.min(waiting[line] or i, i)
  end
end

local function has_to_wait(self, outcome, waiting, i)
  local line = self.line_of(outcome.batch, i)
  return line and waiting[line] and waiting[line] < i
end

-- Notes a call in which some messages failed. An entry in line behind one that is handed out again
-- waits for it, even if it was delivered: it is delivered again, so that the last one remains the
-- last. One that was not sent because of one before it, which is dead now, is nobody's suspect.
-- Returns whether nothing is handed out again.
local function note_failures(self, outcome, call, failures, waiting, heard)
  local reported, whole, ended = false, true, {}
  for j = 1, #call do
    local i, failure = call[j], failures[j]
    local line = self.line_of(outcome.batch, i)
    if has_to_wait(self, outcome, waiting, i) then
      whole = false
      if failure then
        charge_permanent(outcome, heard, i, failure)
      end
    elseif not failure then
      outcome:deliver(i)
      heard.delivered = heard.delivered + 1
      heard.places[#heard.places + 1] = outcome.batch.seqs[i]
    elseif line and ended[line] and is_unsent(failure) then
      whole = false
      wait(self, outcome, waiting, i)
    else
      local is_waiting, fault = note_failure(outcome, heard, i, failure)
      if is_waiting then
        whole = false
        wait(self, outcome, waiting, i)
      elseif line then
        ended[line] = true
      end
      if fault and not reported then -- one report for a call, which may have many failures
        reported = true
        report_fault(outcome, call, failure, fault)
      end
    end
  end
  return whole
end

-- Notes a call of which all got through.
local function note_all_delivered(self, outcome, call, heard)
  if #call == outcome.batch.count then
    outcome:deliver_all(call)
  else
    for j = 1, #call do
      outcome:deliver(call[j])
    end
  end
  heard.delivered = #call
  if not self.jury:is_calm() then
    for j = 1, #call do
      heard.places[j] = outcome.batch.seqs[call[j]]
    end
  end
end

-- Notes what came of a call. Returns whether nothing of it is handed out again, and whether it told
-- nothing of any message.
local function note_call(self, outcome, call, waiting, failures, raised, fault, seconds)
  local heard = { namespace = call.namespace, size = #call, delivered = 0, charged = 0, places = {},
    told = {}, unanswered = {}, seconds = seconds }
  if fault then
    fault.namespace = call.namespace
    outcome.raised[#outcome.raised + 1] = fault
  end
  local whole = false
  if raised then
    heard.list = {}
    for j = 1, #call do
      heard.list[j] = outcome:failure(call[j], raised.message)
      wait(self, outcome, waiting, call[j])
    end
  elseif not failures then
    note_all_delivered(self, outcome, call, heard)
    whole = true
  else
    whole = note_failures(self, outcome, call, failures, waiting, heard)
    if heard.delivered + heard.charged == 0 then -- that is as good as raised
      raised = errors.new("publisher", (understand(failures[1])), failures[1])
    end
  end
  if raised then
    raised.namespace = call.namespace
    raised.id = #call == 1 and outcome.batch.ids[call[1]] or nil
    outcome.raised[#outcome.raised + 1] = raised
  end
  self.jury:judge(heard, outcome)
  return whole, raised
end

-- Returns a wave without the messages that wait for one of an earlier wave, or of another call.
local function without_waiting(self, outcome, wave, waiting)
  if next(waiting) == nil then
    return wave
  end
  local free = { namespace = wave.namespace }
  for j = 1, #wave do
    if not has_to_wait(self, outcome, waiting, wave[j]) then
      free[#free + 1] = wave[j]
    end
  end
  return free
end

-- By namespace the lines that wait: at first those of the entries that are in no call.
local function find_waiting(self, outcome)
  local batch = outcome.batch
  local waiting_of = setmetatable({}, { __index = function(all, namespace)
    all[namespace] = {}
    return all[namespace]
  end })
  for _, i in ipairs(batch.left_out) do
    wait(self, outcome, waiting_of[batch.entries[i].namespace], i)
  end
  return waiting_of
end

-- The calls of a batch, each in one or more waves. Returns how many were made.
local function make_calls(self, outcome)
  local strict, batch, made = self.ordering == "strict", outcome.batch, 0
  local waiting_of = find_waiting(self, outcome)
  for _, call in ipairs(batch.calls) do
    local waves = self.ordered and { call } or split(self.ordering, batch, call)
    local waiting, raised = waiting_of[call.namespace], nil
    for _, wave in ipairs(waves) do
      local free = without_waiting(self, outcome, wave, waiting)
      if raised or #free > self.jury:limit(call.namespace) then
        for j = 1, #free do
          wait(self, outcome, waiting, free[j])
        end
      elseif free[1] then
        if made > 0 and not self.may_go_on() then
          return made
        end
        made = made + 1
        local whole
        whole, raised = note_call(self, outcome, free, waiting,
          ask(self, messages_of(batch, free), free.namespace))
        if strict and not whole then
          return made
        end
      end
    end
  end
  return made
end

-- Whether a batch is one entry with which processors have died too often. One that was requeued
-- keeps its error, but no attempts.
local function is_given_up(self, batch)
  local attempts = batch.attempts[1]
  return batch.lapsed and attempts ~= nil and not self.retry(batch.entries[1], attempts)
end

-- Hands out a batch in as many calls as it needs.
local function deliver_parts(self, batch)
  local outcome = outcomes.new(batch, self.retry, self.now)
  if is_given_up(self, batch) then
    local failure = outcome:failure(1, core.LAPSED)
    failure.charged = true
    outcome:bury(failure)
    return outcome
  end
  for _, i in ipairs(batch.left_out) do
    self.jury:leave_out(batch.entries[i].namespace, outcome:failure(i), outcome)
  end
  if make_calls(self, outcome) > 1 then
    table.sort(outcome.delivered) -- hooks are told in order
  end
  return outcome
end

-- Hands out a batch in one call. Where all gets through, as it does nearly always, nothing is left
-- to be noted or judged.
local function deliver_whole(self, batch)
  local failures, raised, fault, seconds = ask(self, { table.unpack(batch.entries) },
    batch.namespace)
  if not (failures or raised or fault) then
    return outcomes.whole(batch)
  end
  local outcome = outcomes.new(batch, self.retry, self.now)
  note_call(self, outcome, batch.calls[1], {}, failures, raised, fault, seconds)
  return outcome
end

--- Hands a batch to the publisher; returns the outcome.
function Delivery:deliver(batch)
  local start = self.now()
  local outcome = (batch.whole and deliver_whole or deliver_parts)(self, batch)
  outcome.seconds = self.now() - start
  return outcome
end

--- Makes an object that delivers batches. Of the settings it takes `publish`, `ordering` and
-- `ordered`. `retry(entry, attempts)` is the policy, which never raises; `now` the clock's
-- function; and `may_go_on()` says whether the next call of a batch may be made.
return function(settings, retry, jury, now, may_go_on)
  return setmetatable({ publish = settings.publish, ordering = settings.ordering,
    ordered = settings.ordered, line_of = LINE_OF[settings.ordering], retry = retry, jury = jury,
    now = now, may_go_on = may_go_on }, Delivery)
end
