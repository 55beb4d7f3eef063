--- Publishing on a connection that the application has already: see `outbox.attach`.
-- @module outbox.attach

local core = require("outbox.core")
local problem = require("outbox.problem")

local HANDSHAKE = core.HANDSHAKE

--- Bindings -----------------------------------------------------------------------------------

-- How each binding is known, by its connections' methods, and how it runs a SELECT and leaves no
-- statement behind. LuaSQL runs one twice, which the handshake does not mind.
local BINDINGS = {
  { -- LuaSQL
    methods = { "execute", "setautocommit", "escape" },
    select = function(connection)
      local cursor = assert(connection:execute(HANDSHAKE))
      cursor:close()
    end,
  },
  { -- LuaDBI; unless autocommit is on, it begins a transaction with the first statement in it
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

-- A method of a value of any type, if it has it.
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

local FIELDS = { id = "string", namespace = "string", key = "string", payload = "string",
  headers = "table", deliver_at = "number" }

-- Raises what the store's own publish does.
local function check_message(i, message)
  local wrong
  if type(message) ~= "table" then
    wrong = ("table expected, got %s"):format(message == nil and "no value" or type(message))
  else
    for field, value in next, message do
      local wanted = FIELDS[field]
      if not wanted then
        wrong = ("unknown field '%s'"):format(tostring(field))
      elseif type(value) ~= wanted then
        wrong = ("field '%s' must be a %s, not a %s"):format(field, wanted, type(value))
      elseif wanted == "number" and (value ~= value or math.abs(value) > 1e11) then
        wrong = ("field '%s' is out of range"):format(field)
      end
    end
  end
  if wrong then
    error(("bad argument #%d to 'publish' (%s)"):format(i, wrong), 3)
  end
end

-- Some bindings cut a string at a NUL: such a one becomes part of the SQL, in hex.
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

-- SQL that adds a message, and its values. An id, unless it is a UUID of ours, must be new to all
-- tables: where it is not, it becomes NULL, which none of them takes.
local function make_insert(self, message, id, now)
  local values, prefix = { n = 0 }, self.prefix
  local late = message.deliver_at and message.deliver_at > now
  local columns = "id, namespace, key, payload, headers, created_at"
  local known = (message.id or not self.unique) and {} or nil
  for _, name in ipairs(known and { "entries", "delayed", "dead" } or {}) do
    known[#known + 1] = ("EXISTS (SELECT 1 FROM %s%s WHERE id = %s)"):format(prefix, name,
      parameter(values, id, "TEXT"))
  end
  id = parameter(values, id, "TEXT")
  if known then
    id = ("CASE WHEN %s THEN NULL ELSE %s END"):format(table.concat(known, " OR "), id)
  end
  local list = {
    id,
    parameter(values, message.namespace or "", "TEXT"),
    parameter(values, message.key, "TEXT"),
    parameter(values, message.payload, "BLOB"),
    parameter(values, message.headers and require("outbox.headers").encode(message.headers),
      "TEXT"),
    ("%d"):format(math.floor(now * 1e6 + 0.5)),
  }
  if late then
    columns = columns .. ", due_at"
    list[#list + 1] = ("%d"):format(math.floor(message.deliver_at * 1e6 + 0.5))
  end
  return ("INSERT INTO %s%s (%s) VALUES (%s)"):format(prefix, late and "delayed" or "entries",
    columns, table.concat(list, ", ")), values
end

-- Numbers are refused, for with some bindings they are a count, with others an error's code.
local function execute(self, sql, values)
  local result, reason = self.run(sql, table.unpack(values, 1, values.n))
  if result ~= true and (result ~= nil or reason ~= nil) then
    local text = result and ("the function returned %s: it must raise when SQL fails, and return "
      .. "nothing or true when it does not"):format(problem.text(result)) or problem.text(reason)
    error(problem.new("error", text, reason), 0)
  end
end

local NOTHING = { n = 0 }

local Attached = {}
Attached.__index = Attached
Attached.__name = "outbox.attached"

--- Adds messages, as `store:publish` does, in the transaction that is open behind the function.
function Attached:publish(...)
  local messages, ids = table.pack(...), {}
  for i = 1, math.max(messages.n, 1) do
    check_message(i, messages[i])
  end
  local now, statements = self.clock.now(), {}
  if type(now) ~= "number" then
    error(("the clock's now() must return a time in seconds, not %s"):format(problem.text(now)))
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
  if not ok then -- also when it only seems so: what raises must not have published
    pcall(self.run, "ROLLBACK TO SAVEPOINT outbox")
    pcall(self.run, "RELEASE SAVEPOINT outbox")
    error(trouble, 0)
  end
  return table.unpack(ids)
end

local OPTIONS = { prefix = true, clock = true, id_generator = true }

-- An option that is a function, or a table with it as a method.
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
  for name in pairs(options) do
    if not OPTIONS[name] then
      error(("bad argument #2 to 'attach' (unknown option '%s')"):format(tostring(name)), 2)
    end
  end
  local prefix = options.prefix or "outbox_"
  if type(prefix) ~= "string" or not prefix:find("^[%a_][%w_]*$") then
    error("bad argument #2 to 'attach' (the prefix is not a plain identifier)", 2)
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

--- Makes a store of a connection that the application has already, for messages in its own
-- transactions. The store takes part in whatever transaction is open there. It never commits nor
-- rolls back the application's, changes no setting, and leaves no statement behind, so that the
-- connection can be closed at any time; from then on the store raises `closed`.
--
-- The connection is one of LuaSQL, LuaDBI or lsqlite3, opened after `outbox.install()` (lsqlite3
-- also before). Any other is attached by a function `(sql, ...)` that runs one SQL statement, with
-- `?` for each value that follows, strings and nils; it raises, or returns false or nil and a
-- reason, when that fails, and else returns nothing or true. Such a store has but `publish`.
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
