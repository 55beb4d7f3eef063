-- The outbox's tables are those of `main`. A TEMP table, or a table of an attached file, may have
-- the same names: no statement of ours means it.

local outbox = require("outbox")
local support = require("spec.support")
local testing = require("outbox.testing")

local describe = support.only("sqlite", describe)

local TABLES = { "entries", "delayed", "dead", "claims", "schema", "inbox" }

-- Each function does one operation, and asserts what it would not do with an empty table. They run
-- in this order.
local OPERATIONS = {
  { "migrates", function(store)
    store:migrate()
  end },
  { "publishes", function(store)
    store:publish({ id = "a" }, { id = "b", key = "k" }, { id = "c", key = "k" }, { id = "d" })
    store:publish({ id = "late", deliver_at = 2000 })
    for _, id in ipairs({ "a", "late" }) do
      assert.equal("duplicate", support.raised(store.publish, store, { id = id }).code)
    end
    local many = {}
    for i = 1, 16 do
      many[i] = { id = "many" .. i }
    end
    store:publish(table.unpack(many))
  end },
  { "claims", function(store)
    assert.is_true(store:claim_entries("p", 1500))
    assert.is_true(store:claim_entries("p", 1500, { limit = 20 }))
    assert.is_false(store:claim_entries("q", 1500))
    assert.is_true(store:renew_claim("p", 1600))
    assert.equal("p", store:stats().leases[1].processor_id)
  end },
  { "reads", function(store)
    assert.equal(20, #store:get_claimed_entries("p", 100))
    assert.equal("a", store:get_claimed_entries("p", 1, { hold = true })[1].id)
  end },
  { "settles", function(store)
    assert.equal(1, store:delete_entries("a"))
    assert.is_true(store:retry_entry("b", 1700, "again"))
    assert.is_true(store:retry_entry("b", 1800))
    assert.same({ "d" }, support.pluck(store:get_claimed_entries("p", 1), "id"))
    assert.is_true(store:bury_entry("d", "enough"))
    assert.is_true(store:bury_entry("many1", "enough"))
    local ids = support.pluck(store:get_claimed_entries("p", 14), "id")
    assert.equal(8, store:delete_entries(table.unpack(ids, 7)))
    assert.equal(1, store:delete_entries("many16"))
    assert.equal("duplicate", support.raised(store.publish, store, { id = "d" }).code)
  end },
  { "lists", function(store)
    assert.equal("c", store:ready_entries()[1].id)
    assert.same({ "late", "b" }, support.pluck(store:delayed_entries(), "id"))
    assert.same({ "many1", "d" }, support.pluck(store:dead_entries({ reverse = true }), "id"))
    for _, id in ipairs({ "b", "c", "d" }) do
      assert.equal(1, #store:find_entries(id))
    end
  end },
  { "counts", function(store)
    local stats = store:stats()
    assert.same({ 7, 2, 2, 20 }, { stats.ready, stats.delayed, stats.dead, stats.last_seq })
  end },
  { "puts dead letters back, and purges them", function(store)
    assert.equal(1, store:requeue_entries("d"))
    assert.equal(1, store:purge_entries("many1"))
  end },
  { "reads delayed entries that are due", function(store, clock)
    clock.time = 3000
    assert.is_true(store:claim_entries("p", 3500))
    assert.equal("b", store:get_claimed_entries("p", 1)[1].id)
    assert.same({ "b" }, support.pluck(store:delayed_entries(), "id"))
    store:release_claim("p")
    assert.same({}, store:stats().leases)
  end },
}

-- The SQL that makes tables of the outbox's names somewhere else: a copy of those in `main`.
local function copies(path, where)
  local tables = {}
  local own <close> = outbox.open(path)
  for _, row in ipairs(support.sql(own, "SELECT name, sql FROM sqlite_schema WHERE type = 'table'"
    .. " AND name LIKE 'outbox%'")) do
    tables[#tables + 1] = row.sql:gsub(row.name, where .. "." .. row.name, 1)
  end
  tables[#tables + 1] = ("CREATE TABLE %s.outbox_inbox (id PRIMARY KEY, seen_at)"):format(where)
  tables[#tables + 1] = ("CREATE TABLE %s.outbox_entries (id PRIMARY KEY)"):format(where)
  tables[#tables + 1] = ("INSERT INTO %s.outbox_schema (version) VALUES (1)"):format(where)
  return tables
end

for _, where in ipairs({ "temp", "other" }) do
  local beside = where == "temp" and "beside TEMP tables" or "beside an attached file"

  describe("an outbox " .. beside .. " of the same names", function()
    local path, decoys, clock

    before_each(function()
      local model, model_path = support.store()
      model:close()
      decoys = copies(model_path, where)
      if where == "other" then
        table.insert(decoys, 1, ("ATTACH '%s' AS other"):format(support.path()))
      end
      path = support.path()
      clock = testing.clock(1000)
    end)

    after_each(support.remove)

    -- Asserts that nothing was written to the tables of the same names, and how often `count` gives
    -- another number than 0.
    local function assert_untouched(count)
      for _, name in ipairs(TABLES) do
        assert.equal(name == "schema" and 1 or 0,
          count(("SELECT count(*) FROM %s.outbox_%s"):format(where, name)), name)
      end
    end

    it("works in its own tables, in every operation of outbox.open", function()
      local store <close> = outbox.open(path, { clock = clock })
      store:transaction(function(txn)
        for _, sql in ipairs(decoys) do
          txn:execute(sql)
        end
      end)
      for _, operation in ipairs(OPERATIONS) do
        operation[2](store, clock)
      end
      assert_untouched(function(sql)
        return support.sql(store, sql)[1]["count(*)"]
      end)
    end)

    it("works in its own tables, in every operation of outbox.attach", function()
      outbox.install()
      local connection = assert(require("luasql.sqlite3").sqlite3():connect(path))
      for _, sql in ipairs(decoys) do
        assert(connection:execute(sql))
      end
      local store = outbox.attach(connection, { clock = clock })
      for _, operation in ipairs(OPERATIONS) do
        operation[2](store, clock)
      end
      assert_untouched(function(sql)
        local cursor = assert(connection:execute(sql))
        local number = math.tointeger(tonumber(cursor:fetch()))
        cursor:close()
        return number
      end)
      connection:close()
    end)

    it("is published to by outbox.attach with a function", function()
      outbox.open(path):migrate()
      local connection = assert(require("luasql.sqlite3").sqlite3():connect(path))
      for _, sql in ipairs(decoys) do
        assert(connection:execute(sql))
      end
      local store = outbox.attach(function(sql, ...)
        for _, value in ipairs({ ... }) do
          sql = sql:gsub("%?", "'" .. value .. "'", 1)
        end
        sql = sql:gsub("%?", "NULL")
        return assert(connection:execute(sql)) and true
      end, { clock = clock, id_generator = testing.ids() })
      store:publish({}, { id = "b" }, { id = "late", deliver_at = 2000 })
      assert.is_false(pcall(store.publish, store, { id = "b" }))
      assert.is_false(pcall(store.publish, store, { id = "late" }))
      for _, sql in ipairs({ "SELECT count(*) FROM main.outbox_entries WHERE id IN ('id-1', 'b')",
        "SELECT 2 * count(*) FROM main.outbox_delayed WHERE id = 'late'" }) do
        local cursor = assert(connection:execute(sql))
        assert.equal(2, math.tointeger(tonumber(cursor:fetch())))
        cursor:close()
      end
      connection:close()
    end)

    it("has its own inbox", function()
      local store <close> = outbox.open(path, { clock = clock })
      store:migrate()
      store:transaction(function(txn)
        for _, sql in ipairs(decoys) do
          txn:execute(sql)
        end
        txn:execute(("INSERT INTO %s.outbox_inbox VALUES ('1', 0)"):format(where))
      end)
      local inbox = outbox.inbox({ store = store, retention = 10 })
      for i = 1, 17 do
        assert.is_true(inbox:once(tostring(i), function() end))
        assert.is_false(inbox:once(tostring(i), function() end))
        clock.time = clock.time + 10
      end
      assert.equal(1, support.sql(store,
        ("SELECT count(*) AS n FROM %s.outbox_inbox"):format(where))[1].n)
      local kept = support.sql(store, "SELECT count(*) AS n FROM main.outbox_inbox")[1].n
      assert.is_true(kept > 0 and kept < 17)
    end)

    it("is not there if only the others are", function()
      local store <close> = outbox.open(path, { clock = clock })
      store:transaction(function(txn)
        for _, sql in ipairs(decoys) do
          txn:execute(sql)
        end
      end)
      for _, call in ipairs({ { "publish", {} }, { "claim_entries", "p", 1500 }, { "stats" },
        { "get_claimed_entries", "p", 1 }, { "delete_entries", "a" },
        { "ready_entries" } }) do
        local method = store[call[1]]
        assert.equal("schema",
          support.raised(method, store, table.unpack(call, 2)).code, call[1])
      end
      store:migrate()
      assert.equal(36, #store:publish({}))
    end)
  end)
end
