-- Splits a call, so that no two messages of a line are in the same: first the first one of each
-- line together with all that wait in no line, then the second ones, and so on. A publisher that
-- fails one message and sends the later ones must not get both. Otherwise a receiver that drops
-- what it has seen by id ends with the older state: it sees 2, then 1, and drops 2.

--- Returns the waves of a call. In the order "key" a line is a key, in "strict" all are one line,
-- in "none" there is none.
return function(ordering, batch, call)
  if ordering == "none" or #call < 2 or not batch.repeats then
    return { call }
  end
  local strict, keys = ordering == "strict", batch.keys
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
