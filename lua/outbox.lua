--- The transactional outbox: messages that are committed with the data they tell of, or not at all.
--
-- A thin cover on the core in C, where most of its functions are written and documented.
-- @module outbox

local core = require("outbox.core")

local Store = core.store
local new, begin, commit = core.new, core.begin, core.commit

-- Commits; or rolls back, and raises again what the function has raised.
local function finish(txn, ok, ...)
  if ok then
    return commit(txn, ...)
  end
  do
    local closing <close> = txn -- luacheck: no unused
  end
  error((...), 0)
end

--- Runs a function in a transaction (`BEGIN IMMEDIATE`), or, inside another transaction of this
-- store, in a savepoint. Commits when it returns. What it raises rolls back and is raised again
-- unchanged, and so does a coroutine that is closed, or collected, before it returns. What the
-- function calls on the store itself is part of the transaction too; other coroutines are refused
-- until it has ended, lest their work be rolled back with it.
-- @function store:transaction
-- @tparam function fn gets an `outbox.transaction`, which ends with it
-- @return what fn returns
-- @raise `busy`, `full`, `constraint` where the commit finds one violated
---@param fn fun(txn: outbox.transaction): ...
---@return ...
function Store:transaction(fn)
  if type(fn) ~= "function" then
    error(("bad argument #1 to 'transaction' (function expected, got %s)"):format(type(fn)), 2)
  end
  local txn <close> = new(self)
  begin(txn)
  local _, is_main = coroutine.running()
  if is_main then -- uncaught, for the sake of its traceback
    return commit(txn, fn(txn))
  end
  return finish(txn, pcall(fn, txn)) -- an error that ends a coroutine closes nothing in it
end

return {
  _VERSION = core._VERSION,
  open = core.open,
  install = core.install,
  attach = require("outbox.attach"),
  clock = core.clock,
  uuid_v7 = core.uuid_v7,
  uuid_v4 = core.uuid_v4,
  blob = core.blob,
  LAPSED = core.LAPSED,
  processor = require("outbox.processor"),
  publisher = require("outbox.publisher"),
  inbox = require("outbox.inbox"),
}
