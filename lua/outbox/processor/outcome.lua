-- The outcome of a batch: a verdict for each entry, and then for entries that were put off before.
--
-- The hooks read these fields: `delivered`, the indexes of the delivered entries; `retried` and
-- `dead`, lists of failures; `deferred`, how many entries were put off without a charge; `raised`,
-- the errors that calls raised and errors about malformed failures; `seconds`, how long the batch
-- took.

local Outcome = {}
Outcome.__index = Outcome

--- Notes an entry that was delivered, by its index.
function Outcome:deliver(i)
  self.verdicts[i] = true
  self.delivered[#self.delivered + 1] = i
end

--- Notes that all entries of the batch were delivered; `indexes` are theirs.
function Outcome:deliver_all(indexes)
  self.verdicts, self.delivered = true, indexes
end

--- The failure of an entry of the batch.
function Outcome:failure(i, reason)
  local batch = self.batch
  return { index = i, id = batch.ids[i], seq = batch.seqs[i], entry = batch.entries[i],
    attempts = batch.attempts[i] or 0, reason = reason }
end

local function note(self, failure, verdict)
  if failure.index then
    self.verdicts[failure.index] = verdict
  else
    self.others[#self.others + 1] = verdict
  end
end

--- Makes a dead letter of an entry. It is charged unless the failure says that it was before.
function Outcome:bury(failure)
  failure.outcome = "bury"
  failure.error = not failure.charged and failure.reason or nil
  self.dead[#self.dead + 1] = failure
  note(self, failure, failure)
end

--- Charges an entry with an attempt: it is tried again, after so many seconds if they are given, or
-- is dead. Returns whether it will be tried again.
function Outcome:charge(failure, permanent, delay)
  local own = not permanent and self.retry(failure.entry, failure.attempts + 1)
  if not own then
    self:bury(failure)
    return false
  end
  failure.outcome, failure.error, failure.delay = "retry", failure.reason, delay or own
  failure.at = self.now() + failure.delay
  self.retried[#self.retried + 1] = failure
  note(self, failure, failure)
  return true
end

--- Puts an entry off, uncharged. One that is `marked` gets the reason as its last error. This makes
-- it a suspect, if it was never charged.
function Outcome:put_off(failure, seconds, marked)
  self.deferred = self.deferred + 1
  note(self, failure, { outcome = "put off", at = self.now() + seconds, id = failure.id,
    seq = failure.seq, error = marked and failure.reason or nil })
end

--- Charges an entry that was put off before, by its failure. Returns in how many seconds it will be
-- tried again, nil where it is dead.
function Outcome:convict(accused)
  local failure = { id = accused.id, seq = accused.seq, entry = accused.entry,
    attempts = accused.attempts, reason = accused.reason }
  return self:charge(failure) and failure.delay or nil
end

--- Makes an entry that was put off due now.
function Outcome:call_back(it)
  self.others[#self.others + 1] = { outcome = "put off", at = self.now(), id = it.id, seq = it.seq }
end

--- The verdicts, as `store:advance` takes them.
function Outcome:list()
  if self.verdicts == true and not self.others[1] then
    return true
  end
  local list, verdicts = {}, self.verdicts
  for i = 1, self.batch.count do
    list[i] = verdicts == true or verdicts[i] or false
  end
  return table.move(self.others, 1, #self.others, #list + 1, list)
end

local M = {}

--- Makes the outcome of a batch of which nothing is known yet: all entries are handed out again.
function M.new(batch, retry, now)
  return setmetatable({ batch = batch, retry = retry, now = now, verdicts = {}, others = {},
    delivered = {}, retried = {}, dead = {}, deferred = 0, raised = {} }, Outcome)
end

local NONE = setmetatable({}, { __newindex = error })

--- Makes the outcome of a whole batch of which all was delivered.
function M.whole(batch)
  return setmetatable({ batch = batch, verdicts = true, others = NONE, delivered = batch.indexes,
    retried = NONE, dead = NONE, deferred = 0, raised = NONE }, Outcome)
end

return M
