local outbox = require("outbox")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

describe("store:transaction", function()
  local store, path

  before_each(function()
    store, path = support.store({ busy_timeout = 0 })
    store:transaction(function(txn)
      txn:execute("CREATE TABLE orders (number INTEGER PRIMARY KEY, data INTEGER)")
    end)
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  -- The orders and messages that another connection sees. Fails if a lock was left behind.
  local function committed()
    local other <close> = outbox.open(path, { busy_timeout = 0 })
    other:publish({ id = "probe" })
    other:delete_entries("probe")
    local orders = support.sql(other, "SELECT count(*) AS n FROM orders")[1].n
    return orders, other:stats().ready
  end

  local function insert(txn, number)
    txn:publish({ payload = tostring(number) })
    return txn:execute(support.portable("INSERT INTO orders (number) VALUES (?)"), number)
  end

  it("commits the row and the message together, and returns what the function returns", function()
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

  it("includes all calls on the store meanwhile", function()
    pcall(store.transaction, store, function()
      store:publish({})
      store:claim_entries("p", outbox.clock.now() + 60)
      error()
    end)
    assert.same({ 0, 0 }, { committed() })
    assert.same({}, store:stats().leases)
  end)

  it("makes a savepoint when it is nested", function()
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

  it("ends with its function; the txn cannot be used later", function()
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
    for _, sql in ipairs({ "COMMIT", "ROLLBACK", "BEGIN", "END", "-- c\n commit",
      "rollback /* to */" }) do
      local problem = support.raised(store.transaction, store, function(txn)
        insert(txn, 1)
        txn:execute(sql)
      end)
      assert.matches("a transaction cannot be begun or ended from within", problem)
      assert.same({ 0, 0 }, { committed() })
    end
  end)

  it("refuses SQL that would end the savepoint of an inner one", function()
    for _, sql in ipairs({ "RELEASE outbox", "ROLLBACK TO Outbox", "SAVEPOINT outbox",
      'ROLLBACK TO SAVEPOINT "outbox"' }) do
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

  it("is not left open by an error from a hook, wherever the error is raised", function()
    -- The hook raises at the n-th instruction, as an interrupt or a time limit does. Only the
    -- coroutine has the hook.
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

  it("rolls an inner one back even if a hook raises in its close too", function()
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
        assert.equal(2, raised) -- in the calls of commit and of __close
      end)
    end)()
    assert.same({ 0, 1 }, { committed() })
  end)

  sqlite_it("reports why no savepoint can be set while a writing query's rows are read", function()
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

  sqlite_it("runs nothing more, and does not commit, after SQLite has rolled back", function()
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

  -- What fails, in SQL of the application's own.
  local FAILURES = {
    constraint = "INSERT INTO orders (number) VALUES (2), (1)",
    error = "SELEKT",
  }

  -- PostgreSQL lets nothing follow a statement that has failed.
  sqlite_it("leaves the transaction usable after a failed statement", function()
    store:transaction(function(txn)
      insert(txn, 1)
      for code, sql in pairs(FAILURES) do
        assert.equal(code, support.raised(txn.execute, txn, sql).code)
      end
      insert(txn, 3)
    end)
    assert.same({ 2, 2 }, { committed() })
  end)

  it("leaves the transaction usable after a failed publish, or an inner one that failed", function()
    store:transaction(function(txn)
      insert(txn, 1)
      assert.equal("duplicate", support.raised(txn.publish, txn, { id = "a" }, { id = "a" }).code)
      for code, sql in pairs(FAILURES) do
        assert.equal(code, support.raised(store.transaction, store, function(inner)
          insert(inner, 2)
          inner:execute(sql)
        end).code)
      end
      insert(txn, 3)
    end)
    assert.same({ 2, 2 }, { committed() })
  end)

  support.only("postgres", it)("runs nothing more, and does not commit, after a failure", function()
    for code, sql in pairs(FAILURES) do
      local problem = support.raised(store.transaction, store, function(txn)
        insert(txn, 1)
        assert.equal(code, support.raised(txn.execute, txn, sql).code)
        for _, call in ipairs({
          { txn.execute, txn, "SELECT 1" }, { txn.rows, txn, "SELECT 1" }, { txn.publish, txn, {} },
          { store.delete_entries, store, "x" }, { store.stats, store },
          { store.transaction, store, function() end },
        }) do
          assert.equal("misuse", support.raised(table.unpack(call)).code)
        end
      end)
      assert.equal("misuse", problem.code)
      assert.same({ 0, 0 }, { committed() })
    end
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

    it("that ends with an error is rolled back at once", function()
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

    it("keeps other coroutines out, unless they use its txn", function()
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
