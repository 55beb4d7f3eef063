-- outbox.attach: behaviour that differs from one binding to the next.

local outbox = require("outbox")
local support = require("spec.support")

describe("a store on a connection that is not in autocommit", function()
  -- LuaDBI begins a transaction with its first statement. LuaSQL always has one open.
  local OPEN = {
    LuaDBI = function(path)
      return require("DBI").Connect("SQLite3", path)
    end,
    LuaSQL = function(path)
      local connection = require("luasql.sqlite3").sqlite3():connect(path)
      connection:setautocommit(false)
      return connection
    end,
  }
  for name, open in pairs(OPEN) do
    it("takes part in the transaction that " .. name .. " has open or begins", function()
      outbox.install()
      local own <close>, path = support.store()
      local connection = assert(open(path))
      local store = outbox.attach(connection)
      for count = 0, 2 do
        store:publish({}, {})
        assert.equal(count, own:stats().ready)
        connection:rollback()
        store:publish({})
        connection:commit()
      end
      assert.equal(3, own:stats().ready)
      connection:close()
      support.remove()
    end)
  end

  it("leaves the transaction usable when a message is larger than SQLite allows", function()
    outbox.install()
    local own <close>, path = support.store()
    local connection = require("luasql.sqlite3").sqlite3():connect(path)
    local store = outbox.attach(connection)
    connection:setautocommit(false)
    store:publish({})
    local large = ("x"):rep(1000000001)
    assert.equal("toobig", support.raised(store.publish, store, { payload = large }).code)
    assert.equal("toobig", support.raised(store.publish, store, {}, { payload = large }).code)
    large = nil -- luacheck: no unused
    collectgarbage()
    store:publish({})
    connection:commit()
    assert.equal(2, own:stats().ready)
    connection:close()
    support.remove()
  end)
end)

describe("a connection of LuaSQL", function()
  it("closes once the cursor of PRAGMA busy_timeout is closed", function()
    outbox.install()
    local connection = require("luasql.sqlite3").sqlite3():connect(":memory:")
    outbox.attach(connection)
    local cursor = connection:execute("PRAGMA busy_timeout = 5000")
    assert.matches("open cursors", support.raised(connection.close, connection))
    cursor:close()
    connection:execute("PRAGMA busy_timeout = 5000"):close()
    assert.is_true(connection:close())
  end)
end)

describe("a store on a connection of lsqlite3", function()
  local loaded, lsqlite3 = pcall(require, "lsqlite3")
  local path, connection, store

  before_each(function()
    if loaded then
      local own
      own, path = support.store()
      own:close()
      connection = lsqlite3.open(path)
      connection:exec("CREATE TABLE orders (number INTEGER PRIMARY KEY)")
      store = outbox.attach(connection)
    end
  end)

  after_each(function()
    if loaded then
      pcall(connection.close, connection)
      store:close()
    end
    support.remove()
  end)

  local function try(name, fn)
    it(name, function()
      if not loaded then
        pending("lsqlite3 cannot be had")
        return
      end
      fn()
    end)
  end

  try("rolls back only what it has begun, and no statement that is in progress", function()
    for number in connection:urows("INSERT INTO orders VALUES (1), (2) RETURNING number") do
      assert.equal("misuse", support.raised(store.publish, store, {}, {}).code)
      assert.equal("misuse", support.raised(store.publish, store, { id = "mine" }).code)
      store:publish({ key = tostring(number) })
    end
    connection:close()
    local own <close> = outbox.open(path)
    assert.equal(2, #support.sql(own, "SELECT * FROM orders"))
    assert.same({ "1", "2" }, support.pluck(own:ready_entries(), "key"))
  end)

  try("refuses calls from functions that its own statements call", function()
    local problem
    connection:create_function("audit", 1, function(context)
      problem = problem or support.raised(store.publish, store, { key = "audit" }, {})
      assert(support.raised(store.stats, store).code == "misuse")
      context:result_int(1)
    end)
    connection:exec("CREATE TEMP TRIGGER t AFTER INSERT ON outbox_ready BEGIN"
      .. " SELECT audit(NEW.key); END")
    store:publish({ key = "outer" })
    store:publish({ key = "many" }, {})
    assert.equal("misuse", problem.code)
    assert.matches("in the middle of another call", problem.message)
    assert.equal(3, store:stats().ready)
    assert.equal(lsqlite3.OK, connection:close())
  end)

  try("refuses to be closed in the middle of a call, even by leaving a scope", function()
    local codes = {}
    connection:update_hook(function()
      codes[#codes + 1] = support.raised(store.close, store).code
      codes[#codes + 1] = support.raised(function()
        local _ <close> = store
      end).code
    end)
    store:publish({ key = "one" })
    store:publish({ key = "many" }, {})
    assert.same({ "misuse", "misuse", "misuse", "misuse", "misuse", "misuse" }, codes)
    assert.equal(3, store:stats().ready)
    store:close()
    assert.equal(lsqlite3.OK, connection:close())
  end)

  try("checks the encoding again when it creates the tables", function()
    local other = lsqlite3.open(support.path())
    local early = outbox.attach(other)
    other:exec("PRAGMA encoding = 'UTF-16le'; CREATE TABLE t (x)")
    assert.equal("encoding", support.raised(early.migrate, early).code)
    other:close()
  end)
end)
