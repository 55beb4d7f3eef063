--- Publishing on a connection that the application has opened: see `outbox.attach`.
-- @module outbox.attach

local errors = require("outbox.error")

-- For each binding: the type of its connections, and the methods by which they are recognized.
-- `postgres` is true where they are to PostgreSQL. Where they may be to other databases, too, it
-- matches the text of those to PostgreSQL.
local BINDINGS = {
  { name = "luasql", type = "userdata", methods = { "execute", "setautocommit", "escape" },
    postgres = "^PostgreSQL connection" },
  { name = "luadbi", type = "userdata", methods = { "prepare", "autocommit", "ping" },
    postgres = "^DBD%.PostgreSQL%.Connection" },
  { name = "lsqlite3", type = "userdata", methods = { "prepare", "errmsg", "urows" } },
  { name = "pgmoon", type = "table", methods = { "query" }, postgres = true },
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
    local fits = type(connection) == binding.type
    for _, name in ipairs(binding.methods) do
      fits = fits and method_of(connection, name)
    end
    if fits then
      return binding
    end
  end
end

-- The ways to attach are in modules of their own, of which a program needs one.
local DIALECTS = { sqlite = "outbox.attach.sqlite", postgres = "outbox.attach.postgres" }

local function check_table(options)
  if options ~= nil and type(options) ~= "table" then
    error(("bad argument #2 to 'attach' (table expected, got %s)"):format(type(options)), 3)
  end
end

local function is_postgres(binding, connection)
  local pattern = binding.postgres
  return pattern == true or pattern and tostring(connection):find(pattern) ~= nil
end

--- Makes a store of a connection that the application has opened, for messages in its own
-- transactions. The store takes part in the transaction that is open there. It never commits or
-- rolls back a transaction of the application's, changes no setting of the connection, and leaves
-- no statement behind. So the connection can be closed at any time; from then on the store raises
-- `closed`.
--
-- To SQLite, the connection is one of LuaSQL, LuaDBI or lsqlite3, opened after `outbox.install()`
-- (of lsqlite3 also before). Any other connection is attached with a function `(sql, ...)` that
-- runs one SQL statement on it, with a string or nil for each `?`. When SQL fails, the function
-- raises, or returns false, or nil and a reason. Else it returns nothing or true. Such a store has
-- the method `publish` alone.
--
-- To PostgreSQL, the connection is one of LuaSQL or LuaDBI, or an object like pgmoon's, whose
-- `connection:query(sql)` returns nil and a reason when SQL fails. Any other one is attached with a
-- function `(sql)`, as above, and the option `dialect = "postgres"`. It gets no values, because all
-- are in the SQL. All these stores have `publish` alone.
-- @function outbox.attach
-- @tparam userdata|table|function connection
-- @tparam[opt] table options `prefix`, `clock` and `id_generator`, as for `outbox.open`; with a
-- function also `dialect`, `"sqlite"` or `"postgres"`; on PostgreSQL also `schema`, that of the
-- tables, and `synchronous = "off"`, which says that the session's `synchronous_commit = off` is
-- meant
-- @treturn outbox.store
-- @raise `misuse` when the connection was opened before `outbox.install()`, or is of a second
-- SQLite library in the process; `encoding`, `busy`
---@param connection userdata|table|fun(sql: string, ...: string?): any, any
---@param options? outbox.attach_options|outbox.attach_postgres_options
---@return outbox.store
local function attach(connection, options)
  if type(connection) == "function" then
    check_table(options)
    local dialect = options and options.dialect
    if dialect == nil then
      dialect = "sqlite"
    elseif not DIALECTS[dialect] then
      error(("bad argument #2 to 'attach' (dialect must be 'sqlite' or 'postgres', not '%s')")
        :format(errors.text(dialect)), 2)
    end
    return require(DIALECTS[dialect]).callback(connection, options)
  end
  local binding = find_binding(connection)
  if not binding then
    error(("bad argument #1 to 'attach' (a connection of LuaSQL, LuaDBI or lsqlite3, or a function"
      .. ", or an object with a method 'query' expected, got %s)"):format(type(connection)), 2)
  end
  local method = method_of(connection, binding.methods[1])
  if is_postgres(binding, connection) then
    check_table(options)
    return require(DIALECTS.postgres).connection(connection, binding.name, method, options)
  end
  return require(DIALECTS.sqlite).connection(connection, binding.name, method, options)
end

return attach
