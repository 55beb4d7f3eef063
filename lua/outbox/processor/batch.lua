-- A batch: the entries that are in hand.
--
-- Its `entries` belong to the publisher from the moment it gets them, and may be gone after that.
-- The other fields stay right, whatever the publisher does to the entries: their `count`; by index
-- their `ids`, `seqs`, `keys`, `created` times and, where one failed before, `attempts`. `lapsed`
-- says that a processor died with the first one in hand, `repeats` that two may be of one key.
-- `calls` are the calls to be made, each a list of indexes with its `namespace`; `left_out` has the
-- indexes that are in none. `whole` says that one call has all entries, that none was tried before,
-- and that `indexes` has theirs.

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

-- The numbers up to `count`. They are kept, because one batch after another has as many entries.
local numbers = {}

local function up_to(count)
  if #numbers ~= count then
    numbers = {}
    for i = 1, count do
      numbers[i] = i
    end
  end
  return numbers
end

-- Most batches are delivered as a whole. Then nobody asks for the call, or for the names of their
-- entries.
local Batch = {
  __index = function(self, name)
    if name == "calls" then
      self.calls = { { namespace = self.namespace, table.unpack(self.indexes) } }
    elseif name == "ids" or name == "seqs" or name == "keys" then
      for each, list in pairs(self.store:hand()) do
        self[each] = list
      end
    end
    return rawget(self, name)
  end,
}

local NONE = setmetatable({}, { __newindex = error })

local function of_one_namespace(store, progress, entries, created, namespace)
  local repeats = progress.repeats or false
  return setmetatable({ store = store, entries = entries, count = #entries, created = created,
    attempts = NONE, left_out = NONE, lapsed = false, repeats = repeats, namespace = namespace,
    indexes = up_to(#entries), whole = not repeats }, Batch)
end

--- Makes a batch of what a store has in hand, as its `advance` has said in `progress`.
return function(store, progress, strict, jury)
  local entries, created = store:batch()
  local first = entries[1]
  if progress.uniform and jury:is_calm() then
    return of_one_namespace(store, progress, entries, created, first.namespace)
  end
  local attempts, left_out = {}, {}
  for i = 1, #entries do
    attempts[i] = entries[i].attempts > 0 and entries[i].attempts or nil
  end
  return setmetatable({
    store = store, entries = entries, count = #entries, created = created, attempts = attempts,
    lapsed = first.last_error == core.LAPSED, repeats = progress.repeats or false, whole = false,
    calls = group(entries, attempts, strict, jury, left_out), left_out = left_out,
  }, Batch)
end
