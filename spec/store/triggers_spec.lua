-- Triggers of the application's on the table of the ready entries.

local outbox = require("outbox")
local support = require("spec.support")

local describe = support.only("sqlite", describe)

describe("a trigger of the application's on outbox_ready", function()
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

  -- The namespaces of the ready entries. No two have the same seq or id.
  local function namespaces()
    local entries, seen = store:ready_entries({ limit = 1000 }), {}
    for _, entry in ipairs(entries) do
      assert.is_nil(seen[entry.id])
      assert.is_nil(seen[entry.seq])
      seen[entry.id], seen[entry.seq] = true, true
    end
    return support.pluck(entries, "namespace")
  end

  it("publishes with an INSERT into outbox_ready, whoever publishes", function()
    sql([[CREATE TRIGGER audit AFTER INSERT ON outbox_ready WHEN NEW.namespace = 'orders' BEGIN
      INSERT INTO outbox_ready (namespace, key) VALUES ('audit', NEW.key); END]])
    store:publish({ namespace = "orders" })
    store:publish({ namespace = "orders" }, { namespace = "orders", id = "mine" })
    sql("INSERT INTO outbox_entries (namespace) VALUES ('orders')")
    local expected = {}
    for i = 1, 4 do
      expected[2 * i - 1], expected[2 * i] = "orders", "audit"
    end
    assert.same(expected, namespaces())
    store:delete_entries(table.unpack(support.pluck(store:ready_entries(), "id")))
    local many = {}
    for i = 1, 40 do
      many[i] = { namespace = "orders" }
    end
    store:publish(table.unpack(many))
    assert.equal(80, #namespaces())
    assert.equal(9, store:ready_entries()[1].seq)
  end)

  it("may add an entry between two copies", function()
    store:subscribe("a", "b1")
    store:subscribe("a", "b2")
    sql([[CREATE TRIGGER audit AFTER INSERT ON outbox_ready WHEN NEW.namespace = 'b1' BEGIN
      INSERT INTO outbox_entries (namespace) VALUES ('audit'); END]])
    store:publish({ namespace = "a" })
    assert.same({ "b1", "audit", "b2" }, namespaces())
  end)

  it("that ends the transaction makes publish raise, and nothing is published", function()
    local connection <close> = setmetatable({}, { __close = function(self)
      self.db:close()
    end })
    outbox.install()
    connection.db = require("luasql.sqlite3").sqlite3():connect(path)
    local db = connection.db
    sql("CREATE TABLE log (key TEXT PRIMARY KEY)")
    sql("CREATE TRIGGER told AFTER INSERT ON outbox_ready BEGIN"
      .. " INSERT OR ROLLBACK INTO log VALUES (NEW.key); END")
    local attached = outbox.attach(db)
    for _, count in ipairs({ 1, 20 }) do
      assert(db:execute("BEGIN IMMEDIATE"))
      assert(db:execute("INSERT INTO log VALUES ('k')"))
      local messages = {}
      for i = 1, count do
        messages[i] = { key = i == count and "k" or "k" .. i }
      end
      assert.equal("constraint", support.raised(attached.publish, attached,
        table.unpack(messages)).code)
      assert.is_nil(db:execute("COMMIT"))
      assert.equal(0, store:stats().ready)
    end
    attached:close()
  end)

  it("that publishes before the row is there is refused aloud", function()
    sql([[CREATE TRIGGER early BEFORE INSERT ON outbox_ready WHEN NEW.namespace = 'x' BEGIN
      INSERT INTO outbox_entries (namespace) VALUES ('audit'); END]])
    assert.equal("constraint", support.raised(store.publish, store, { namespace = "x" }).code)
    store:publish({ namespace = "x", deliver_at = clock.time + 1 })
    clock.advance(2)
    local p = outbox.processor({ store = store, publisher = function() end })
    for _ = 1, 3 do
      assert.equal("constraint", support.raised(p.pump, p).code)
    end
    assert.same({ 0, 1 }, { store:stats().ready, store:stats().delayed })
    sql("DROP TRIGGER early")
    assert.equal(1, (p:pump()))
  end)
end)
