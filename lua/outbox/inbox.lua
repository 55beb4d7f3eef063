--- For whoever receives messages: what was delivered twice is done once. Made by `outbox.inbox`.
--
--    local inbox = outbox.inbox({ store = store })
--    inbox:once(message.id, function(txn)
--      txn:execute("UPDATE stock SET count = count - 1 WHERE item = ?", item)
--    end)
--
-- The ids are kept in the table `<prefix>inbox`, which comes to be with the first.
-- @classmod outbox.inbox

local option = require("outbox.options")

-- With the first id that comes, and every so many, twice as many go at most, of those whose time is
-- over.
local PERIOD = 16

-- `@` is the prefix.
local SQL = {
  create = [[CREATE TABLE IF NOT EXISTS @inbox
    (id TEXT PRIMARY KEY NOT NULL, seen_at INTEGER NOT NULL) WITHOUT ROWID]],
  create_index = "CREATE INDEX IF NOT EXISTS @inbox_seen_at ON @inbox (seen_at)",
  record = "INSERT INTO @inbox (id, seen_at) VALUES (?, ?) ON CONFLICT DO NOTHING",
  forget = [[DELETE FROM @inbox WHERE id IN
    (SELECT id FROM @inbox WHERE seen_at < ? LIMIT ?)]],
}

local Inbox = { __name = "outbox.inbox" }
Inbox.__index = Inbox

-- Returns whether the id is new. It is not known whether the table is there: the transaction that
-- created it may have been rolled back.
local function record(self, txn, id, now)
  local sql = self.sql
  local ok, count = pcall(txn.execute, txn, sql.record, id, now)
  if not ok and tostring(count):find("no such table", 1, true) then
    txn:execute(sql.create)
    txn:execute(sql.create_index)
    count = txn:execute(sql.record, id, now)
  elseif not ok then
    error(count, 0)
  end
  return count == 1
end

local function forget(self, txn, now)
  if self.count % PERIOD == 0 then
    txn:execute(self.sql.forget, math.floor((now - self.retention) * 1e6), 2 * PERIOD)
  end
  self.count = self.count + 1
end

--- Runs a function in a transaction that also notes the id, unless it was noted before. What the
-- function raises rolls both back, and is raised again: the next time it is tried again.
-- @function inbox:once
-- @tparam string id of the message; with several that each handle it, one made of their name and it
-- @tparam function fn gets an `outbox.transaction`, as in `store:transaction`
-- @treturn boolean whether it was run; then follows what it returned
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
  retention = { default = 7 * 86400, check = option.seconds },
}

--- Makes an inbox.
-- @function outbox.inbox
-- @tparam table options `store`, from `outbox.open`, on the database that the messages change;
-- `retention`, for how many seconds an id is kept at least, default a week: longer than a message
-- may take to be delivered again
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
  for name, text in pairs(SQL) do
    sql[name] = text:gsub("@", options.store:prefix())
  end
  return setmetatable({
    store = options.store, retention = options.retention, sql = sql, count = 0,
  }, Inbox)
end

return new
