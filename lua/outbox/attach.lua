--- Publishing on a connection that the application has opened: see `outbox.attach`.
-- @module outbox.attach

local core = require("outbox.core")
local errors = require("outbox.error")

local HANDSHAKE = core.HANDSHAKE

--- Bindings -----------------------------------------------------------------------------------

-- For each binding: the methods by which a connection of it is recognized, and how it runs a SELECT
-- without leaving a statement behind. LuaSQL runs it twice, which does the handshake no harm.
local BINDINGS = {
  { -- LuaSQL
    methods = { "execute", "setautocommit", "escape" },
    select = function(connection)
      local cursor = assert(connection:execute(HANDSHAKE))
      cursor:close()
    end,
  },
  { -- LuaDBI; unless autocommit is on, it begins a transaction with its first statement
    methods = { "prepare", "autocommit", "ping" },
    lazy = true,
    select = function(connection)
      local statement = assert(connection:prepare(HANDSHAKE))
      local ok, reason = statement:execute()
      if ok then
        statement:fetch()
      end
      statement:close()
      assert(ok, reason)
    end,
  },
  { -- lsqlite3
    methods = { "prepare", "errmsg", "urows" },
    pointer = "get_ptr",
    select = function(connection)
      local statement = connection:prepare(HANDSHAKE)
      assert(statement, connection:errmsg())
      statement:step()
      statement:finalize()
    end,
  },
}

-- A method of a value of any type; nil where it has none of that name.
local function method_of(value, name)
  local ok, method = pcall(function()
    return value[name]
  end)
  return ok and type(method) == "function" and method or nil
end

local function find_binding(connection)
  for _, binding in ipairs(BINDINGS) do
    local fits = type(connection) == "userdata"
    for _, name in ipairs(binding.methods) do
      fits = fits and method_of(connection, name)
    end
    if fits then
      return binding
    end
  end
end

local function attach_connection(connection, binding, options)
  local method = method_of(connection, binding.methods[1])
  local get_pointer = binding.pointer and method_of(connection, binding.pointer)
  return core.attach(function()
    binding.select(connection)
  end, options, method, get_pointer and get_pointer(connection), binding.lazy)
end

--- Any other way ------------------------------------------------------------------------------

-- Raises the same argument errors as a store's own publish.
local function check_messages(messages)
  local i, reason = 1, messages.n == 0 and core.check_message() or nil
  while i <= messages.n and not reason do
    reason = core.check_message(messages[i])
    i = reason and i or i + 1
  end
  if reason then
    error(("bad argument #%d to 'publish' (%s)"):format(i, reason), 3)
  end
end

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
  local known = (message.id or not self.unique) and {} or nil
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
    text(message.headers and require("outbox.headers").encode(message.headers)),
    ("%d"):format(math.floor(now * 1e6 + 0.5)),
  }
  if late then
    columns = columns .. ", due_at"
    list[#list + 1] = ("%d"):format(math.floor(message.deliver_at * 1e6 + 0.5))
  end
  return ("INSERT INTO main.%s%s (%s) VALUES (%s)"):format(prefix, late and "delayed" or "entries",
    columns, table.concat(list, ", ")), values
end

-- Refuses numbers, because with some bindings they are a count, with others an error's code.
local function execute(self, sql, values)
  local result, reason = self.run(sql, table.unpack(values, 1, values.n))
  if result ~= true and (result ~= nil or reason ~= nil) then
    local text = result and ("the function returned %s: it must raise when SQL fails, and return "
      .. "nothing or true when it does not"):format(errors.text(result))
      or reason == nil and "the function returned false" or errors.text(reason)
    error(errors.new("error", text, reason), 0)
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
  check_messages(messages)
  local now, statements = self.clock.now(), {}
  if type(now) ~= "number" then
    error(("the clock's now() must return a time in seconds, not %s"):format(errors.text(now)))
  end
  for i, message in ipairs(messages) do
    ids[i] = message.id or self.generate_id(self.clock, message)
    if type(ids[i]) ~= "string" then
      error(("the ID generator must return a string, not a %s"):format(type(ids[i])))
    end
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

local OPTIONS = { prefix = true, clock = true, id_generator = true }

-- An option that is a function, or a table that has the function as `method`.
local function callback(options, name, method, default)
  local value = options[name]
  if value == nil then
    return default
  elseif type(value) == "function" then
    return { [method] = value }
  elseif type(value) == "table" and type(value[method]) == "function" then
    return value
  end
  error(("bad argument #2 to 'attach' (%s must be a function, or a table with a function '%s')")
    :format(name, method), 3)
end

local function attach_function(run, options)
  options = options or {}
  for name in next, options do
    if not OPTIONS[name] then
      error(("bad argument #2 to 'attach' (unknown option '%s')"):format(tostring(name)), 2)
    end
  end
  local prefix = options.prefix == nil and "outbox_" or options.prefix
  if not core.is_prefix(prefix) then
    local reason = type(prefix) == "string" and "the prefix is not a plain identifier"
      or "prefix must be a string"
    error(("bad argument #2 to 'attach' (%s)"):format(reason), 2)
  end
  local generator = callback(options, "id_generator", "generate_id", { generate_id = core.uuid_v7 })
  return setmetatable({
    run = run,
    prefix = prefix,
    unique = options.id_generator == nil,
    clock = callback(options, "clock", "now", core.clock),
    generate_id = function(...)
      return generator.generate_id(...)
    end,
  }, Attached)
end

--- Makes a store of a connection that the application has opened, for messages in its own
-- transactions. The store takes part in the transaction that is open there. It never commits or
-- rolls back a transaction of the application's, changes no setting of the connection, and leaves
-- no statement behind. So the connection can be closed at any time; from then on the store raises
-- `closed`.
--
-- The connection is one of LuaSQL, LuaDBI or lsqlite3, opened after `outbox.install()` (of lsqlite3
-- also before). Any other connection is attached with a function `(sql, ...)` that runs one SQL
-- statement on it, with a string or nil for each `?`. When SQL fails, the function raises, or
-- returns false, or nil and a reason. Else it returns nothing or true. Such a store has the method
-- `publish` alone.
-- @function outbox.attach
-- @tparam userdata|function connection
-- @tparam[opt] table options `prefix`, `clock` and `id_generator`, as for `outbox.open`
-- @treturn outbox.store
-- @raise `misuse` when the connection was opened before `outbox.install()`, or is of a second
-- SQLite library in the process; `encoding`, `busy`
---@param connection userdata|fun(sql: string, ...: string?): any, any
---@param options? outbox.attach_options
---@return outbox.store
local function attach(connection, options)
  if type(connection) == "function" then
    if options ~= nil and type(options) ~= "table" then
      error(("bad argument #2 to 'attach' (table expected, got %s)"):format(type(options)), 2)
    end
    return attach_function(connection, options)
  end
  local binding = find_binding(connection)
  if not binding then
    error(("bad argument #1 to 'attach' (a connection of LuaSQL, LuaDBI or lsqlite3, or a function "
      .. "expected, got %s)"):format(type(connection)), 2)
  end
  return attach_connection(connection, binding, options)
end

return attach
