-- Publishing on a connection to SQLite: one whose binding is known, by the core; any other one, by
-- a function that runs SQL.

local core = require("outbox.core")
local errors = require("outbox.error")
local rules = require("outbox.attach.rules")

local HANDSHAKE = core.HANDSHAKE

local M = {}

--- Bindings -----------------------------------------------------------------------------------

-- For each binding, how a connection of it runs a SELECT without leaving a statement behind. LuaSQL
-- runs it twice, which does the handshake no harm.
local SELECTS = {
  luasql = function(connection)
    local cursor = assert(connection:execute(HANDSHAKE))
    cursor:close()
  end,
  luadbi = function(connection)
    local statement = assert(connection:prepare(HANDSHAKE))
    local ok, reason = statement:execute()
    if ok then
      statement:fetch()
    end
    statement:close()
    assert(ok, reason)
  end,
  lsqlite3 = function(connection)
    local statement = connection:prepare(HANDSHAKE)
    assert(statement, connection:errmsg())
    statement:step()
    statement:finalize()
  end,
}

-- lsqlite3 tells the pointer of its connection. Older versions have no such method.
local function pointer_of(connection)
  local ok, method = pcall(function()
    return connection.get_ptr
  end)
  return ok and type(method) == "function" and method(connection) or nil
end

--- Makes a store of a connection. `binding` is the binding's name, `method` one of its methods.
function M.connection(connection, binding, method, options)
  local pointer = binding == "lsqlite3" and pointer_of(connection) or nil
  local lazy = binding == "luadbi" -- begins a transaction with its first statement
  return core.attach(function()
    SELECTS[binding](connection)
  end, options, method, pointer, lazy)
end

--- Any other way ------------------------------------------------------------------------------

-- Some bindings cut a string at a NUL. A string with a NUL becomes part of the SQL, in hex.
local function parameter(values, value, as)
  if value and value:find("\0", 1, true) then
    return ("CAST(x'%s' AS %s)"):format(value:gsub(".", function(byte)
      return ("%02x"):format(byte:byte())
    end), as)
  end
  values.n = values.n + 1
  values[values.n] = value
  return ("CAST(? AS %s)"):format(as)
end
-- In SQL: whether a ready entry, or a copy of one, has the id and does not store it (see
-- src/sqlite/derived.h). Nil where none can have it. `text` makes SQL of a string.
local function is_hidden(prefix, id, namespace, text)
  local high, low, rest = id:match("^%x%x%x%x%x%x%x%x%-%x%x%x%x%-7%x%x%x%-([89ab]%x%x%x)%-"
    .. "(%x%x%x%x)%x%x%x%x%x%x%x%x(.*)$")
  if not high or rest ~= "" and rest:sub(1, 1) ~= ":" then
    return nil
  end
  local seq = (tonumber(high, 16) & 0x3fff) << 16 | tonumber(low, 16)
  return ("EXISTS (SELECT 1 FROM (SELECT max(seq) - ((max(seq) - %d) & 0x3fffffff) AS place"
    .. " FROM main.%sready) CROSS JOIN main.%sentries AS e WHERE e.seq BETWEEN place"
    .. " AND place + 127 AND (e.id = %s OR e.id IN (SELECT %s || ':' || copy"
    .. " FROM main.%ssubscriptions WHERE namespace = %s)))"):format(seq, prefix, prefix, text(id),
    text(id), prefix, text(namespace))
end

-- Returns SQL that adds a message to the tables in `main`, and its values. The id must be new to
-- all tables. Unless it is a UUID of ours, the SQL looks for it there. If it finds it, the id
-- becomes a BLOB, which every table refuses.
local function make_insert(self, message, id, now)
  local values, prefix = { n = 0 }, self.prefix
  local function text(value)
    return parameter(values, value, "TEXT")
  end
  local late = message.deliver_at and message.deliver_at > now
  local columns = core.MESSAGE_COLUMNS
  local known = rules.is_known(self, message) and {} or nil
  for _, name in ipairs(known and { "ready", "delayed", "dead" } or {}) do
    known[#known + 1] = ("EXISTS (SELECT 1 FROM main.%s%s WHERE id = %s)"):format(prefix, name,
      text(id))
    known[#known + 1] = ("EXISTS (SELECT 1 FROM main.%ssubscriptions AS s JOIN main.%s%s AS e ON "
      .. "e.id = %s || ':' || s.copy WHERE s.namespace = %s)"):format(prefix, prefix, name,
      text(id), text(message.namespace or ""))
  end
  if known then
    known[#known + 1] = is_hidden(prefix, id, message.namespace or "", text)
  end
  local new_id = text(id)
  if known then
    new_id = ("CASE WHEN %s THEN x'' ELSE %s END"):format(table.concat(known, " OR "), new_id)
  end
  local list = {
    new_id,
    text(message.namespace or ""),
    text(message.key and tostring(message.key)),
    parameter(values, message.payload, "BLOB"),
    text(rules.headers(message)),
    ("%d"):format(rules.microseconds(now)),
  }
  if late then
    columns = columns .. ", due_at"
    list[#list + 1] = ("%d"):format(rules.microseconds(message.deliver_at))
  end
  return ("INSERT INTO main.%s%s (%s) VALUES (%s)"):format(prefix, late and "delayed" or "entries",
    columns, table.concat(list, ", ")), values
end

local function execute(self, sql, values)
  local result, reason = self.run(sql, table.unpack(values, 1, values.n))
  local refusal = rules.refusal(result, reason)
  if refusal then
    error(errors.new("error", refusal, reason), 0)
  end
end

local NOTHING = { n = 0 }

local Attached = {}
Attached.__index = Attached
Attached.__name = "outbox.attached"

--- Adds messages, as `store:publish` does, in the transaction that is open behind the function.
---@param ... outbox.message
---@return string ... the id of each entry
function Attached:publish(...)
  local messages, ids = table.pack(...), {}
  rules.check_messages(messages)
  local now, statements = rules.now(self), {}
  for i, message in ipairs(messages) do
    ids[i] = rules.id(self, message)
    statements[i] = table.pack(make_insert(self, message, ids[i], now))
  end
  local ok, trouble = pcall(function()
    execute(self, "SAVEPOINT outbox", NOTHING)
    for _, statement in ipairs(statements) do
      execute(self, table.unpack(statement))
    end
    execute(self, "RELEASE SAVEPOINT outbox", NOTHING)
  end)
  if not ok then -- undo it even where only the last answer was bad: a call that raises adds nothing
    pcall(self.run, "ROLLBACK TO SAVEPOINT outbox")
    pcall(self.run, "RELEASE SAVEPOINT outbox")
    error(trouble, 0)
  end
  return table.unpack(ids)
end

local OPTIONS = { prefix = true, clock = true, id_generator = true, dialect = true }

--- Makes a store of a function `(sql, ...)` that runs SQL.
function M.callback(run, options)
  local store = rules.store(options, OPTIONS)
  store.run = run
  return setmetatable(store, Attached)
end

return M
