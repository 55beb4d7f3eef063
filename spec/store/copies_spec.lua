-- Copies that store no id: it is found behind the seq in their source's id (src/sqlite/derived.h).

local outbox = require("outbox")
local support = require("spec.support")

local describe = support.only("sqlite", describe)

describe("a copy of a message whose id the outbox makes", function()
  local store, path, one, two

  before_each(function()
    store, path = support.store()
    store:subscribe("orders", "mail")
    store:subscribe("orders", "stock")
    one, two = outbox.open(path), outbox.open(path)
  end)

  after_each(function()
    one:close()
    two:close()
    store:close()
    support.remove()
  end)

  -- How many rows store their id.
  local function stored()
    return support.sql(store, "SELECT count(id) AS n FROM outbox_ready")[1].n
  end

  local function publish(publisher, count)
    local messages = {}
    for i = 1, count do
      messages[i] = { namespace = "orders" }
    end
    return publisher:publish(table.unpack(messages))
  end

  it("stores no ids, and finds each copy by its id", function()
    local ids = {}
    for _, count in ipairs({ 1, 1, 2, 16, 1, 40, 3, 100 }) do
      table.move({ publish(one, count) }, 1, count, #ids + 1, ids)
    end
    one:transaction(function(txn)
      ids[#ids + 1] = txn:publish({ namespace = "orders" })
      ids[#ids + 1] = txn:publish({ namespace = "orders" })
    end)
    -- Nothing is known before the first one of a store.
    assert.is_true(stored() <= 4)
    local listed = support.pluck(one:ready_entries({ limit = 1000 }), "id")
    assert.equal(2 * #ids, #listed)
    for i, id in ipairs(ids) do
      assert.same({ id .. ":mail", id .. ":stock" }, { listed[2 * i - 1], listed[2 * i] })
      assert.same({ id .. ":mail" }, support.pluck(two:find_entries(id .. ":mail"), "id"))
      assert.equal(id, two:find_entries(id .. ":stock")[1].source_id)
      assert.same({}, two:find_entries(id))
    end
    assert.equal(#listed, one:delete_entries(table.unpack(listed)))
    assert.equal(0, one:stats().ready)
  end)

  it("finds them when two publish in turn, and a trigger in between", function()
    support.sql(store, "CREATE TRIGGER audit AFTER INSERT ON outbox_ready WHEN NEW.namespace ="
      .. " 'mail' BEGIN INSERT INTO outbox_ready (namespace) VALUES ('audit'); END")
    local ids, random = {}, math.random
    for _ = 1, 200 do
      local count = random(1, 20)
      local publisher = random(2) == 1 and one or two
      table.move({ publish(publisher, count) }, 1, count, #ids + 1, ids)
      publisher:publish({ namespace = random(2) == 1 and "other" or nil })
    end
    local seen = {}
    for _, row in ipairs(support.sql(store, "SELECT id FROM outbox_entries")) do
      assert.is_nil(seen[row.id])
      seen[row.id] = true
    end
    for _, id in ipairs(ids) do
      for _, copy in ipairs({ id .. ":mail", id .. ":stock" }) do
        assert.is_true(seen[copy])
        assert.equal(copy, one:find_entries(copy)[1].id)
      end
    end
  end)

  it("refuses their ids, and those of the messages, while a copy is there", function()
    local id = publish(one, 2)
    local function refused(namespace, taken)
      assert.equal("duplicate", support.raised(one.publish, one, { id = taken,
        namespace = namespace }).code)
      assert.equal("constraint", support.raised(support.sql, store,
        "INSERT INTO outbox_entries (id, namespace) VALUES (?, ?)", taken, namespace).code)
    end
    refused("orders", id)
    refused("", id .. ":mail")
    one:delete_entries(id .. ":mail")
    assert.equal(id .. ":mail", one:publish({ id = id .. ":mail" }))
    refused("orders", id)
    one:delete_entries(id .. ":mail", id .. ":stock")
    assert.equal(id, one:publish({ id = id, namespace = "orders" }))
  end)

  it("keeps the id of a copy that plain SQL changes, or that fails", function()
    local a, b = publish(one, 2)
    support.sql(store, "UPDATE outbox_entries SET namespace = 'post' WHERE id = ?", a .. ":mail")
    support.sql(store, "UPDATE outbox_entries SET seq = seq + 5000 WHERE id = ?", b .. ":stock")
    assert.equal("post", one:find_entries(a .. ":mail")[1].namespace)
    assert.equal("stock", one:find_entries(b .. ":stock")[1].namespace)
    assert.is_true(one:retry_entry(a .. ":stock", 5e9, "later"))
    assert.is_true(one:bury_entry(b .. ":mail", "never"))
    assert.equal(a .. ":stock", one:delayed_entries()[1].id)
    assert.equal(b .. ":mail", one:dead_entries()[1].id)
    one:requeue_entries(b .. ":mail")
    assert.equal(b, one:find_entries(b .. ":mail")[1].source_id)
  end)

  it("hands them to a processor, which deletes them", function()
    publish(one, 30)
    publish(two, 1)
    local seen = {}
    local p = outbox.processor({ store = one, batch_size = 7, publisher = function(messages)
      for _, message in ipairs(messages) do
        seen[#seen + 1] = message.id
        assert.equal(message.source_id .. ":" .. message.namespace, message.id)
      end
      return #seen ~= 7 and {} or { [2] = "no" }
    end })
    assert.equal(61, (p:pump()))
    assert.equal(62, #seen)
    assert.same({ 0, 1 }, { one:stats().ready, one:stats().delayed })
  end)

  it("is found where a trigger takes places among the copies", function()
    for i = 1, 20 do
      store:subscribe("many", "copy " .. i)
    end
    support.sql(store, "CREATE TRIGGER audit AFTER INSERT ON outbox_ready BEGIN"
      .. " INSERT INTO outbox_ready (namespace) VALUES ('audit'); END")
    for _ = 1, 2 do
      local messages = {}
      for i = 1, 16 do
        messages[i] = { namespace = "many" }
      end
      for _, id in ipairs({ one:publish(table.unpack(messages)) }) do
        for i = 1, 20 do
          assert.equal(1, #two:find_entries(id .. ":copy " .. i))
        end
      end
    end
  end)

  it("has an id that nobody else gets, whatever its seq", function()
    local function refused(id, namespace)
      assert.equal("duplicate", support.raised(one.publish, one, { id = id,
        namespace = namespace }).code)
      for _, deliver_at in ipairs({ "NULL", "9e15" }) do
        assert.equal("constraint", support.raised(support.sql, store, "INSERT INTO outbox_entries"
          .. " (id, namespace, deliver_at) VALUES (?, ?, " .. deliver_at .. ")", id,
          namespace).code)
      end
      local attached = outbox.attach(function(sql, ...)
        if not sql:find("SAVEPOINT") then
          support.sql(store, sql, ...)
        end
      end)
      for _, deliver_at in ipairs({ 0, outbox.clock.now() + 60 }) do
        assert.equal("constraint", support.raised(attached.publish, attached, { id = id,
          namespace = namespace, deliver_at = deliver_at }).code)
      end
    end
    for _, seq in ipairs({ 1, 200, 300, 5000, 70000, 20000000, 1 << 40 }) do
      support.sql(store, "INSERT INTO outbox_entries (seq) VALUES (?)", seq)
      local mine, copied = one:publish({}), one:publish({ namespace = "orders" })
      refused(mine, "")
      refused(copied, "orders")
      refused(copied .. ":mail", "")
    end
  end)

  it("may have a namespace with a colon, and still an id of its own", function()
    store:subscribe("odd", "x:y")
    store:subscribe("other", "y")
    local id = one:publish({ namespace = "odd" })
    assert.equal("duplicate", support.raised(one.publish, one, { id = id .. ":x",
      namespace = "other" }).code)
    assert.equal("constraint", support.raised(support.sql, store,
      "INSERT INTO outbox_entries (id, namespace) VALUES (?, 'other')", id .. ":x").code)
    assert.equal(id .. ":z", one:publish({ id = id .. ":z", namespace = "other" }))
  end)

  it("keeps its id when plain SQL takes it away", function()
    local id = one:publish({ namespace = "orders" })
    support.sql(store, "UPDATE outbox_entries SET id = NULL WHERE id = ?", id .. ":mail")
    assert.equal(1, #one:find_entries(id .. ":mail"))
  end)
end)
