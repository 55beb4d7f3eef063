-- Writes the outcome of a batch to the database. It must be called in a transaction.

local M = {}

-- The ids of the delivered entries. For a whole batch this is the list that was read.
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

-- Delays an entry, and has the agenda look again when it falls due.
local function delay(store, agenda, id, seconds, reason)
  return store:retry_entry(id, agenda:set_sooner("due", seconds), reason)
end

--- Writes an outcome. `is_held` says whether the claim is still there: if not, a failure is up to
-- the processor that has taken over. Sets in each failure whether its entry was `found`; it is not
-- when another processor has it by now.
function M.write(store, agenda, outcome, is_held)
  store:delete_entries(table.unpack(delivered_ids(outcome)))
  if not is_held then
    return
  end
  for _, failure in ipairs(outcome.retried) do
    failure.found = delay(store, agenda, failure.id, failure.delay, failure.reason)
  end
  for _, failure in ipairs(outcome.dead) do
    failure.found = store:bury_entry(failure.id, not failure.charged and failure.reason or nil)
  end
  for _, entry in ipairs(outcome.deferred) do
    delay(store, agenda, entry.id, entry.delay)
  end
  for _, id in ipairs(outcome.recalled) do
    delay(store, agenda, id, 0)
  end
end

return M
