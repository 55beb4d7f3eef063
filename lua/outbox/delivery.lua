-- How a processor hands a batch to its publisher, and what the answer means. Writes nothing: the
-- outcome is settled afterwards, in one transaction with the taking of the next batch.
--
-- An outcome holds `delivered` entries; failures to be `retried` or made `dead`; entries that step
-- `aside` for a while, uncharged; ids that may come `back` from there at once; what was `raised`;
-- and `rewind`, when entries before the end of the batch are to be read again.

local core = require("outbox.core")
local problem = require("outbox.problem")

local text = problem.text

-- The longest wait between two probes of a destination that is down, in seconds.
local PROBE_CAP = 30

local M = {}

--- A time from nothing up to base * factor ^ (n - 1) seconds, or the cap: full jitter.
function M.backoff(retry, n)
  return math.random() * math.min(retry.cap, retry.base * retry.factor ^ (n - 1))
end

local function is_of_one_namespace(batch)
  local namespace = batch[1].namespace
  for i = 2, #batch do
    if batch[i].namespace ~= namespace then
      return false
    end
  end
  return true
end

-- The batch in calls of one namespace each; in strict order one ends where the namespace changes.
local function group(batch, strict)
  if is_of_one_namespace(batch) then
    batch.namespace = batch[1].namespace
    return { batch }
  end
  local list, by_namespace, current = {}, {}, nil
  for i = 1, #batch do
    local entry = batch[i]
    local namespace = entry.namespace
    if not current or current.namespace ~= namespace then
      current = not strict and by_namespace[namespace]
      if not current then
        current = { namespace = namespace }
        by_namespace[namespace] = current
        list[#list + 1] = current
      end
    end
    current[#current + 1] = entry
  end
  return list
end

-- Calls the publisher. Returns the failures by index, nil for none; or nil and what was raised.
-- `nil, reason` and false are how Lua's own libraries fail: they must not pass for success.
local function publish(self, call)
  local messages = { table.unpack(call) }
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
    for i in pairs(result) do
      if math.type(i) ~= "integer" or i < 1 or i > #call then
        wrong = ("a failure of message %s, of %d"):format(text(i), #call)
      end
    end
  end
  if wrong then
    return nil, problem.new("publisher", "the publisher returned " .. wrong)
  end
  return result
end

-- Counts a failed delivery. Returns whether there will be another.
local function fail(self, outcome, entry, reason)
  local retry = self.options.retry
  local named = type(reason) == "table"
    and (reason.reason ~= nil or reason.permanent ~= nil or reason.retry_after ~= nil)
  local failure = { id = entry.id, entry = entry, reason = text(reason) }
  if named then
    failure.reason = text(reason.reason)
  end
  if named and reason.permanent or entry.attempts + 1 >= retry.max_attempts then
    outcome.dead[#outcome.dead + 1] = failure
    outcome.rewind = true -- those behind it are free
    return false
  end
  failure.delay = named and tonumber(reason.retry_after) or M.backoff(retry, entry.attempts + 1)
  outcome.retried[#outcome.retried + 1] = failure
  return true
end

-- What an entry waits in line with.
local function line_of(self, entry)
  local ordering = self.options.ordering
  return ordering == "strict" or ordering == "key" and entry.key or nil
end

-- The destination answers again: those that stepped aside need not wait any longer.
local function end_outage(self, outcome, namespace)
  self.outages[namespace] = nil
  outcome.rewind = true
  for id, suspect in pairs(self.suspects) do
    if suspect.aside and suspect.namespace == namespace then
      suspect.aside = false
      outcome.back[#outcome.back + 1] = id
    end
  end
end

-- A call of which all was delivered.
local function note_delivered(self, outcome, call)
  local delivered, suspects = outcome.delivered, next(self.suspects) and self.suspects
  local count = #delivered
  table.move(call, 1, #call, count + 1, delivered)
  for i = count + 1, #delivered do
    local entry = delivered[i]
    if entry.last_error then
      outcome.rewind = true -- those behind it are free
    end
    if suspects then
      suspects[entry.id] = nil
    end
  end
end

-- A call of which something failed. What stands in line behind an entry that will be
-- retried waits for it, even if it was delivered: it will be again, so that the last is the last.
local function note_failures(self, outcome, call, failures)
  local waiting = {}
  for i = 1, #call do
    local entry, failure = call[i], failures[i]
    local line = line_of(self, entry)
    if line and waiting[line] then
      outcome.rewind = true
      if type(failure) == "table" and failure.permanent then
        fail(self, outcome, entry, failure)
      end
    elseif failure == nil or failure == false then
      outcome.delivered[#outcome.delivered + 1] = entry
      outcome.rewind = outcome.rewind or entry.last_error -- those behind it are free
      self.suspects[entry.id] = nil
    else
      self.suspects[entry.id] = nil
      if fail(self, outcome, entry, failure) and line then
        waiting[line] = true
      end
    end
  end
  return next(waiting) == nil
end

-- A call that told what became of each message. Returns whether none is to be retried.
local function note_answer(self, outcome, call, failures)
  local namespace, before, whole = call.namespace, #outcome.delivered, true
  if failures then
    whole = note_failures(self, outcome, call, failures)
  else
    note_delivered(self, outcome, call)
  end
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
local function is_guilty(self, entry)
  local suspect = self.suspects[entry.id]
  return suspect and suspect.successes < (self.successes[suspect.namespace] or 0)
end

-- Until the next probe: up to `crowd` times the cap, so that many who take turns are no hot loop.
local function probe_delay(retry, n, crowd)
  local cap = math.min(retry.cap, PROBE_CAP) * crowd
  return M.backoff({ base = retry.base, factor = retry.factor, cap = cap }, n)
end

-- A call that raised has told nothing about any message, so none is charged. All are tried again
-- one by one; one that raises alone steps aside, so that the next probe is of another key.
local function note_raised(self, outcome, call, raised)
  local namespace, retry = call.namespace, self.options.retry
  local successes = self.successes[namespace] or 0
  outcome.rewind = true
  raised.namespace = namespace
  outcome.raised[#outcome.raised + 1] = raised
  if #call == 1 and is_guilty(self, call[1]) then
    self.suspects[call[1].id].successes = successes
    fail(self, outcome, call[1], raised.message)
    return
  end
  for _, entry in ipairs(call) do
    local suspect = self.suspects[entry.id] or { namespace = namespace, raises = 0 }
    suspect.successes = successes
    self.suspects[entry.id] = suspect
  end
  local outage = self.outages[namespace] or { probes = 0 }
  self.outages[namespace] = outage
  if #call == 1 then
    local suspect = self.suspects[call[1].id]
    if suspect.raises == 0 then -- one that raised before tells nothing new: another is probed
      outage.probes = outage.probes + 1
      outage.span = self:span(probe_delay(retry, outage.probes, 1))
    end
    suspect.raises = suspect.raises + 1
    suspect.aside = true
    local crowd = math.max(1, outage.probes)
    outcome.aside[#outcome.aside + 1] =
      { id = call[1].id, delay = probe_delay(retry, suspect.raises, crowd) }
  end
end

--- The index of the first entry that must not share a publisher's call with others: one that its
-- processor died with, one of a call that raised, or any whose destination may be down.
function M.find_alone(self, entries)
  local suspects, outages, lapsed = self.suspects, self.outages, core.LAPSED
  local calm = next(suspects) == nil and next(outages) == nil
  for i = 1, #entries do
    local entry = entries[i]
    if entry.last_error == lapsed
      or not calm and (suspects[entry.id] or outages[entry.namespace]) then
      return i
    end
  end
end

--- Hands a batch to the publisher; returns the outcome.
function M.deliver(self, batch)
  local outcome =
    { batch = batch, delivered = {}, retried = {}, dead = {}, aside = {}, back = {}, raised = {} }
  local first, strict = batch[1], self.options.ordering == "strict"
  local start = self.now()
  if first.last_error == core.LAPSED and first.attempts >= self.options.retry.max_attempts then
    outcome.dead[1] = { id = first.id, entry = first, reason = first.last_error, counted = true }
    outcome.rewind = true
  else
    for _, call in ipairs(group(batch, strict)) do
      local failures, raised = publish(self, call)
      local whole = false
      if raised then
        note_raised(self, outcome, call, raised)
      else
        whole = note_answer(self, outcome, call, failures)
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
