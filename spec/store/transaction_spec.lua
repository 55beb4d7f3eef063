local outbox = require("outbox")
local support = require("spec.support")

describe("store:transaction", function()
  local store, path

  before_each(function()
    store, path = support.store({ busy_timeout = 0 })
    store:transaction(function(txn)
      txn:execute("CREATE TABLE orders (number INTEGER PRIMARY KEY, data)")
    end)
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  -- What a connection of its own sees: only what was committed, and no lock may be left.
  local function committed()
    local other <close> = outbox.open(path, { busy_timeout = 0 })
    other:publish({ id = "probe" })
    other:delete_entries("probe")
    local orders = support.sql(other, "SELECT count(*) AS n FROM orders")[1].n
    return orders, other:stats().ready
  end

  local function insert(txn, number)
    txn:publish({ payload = tostring(number) })
    return txn:execute("INSERT INTO orders (number) VALUES (?)", number)
  end

  it("commits the row and the message together, and returns what the function does", function()
    local results = table.pack(store:transaction(function(txn)
      insert(txn, 1)
      return 1, nil, "x", nil
    end))
    assert.same({ 1, nil, "x", nil, n = 4 }, results)
    assert.same({ 1, 1 }, { committed() })
  end)

  it("rolls both back on an error, which it raises again unchanged", function()
    for _, thrown in ipairs({ {}, "text", 42, false }) do
      local ok, problem = pcall(store.transaction, store, function(txn)
        insert(txn, 1)
        error(thrown, 0)
      end)
      assert.is_false(ok)
      assert.equal(thrown, problem)
      assert.same({ 0, 0 }, { committed() })
    end
  end)

  it("takes what is done on the store meanwhile into the transaction", function()
    pcall(store.transaction, store, function()
      store:publish({})
      store:claim_entries("p", outbox.clock.now() + 60)
      error()
    end)
    assert.same({ 0, 0 }, { committed() })
    assert.same({}, store:stats().leases)
  end)

  it("makes a savepoint of a transaction in a transaction", function()
    store:transaction(function(outer)
      insert(outer, 1)
      pcall(store.transaction, store, function(inner)
        insert(inner, 2)
        insert(outer, 3)
        error()
      end)
      store:transaction(function(inner)
        insert(inner, 4)
      end)
    end)
    assert.same({ 2, 2 }, { committed() })
    pcall(store.transaction, store, function()
      store:transaction(function(inner)
        insert(inner, 5)
      end)
      error()
    end)
    assert.same({ 2, 2 }, { committed() })
  end)

  it("ends with its function: the txn cannot be used later", function()
    local kept, rows
    store:transaction(function(txn)
      kept = txn
      insert(txn, 1)
      insert(txn, 2)
      rows = txn:rows("SELECT * FROM orders")
      rows()
    end)
    for _, problem in ipairs({
      support.raised(kept.publish, kept, {}),
      support.raised(kept.execute, kept, "SELECT 1"),
      support.raised(kept.rows, kept, "SELECT 1"),
      support.raised(rows),
    }) do
      assert.equal("closed", problem.code)
    end
  end)

  it("refuses SQL that would end it", function()
    for _, sql in ipairs({ "COMMIT", "ROLLBACK", "BEGIN", "END", "-- c\n commit" }) do
      local problem = support.raised(store.transaction, store, function(txn)
        insert(txn, 1)
        txn:execute(sql)
      end)
      assert.matches("a transaction cannot be begun or ended from within", problem)
      assert.same({ 0, 0 }, { committed() })
    end
  end)

  it("refuses SQL that would end the savepoint of an inner one", function()
    for _, sql in ipairs({ "RELEASE outbox", "ROLLBACK TO Outbox", "SAVEPOINT outbox" }) do
      store:transaction(function()
        local problem = support.raised(store.transaction, store, function(inner)
          insert(inner, 1)
          inner:execute(sql)
        end)
        assert.matches("a transaction cannot be begun or ended from within", problem)
      end)
      assert.same({ 0, 0 }, { committed() })
    end
  end)

  it("is not left open by an error from a hook, wherever that strikes", function()
    -- As an interrupt does, or a limit of time: the hook raises at the n-th instruction. It is the
    -- coroutine's alone.
    for n = 1, 60 do
      local finished = false
      coroutine.wrap(function()
        pcall(function()
          debug.sethook(function()
            debug.sethook()
            error("interrupted")
          end, "", n)
          store:transaction(function(txn)
            txn:publish({})
          end)
          finished = true
          debug.sethook()
        end)
        debug.sethook()
      end)()
      local _, ready = committed()
      assert.is_true(ready == 1 or not finished)
      store:transaction(function(txn)
        txn:execute("DELETE FROM outbox_entries")
      end)
    end
  end)

  it("rolls an inner one back that errors from a hook kept even from being closed", function()
    coroutine.wrap(function()
      store:transaction(function(txn)
        txn:publish({})
        local raised = 0
        pcall(store.transaction, store, function(inner)
          insert(inner, 1)
          debug.sethook(function()
            raised = raised + 1
            if raised == 2 then
              debug.sethook()
            end
            error("interrupted")
          end, "c")
        end)
        assert.equal(2, raised) -- at the calls of commit and of __close
      end)
    end)()
    assert.same({ 0, 1 }, { committed() })
  end)

  it("says why no savepoint can be set while a statement that writes gives its rows", function()
    store:transaction(function(txn)
      insert(txn, 1)
      insert(txn, 2)
      local problem = support.raised(function()
        for _ in txn:rows("UPDATE orders SET data = 1 RETURNING number") do
          txn:publish({}, {})
        end
      end)
      assert.equal("misuse", problem.code)
      for row in txn:rows("UPDATE orders SET data = 2 RETURNING number") do
        txn:publish({ key = tostring(row.number) })
      end
    end)
    assert.same({ 2, 4 }, { committed() })
  end)

  it("lets the function use savepoints of its own", function()
    store:transaction(function(txn)
      insert(txn, 1)
      txn:execute("SAVEPOINT mine")
      insert(txn, 2)
      txn:execute("ROLLBACK TO mine")
      txn:execute("RELEASE mine")
    end)
    assert.same({ 1, 1 }, { committed() })
  end)

  it("runs nothing more, and does not commit, once SQLite has rolled back by itself", function()
    local second
    local problem = support.raised(store.transaction, store, function(txn)
      insert(txn, 1)
      pcall(txn.execute, txn, "INSERT OR ROLLBACK INTO orders (number) VALUES (1)")
      second = {
        support.raised(txn.publish, txn, {}).code,
        support.raised(txn.execute, txn, "INSERT INTO orders (number) VALUES (2)").code,
        support.raised(store.publish, store, {}, {}).code,
        support.raised(store.delete_entries, store, "x").code,
      }
    end)
    assert.equal("misuse", problem.code)
    assert.same({ "misuse", "misuse", "misuse", "misuse" }, second)
    assert.same({ 0, 0 }, { committed() })
    store:publish({})
    assert.same({ 0, 1 }, { committed() })
  end)

  it("leaves the transaction usable after a failed statement or publish", function()
    store:transaction(function(txn)
      insert(txn, 1)
      assert.equal("constraint", support.raised(txn.execute, txn,
        "INSERT INTO orders (number) VALUES (2), (1)").code)
      assert.equal("error", support.raised(txn.execute, txn, "SELEKT").code)
      assert.equal("duplicate", support.raised(txn.publish, txn, { id = "a" }, { id = "a" }).code)
      insert(txn, 3)
    end)
    assert.same({ 2, 2 }, { committed() })
  end)

  describe("in a coroutine", function()
    it("may yield", function()
      local step = coroutine.wrap(function()
        store:transaction(function(txn)
          insert(txn, 1)
          coroutine.yield()
          insert(txn, 2)
        end)
        return "done"
      end)
      step()
      assert.equal("done", step())
      assert.same({ 2, 2 }, { committed() })
    end)

    it("that is closed is rolled back", function()
      local co = coroutine.create(function()
        store:transaction(function(txn)
          insert(txn, 1)
          for _ in txn:rows("SELECT * FROM orders") do
            coroutine.yield()
          end
        end)
      end)
      assert(coroutine.resume(co))
      assert(coroutine.close(co))
      assert.same({ 0, 0 }, { committed() })
    end)

    it("that an error ends is rolled back at once", function()
      local problem = {}
      local co = coroutine.create(function()
        store:transaction(function(txn)
          insert(txn, 1)
          store:transaction(function(inner)
            insert(inner, 2)
            error(problem)
          end)
        end)
      end)
      local _, raised = coroutine.resume(co)
      assert.equal(problem, raised)
      assert.same({ 0, 0 }, { committed() })
      store:publish({})
    end)

    it("that never finishes is rolled back when it is collected", function()
      for _ = 1, 100 do
        local co = coroutine.create(function()
          store:transaction(function(outer)
            insert(outer, 1)
            store:transaction(function(inner)
              insert(inner, 2)
              for _ in inner:rows("SELECT * FROM orders") do
                coroutine.yield()
              end
            end)
          end)
        end)
        assert(coroutine.resume(co))
        co = nil -- luacheck: ignore
        collectgarbage()
        collectgarbage()
        assert.same({ 0, 0 }, { committed() })
      end
    end)

    it("keeps other coroutines out of its transaction, except by its txn", function()
      local shared
      local co = coroutine.create(function()
        store:transaction(function(txn)
          shared = txn
          insert(txn, 1)
          coroutine.yield()
        end)
      end)
      assert(coroutine.resume(co))
      local problem = support.raised(store.publish, store, {})
      assert.equal("busy", problem.code)
      assert.matches("another coroutine has a transaction open", problem.message)
      assert.equal("busy", support.raised(store.transaction, store, function() end).code)
      insert(shared, 2)
      assert(coroutine.resume(co))
      assert.same({ 2, 2 }, { committed() })
    end)
  end)

  it("is rolled back when the store is closed or collected", function()
    local co = coroutine.create(function()
      local inner = outbox.open(path, { busy_timeout = 0 })
      inner:transaction(function(txn)
        insert(txn, 1)
        for _ in txn:rows("SELECT * FROM orders") do
          coroutine.yield()
        end
      end)
    end)
    assert(coroutine.resume(co))
    co = nil -- luacheck: ignore
    collectgarbage()
    collectgarbage()
    assert.same({ 0, 0 }, { committed() })
  end)
end)

describe("txn:execute", function()
  local store

  before_each(function()
    store = support.store()
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  it("returns how many rows it changed", function()
    store:transaction(function(txn)
      assert.equal(0, txn:execute("CREATE TABLE t (a)"))
      assert.equal(3, txn:execute("INSERT INTO t VALUES (1), (2), (3)"))
      assert.equal(0, txn:execute("CREATE INDEX i ON t (a)"))
      assert.equal(2, txn:execute("UPDATE t SET a = 0 WHERE a > ?", 1))
      assert.equal(0, txn:execute("SELECT * FROM t"))
      assert.equal(0, txn:execute("DELETE FROM t WHERE a = 9"))
      assert.equal(3, txn:execute("DELETE FROM t"))
    end)
  end)

  it("binds and reads every type of SQLite", function()
    local values = table.pack(nil, math.maxinteger, math.mininteger, 1.5, -math.huge, "", "a\0b",
      outbox.blob(""), outbox.blob("\0\255"), true, false)
    local expected = table.pack(nil, math.maxinteger, math.mininteger, 1.5, -math.huge, "", "a\0b",
      "", "\0\255", 1, 0)
    local types = { "null", "integer", "integer", "real", "real", "text", "text", "blob", "blob",
      "integer", "integer" }
    store:transaction(function(txn)
      for i = 1, values.n do
        local count = 0
        for row in txn:rows("SELECT ?1 AS value, typeof(?1) AS type", values[i]) do
          count = count + 1
          assert.equal(expected[i], row.value)
          assert.equal(math.type(expected[i]), math.type(row.value))
          assert.equal(types[i], row.type)
        end
        assert.equal(1, count)
      end
    end)
  end)

  it("refuses what cannot be bound, and a wrong number of values", function()
    store:transaction(function(txn)
      local function refused(pattern, ...)
        local arguments = table.pack(...)
        assert.matches(pattern, support.raised(function()
          txn:execute(table.unpack(arguments, 1, arguments.n))
        end))
      end
      refused("bad argument #2 to 'execute' %(a table cannot be bound%)", "SELECT ?", {})
      refused("a function cannot be bound", "SELECT ?", print)
      refused("SQLite has no NaN", "SELECT ?", 0 / 0)
      refused("bad argument #1 to 'execute' %(it has 2 parameters, 1 values", "SELECT ?, ?", 1)
      refused("it has 0 parameters, 1 values were given", "SELECT 1", nil)
      refused("one statement at a time", "SELECT 1; SELECT 2")
      refused("there is no statement in it", " -- nothing")
      refused("SQL cannot contain a NUL", "SELECT 1\0")
      refused("string expected, got nil", nil)
      assert.equal(0, txn:execute("SELECT 1; -- a comment\n /* and one more */ ;"))
    end)
  end)

  it("says what SQLite says, with a code", function()
    store:transaction(function(txn)
      local problem = support.raised(txn.execute, txn, "INSERT INTO nowhere VALUES (1)")
      assert.equal("error", problem.code)
      assert.equal("no such table: nowhere", problem.message)
      assert.equal("toobig", support.raised(txn.execute, txn, "SELECT zeroblob(1000000001)").code)
    end)
  end)
end)

describe("txn:rows", function()
  local store

  before_each(function()
    store = support.store()
    store:transaction(function(txn)
      txn:execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b)")
      for i = 1, 10 do
        txn:execute("INSERT INTO t VALUES (?, ?)", i, i % 2 == 0 and i or nil)
      end
    end)
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  it("gives each row as a table by column name", function()
    local rows = support.sql(store, "SELECT a, b, a + 1 AS next FROM t WHERE a <= ?", 2)
    assert.same({ { a = 1, next = 2 }, { a = 2, b = 2, next = 3 } }, rows)
  end)

  it("lets the loop publish and write", function()
    store:transaction(function(txn)
      for row in txn:rows("SELECT a FROM t") do
        txn:publish({ payload = tostring(row.a) })
        txn:execute("UPDATE t SET b = 0 WHERE a = ?", row.a)
      end
    end)
    assert.equal(10, store:stats().ready)
  end)

  it("can be left early without a trace", function()
    store:transaction(function(txn)
      for row in txn:rows("SELECT a FROM t") do
        if row.a == 2 then
          break
        end
      end
      -- A query that is open would keep its table from being dropped.
      txn:execute("DROP TABLE t")
    end)
  end)

  it("may end before, or after, others that were begun later", function()
    store:transaction(function(txn)
      local left = {}
      for i = 1, 3 do
        left[i] = txn:rows("SELECT a FROM t WHERE a IN (?, 10)", i)
        assert.equal(i, left[i]().a)
      end
      for _, i in ipairs({ 2, 1, 3 }) do
        assert.equal(10, left[i]().a)
        assert.is_nil(left[i]())
      end
      txn:execute("DROP TABLE t")
    end)
  end)

  it("stays at its end", function()
    store:transaction(function(txn)
      local rows = txn:rows("SELECT a FROM t WHERE a = 1")
      assert.equal(1, rows().a)
      assert.is_nil(rows())
      assert.is_nil(rows())
    end)
  end)

  it("raises what goes wrong on the way", function()
    store:transaction(function(txn)
      local problem = support.raised(function()
        for _ in txn:rows("SELECT abs(CASE a WHEN 3 THEN -9223372036854775807 - 1 END) FROM t") do
          store:stats()
        end
      end)
      assert.matches("integer overflow", problem.message)
    end)
  end)

  it("is finalized with the transaction, however many were left open", function()
    store:transaction(function(txn)
      for _ = 1, 10 do
        txn:rows("SELECT a FROM t")()
      end
    end)
    store:transaction(function(txn)
      txn:execute("DROP TABLE t")
    end)
  end)
end)
