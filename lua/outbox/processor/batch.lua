-- A batch: the entries that are delivered at a time.
--
-- Its `entries` belong to the publisher from the moment it gets them. The other fields stay right,
-- whatever the publisher does to the entries. By index: their `ids`, `seqs`, `keys`, `created`
-- times and, where one failed before, `attempts`. `lapsed` says that a processor died with the
-- first one in hand. `calls` are the calls to be made, each a list of indexes with its `namespace`.
-- `from` is the place after which the batch was read.

local core = require("outbox.core")

local M = {}

-- Calls of one namespace each. In strict order a call ends where the namespace changes.
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

-- The numbers up to `count`, made once, because most calls are of a whole batch.
local numbers = {}

local function all(count, namespace)
  for i = #numbers + 1, count do
    numbers[i] = i
  end
  return { namespace = namespace, table.unpack(numbers, 1, count) }
end

-- Makes a batch of entries. Also returns the index of the first that must not share a call with
-- others, if there are any: a processor died with it, a call with it raised, or its destination may
-- be down.
local function new(entries, from, strict, outages)
  local lapsed, is_calm = core.LAPSED, outages:is_calm()
  local ids, seqs, keys, created = core.columns(entries, "id", "seq", "key", "created_at")
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
      and (last_error == lapsed or not is_calm and outages:must_be_alone(seqs[i], other)) then
      alone = i
    end
  end
  local first = entries[1]
  return {
    entries = entries, from = from, ids = ids, seqs = seqs, keys = keys, created = created,
    attempts = attempts, lapsed = first and first.last_error == lapsed,
    calls = uniform and { all(#entries, namespace) } or group(entries, strict),
  }, alone
end

local function read(settings, outages, size, selection)
  local entries, last =
    settings.store:get_claimed_entries(settings.processor_id, size, selection)
  local batch, alone = new(entries, selection.after, settings.ordering == "strict", outages)
  return batch, last, alone
end

--- Reads the next batch after the place `after`, and notes in the claim that it is in hand: one
-- entry that must be alone, or several that need not be. Also returns up to which place it has
-- read. Returns nil if nothing may be read, because in strict order all entries wait for a
-- destination that is down.
function M.read(settings, outages, after)
  local resting = outages:resting()
  if resting[1] and settings.ordering == "strict" then
    return nil
  end
  local selection = { ordering = settings.ordering, after = after, except = resting, hold = true,
    remember = false, batch_bytes = settings.batch_bytes }
  local batch, last, alone = read(settings, outages, settings.batch_size, selection)
  if alone and #batch.ids > 1 then
    batch, last = read(settings, outages, math.max(alone - 1, 1), selection)
  end
  return batch, last
end

return M
