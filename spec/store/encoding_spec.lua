-- PostgreSQL keeps text in its own type: names that are no UTF-8, or have a NUL, are refused.

local outbox = require("outbox")
local support = require("spec.support")

local describe = support.only("postgres", describe)

describe("a name that is no text", function()
  local store

  before_each(function()
    store = support.store({ clock = support.clock(1000) })
    store:publish({ id = "a" })
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  for _, name in ipairs({ "\0", "a\0b", "\xff", "caf\xe9", "\xed\xa0\x80" }) do
    local shown = name:gsub("[^%g ]", function(byte)
      return ("\\x%02x"):format(byte:byte())
    end)

    it("is refused, and harms nothing: " .. shown, function()
      store:transaction(function()
        for _, call in ipairs({
          { store.publish, store, {}, { id = name } },
          { store.publish, store, {}, { namespace = name } },
          { store.publish, store, {}, { key = name } },
          { store.publish, store, {}, { id = name, deliver_at = 2000 } },
          { store.subscribe, store, name, "copy" },
          { store.subscribe, store, "namespace", name },
          { store.pause, store, name },
          { store.requeue_entries, store, name },
          { store.purge_entries, store, name },
        }) do
          assert.equal("encoding", support.raised(table.unpack(call)).code)
        end
      end)
      for _, call in ipairs({
        { store.claim_entries, store, name, 1010 },
        { store.get_claimed_entries, store, name, 1 },
        { store.renew_claim, store, name, 1010 },
        { store.release_claim, store, name },
        { store.find_entries, store, name },
        { store.ready_entries, store, { namespace = name } },
        { store.delete_entries, store, name },
        { store.retry_entry, store, name, 1010, "no" },
        { store.bury_entry, store, name, "no" },
      }) do
        assert.equal("encoding", support.raised(table.unpack(call)).code)
      end
      assert.is_true(store:claim_entries("p", 1010))
      assert.same({ "a" }, support.pluck(store:get_claimed_entries("p", 10), "id"))
    end)
  end

  it("is taken as a payload, and cleaned as an error", function()
    local bytes = "\0caf\xe9\xff"
    store:publish({ id = "b", payload = bytes })
    store:claim_entries("p", 1010)
    assert.equal(bytes, store:get_claimed_entries("p", 10)[2].payload)
    store:bury_entry("b", bytes)
    assert.equal(bytes, store:dead_entries()[1].payload)
    assert.equal("?caf??", store:dead_entries()[1].last_error)
    store:requeue_entries("b")
    assert.equal(bytes, store:ready_entries()[2].payload)
  end)

  it("is refused in the application's SQL, except as a blob", function()
    store:transaction(function(txn)
      txn:execute("CREATE TABLE t (name text, data bytea)")
      txn:execute("INSERT INTO t VALUES ($1, $2)", "é", outbox.blob("\0\xff"))
    end)
    for _, name in ipairs({ "\0", "\xff" }) do
      assert.equal("encoding", support.raised(support.sql, store, "SELECT 1 WHERE 'a' = ?",
        name).code)
    end
    assert.same({ { name = "é", data = "\0\xff" } }, support.sql(store, "SELECT * FROM t"))
  end)
end)

describe("the application's SQL on PostgreSQL", function()
  it("needs one value for each parameter", function()
    local store <close> = support.store()
    finally(support.remove)
    for _, values in ipairs({ {}, { 1, 2 } }) do
      local raised = support.raised(support.sql, store, "SELECT $1::int", table.unpack(values))
      assert.equal("error", raised.code)
    end
    assert.equal(1, support.sql(store, "SELECT $1::int AS one", 1)[1].one)
  end)
end)
