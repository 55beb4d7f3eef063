local outbox = require("outbox")
local support = require("spec.support")

-- What is remembered is the same on both engines, and so many entries take minutes on PostgreSQL.
local sqlite_it = support.only("sqlite", it)

describe("an entry that was read", function()
  local store, path, clock

  before_each(function()
    clock = support.clock(1000)
    store, path = support.store({ clock = clock })
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function publish(...)
    for _, id in ipairs({ ... }) do
      store:publish({ id = id, payload = "old" })
    end
  end

  local function read()
    store:claim_entries("p", clock.time + 10)
    return store:get_claimed_entries("p", 1000)
  end

  -- The ways in which the id `a` comes to mean another entry.
  local REPLACEMENTS = {
    ["DELETE and INSERT"] = function()
      support.sql(store, "DELETE FROM outbox_entries WHERE id = 'a'")
      support.sql(store, "INSERT INTO outbox_entries (id, payload) VALUES ('a', 'new')")
    end,
    ["another processor and the application"] = function()
      local other <close> = outbox.open(path)
      assert.equal(1, other:delete_entries("a"))
      other:publish({ id = "a", payload = "new" })
    end,
  }
  if support.engine == "sqlite" then
    REPLACEMENTS["INSERT OR REPLACE"] = function()
      support.sql(store, "INSERT OR REPLACE INTO outbox_entries (id, payload) VALUES ('a', 'new')")
    end
  end

  local SETTLEMENTS = {
    deletes = function(entry)
      return store:delete_entries(entry) == 1
    end,
    delays = function(entry)
      return store:retry_entry(entry, 2000, "refused")
    end,
    ["puts off"] = function(entry)
      return store:retry_entry(entry, 2000)
    end,
    buries = function(entry)
      return store:bury_entry(entry, "hopeless")
    end,
  }

  for what, replace in pairs(REPLACEMENTS) do
    for how, settle in pairs(SETTLEMENTS) do
      it(("is meant, not the one that took its id: %s; %s"):format(what, how), function()
        publish("a", "b")
        local entry = read()[1]
        replace()
        assert.is_false(settle("a"))
        assert.is_false(settle(entry))
        local waiting = store:find_entries("a")
        assert.same({ 1, "new", 0 }, { #waiting, waiting[1].payload, waiting[1].attempts })
        assert.is_true(settle("b"))
        assert.equal("new", read()[1].payload)
        assert.is_true(settle("a"))
      end)
    end
  end

  it("is meant in a batch, too, of which the others are deleted", function()
    publish("0", "1", "2", "3", "a", "5", "6", "7", "8", "9")
    local ids = support.pluck(read(), "id")
    REPLACEMENTS["DELETE and INSERT"]()
    assert.equal(9, store:delete_entries(table.unpack(ids)))
    assert.same({ "new" }, support.pluck(store:ready_entries(), "payload"))
  end)

  it("is known by its old place while it is delayed", function()
    publish("a", "b")
    local entries = read()
    store:retry_entry("a", 1005, "no")
    store:retry_entry("b", 1005, "no")
    assert.is_true(store:retry_entry("b", 1006)) -- it has not changed
    support.sql(store, "DELETE FROM outbox_delayed WHERE id = 'a'")
    store:publish({ id = "a", deliver_at = 1500 })
    for _, name in ipairs({ "a", entries[1] }) do
      assert.is_false(store:retry_entry(name, 1007))
      assert.equal(0, store:delete_entries(name))
    end
    assert.equal(1, store:delete_entries(entries[2]))
    assert.equal(1500, store:find_entries("a")[1].due_at)
  end)

  it("is not found again once it is settled", function()
    publish("a")
    read()
    assert.equal(1, store:delete_entries("a"))
    publish("a")
    assert.equal(0, store:delete_entries("a"))
    assert.is_false(store:bury_entry("a"))
    assert.equal("a", read()[1].id)
    assert.equal(1, store:delete_entries("a"))
  end)

  it("is settled again after the first settlement was rolled back", function()
    publish("a", "b")
    read()
    pcall(store.transaction, store, function()
      store:delete_entries("a")
      store:retry_entry("b", 2000, "no")
      error("no")
    end)
    assert.equal(1, store:delete_entries("a"))
    assert.is_true(store:retry_entry("b", 2000, "no"))
  end)

  it("is still meant after the claim was renewed", function()
    publish("a", "b")
    read()
    assert.is_true(store:renew_claim("p", 1020))
    assert.is_true(store:claim_entries("p", 1030))
    assert.equal(2, store:delete_entries("a", "b"))
  end)

  it("is the only one that its claim settles, until that is given back or lost", function()
    publish("a")
    read()
    publish("never read")
    assert.equal(0, store:delete_entries("never read"))
    assert.is_false(store:retry_entry("never read", 2000, "no"))
    assert.is_false(store:bury_entry("never read"))
    store:release_claim("p")
    assert.is_true(store:bury_entry("never read"))

    read()
    clock.time = 2000
    local other <close> = outbox.open(path, { clock = clock })
    other:claim_entries("other", 2010)
    assert.is_false(store:renew_claim("p", 2010))
    publish("b")
    assert.equal(1, store:delete_entries("b"))
  end)

  it("is still meant when its claim turns out to be lost", function()
    local settlements = {
      function()
        return store:delete_entries("a") > 0
      end,
      function()
        return store:retry_entry("a", 1e6, "no")
      end,
      function()
        return store:bury_entry("a", "no")
      end,
    }
    for _, learns in ipairs({ "renew_claim", "claim_entries" }) do
      for _, settle in ipairs(settlements) do
        publish("a")
        read()
        clock.time = clock.time + 100
        local other <close> = outbox.open(path, { clock = clock })
        other:claim_entries("other", clock.time + 10)
        other:get_claimed_entries("other", 10)
        other:delete_entries("a")
        other:release_claim("other")
        assert.is_false((store[learns](store, "p", clock.time + 10)))
        publish("a")
        assert.is_false(settle())
        assert.outbox(store).has_entry({ id = "a", attempts = 0 })
        store:release_claim("p")
        assert.equal(1, store:delete_entries("a"))
      end
    end
  end)

  sqlite_it("is not remembered for ever once it is gone, however it went", function()
    support.sql(store, [[WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n
      WHERE i < 130000) INSERT INTO outbox_entries (id) SELECT CAST(i AS TEXT) FROM n]])
    store:claim_entries("p", clock.time + 10)
    for turn = 1, 130 do
      local entries = store:get_claimed_entries("p", 1000)
      assert.equal(1000, #entries)
      local ids = support.pluck(entries, "id")
      store:transaction(function()
        if turn % 10 == 0 then
          for _, id in ipairs(ids) do
            assert(store:bury_entry(id, "no"))
          end
        else
          assert.equal(1000, store:delete_entries(table.unpack(ids)))
        end
        store:renew_claim("p", clock.time + 10)
      end)
    end
    assert.equal(0, store:stats().ready)
  end)

  it("is not meant by an entry of a list, whose seq may be another", function()
    store:publish({ id = "later", deliver_at = clock.time + 100 })
    store:publish({ id = "dead" })
    store:bury_entry("dead", "no")
    for _, entry in ipairs({ store:delayed_entries()[1], store:dead_entries()[1] }) do
      for _, settle in ipairs({ store.delete_entries, store.bury_entry }) do
        local ok, reason = pcall(settle, store, entry)
        assert.is_false(ok)
        assert.matches("an entry of a list is meant by its id", reason)
      end
    end
    assert.equal(1, store:delete_entries("later"))
  end)

  it("may be given as it was read", function()
    publish("a", "b", "c", "d", "e", "f")
    local entries = read()
    assert.equal(4, store:delete_entries(table.unpack(entries, 1, 4)))
    assert.is_true(store:retry_entry(entries[5], 2000, "no"))
    assert.is_true(store:bury_entry({ id = "f", seq = entries[6].seq }))
    for _, wrong in ipairs({ {}, { id = "a" }, { seq = 1 }, { id = 1, seq = 1 },
      { id = "a", seq = "1" }, { id = "a", seq = 1.5 } }) do
      for _, settle in ipairs({ store.delete_entries, store.bury_entry }) do
        local ok, reason = pcall(settle, store, wrong)
        assert.is_false(ok)
        assert.matches("bad argument", reason)
      end
    end
  end)

  sqlite_it("is one of 100,000 at most that are not settled", function()
    support.sql(store, [[WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n
      WHERE i < 100001) INSERT INTO outbox_entries (id) SELECT CAST(i AS TEXT) FROM n]])
    store:claim_entries("p", clock.time + 10)
    assert.equal(100000, #store:get_claimed_entries("p", 100000))
    local ok, problem = pcall(store.get_claimed_entries, store, "p", 100001)
    assert.same({ false, "misuse" }, { ok, problem.code })
    assert.equal(1, store:delete_entries("1"))
    store:claim_entries("p", clock.time + 10)
    assert.equal(100000, #store:get_claimed_entries("p", 100001))
  end)
end)
