-- The view outbox_entries of the table outbox_ready: what plain SQL can do with it, and that no seq
-- comes twice.

local outbox = require("outbox")
local support = require("spec.support")

local describe = support.only("sqlite", describe)

local V7 = "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-7%x%x%x%-[89ab]%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$"

describe("plain SQL on outbox_entries", function()
  local store, clock, path

  before_each(function()
    clock = support.clock(1700000000)
    store, path = support.store({ clock = clock })
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function sql(...)
    return support.sql(store, ...)
  end

  local function ids()
    return support.pluck(store:ready_entries(), "id")
  end

  -- Another id, of the same place.
  local function neighbour(id)
    return id:sub(1, -2) .. (id:sub(-1) == "0" and "1" or "0")
  end

  it("finds no ids stored that the library has made", function()
    for i = 1, 20 do
      store:publish({ id = "own " .. i }, {}, {})
      store:publish({ deliver_at = clock.time + 100 }, {}, { deliver_at = clock.time }, {})
      store:publish(table.unpack(setmetatable({}, { __index = function() return {} end }), 1, i))
    end
    assert.same({ { count = 20 } },
      sql("SELECT count(id) AS count FROM outbox_ready"))
  end)

  it("gets an id for each entry, by which it is found and deleted", function()
    sql("INSERT INTO outbox_entries (payload) VALUES ('a'), ('b'), ('c')")
    local seen = {}
    for i, id in ipairs(ids()) do
      assert.matches(V7, id)
      assert.is_nil(seen[id])
      seen[id] = true
      assert.equal(i, store:find_entries(id)[1].seq)
    end
    assert.equal(1, store:delete_entries(ids()[2]))
    assert.same({ "a", "c" }, support.pluck(store:ready_entries(), "payload"))
  end)

  it("sees the ids that the library has returned", function()
    local published = { store:publish({}, { id = "mine" }, {}) }
    assert.same(published, support.pluck(sql("SELECT id FROM outbox_entries ORDER BY seq"), "id"))
    assert.same({ "constraint" }, { support.raised(sql,
      "INSERT INTO outbox_entries (id) VALUES ('mine')").code })
    assert.equal("duplicate", support.raised(store.publish, store, { id = published[1] }).code)
  end)

  it("publishes for later with deliver_at", function()
    sql("INSERT INTO outbox_entries (id, deliver_at) VALUES ('now', NULL), ('past', 1),"
      .. " ('later', 4000000000000000)")
    assert.same({ "now", "past" }, ids())
    assert.equal(4e9, store:find_entries("later")[1].due_at)
    sql("INSERT INTO outbox_entries (deliver_at) VALUES (4000000000000000)")
    assert.matches(V7, store:delayed_entries()[2].id)
  end)

  it("changes a row, which keeps its id unless that is changed", function()
    local id = store:publish({ payload = "a" })
    for _, change in ipairs({ "payload = 'b'", "created_at = created_at + 1", "attempts = 7",
      "payload = 'c'" }) do
      sql("UPDATE outbox_entries SET " .. change)
      assert.same({ id }, ids())
      assert.equal(1, #store:find_entries(id))
    end
    assert.equal("c", store:ready_entries()[1].payload)
    sql("UPDATE outbox_entries SET id = 'other'")
    assert.same({ "other" }, ids())
  end)

  it("refuses an id that an entry has, also one that the outbox has made", function()
    local first, second = store:publish({}), store:publish({})
    for _, insert in ipairs({ "INSERT", "INSERT OR REPLACE" }) do
      assert.equal("constraint", support.raised(sql, insert
        .. " INTO outbox_entries (id) VALUES (?)", first).code)
    end
    sql("INSERT OR IGNORE INTO outbox_entries (id) VALUES (?)", first)
    assert.equal("constraint", support.raised(sql,
      "UPDATE outbox_entries SET id = ? WHERE id = ?", first, second).code)
    assert.same({ first, second }, ids())
    local other = neighbour(first)
    sql("INSERT INTO outbox_entries (id) VALUES (?)", other)
    assert.same({ first, second, other }, ids())
  end)

  it("takes a number as deliver_at, and only with an INSERT", function()
    for _, value in ipairs({ "'2020-01-01'", "x'00'" }) do
      assert.matches("deliver_at must be a number", support.raised(sql,
        "INSERT INTO outbox_entries (deliver_at) VALUES (" .. value .. ")").message, 1, true)
    end
    store:publish({})
    assert.equal("constraint", support.raised(sql, "UPDATE outbox_entries SET deliver_at = 1").code)
    assert.equal(1, #ids())
  end)

  it("refuses times of which no id can be made, for copies, too", function()
    store:subscribe("a", "b")
    for _, time in ipairs({ "'x'", "-1" }) do
      assert.equal("constraint", support.raised(sql,
        "INSERT INTO outbox_entries (namespace, created_at) VALUES ('a', " .. time .. ")").code)
    end
    sql("INSERT INTO outbox_entries (namespace) VALUES ('a')")
    assert.matches("^%x+%-%x+%-7%x+%-%x+%-%x+:b$", ids()[1])
  end)

  it("never sees a seq twice where a row is replaced or moved", function()
    store:publish({ id = "a" }, { id = "b" }, { id = "z" })
    sql("UPDATE OR REPLACE outbox_entries SET id = 'z' WHERE id = 'a'")
    store:publish({ id = "c" })
    assert.equal(4, store:find_entries("c")[1].seq)
    sql("INSERT OR REPLACE INTO outbox_entries (seq, id) VALUES (0, 'c')")
    store:publish({ id = "d" })
    assert.equal(5, store:find_entries("d")[1].seq)
    sql("UPDATE outbox_entries SET seq = -1 WHERE id = 'd'")
    store:publish({ id = "e" })
    assert.equal(6, store:find_entries("e")[1].seq)
  end)

  it("finds an id among rows that lie far apart", function()
    local id = store:publish({})
    sql("INSERT INTO outbox_entries (seq) VALUES (9223372036854775806), (1000000000000)")
    assert.equal(1, store:find_entries(id)[1].seq)
    assert.same({}, store:find_entries(neighbour(id)))
    assert.equal(1, store:delete_entries(id))
  end)

  it("refuses times of which no id can be made, unless the row has one", function()
    for _, time in ipairs({ "'x'", "-1", "1.5", "281474976710656000" }) do
      local insert = "INSERT INTO outbox_entries (id, created_at) VALUES (%s, " .. time .. ")"
      assert.equal("constraint", support.raised(sql, insert:format("NULL")).code)
      sql(insert:format("'own " .. time:gsub("'", "") .. "'"))
    end
    assert.equal(4, #ids())
  end)

  -- What takes the last entry away.
  local REMOVALS = {
    ["is deleted"] = function(id)
      store:delete_entries(id)
    end,
    ["is deleted with others"] = function()
      store:claim_entries("p", clock.time + 10)
      local entries = store:get_claimed_entries("p", 100)
      store:delete_entries(table.unpack(entries))
    end,
    ["is deleted by plain SQL"] = function()
      sql("DELETE FROM outbox_entries")
    end,
    ["is delayed"] = function(id)
      store:retry_entry(id, clock.time + 100)
    end,
    ["is buried"] = function(id)
      store:bury_entry(id)
    end,
    ["is delivered by a processor"] = function()
      outbox.processor({ store = store, publisher = function() end }):pump()
    end,
    ["is put off by a processor"] = function()
      outbox.processor({ store = store, on_error = function() end, publisher = function()
        return { "no", "no", "no", "no", "no", "no" }
      end }):pump()
    end,
  }
  for name, remove in pairs(REMOVALS) do
    it("never sees a seq twice: the last entry " .. name, function()
      local last = 0
      for round = 1, 3 do
        for count = 1, 6 do
          sql("INSERT INTO outbox_entries (payload) VALUES ('x')")
          local id = store:publish({ payload = "x" })
          local seq = store:find_entries(id)[1].seq
          assert.is_true(seq > last, ("%d after %d, round %d"):format(seq, last, round))
          last = seq
          if count % 2 == 0 then
            remove(id)
          end
        end
        sql("DELETE FROM outbox_entries")
        assert.equal(last, store:stats().last_seq)
        store:close()
        store = outbox.open(path, { clock = clock })
      end
    end)
  end
end)

describe("a migration from 0.1.0", function()
  after_each(support.remove)

  it("refuses to drop what the application has created on the table", function()
    local REMOVALS = { ["column tenant"] = "ALTER TABLE outbox_entries DROP COLUMN tenant",
      ["foreign key of mine"] = "DROP TABLE mine" }
    local path = support.path()
    assert(os.execute(("cp spec/fixtures/0.1.0/default.db %s"):format(path)))
    local store <close> = outbox.open(path)
    for name, create in pairs({
      ["trigger told"] = "CREATE TRIGGER told AFTER INSERT ON outbox_entries BEGIN SELECT 1; END",
      ["index own"] = "CREATE INDEX own ON outbox_entries (key)",
      ["column tenant"] = "ALTER TABLE outbox_entries ADD COLUMN tenant",
      ["foreign key of mine"] = "CREATE TABLE mine (e REFERENCES outbox_entries (seq))",
    }) do
      support.sql(store, create)
      local before = support.sql(store, "SELECT sql FROM sqlite_schema")
      local problem = support.raised(store.migrate, store)
      assert.equal("misuse", problem.code)
      assert.matches("the " .. name .. " of the application is on outbox_entries", problem.message,
        1, true)
      assert.same(before, support.sql(store, "SELECT sql FROM sqlite_schema"))
      support.sql(store, REMOVALS[name] or "DROP " .. name)
    end
    store:migrate()
    assert.is_true(store:stats().ready > 0)
  end)

  it("leaves the sequences of the application's own tables alone", function()
    local path = support.path()
    assert(os.execute(("cp spec/fixtures/0.1.0/default.db %s"):format(path)))
    local store <close> = outbox.open(path)
    support.sql(store, "CREATE TABLE orders (number INTEGER PRIMARY KEY AUTOINCREMENT)")
    support.sql(store, "INSERT INTO orders VALUES (1000)")
    support.sql(store, "DELETE FROM orders")
    local last = support.sql(store,
      "SELECT seq FROM sqlite_sequence WHERE name = 'outbox_entries'")[1].seq
    store:migrate()
    support.sql(store, "INSERT INTO orders DEFAULT VALUES")
    assert.same({ { number = 1001 } }, support.sql(store, "SELECT number FROM orders"))
    support.sql(store, "DELETE FROM outbox_entries")
    local id = store:publish({})
    assert.equal(last + 1, store:find_entries(id)[1].seq)
  end)
end)
