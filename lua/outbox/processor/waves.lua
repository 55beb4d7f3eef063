-- Splits a call, so that no two messages of a line are in the same: first the first one of each
-- line together with all that wait in no line, then the second ones, and so on. A publisher that
-- fails one message and sends the later ones must not get both. Otherwise a receiver that drops
-- what it has seen by id ends with the older state: it sees 2, then 1, and drops 2.
--
-- `line_of(batch, i)` is the line in which an entry waits, nil or false for none. Returns nil where
-- the call is one wave.
return function(line_of, batch, call)
  local depths, depth_of, deepest = {}, {}, 1
  for j = 1, #call do
    local line, depth = line_of(batch, call[j]), 1
    if line then
      depth = (depths[line] or 0) + 1
      depths[line] = depth
      deepest = depth > deepest and depth or deepest
    end
    depth_of[j] = depth
  end
  if deepest == 1 then
    return nil
  end
  local waves = {}
  for depth = 1, deepest do
    waves[depth] = { namespace = call.namespace }
  end
  for j = 1, #call do
    local wave = waves[depth_of[j]]
    wave[#wave + 1] = call[j]
  end
  return waves
end
