-- The bindings to SQLite that outbox.attach knows. Each function takes the module of a binding and
-- returns what the specs need: `open(path)`; `execute(connection, sql)`, which raises when the SQL
-- fails; `count(connection, sql)`, which returns the one number that a query gives; and
-- `close(connection)`, which returns whether the connection was closed. `knows_itself` is true
-- where outbox.install() is not needed.

local M = {}

M["luasql.sqlite3"] = function(luasql)
  return {
    open = function(path)
      return assert(luasql.sqlite3():connect(path))
    end,
    execute = function(connection, sql)
      assert(connection:execute(sql))
    end,
    count = function(connection, sql)
      local cursor = assert(connection:execute(sql))
      local number = cursor:fetch()
      cursor:close()
      return math.tointeger(tonumber(number))
    end,
    close = function(connection)
      return connection:close()
    end,
  }
end

M.DBI = function(DBI)
  local function query(connection, sql)
    local statement = assert(connection:prepare(sql))
    local ok, reason = statement:execute()
    local row = ok and statement:fetch()
    statement:close()
    assert(ok, reason)
    return row
  end
  return {
    open = function(path)
      local connection = assert(DBI.Connect("SQLite3", path))
      connection:autocommit(true)
      return connection
    end,
    execute = query,
    count = function(connection, sql)
      return math.tointeger(query(connection, sql)[1])
    end,
    close = function(connection)
      return connection:close()
    end,
  }
end

M.lsqlite3 = function(lsqlite3)
  return {
    knows_itself = true,
    open = function(path)
      return assert(lsqlite3.open(path))
    end,
    execute = function(connection, sql)
      if connection:exec(sql) ~= lsqlite3.OK then
        error(connection:errmsg(), 0)
      end
    end,
    count = function(connection, sql)
      local number
      for value in connection:urows(sql) do
        number = value
      end
      return number
    end,
    close = function(connection)
      return connection:close() == lsqlite3.OK
    end,
  }
end

return M
