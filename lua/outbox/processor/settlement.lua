-- Writes the outcome of a batch to the database. It must be called in a transaction.

local M = {}

-- The ids and the places of the delivered entries. For a whole batch these are the lists that were
-- read.
local function delivered(outcome)
  local ids, seqs, indexes = outcome.batch.ids, outcome.batch.seqs, outcome.delivered
  if #indexes == #ids then
    return ids, seqs
  end
  local some_ids, some_seqs = {}, {}
  for j, i in ipairs(indexes) do
    some_ids[j], some_seqs[j] = ids[i], seqs[i]
  end
  return some_ids, some_seqs
end

-- Delays an entry, which has an `id` and a `seq`, and has the agenda look again when it falls due.
local function delay(store, agenda, entry, seconds, reason)
  return store:retry_entry(entry, agenda:set_sooner("due", seconds), reason)
end

--- Writes an outcome. `is_held` says whether the claim is still there: if not, a failure is up to
-- the processor that has taken over. Sets in each failure whether its entry was `found`; it is not
-- when another processor has it by now.
function M.write(store, agenda, outcome, is_held)
  store:delete_batch(delivered(outcome))
  if not is_held then
    return
  end
  for _, failure in ipairs(outcome.retried) do
    failure.found = delay(store, agenda, failure, failure.delay, failure.reason)
  end
  for _, failure in ipairs(outcome.dead) do
    failure.found = store:bury_entry(failure, not failure.charged and failure.reason or nil)
  end
  for _, entry in ipairs(outcome.deferred) do
    delay(store, agenda, entry, entry.delay)
  end
  for _, entry in ipairs(outcome.recalled) do
    delay(store, agenda, entry, 0)
  end
end

return M
