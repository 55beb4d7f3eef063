--- For the receiver of messages: handles a message once, even if it was delivered twice. Made by
-- `outbox.inbox`.
--
--    local inbox = outbox.inbox({ store = store })
--    inbox:once(message.id, function(txn)
--      txn:execute("UPDATE stock SET count = count - 1 WHERE item = ?", item)
--    end)
--
-- (In PostgreSQL the parameter is `$1`.)
--
-- The ids are kept in the table `<prefix>inbox`, which is created with the first id. They are
-- forgotten after the `retention`, a year by default. A message that is delivered again after that,
-- such as a dead letter that was requeued too late, is handled twice.
-- @classmod outbox.inbox

local option = require("outbox.options")

-- The first new id, and then every 16th, deletes up to 32 ids whose retention is over.
local PERIOD = 16

-- `@` stands for the prefix. In SQLite it follows `main.` where SQL allows that: a TEMP table, or a
-- table of an attached file, that has the same name is never meant.
local SQL = {
  sqlite = {
    create = [[CREATE TABLE IF NOT EXISTS main.@inbox
      (id TEXT PRIMARY KEY NOT NULL, seen_at INTEGER NOT NULL) WITHOUT ROWID]],
    create_index = "CREATE INDEX IF NOT EXISTS main.@inbox_seen_at ON @inbox (seen_at)",
    record = "INSERT INTO main.@inbox (id, seen_at) VALUES (?, ?) ON CONFLICT DO NOTHING",
    forget = [[DELETE FROM main.@inbox WHERE id IN
      (SELECT id FROM main.@inbox WHERE seen_at < ? LIMIT 0 + ?)]],
  },
  postgres = {
    is_missing = "SELECT to_regclass('@inbox') IS NULL AS missing",
    -- Without it, two transactions that create the same table at once get an error.
    lock = "SELECT pg_advisory_xact_lock(hashtextextended('@inbox', 0))",
    create = [[CREATE TABLE IF NOT EXISTS @inbox
      (id TEXT PRIMARY KEY NOT NULL, seen_at BIGINT NOT NULL)]],
    create_index = "CREATE INDEX IF NOT EXISTS @inbox_seen_at ON @inbox (seen_at)",
    record = "INSERT INTO @inbox (id, seen_at) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    -- Leaves to others what they are deleting; to wait for them could end in a deadlock.
    forget = [[DELETE FROM @inbox WHERE id = ANY (ARRAY (SELECT id FROM @inbox WHERE seen_at < $1
      LIMIT $2 FOR UPDATE SKIP LOCKED))]],
  },
}

local Inbox = { __name = "outbox.inbox" }
Inbox.__index = Inbox

local function create(sql, txn)
  txn:execute(sql.create)
  txn:execute(sql.create_index)
end

-- Creates the table in PostgreSQL if it is not there. An INSERT that fails without it would end
-- the whole transaction.
local function create_first(sql, txn)
  for row in txn:rows(sql.is_missing) do
    if not row.missing then
      return
    end
  end
  txn:execute(sql.lock)
  create(sql, txn)
end

-- Records the id; returns whether it is new. In SQLite the table is created if the INSERT fails
-- without it. The inbox cannot remember that the table exists, because the transaction that created
-- it may be rolled back.
local function record(self, txn, id, now)
  local sql = self.sql
  if sql.is_missing then
    create_first(sql, txn)
  end
  local ok, count = pcall(txn.execute, txn, sql.record, id, now)
  if not ok and tostring(count):find("no such table", 1, true) then
    create(sql, txn)
    count = txn:execute(sql.record, id, now)
  elseif not ok then
    error(count, 0)
  end
  return count == 1
end

-- Deletes old ids, if it is time for that.
local function forget(self, txn, now)
  if self.count % PERIOD == 0 then
    txn:execute(self.sql.forget, math.floor((now - self.retention) * 1e6), 2 * PERIOD)
  end
  self.count = self.count + 1
end

--- Runs a function in a transaction that also records the id. Does nothing if the id was recorded
-- before. If the function raises, both are rolled back and the error is raised again, so the next
-- call with this id runs the function again.
-- @function inbox:once
-- @tparam string id of the message; if several handlers handle it, put the handler's name before it
-- @tparam function fn gets an `outbox.transaction`, as in `store:transaction`
-- @treturn boolean whether the function was run; then the values that it returned
---@param id string
---@param fn fun(txn: outbox.transaction): ...
---@return boolean, ...
function Inbox:once(id, fn)
  if type(id) ~= "string" then
    error(("bad argument #1 to 'once' (string expected, got %s)"):format(type(id)), 2)
  elseif type(fn) ~= "function" then
    error(("bad argument #2 to 'once' (function expected, got %s)"):format(type(fn)), 2)
  end
  return self.store:transaction(function(txn)
    local now = self.store:clock().now()
    if not record(self, txn, id, math.floor(now * 1e6)) then
      return false
    end
    forget(self, txn, now)
    return true, fn(txn)
  end)
end

local OPTIONS = {
  store = { required = true, check = option.store },
  retention = { default = option.RETENTION, check = option.seconds },
}

--- Makes an inbox.
-- @function outbox.inbox
-- @tparam table options `store`: from `outbox.open`, on the database that the messages change;
-- `retention`: how many seconds an id is kept at least, default a year. It must be longer than a
-- message may take to be delivered again: also one that was a dead letter and was requeued.
-- @treturn outbox.inbox
---@param options outbox.inbox_options
---@return outbox.inbox
local function new(options)
  if type(options) ~= "table" then
    error(("bad argument #1 to 'inbox' (table expected, got %s)"):format(type(options)), 2)
  end
  local wrong = {}
  options = option.check(OPTIONS, options, "", wrong)
  option.refuse(wrong, "argument #1 to 'inbox'")
  local sql = {}
  for name, text in pairs(SQL[options.store:dialect()]) do
    sql[name] = text:gsub("@", options.store:prefix())
  end
  return setmetatable({
    store = options.store, retention = options.retention, sql = sql, count = 0,
  }, Inbox)
end

return new
