local support = require("spec.support")

local describe = support.only("sqlite", describe)

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

  it("returns each row as a table by column name", function()
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

  it("can be left early", function()
    store:transaction(function(txn)
      for row in txn:rows("SELECT a FROM t") do
        if row.a == 2 then
          break
        end
      end
      -- An open query would prevent its table from being dropped.
      txn:execute("DROP TABLE t")
    end)
  end)

  it("may end before or after others that were started later", function()
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

  it("raises an error that occurs after the first row", function()
    store:transaction(function(txn)
      local problem = support.raised(function()
        for _ in txn:rows("SELECT abs(CASE a WHEN 3 THEN -9223372036854775807 - 1 END) FROM t") do
          store:stats()
        end
      end)
      assert.matches("integer overflow", problem.message)
    end)
  end)

  it("is finalized at the end of the transaction, however many were left open", function()
    store:transaction(function(txn)
      for _ = 1, 10 do
        txn:rows("SELECT a FROM t")()
      end
    end)
    store:transaction(function(txn)
      txn:execute("DROP TABLE t")
    end)
  end)

  it("names each column as SQLite does, and keeps the last of the same name", function()
    local row = support.sql(store, [[SELECT 1 AS a, 2 AS b, 3 AS a, 4 AS "", 5 AS "ü", 1 + 1]])[1]
    assert.same({ a = 3, b = 2, [""] = 4, ["ü"] = 5, ["1 + 1"] = 2 }, row)
    assert.same({}, support.sql(store, "SELECT 1 AS a, NULL AS a")[1])
  end)

  it("reads bytes that are not UTF-8 as they are", function()
    local row = support.sql(store, "SELECT CAST(x'fffe00' AS TEXT) AS text, x'00ff' AS blob")[1]
    assert.same({ text = "\xff\xfe\0", blob = "\0\xff" }, row)
  end)

  it("runs nothing before the first row is read", function()
    store:transaction(function(txn)
      local rows = txn:rows("DELETE FROM t WHERE a = ? RETURNING a", 10)
      assert.equal(1, txn:execute("UPDATE t SET b = 1 WHERE a = 10"))
      assert.equal(10, rows().a)
      assert.is_nil(rows())
      assert.equal(0, txn:execute("UPDATE t SET b = 1 WHERE a = 10"))
    end)
  end)

  it("returns what a generic for needs, and an iterator that can be closed", function()
    store:transaction(function(txn)
      local rows, state, control, closing = txn:rows("SELECT a FROM t")
      assert.same({ nil, nil, rows }, { state, control, closing })
      assert.equal(1, rows().a)
      do
        local _ <close> = rows
      end
      assert.equal("closed", support.raised(rows).code)
      txn:execute("DROP TABLE t")
    end)
  end)

  it("is closed when the loop is left by an error, a return or a coroutine's end", function()
    store:transaction(function(txn)
      local function leave(how)
        for row in txn:rows("SELECT a FROM t") do
          how(row)
        end
      end
      assert.equal("oops", support.raised(leave, function()
        error("oops", 0)
      end))
      local thread = coroutine.create(leave)
      assert(coroutine.resume(thread, coroutine.yield))
      assert(coroutine.close(thread))
      local function first()
        for row in txn:rows("SELECT a FROM t") do
          if row.a == 1 then
            return row.a
          end
        end
      end
      assert.equal(1, first())
      txn:execute("DROP TABLE t")
    end)
  end)

  it("is closed by the collector", function()
    store:transaction(function(txn)
      for _ = 1, 10 do
        txn:rows("SELECT a FROM t")()
      end
      collectgarbage()
      collectgarbage()
      txn:execute("DROP TABLE t")
    end)
  end)

  it("cannot be used after an error, and leaves the transaction usable", function()
    store:transaction(function(txn)
      local rows = txn:rows("SELECT abs(CASE a WHEN 2 THEN -9223372036854775807 - 1 END) FROM t")
      rows()
      assert.equal("error", support.raised(rows).code)
      assert.equal("closed", support.raised(rows).code)
      txn:execute("DROP TABLE t")
      txn:publish({})
    end)
    assert.equal(1, store:stats().ready)
  end)

  it("can be used by another coroutine, a row at a time", function()
    store:transaction(function(txn)
      local rows = txn:rows("SELECT a FROM t WHERE a <= 3")
      for i = 1, 3 do
        assert.equal(i, coroutine.wrap(function()
          return rows().a
        end)())
      end
      assert.is_nil(coroutine.wrap(function()
        return rows()
      end)())
    end)
  end)

  it("goes on after an inner transaction, and ends with its own", function()
    local ended, finished
    store:transaction(function(txn)
      local outer = txn:rows("SELECT a FROM t")
      assert.equal(1, outer().a)
      pcall(store.transaction, store, function(inner)
        ended = inner:rows("SELECT a FROM t")
        assert.equal(1, ended().a)
        inner:execute("DELETE FROM t WHERE a > 1")
        error()
      end)
      assert.equal("closed", support.raised(ended).code)
      assert.equal(2, outer().a)
      store:transaction(function(inner)
        inner:execute("UPDATE t SET b = 'inner'")
      end)
      assert.same({ a = 3, b = "inner" }, txn:rows("SELECT * FROM t WHERE a = 3")())
      assert.equal(3, outer().a)
      finished = txn:rows("SELECT a FROM t WHERE a = 1")
      assert.is_nil(finished() and finished())
      ended = outer
    end)
    assert.equal("closed", support.raised(ended).code)
    assert.is_nil(finished()) -- at its end before the transaction was
  end)

  it("ends with a transaction that is rolled back, or that SQLite rolls back", function()
    local kept
    pcall(store.transaction, store, function(txn)
      kept = txn:rows("SELECT a FROM t")
      kept()
      error()
    end)
    assert.equal("closed", support.raised(kept).code)
    pcall(store.transaction, store, function(txn)
      local rows = txn:rows("SELECT a FROM t")
      rows()
      pcall(txn.execute, txn, "INSERT OR ROLLBACK INTO t (a) VALUES (1)")
      kept = support.raised(rows)
    end)
    assert.equal("misuse", kept.code)
    store:publish({})
  end)

  it("has the columns that the table has when the first row is read", function()
    store:transaction(function(txn)
      local rows = txn:rows("SELECT * FROM t")
      txn:execute("ALTER TABLE t ADD COLUMN c DEFAULT 'new'")
      assert.same({ a = 1, c = "new" }, rows())
    end)
  end)
end)
