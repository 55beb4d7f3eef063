local outbox = require("outbox")
local support = require("spec.support")

local describe = support.only("sqlite", describe)

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

  it("refuses values that cannot be bound, and a wrong number of values", function()
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

  it("counts the rows that the statement itself changed, without those of triggers", function()
    store:transaction(function(txn)
      for _, step in ipairs({
        { 0, "CREATE TABLE t (a INTEGER PRIMARY KEY, b)" },
        { 3, "INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)" },
        { 0, "SELECT * FROM t" },
        { 0, "CREATE TABLE c AS SELECT * FROM t" },
        { 3, "INSERT INTO c SELECT a + 10, b FROM t RETURNING a" },
        { 6, "UPDATE c SET b = b" },
        { 0, "INSERT OR IGNORE INTO t VALUES (1, 9)" },
        { 0, "INSERT INTO t VALUES (1, 9) ON CONFLICT DO NOTHING" },
        { 1, "INSERT INTO t VALUES (1, 9) ON CONFLICT (a) DO UPDATE SET b = excluded.b" },
        { 1, "REPLACE INTO t VALUES (1, 1)" },
        { 0, "CREATE TRIGGER r AFTER DELETE ON t BEGIN INSERT INTO c VALUES (7, 7), (8, 8); END" },
        { 1, "DELETE FROM t WHERE a = 1" },
        { 8, "DELETE FROM c" },
        { 0, "DELETE FROM c" },
        { 0, "EXPLAIN DELETE FROM t" },
        { 0, "ALTER TABLE t ADD COLUMN d" },
        { 0, "DROP TABLE c" },
        { 0, "DROP TRIGGER r" },
        { 2, "WITH two (a) AS (VALUES (2), (3)) DELETE FROM t WHERE a IN (SELECT a FROM two)" },
        { 0, "SELECT changes()" },
      }) do
        assert.equal(step[1], txn:execute(step[2]), step[2])
      end
    end)
  end)

  it("runs a PRAGMA, which may return rows", function()
    store:transaction(function(txn)
      assert.equal(0, txn:execute("PRAGMA table_info(outbox_entries)"))
      assert.equal(0, txn:execute("PRAGMA user_version = 17"))
      assert.equal(0, txn:execute("PRAGMA user_version"))
    end)
    assert.same({ { user_version = 17 } }, support.sql(store, "PRAGMA user_version"))
    assert.is_true(#support.sql(store, "PRAGMA table_info(outbox_entries)") > 5)
  end)

  it("reads a query to its end", function()
    store:transaction(function(txn)
      txn:execute("CREATE TABLE t (a)")
      txn:execute("INSERT INTO t VALUES (1), (2), (3)")
      assert.equal(3, txn:execute("DELETE FROM t RETURNING a"))
      assert.equal(0, txn:execute("SELECT * FROM t"))
      local problem = support.raised(txn.execute, txn,
        "SELECT abs(column1) FROM (VALUES (1), (-9223372036854775807 - 1))")
      assert.equal("integer overflow", problem.message)
    end)
  end)

  it("keeps every value and its type in a table", function()
    local values = table.pack("", outbox.blob(""), "\0", outbox.blob("\0"), "\xff\xfe\0", "12", 0,
      -0.0, 1, 1.0, 2 ^ 53, 2.0 ^ 63, math.maxinteger, math.mininteger, math.huge,
      -math.huge, 5e-324, true, false, nil)
    local types = { "text", "blob", "text", "blob", "text", "text", "integer", "real", "integer",
      "real", "real", "real", "integer", "integer", "real", "real", "real", "integer", "integer",
      "null" }
    store:transaction(function(txn)
      txn:execute("CREATE TABLE t (number INTEGER PRIMARY KEY, value)")
      for i = 1, #types do
        txn:execute("INSERT INTO t VALUES (?, ?)", i, values[i])
      end
      for row in txn:rows([[SELECT number, value, typeof(value) AS type,
        length(CAST(value AS BLOB)) AS size FROM t]]) do
        local value = values[row.number]
        if type(value) == "boolean" then
          value = value and 1 or 0
        elseif type(value) == "userdata" then
          value = row.number == 2 and "" or "\0"
        end
        assert.equal(types[row.number], row.type)
        assert.equal(value, row.value)
        assert.equal(math.type(value), math.type(row.value))
        if type(value) == "string" then
          assert.equal(#value, row.size)
        end
      end
      for row in txn:rows("SELECT -0.0 AS zero, ? AS bound", -0.0) do
        assert.same({ -math.huge, -math.huge }, { 1 / row.zero, 1 / row.bound })
      end
      assert.equal(1, txn:execute("UPDATE t SET value = 1 WHERE value = ?", outbox.blob("\0")))
      assert.equal(0, txn:execute("UPDATE t SET value = 1 WHERE value = ?", nil))
    end)
  end)

  it("binds many values, and one value to each place of its parameter", function()
    local values = {}
    for i = 1, 1000 do
      values[i] = i
    end
    local sum = ("? + "):rep(999) .. "? AS sum"
    assert.equal(500500, support.sql(store, "SELECT " .. sum, table.unpack(values))[1].sum)
    local row = support.sql(store, "SELECT ?2 AS a, :name AS b, ?1 AS c, :name AS d, ?2 AS e", 1, 2,
      3)[1]
    assert.same({ a = 2, b = 3, c = 1, d = 3, e = 2 }, row)
    store:transaction(function(txn)
      local counts = { ["SELECT ?3"] = 3, ["SELECT :a, :a"] = 1, ["SELECT ?1, ?1"] = 1 }
      for sql, count in pairs(counts) do
        assert.matches(("it has %d parameters, 4 values were given"):format(count),
          support.raised(txn.execute, txn, sql, 1, 2, 3, 4))
        assert.equal(0, txn:execute(sql, table.unpack(values, 1, count)))
      end
    end)
  end)

  it("takes exactly one statement, with comments around it", function()
    store:transaction(function(txn)
      for _, method in ipairs({ "execute", "rows" }) do
        for sql, pattern in pairs({
          [""] = "there is no statement in it",
          [" \n"] = "there is no statement in it",
          [";"] = "there is no statement in it",
          ["/* nothing"] = "there is no statement in it",
          ["SELECT 1; SELEKT"] = "one statement at a time",
          ["SELECT 1; COMMIT"] = "one statement at a time",
          ["DELETE FROM outbox_entries; SELECT 1"] = "one statement at a time",
          ["\0"] = "SQL cannot contain a NUL; bind it",
          ["SELECT 1 -- \0"] = "SQL cannot contain a NUL; bind it",
        }) do
          txn:publish({ id = "kept" })
          assert.matches(pattern, support.raised(txn[method], txn, sql), 1, true)
          assert.equal(1, store:delete_entries("kept"))
        end
        assert.matches("string expected, got number", support.raised(txn[method], txn, 1))
        assert.matches("string expected, got ", support.raised(txn[method], txn))
      end
      for _, sql in ipairs({ "SELECT 1;", "SELECT 1; ;", "-- first\nSELECT 1 -- last",
        "SELECT 1 /* open", "SELECT 1; /* open", "/* a */ SELECT /* b */ 1;\n-- c\n" }) do
        assert.equal(0, txn:execute(sql))
      end
    end)
  end)

  it("refuses to end the transaction in any spelling, and leaves it open", function()
    for _, sql in ipairs({ "BEGIN IMMEDIATE", "begin exclusive transaction", "End Transaction",
      "commit transaction;", "ROLLBACK TRANSACTION", "/* c */ COMMIT -- c", "EXPLAIN COMMIT",
      'SAVEPOINT "outbox"', "SAVEPOINT [OutBox]", "RELEASE SAVEPOINT outbox",
      "ROLLBACK TRANSACTION TO SAVEPOINT 'outbox'" }) do
      store:transaction(function(txn)
        txn:publish({ id = "kept" })
        for _, method in ipairs({ "execute", "rows" }) do
          assert.matches("a transaction cannot be begun or ended from within",
            support.raised(txn[method], txn, sql))
        end
        assert.equal(1, store:delete_entries("kept"))
      end)
    end
  end)

  it("needs a transaction as its first argument", function()
    store:transaction(function(txn)
      for _, wrong in ipairs({ store, {}, "txn" }) do
        assert.matches("outbox.transaction expected",
          support.raised(txn.execute, wrong, "SELECT 1"))
        assert.matches("outbox.transaction expected", support.raised(txn.rows, wrong, "SELECT 1"))
      end
    end)
  end)

  it("raises SQLite's message with a code", function()
    store:transaction(function(txn)
      local problem = support.raised(txn.execute, txn, "INSERT INTO nowhere VALUES (1)")
      assert.equal("error", problem.code)
      assert.equal("no such table: nowhere", problem.message)
      assert.equal("toobig", support.raised(txn.execute, txn, "SELECT zeroblob(1000000001)").code)
      assert.equal("incomplete input", support.raised(txn.execute, txn, "SELECT").message)
      assert.equal("error", support.raised(txn.execute, txn, "VACUUM").code)
    end)
  end)
end)
