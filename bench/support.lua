-- What the benchmarks share.

local M = {}

--- Runs a command of the shell, made as string.format makes it; raises if it fails.
function M.shell(command, ...)
  command = command:format(...)
  assert(os.execute(command), command)
end

--- Replaces a database by a copy. Synced, or the first checkpoint would pay for the copy.
function M.copy(original, database)
  M.shell("rm -f %s*; cp %s %s; sync %s", database, original, database, database)
end

--- The median of some numbers, which are sorted.
function M.median(values)
  table.sort(values)
  return values[#values // 2 + 1]
end

return M
