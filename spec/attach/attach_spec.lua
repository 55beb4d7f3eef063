-- outbox.attach: stores on connections that the application has opened. The same specs run with
-- each binding.

local bindings = require("spec.support.bindings")
local outbox = require("outbox")
local support = require("spec.support")

for module, adapt in pairs(bindings) do
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

    -- The numbers of orders and messages that another connection sees.
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

    it("uses a transaction of its own when none is open", function()
      store:publish({ id = "a" })
      assert.same({ 0, 1 }, { committed() })
      assert.equal("duplicate",
        support.raised(store.publish, store, { id = "b" }, { id = "a" }).code)
      assert.same({ 0, 1 }, { committed() })
      execute("BEGIN IMMEDIATE") -- so no transaction was left open
      execute("COMMIT")
    end)

    it("adds one entry for each message, and keeps every byte", function()
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

    it("says which constraint of the application's own a message violates", function()
      execute("CREATE TABLE audit (key UNIQUE)")
      execute("CREATE TRIGGER audited AFTER INSERT ON outbox_ready BEGIN"
        .. " INSERT INTO audit VALUES (new.key); END")
      store:publish({ key = "k" })
      local messages = {}
      for i = 1, 20 do
        messages[i] = { key = i == 9 and "k" or tostring(i) }
      end
      for _, list in ipairs({ { { key = "k" } }, { { id = "b", key = "k" } }, messages }) do
        local problem = support.raised(store.publish, store, table.unpack(list))
        assert.same({ "constraint", "UNIQUE constraint failed: audit.key" },
          { problem.code, problem.message })
      end
      store:publish({ id = "a" })
      assert.equal("duplicate", support.raised(store.publish, store, { id = "a" }).code)
      assert.same({ 0, 2 }, { committed() })
    end)

    it("leaves the transaction usable when there are no tables", function()
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

    it("leaves the transaction usable when the clock or the ID generator raises", function()
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

    it("keeps the rowid of the application's last insert", function()
      store:publish({}, {}, {})
      execute("INSERT INTO orders VALUES (17)")
      store:publish({ id = "a" })
      store:publish({}, {})
      pcall(store.publish, store, { id = "a" })
      assert.equal(17, binding.count(connection, "SELECT last_insert_rowid()"))
    end)

    it("reports that SQLite has rolled the application's transaction back", function()
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
        end }).store -- from here on only the store itself is referenced
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

    it("is closed with the connection, and does not keep the connection open", function()
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

    it("may be closed before the connection", function()
      for _ = 1, 100 do
        local short <close> = outbox.attach(connection)
        short:publish({})
      end
      outbox.attach(connection) -- this one is left to the collector
      collectgarbage()
      collectgarbage()
      execute("INSERT INTO orders VALUES (1)")
      assert.same({ 1, 100 }, { committed() })
    end)

    it("is independent of a second connection", function()
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

    it("has no store:transaction, and cannot be given to a processor", function()
      assert.equal("misuse", support.raised(store.transaction, store, print).code)
      assert.matches("store must be what outbox.open returns",
        support.raised(outbox.processor, { store = store, publisher = print }), 1, true)
    end)

    it("wakes a processor in another process", function()
      binding.close(connection)
      store:close()
      local woken_by = support.sleeping_processor(path)
      connection = binding.open(path)
      binding.count(connection, "PRAGMA busy_timeout = 10000")
      outbox.attach(connection):publish({ payload = "hello" })
      assert.equal("hello", woken_by())
    end)

    if not binding.knows_itself then
      it("is refused when the connection was opened before outbox.install()", function()
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
      it("does not need outbox.install()", function()
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

    it("is refused when the connection is closed, or its text is in UTF-16", function()
      local wide = binding.open(support.path())
      binding.execute(wide, "PRAGMA encoding = 'UTF-16le'")
      binding.execute(wide, "CREATE TABLE t (x)")
      assert.equal("encoding", support.raised(outbox.attach, wide).code)
      assert.is_true(binding.close(wide))
      assert.is_false((pcall(outbox.attach, wide)))
    end)
  end)
end

describe("outbox.attach", function()
  it("refuses a value that is not a known connection", function()
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
  it("opens databases as before after they have installed, attached and closed", function()
    local pipe = assert(io.popen(("env LUA_PATH='%s' LUA_CPATH='%s' build/host 2>&1"):format(
      package.path, package.cpath)))
    local output = pipe:read("a")
    pipe:close()
    assert.equal("all is well\n", output)
  end)
end)
