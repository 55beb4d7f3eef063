-- The ways to attach to PostgreSQL, for the specs. By name: `open(url)`; `execute(connection,
-- sql)`, which raises when the SQL fails; and `attach(connection, options)`. Connections have
-- `close`, and are in autocommit.

local outbox = require("outbox")

local M = {}

local function connect(url)
  return assert(require("luasql.postgres").postgres():connect(url))
end

M.LuaSQL = {
  open = connect,
  execute = function(connection, sql)
    assert(connection:execute(sql))
  end,
  attach = outbox.attach,
}

M.LuaDBI = {
  open = function(url)
    local connection = assert(require("DBI").Connect("PostgreSQL", url))
    connection:autocommit(true)
    return connection
  end,
  execute = function(connection, sql)
    local statement = assert(connection:prepare(sql))
    assert(statement:execute())
    statement:close()
  end,
  attach = outbox.attach,
}

-- An object with the one method of pgmoon that outbox needs, which returns the same.
M.pgmoon = {
  open = function(url)
    local connection, object = connect(url), {}
    function object:query(sql)
      assert(self == object)
      local result, reason = connection:execute(sql)
      if not result then
        return nil, "ERROR: " .. reason:match("ERROR:%s+(.*)"):gsub("\nDETAIL:%s+", "\n")
      end
      return result > 0 and { affected_rows = result } or true
    end
    function object.close()
      connection:close()
    end
    return object
  end,
  execute = function(connection, sql)
    assert(connection:query(sql))
  end,
  attach = outbox.attach,
}

M["a function"] = {
  open = connect,
  execute = M.LuaSQL.execute,
  attach = function(connection, options)
    options = options or {}
    options.dialect = "postgres"
    return outbox.attach(function(sql, ...)
      assert(select("#", ...) == 0)
      local result, reason = connection:execute(sql)
      if not result then
        return nil, reason
      end
    end, options)
  end,
}

return M
