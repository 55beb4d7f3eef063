-- Stores on connections that the application has: the same for each binding.

local outbox = require("outbox")
local support = require("spec.support")
local testing = require("outbox.testing")

-- What the specs need of a binding, in the same words for all: `execute` raises; `count` gives the
-- one number of a query; `close` tells whether it succeeded.
local BINDINGS = {}

BINDINGS["luasql.sqlite3"] = function(luasql)
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

BINDINGS.DBI = function(DBI)
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

BINDINGS.lsqlite3 = function(lsqlite3)
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

for module, adapt in pairs(BINDINGS) do
  describe("a store on a connection of " .. module, function()
    local loaded, driver = pcall(require, module)
    if not loaded then
      pending("is not tried: " .. module .. " cannot be had")
      return
    end
    local binding = adapt(driver)
    local path, connection, store

    before_each(function()
      outbox.install()
      local own
      own, path = support.store()
      own:transaction(function(txn)
        txn:execute("CREATE TABLE orders (number INTEGER PRIMARY KEY)")
      end)
      own:close()
      connection = binding.open(path)
      store = outbox.attach(connection)
    end)

    after_each(function()
      pcall(binding.close, connection)
      store:close()
      support.remove()
    end)

    local function execute(sql)
      return binding.execute(connection, sql)
    end

    -- What is there for others: orders and messages.
    local function committed()
      local other = binding.open(path)
      local orders = binding.count(other, "SELECT count(*) FROM orders")
      local messages = binding.count(other, "SELECT count(*) FROM outbox_entries")
      binding.close(other)
      return orders, messages
    end

    it("commits and rolls back with the application's transaction", function()
      execute("BEGIN IMMEDIATE")
      execute("INSERT INTO orders VALUES (1)")
      local id = store:publish({ key = "1" })
      assert.same({ 0, 0 }, { committed() })
      assert.outbox(store).has_entry({ id = id, key = "1" })
      execute("COMMIT")
      assert.same({ 1, 1 }, { committed() })
      execute("BEGIN")
      store:publish({ key = "2" }, { key = "3" })
      execute("INSERT INTO orders VALUES (2)")
      execute("ROLLBACK")
      assert.same({ 1, 1 }, { committed() })
    end)

    it("takes part in its savepoints", function()
      execute("BEGIN")
      store:publish({ key = "kept" })
      execute("SAVEPOINT inner")
      execute("INSERT INTO orders VALUES (1)")
      store:publish({ key = "undone" }, { key = "undone too" })
      execute("ROLLBACK TO inner")
      execute("RELEASE inner")
      execute("INSERT INTO orders VALUES (2)")
      execute("COMMIT")
      assert.same({ 1, 1 }, { committed() })
      assert.outbox(store).has_entry({ key = "kept" })
    end)

    it("has a transaction of its own where there is none", function()
      store:publish({ id = "a" })
      assert.same({ 0, 1 }, { committed() })
      assert.equal("duplicate",
        support.raised(store.publish, store, { id = "b" }, { id = "a" }).code)
      assert.same({ 0, 1 }, { committed() })
      execute("BEGIN IMMEDIATE") -- nothing of it is left open
      execute("COMMIT")
    end)

    it("adds one entry for each message, with every byte", function()
      local bytes = { id = "i\0\255", namespace = "n\0", key = "k\0'", payload = "\0p\0\1\255",
        headers = { ["h\0"] = "\0" } }
      execute("BEGIN")
      store:publish(bytes)
      store:publish({ key = tostring(math.maxinteger), payload = "" })
      store:publish({ id = "late", deliver_at = os.time() + 1000 })
      execute("COMMIT")
      assert.same({ 0, 2 }, { committed() })
      assert.equal(1, store:stats().delayed)
      assert.outbox(store).has_entry(bytes)
      assert.outbox(store).has_entry({ key = "9223372036854775807", payload = "" })
    end)

    it("leaves the transaction usable when a publish fails", function()
      store:publish({ id = "taken" })
      execute("BEGIN")
      execute("INSERT INTO orders VALUES (1)")
      for _ = 1, 2 do
        assert.equal("duplicate", support.raised(store.publish, store, { id = "taken" }).code)
        assert.equal("duplicate",
          support.raised(store.publish, store, {}, { id = "taken" }, {}).code)
      end
      assert.matches("must be a string", support.raised(store.publish, store, { id = 1 }))
      store:publish({ id = "after" })
      execute("COMMIT")
      assert.same({ 1, 2 }, { committed() })
    end)

    it("leaves it usable, too, where there are no tables", function()
      local bare = outbox.attach(connection, { prefix = "other_" })
      execute("BEGIN")
      execute("INSERT INTO orders VALUES (1)")
      assert.equal("schema", support.raised(bare.publish, bare, {}).code)
      bare:migrate()
      bare:publish({})
      execute("ROLLBACK")
      assert.equal("schema", support.raised(bare.publish, bare, {}).code)
      bare:migrate()
      bare:publish({})
      assert.equal(1, bare:stats().ready)
      assert.same({ 0, 0 }, { committed() })
    end)

    it("leaves it usable when the clock or the ID generator raises", function()
      local problem
      local picky = outbox.attach(connection, { id_generator = function()
        return problem and error(problem) or "made"
      end, clock = function()
        return 1000
      end })
      execute("BEGIN")
      execute("INSERT INTO orders VALUES (1)")
      problem = {}
      assert.equal(problem, support.raised(picky.publish, picky, {}))
      problem = nil
      assert.equal("made", picky:publish({}))
      execute("COMMIT")
      assert.same({ 1, 1 }, { committed() })
      assert.equal(1000, picky:ready_entries()[1].created_at)
    end)

    it("changes no setting of the connection", function()
      local function settings()
        local list = {}
        for _, name in ipairs({ "synchronous", "busy_timeout", "journal_size_limit",
          "foreign_keys", "cache_size", "recursive_triggers", "wal_autocheckpoint" }) do
          list[name] = binding.count(connection, "PRAGMA " .. name)
        end
        return list
      end
      execute("PRAGMA synchronous = OFF")
      binding.count(connection, "PRAGMA journal_size_limit = 12345")
      local before = settings()
      local second <close> = outbox.attach(connection)
      second:publish({}, {})
      assert.same(before, settings())
    end)

    it("leaves the rowid of the application's last insert", function()
      store:publish({}, {}, {})
      execute("INSERT INTO orders VALUES (17)")
      store:publish({ id = "a" })
      store:publish({}, {})
      pcall(store.publish, store, { id = "a" })
      assert.equal(17, binding.count(connection, "SELECT last_insert_rowid()"))
    end)

    it("says so when SQLite rolls the application's transaction back", function()
      local pages = binding.count(connection, "PRAGMA page_count")
      binding.count(connection, "PRAGMA max_page_count = " .. pages + 2)
      execute("BEGIN")
      execute("INSERT INTO orders VALUES (1)")
      local problem = support.raised(store.publish, store, { payload = ("x"):rep(100000) })
      assert.equal("full", problem.code)
      assert.matches("rolled the whole transaction back", problem.message)
      assert.same({ 0, 0 }, { committed() })
    end)

    it("can be closed by a finalizer in the middle of a call", function()
      local messages = {}
      for i = 1, 2000 do
        messages[i] = { key = tostring(i) }
      end
      store:publish(table.unpack(messages))
      local function wrapped()
        return setmetatable({ store = outbox.attach(connection) }, { __gc = function(wrapper)
          wrapper.store:close()
        end }).store -- from now on only the store itself is held
      end
      for _ = 1, 3 do
        pcall(function()
          wrapped():ready_entries({ limit = 2000 })
        end)
        pcall(function()
          wrapped():publish(table.unpack(messages))
        end)
        pcall(function()
          wrapped():stats()
        end)
      end
      store:publish({})
      assert.is_true(binding.close(connection))
    end)

    it("is closed with the connection, which nothing of it holds open", function()
      store:publish({}, {})
      store:stats()
      pcall(store.publish, store, { id = "x" }, { id = "x" })
      local second = outbox.attach(connection)
      assert.is_true(binding.close(connection))
      for _, each in ipairs({ store, second }) do
        assert.equal("closed", support.raised(each.publish, each, {}).code)
        assert.equal("closed", support.raised(each.stats, each).code)
      end
      store, second = outbox.attach(binding.open(path)), nil -- luacheck: no unused
      collectgarbage()
      collectgarbage()
      store:publish({})
    end)

    it("may be closed before it", function()
      for _ = 1, 100 do
        local short <close> = outbox.attach(connection)
        short:publish({})
      end
      outbox.attach(connection) -- and this one is collected
      collectgarbage()
      collectgarbage()
      execute("INSERT INTO orders VALUES (1)")
      assert.same({ 1, 100 }, { committed() })
    end)

    it("has nothing to do with a second connection", function()
      local other = binding.open(path)
      local theirs = outbox.attach(other)
      execute("BEGIN IMMEDIATE")
      store:publish({ key = "mine" })
      assert.equal(0, theirs:stats().ready)
      execute("COMMIT")
      assert.is_true(binding.close(connection))
      theirs:publish({ key = "theirs" })
      assert.equal(2, theirs:stats().ready)
      binding.close(other)
    end)

    it("has no transaction of ours", function()
      assert.equal("misuse", support.raised(store.transaction, store, print).code)
      assert.matches("store must be what outbox.open returns",
        support.raised(outbox.processor, { store = store, publisher = print }), 1, true)
    end)

    it("rings the bell of a processor in another process", function()
      binding.close(connection)
      store:close()
      local woken_by = support.sleeping_processor(path)
      connection = binding.open(path)
      binding.count(connection, "PRAGMA busy_timeout = 10000")
      outbox.attach(connection):publish({ payload = "hello" })
      assert.equal("hello", woken_by())
    end)

    if not binding.knows_itself then
      it("is refused when that was opened before outbox.install()", function()
        local output = support.run(([[-e '
          local binding = %s
          local connection = binding("%s")
          local outbox = require("outbox")
          for _ = 1, 2 do
            local ok, problem = pcall(outbox.attach, connection)
            print(ok, problem.code, problem.message)
            outbox.install()
          end']]):format(module == "DBI"
          and 'function(path) return require("DBI").Connect("SQLite3", path) end'
          or 'function(path) return require("luasql.sqlite3").sqlite3():connect(path) end', path))
        local first, second = output:match("^(.-)\n(.-)\n$")
        assert.equal(first, second)
        assert.matches("^false\tmisuse\t.*outbox.install%(%) first, then open it", first)
      end)
    else
      it("needs no outbox.install()", function()
        local output = support.run(([[-e '
          local connection = require("lsqlite3").open("%s")
          local store = require("outbox").attach(connection)
          store:publish({})
          print(store:stats().ready, connection:close())
          print(pcall(store.stats, store))']]):format(path))
        assert.equal("1\t0\nfalse\toutbox: the connection that the store used is closed (closed)\n",
          output)
      end)
    end

    it("is refused when that is closed, or in UTF-16", function()
      local wide = binding.open(support.path())
      binding.execute(wide, "PRAGMA encoding = 'UTF-16le'")
      binding.execute(wide, "CREATE TABLE t (x)")
      assert.equal("encoding", support.raised(outbox.attach, wide).code)
      assert.is_true(binding.close(wide))
      assert.is_false((pcall(outbox.attach, wide)))
    end)
  end)
end

describe("a store on a connection that is not in autocommit", function()
  -- LuaDBI begins a transaction with the first statement in it, LuaSQL has one open all the time.
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
    it("takes part in the transaction that " .. name .. " has or will begin", function()
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

  it("leaves it usable when a message is larger than SQLite takes", function()
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

describe("a store on a function", function()
  local path, run, seen

  before_each(function()
    local own
    own, path = support.store()
    own:close()
    seen = {}
    -- The plainest function, on the sqlite3 library of a store of ours; without savepoints, which
    -- that has itself.
    run = function(sql, ...)
      if sql:find("SAVEPOINT") then
        return
      end
      seen[#seen + 1] = { sql, select("#", ...) }
      local other <close> = outbox.open(path)
      local values = table.pack(...)
      other:transaction(function(txn)
        txn:execute(sql, table.unpack(values, 1, values.n))
      end)
    end
  end)

  after_each(support.remove)

  local function entries()
    local own <close> = outbox.open(path)
    return own:ready_entries()
  end

  it("publishes through it, with every byte", function()
    local store = outbox.attach(run, { id_generator = testing.ids(), clock = testing.clock(5) })
    assert.equal("id-1", store:publish({ namespace = "n", key = "k", payload = "p",
      headers = { a = "b" } }))
    assert.equal("i\0", store:publish({ id = "i\0", key = "k\0", payload = "\0\255\n" }))
    assert.equal(2, #seen)
    for _, statement in ipairs(seen) do
      local _, parameters = statement[1]:gsub("%?", "")
      assert.equal(parameters, statement[2])
    end
    local list = entries()
    assert.same({ "id-1", "n", "k", "p", { a = "b" }, 5 }, { list[1].id, list[1].namespace,
      list[1].key, list[1].payload, list[1].headers, list[1].created_at })
    assert.same({ "i\0", "", "k\0", "\0\255\n" },
      { list[2].id, list[2].namespace, list[2].key, list[2].payload })
  end)

  it("publishes for later, and refuses an id that waits anywhere", function()
    local store = outbox.attach(run)
    store:publish({ id = "late", deliver_at = os.time() + 1000 })
    assert.equal(0, #entries())
    assert.matches("NOT NULL", tostring(support.raised(store.publish, store, { id = "late" })))
    store:publish({ id = "now" })
    assert.is_false((pcall(store.publish, store, { id = "now" })))
    assert.equal(1, #entries())
    local twice = outbox.attach(run, { id_generator = function()
      return "late"
    end })
    assert.matches("NOT NULL", tostring(support.raised(twice.publish, twice, {})))
  end)

  it("takes nothing for success but success", function()
    for _, answer in ipairs({ { false }, { nil, "locked" }, { 0 }, { 1 }, { 101 }, { "ok" } }) do
      local store = outbox.attach(function()
        return table.unpack(answer, 1, 2)
      end)
      local problem = support.raised(store.publish, store, {})
      assert.equal("error", problem.code)
      assert.matches(answer[2] or "", problem.message)
      assert.equal(("outbox: %s (error)"):format(problem.message), tostring(problem))
    end
    assert.equal(36, #outbox.attach(function()
      return true
    end):publish({}))
  end)

  it("makes a savepoint, and rolls it back whatever fails", function()
    local UNDONE = { "ROLLBACK TO SAVEPOINT ", "RELEASE SAVEPOINT " }
    local ALL = { "SAVEPOINT ", "INSERT INTO ", "INSERT INTO ", "RELEASE SAVEPOINT " }
    for failing = 1, #ALL do
      for _, answer in ipairs({ "raise", 1, false }) do
        local ran = {}
        local store = outbox.attach(function(sql)
          ran[#ran + 1] = sql:match("^[%u ]+")
          if #ran == failing and answer == "raise" then
            error("full")
          elseif #ran >= failing then
            return answer -- and whatever it says from then on
          end
        end)
        assert.is_false((pcall(store.publish, store, {}, {})))
        local expected = table.move(ALL, 1, failing, 1, {})
        assert.same(table.move(UNDONE, 1, 2, failing + 1, expected), ran)
      end
    end
  end)

  it("checks messages and options as the others do", function()
    local store = outbox.attach(run)
    for message, wrong in pairs({
      ["table expected, got number"] = 1,
      ["unknown field 'payloads'"] = { payloads = "" },
      ["field 'id' must be a string, not a number"] = { id = 1 },
      ["field 'deliver_at' is out of range"] = { deliver_at = 0 / 0 },
      ["headers must be named by strings"] = { headers = { 1 } },
    }) do
      assert.matches(message, support.raised(store.publish, store, {}, wrong), 1, true)
    end
    assert.matches("no value", support.raised(store.publish, store))
    local careless = outbox.attach(run, { id_generator = function() end })
    assert.matches("must return a string, not a nil",
      support.raised(careless.publish, careless, { id = "a" }, {}))
    assert.equal(0, #seen)
    for message, options in pairs({
      ["unknown option 'synchronous'"] = { synchronous = "full" },
      ["plain identifier"] = { prefix = "a-b" },
      ["clock must be a function"] = { clock = 1 },
      ["id_generator must be a function"] = { id_generator = {} },
      ["#2 to 'attach' (table expected, got string)"] = "outbox_",
    }) do
      assert.matches(message, support.raised(outbox.attach, run, options), 1, true)
    end
    local timeless = outbox.attach(run, { clock = function() end })
    assert.matches("the clock's now%(%) must return a time in seconds, not nil",
      support.raised(timeless.publish, timeless, {}))
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

  try("rolls nothing back that it has not begun, not even a statement at work", function()
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

  try("refuses to be called by what its own statements call", function()
    local problem
    connection:create_function("audit", 1, function(context)
      problem = problem or support.raised(store.publish, store, { key = "audit" }, {})
      assert(support.raised(store.stats, store).code == "misuse")
      context:result_int(1)
    end)
    connection:exec("CREATE TEMP TRIGGER t AFTER INSERT ON outbox_entries BEGIN"
      .. " SELECT audit(NEW.key); END")
    store:publish({ key = "outer" })
    store:publish({ key = "many" }, {})
    assert.equal("misuse", problem.code)
    assert.matches("in the middle of another call", problem.message)
    assert.equal(3, store:stats().ready)
    assert.equal(lsqlite3.OK, connection:close())
  end)

  try("refuses to be closed in the middle of a call, also by leaving a scope", function()
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

  try("checks the encoding once more when it makes the tables", function()
    local other = lsqlite3.open(support.path())
    local early = outbox.attach(other)
    other:exec("PRAGMA encoding = 'UTF-16le'; CREATE TABLE t (x)")
    assert.equal("encoding", support.raised(early.migrate, early).code)
    other:close()
  end)
end)

describe("outbox.attach", function()
  it("refuses what is no connection it knows", function()
    for _, thing in ipairs({ 1, "app.db", {}, io.stdout, true }) do
      assert.matches("LuaSQL, LuaDBI or lsqlite3, or a function",
        support.raised(outbox.attach, thing))
    end
    assert.matches("got nil", support.raised(outbox.attach))
  end)

  it("checks its options", function()
    outbox.install()
    local connection = require("luasql.sqlite3").sqlite3():connect(":memory:")
    for message, options in pairs({
      ["unknown option 'busy_timeout'"] = { busy_timeout = 1 },
      ["plain identifier"] = { prefix = "a-b" },
      ["clock must be a function"] = { clock = 1 },
    }) do
      local problem = support.raised(outbox.attach, connection, options)
      assert.matches(message, problem, 1, true)
      assert.matches("argument #2", problem, 1, true)
    end
    assert.is_true(connection:close())
  end)

  it("refuses a connection of a second SQLite library, without touching it", function()
    local loaded, lsqlite3 = pcall(require, "lsqlite3complete")
    if not loaded then
      pending("lsqlite3complete cannot be had")
      return
    end
    outbox.install()
    local connection = lsqlite3.open(":memory:")
    local problem = support.raised(outbox.attach, connection)
    assert.equal("misuse", problem.code)
    assert.matches("second SQLite library", problem.message)
    connection:close()
  end)
end)

describe("a host of several Lua states and threads", function()
  it("opens databases as before when they have installed, attached and closed", function()
    local pipe = assert(io.popen(("env LUA_PATH='%s' LUA_CPATH='%s' build/host 2>&1"):format(
      package.path, package.cpath)))
    local output = pipe:read("a")
    pipe:close()
    assert.equal("all is well\n", output)
  end)
end)
