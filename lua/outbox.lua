--- The transactional outbox.
-- @module outbox

local core = require("outbox.core")

local M = {
  _VERSION = core._VERSION,
  open = core.open,
  clock = core.clock,
  uuid_v7 = core.uuid_v7,
  uuid_v4 = core.uuid_v4,
  blob = core.blob,
}

local Store = core.store
local begin, commit = core.begin, core.commit

function Store:transaction(fn)
  if type(fn) ~= "function" then
    error(("bad argument #1 to 'transaction' (function expected, got %s)"):format(type(fn)), 2)
  end
  -- Closed without a commit, by an error, a closed coroutine or the collector, it is rolled back.
  local txn <close> = begin(self)
  return commit(txn, fn(txn))
end

return M
