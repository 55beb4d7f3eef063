-- Functions that the benchmarks share.

local M = {}

--- Runs a shell command that string.format makes of the arguments. Raises if the command fails.
function M.shell(command, ...)
  command = command:format(...)
  assert(os.execute(command), command)
end

--- Replaces a database by a copy. Syncs it; otherwise the first checkpoint would pay for the copy.
function M.copy(original, database)
  M.shell("rm -f %s*; cp %s %s; sync %s", database, original, database, database)
end

--- Returns the median of some numbers. Sorts them.
function M.median(values)
  table.sort(values)
  return values[#values // 2 + 1]
end

--- Returns the value below which that part of some numbers lies. They must be sorted.
function M.percentile(values, part)
  return values[math.max(1, math.ceil(#values * part))]
end

return M
