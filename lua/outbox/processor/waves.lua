-- Splits a call, so that no two messages of a line are in the same: first the first one of each
-- line together with all that wait in no line, then the second ones, and so on. A publisher that
-- fails one message and sends the later ones must not get both. Otherwise a receiver that drops
-- what it has seen by id ends with the older state: it sees 2, then 1, and drops 2.

local core = require("outbox.core")

-- Whether a key comes twice. This is asked before every call, and most calls are of a whole batch.
local function any_repeats(batch, call)
  local keys = batch.keys
  if #call == #batch.ids then
    return core.repeats(keys, #call)
  end
  local seen = {}
  for j = 1, #call do
    local key = keys[call[j]]
    if key then
      if seen[key] then
        return true
      end
      seen[key] = true
    end
  end
  return false
end

--- Returns the waves of a call, or nil where it is one. In the order "key" a line is a key, in
-- "strict" all are one line, in "none" there is none.
return function(ordering, batch, call)
  local strict, keys = ordering == "strict", batch.keys
  if ordering == "none" or #call < 2 or not strict and not any_repeats(batch, call) then
    return nil
  end
  local depths, waves = {}, {}
  for j = 1, #call do
    local line, depth = strict or keys[call[j]], 1
    if line then
      depth = (depths[line] or 0) + 1
      depths[line] = depth
    end
    local wave = waves[depth] or { namespace = call.namespace }
    waves[depth] = wave
    wave[#wave + 1] = call[j]
  end
  return waves
end
