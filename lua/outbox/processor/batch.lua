-- A batch: the entries that are in hand.
--
-- Its `entries` belong to the publisher from the moment it gets them. The other fields stay right,
-- whatever the publisher does to the entries: their `count`; by index their `ids`, `seqs`, `keys`,
-- `created` times and, where one failed before, `attempts`. `lapsed` says that a processor died
-- with the first one in hand, `repeats` that two may be of one key. `calls` are the calls to be
-- made, each a list of indexes with its `namespace`; `left_out` has the indexes that are in none.

local core = require("outbox.core")

-- Makes the calls. Each has entries of one namespace, no more of them than the jury allows, and
-- either fresh ones or such that failed before. In strict order a call ends where one of these
-- changes. Adds to `left_out` the indexes that are in no call.
local function group(entries, attempts, strict, jury, left_out)
  local list, known, current = {}, {}, nil
  for i = 1, #entries do
    local entry = entries[i]
    local name = (attempts[i] and "retried " or "fresh ") .. entry.namespace
    if jury:must_wait(entry.namespace, entry.seq, #entries) then
      left_out[#left_out + 1] = i
    else
      if not current or current.name ~= name then
        current = not strict and known[name] or nil
      end
      if not current or #current >= current.most then
        current = { name = name, namespace = entry.namespace, most = jury:limit(entry.namespace) }
        known[name] = current
        list[#list + 1] = current
      end
      current[#current + 1] = i
    end
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

-- Most batches are delivered as a whole. Then nobody asks for the names of their entries.
local Batch = {
  __index = function(self, name)
    if name == "ids" or name == "seqs" or name == "keys" then
      for each, list in pairs(self.store:hand()) do
        self[each] = list
      end
    end
    return rawget(self, name)
  end,
}

--- Makes a batch of what a store has in hand, as its `advance` has said in `progress`.
return function(store, progress, strict, jury)
  local entries, created = store:batch()
  local first = entries[1]
  local attempts, uniform = {}, progress.uniform and jury:is_calm()
  for i = 1, uniform and 0 or #entries do
    attempts[i] = entries[i].attempts > 0 and entries[i].attempts or nil
  end
  local left_out = {}
  return setmetatable({
    store = store, entries = entries, count = #entries, created = created, attempts = attempts,
    lapsed = first.last_error == core.LAPSED, repeats = progress.repeats or false,
    calls = uniform and { all(#entries, first.namespace) }
      or group(entries, attempts, strict, jury, left_out),
    left_out = left_out,
  }, Batch)
end
