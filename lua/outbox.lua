--- The transactional outbox: messages that are committed with the data that they are about, or not
-- at all.
--
-- Most of its functions are written in C and documented there; see `outbox.core`.
-- @module outbox

local core = require("outbox.core")

local Store = core.store
local new, begin, commit = core.new, core.begin, core.commit

-- Commits. Where the function has raised, rolls back and raises the same again.
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
-- store, in a savepoint. Commits when the function returns. Rolls back when it raises, and raises
-- the same value again. Rolls back, too, when the coroutine that it runs in is closed or collected
-- before it returns.
--
-- Calls on the store itself, inside the function, are part of the transaction too. Other coroutines
-- cannot use the store until the transaction has ended, because their work would be rolled back
-- with it; they get `busy`.
-- @function store:transaction
-- @tparam function fn called with an `outbox.transaction`, which ends when the function does
-- @return what fn returns
-- @raise what fn raises; `busy`, `full`; `constraint` where the commit finds one violated; `misuse`
-- on an attached store
---@param fn fun(txn: outbox.transaction): ...
---@return ...
function Store:transaction(fn)
  if type(fn) ~= "function" then
    error(("bad argument #1 to 'transaction' (function expected, got %s)"):format(type(fn)), 2)
  end
  local txn <close> = new(self)
  begin(txn)
  local _, is_main = coroutine.running()
  if is_main then -- not caught, so that an error keeps its traceback
    return commit(txn, fn(txn))
  end
  return finish(txn, pcall(fn, txn)) -- an error that ends a coroutine closes no variable in it
end

-- What only some programs need is loaded when it is first asked for. More code in memory makes all
-- else slower, too, because the collector goes through it again and again.
local PARTS = {
  attach = "outbox.attach",
  inbox = "outbox.inbox",
  processor = "outbox.processor",
  publisher = "outbox.publisher",
  signals = "outbox.signals",
}

local function load_part(outbox, name)
  if PARTS[name] then
    outbox[name] = require(PARTS[name])
  end
  return rawget(outbox, name)
end

return setmetatable({
  _VERSION = core._VERSION,
  open = core.open,
  install = core.install,
  clock = core.clock,
  uuid_v7 = core.uuid_v7,
  uuid_v4 = core.uuid_v4,
  blob = core.blob,
  LAPSED = core.LAPSED,
  OVERTIME = core.OVERTIME,
}, { __index = load_part })
