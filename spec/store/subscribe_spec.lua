-- Subscriptions: what is published to a namespace becomes copies in others, whoever publishes it.

local outbox = require("outbox")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

local EXTENSION = assert(package.searchpath("outbox_sqlite", package.cpath)):gsub("%.so$", "")

describe("a subscription", function()
  local store, path

  before_each(function()
    store, path = support.store({ id_generator = require("outbox.testing").ids() })
    store:subscribe("orders", "mail")
    store:subscribe("orders", "stock")
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  -- Runs a statement of a store on a function, but no savepoints.
  local function run(sql, ...)
    if not sql:find("SAVEPOINT") then
      support.sql(store, sql, ...)
    end
  end

  local function rows()
    local list = {}
    for _, row in ipairs(support.sql(store, "SELECT id, namespace, key, payload, headers,"
      .. " source_id FROM outbox_entries ORDER BY seq")) do
      list[#list + 1] = ("%s %s %s %s %s %s"):format(row.id, row.namespace, row.key, row.payload,
        row.headers, row.source_id)
    end
    return list
  end

  it("puts copies in the place of each message, which know it", function()
    local ids = { store:publish({ namespace = "orders", key = "k", payload = "1",
      headers = { a = "b" } }, { namespace = "other" }, { namespace = "orders", id = "own" }) }
    assert.same({ "id-1", "id-2", "own" }, ids)
    assert.same({
      'id-1:mail mail k 1 {"a":"b"} id-1', 'id-1:stock stock k 1 {"a":"b"} id-1',
      "id-2 other nil nil nil nil",
      "own:mail mail nil nil nil own", "own:stock stock nil nil nil own",
    }, rows())
    assert.same({ "id-1", "id-1", nil, "own", "own" },
      support.pluck(store:ready_entries(), "source_id"))
  end)

  sqlite_it("is for every way of publishing", function()
    outbox.install()
    local luasql = require("luasql.sqlite3").sqlite3():connect(path)
    local ways = {
      store = function(message)
        store:publish(message)
      end,
      transaction = function(message)
        store:transaction(function(txn)
          txn:publish(message)
        end)
      end,
      connection = function(message)
        outbox.attach(luasql):publish(message)
      end,
      ["connection, scheduled"] = function(message)
        message.deliver_at = outbox.clock.now() + 60
        outbox.attach(luasql):publish(message)
      end,
      ["function"] = function(message)
        outbox.attach(run):publish(message)
      end,
      ["function, scheduled"] = function(message)
        message.deliver_at = outbox.clock.now() + 60
        outbox.attach(run):publish(message)
      end,
      ["sql, scheduled"] = function(message)
        support.sql(store, "INSERT INTO outbox_entries (namespace, payload, deliver_at)"
          .. " VALUES (?, ?, 9e15)", message.namespace, message.payload)
      end,
      ["older publisher, scheduled"] = function(message)
        support.sql(store, "INSERT INTO outbox_delayed (id, namespace, key, payload, headers,"
          .. " created_at, due_at) VALUES ('later', ?, NULL, ?, NULL, 1, 9000000000000000)",
          message.namespace, message.payload)
      end,
      sql = function(message)
        support.sql(store, "INSERT INTO outbox_entries (namespace, payload) VALUES (?, ?)",
          message.namespace, message.payload)
      end,
      trigger = function(message)
        support.sql(store, "CREATE TABLE sales (payload)")
        support.sql(store, "CREATE TRIGGER sold AFTER INSERT ON sales BEGIN INSERT INTO "
          .. "outbox_entries (namespace, payload) VALUES ('orders', NEW.payload); END")
        support.sql(store, "INSERT INTO sales VALUES (?)", message.payload)
      end,
      ["older publisher"] = function(message)
        support.sql(store, "INSERT INTO outbox_entries (id, namespace, key, payload, headers,"
          .. " created_at) VALUES ('old', ?, NULL, ?, NULL, 1)", message.namespace, message.payload)
      end,
      extension = function(message)
        local pipe = io.popen(("sqlite3 -cmd '.load %s' -cmd '.timeout 5000' %s \"SELECT "
          .. "outbox_publish('%s', NULL, '%s')\""):format(EXTENSION, path, message.namespace,
          message.payload))
        pipe:read("a")
        assert(pipe:close())
      end,
    }
    for name, publish in pairs(ways) do
      publish({ namespace = "orders", payload = name })
      local copies = support.sql(store, "SELECT id, namespace, source_id, payload FROM"
        .. " outbox_entries WHERE CAST(payload AS TEXT) = ?1 UNION ALL SELECT id, namespace,"
        .. " source_id, payload FROM outbox_delayed WHERE CAST(payload AS TEXT) = ?1", name)
      assert.same({ "mail", "stock" }, support.pluck(copies, "namespace"), name)
      for _, copy in ipairs(copies) do
        assert.equal(copy.source_id .. ":" .. copy.namespace, copy.id, name)
      end
    end
    luasql:close()
  end)

  it("keeps the order of a call of many, and of each key", function()
    local messages, expected = {}, {}
    for i = 1, 40 do
      messages[i] = { id = "m" .. i, namespace = i % 3 == 0 and "other" or "orders", key = i % 2 }
      expected[#expected + 1] = i % 3 == 0 and "m" .. i or "m" .. i .. ":mail"
      expected[#expected + 1] = i % 3 ~= 0 and "m" .. i .. ":stock" or nil
    end
    store:publish(table.unpack(messages))
    assert.same(expected, support.pluck(store:ready_entries(), "id"))
  end)

  it("gives copies the promised id, though another publishes meanwhile", function()
    local one <close> = outbox.open(path)
    local two <close> = outbox.open(path)
    for _ = 1, 3 do
      local ids = { one:publish({}), two:publish({}), two:publish({}),
        one:publish({ namespace = "orders" }), two:publish({ namespace = "orders" }),
        one:publish({}) }
      for i, id in ipairs(ids) do
        local is_copied = i == 4 or i == 5
        assert.equal(is_copied and 0 or 1, #store:find_entries(id))
        for _, copy in ipairs({ ":mail", ":stock" }) do
          assert.equal(is_copied and 1 or 0, #store:find_entries(id .. copy))
        end
      end
    end
  end)

  it("leaves nothing of what is rolled back", function()
    pcall(store.transaction, store, function(txn)
      txn:publish({ namespace = "orders" })
      error("no")
    end)
    assert.same({}, rows())
  end)

  it("is for scheduled messages when they are published", function()
    local clock = support.clock()
    local timed <close> = outbox.open(path, { clock = clock })
    timed:publish({ id = "a", namespace = "orders", deliver_at = clock.time + 10 })
    assert.same({ "a:mail", "a:stock" }, support.pluck(timed:delayed_entries(), "id"))
    clock.advance(10)
    timed:claim_entries("p", clock.time + 10)
    local entries = timed:get_claimed_entries("p", 10)
    assert.same({ "a:mail", "a:stock" }, support.pluck(entries, "id"))
    assert.same({ "a", "a" }, support.pluck(entries, "source_id"))
  end)

  it("concerns nothing that was published before, wherever that is moved", function()
    local clock = support.clock()
    local timed <close> = outbox.open(path, { clock = clock })
    timed:publish({ id = "ready", namespace = "late" }, { id = "dead", namespace = "late" },
      { id = "retried", namespace = "late" },
      { id = "scheduled", namespace = "late", deliver_at = clock.time + 10 })
    timed:subscribe("late", "mail")
    timed:bury_entry("dead")
    timed:requeue_entries("dead")
    timed:retry_entry("retried", clock.time, "no")
    clock.advance(10)
    timed:claim_entries("p", clock.time + 10)
    local entries = timed:get_claimed_entries("p", 10)
    local ids = support.pluck(entries, "id")
    table.sort(ids)
    assert.same({ "dead", "ready", "retried", "scheduled" }, ids)
    assert.same({ nil, nil, nil, nil }, support.pluck(entries, "source_id"))
  end)

  it("gives each copy retries and a death of its own", function()
    store:publish({ id = "a", namespace = "orders", payload = "x" })
    assert.is_true(store:retry_entry("a:mail", 5e9, "later"))
    assert.is_true(store:bury_entry("a:stock", "never"))
    assert.same({ "a" }, support.pluck(store:delayed_entries(), "source_id"))
    local dead = store:dead_entries()
    assert.same({ "a:stock", "a", "never" }, { dead[1].id, dead[1].source_id, dead[1].last_error })
    store:requeue_entries("a:stock")
    local back = store:ready_entries()
    assert.same({ "a:stock", "stock", "a" }, { back[1].id, back[1].namespace, back[1].source_id })
    assert.equal(1, #back)
  end)

  it("refuses an id while a copy of it is in the outbox", function()
    store:publish({ id = "a", namespace = "orders" })
    local function refused()
      assert.equal("duplicate", support.raised(store.publish, store, { id = "a",
        namespace = "orders" }).code)
      if support.engine == "sqlite" then
        local attached = outbox.attach(run)
        assert.equal("constraint", support.raised(attached.publish, attached, { id = "a",
          namespace = "orders" }).code)
      end
    end
    refused()
    store:delete_entries("a:mail")
    refused()
    store:retry_entry("a:stock", 5e9, "later")
    refused()
    store:bury_entry("a:stock")
    refused()
    store:purge_entries("a:stock")
    assert.equal("a", store:publish({ id = "a", namespace = "orders" }))
  end)

  it("may lead back to its own namespace, and copies are not copied", function()
    store:subscribe("orders", "orders")
    store:subscribe("mail", "elsewhere")
    if support.engine == "sqlite" then
      support.sql(store, "PRAGMA recursive_triggers = ON")
    end
    store:publish({ id = "a", namespace = "orders" })
    assert.same({ "a:mail", "a:orders", "a:stock" }, support.pluck(store:ready_entries(), "id"))
  end)

  it("may have any names", function()
    local odd, copy = support.ODD, ":" .. support.ODD .. ":"
    store:subscribe(odd, copy)
    store:subscribe("", "from the empty one")
    store:publish({ id = odd .. "a", namespace = odd }, { id = "b" })
    local entries = store:ready_entries()
    assert.same({ odd .. "a:" .. copy, copy, odd .. "a" },
      { entries[1].id, entries[1].namespace, entries[1].source_id })
    assert.same({ "b:from the empty one", "from the empty one", "b" },
      { entries[2].id, entries[2].namespace, entries[2].source_id })
  end)

  it("is listed, added and removed once, in the open transaction", function()
    assert.is_false(store:subscribe("orders", "mail"))
    assert.is_true(store:subscribe("orders", "audit"))
    assert.is_true(store:unsubscribe("orders", "stock"))
    assert.is_false(store:unsubscribe("orders", "stock"))
    pcall(store.transaction, store, function()
      store:unsubscribe("orders", "audit")
      store:unsubscribe("orders", "mail")
      error("no")
    end)
    assert.same({
      { namespace = "orders", copy = "audit" }, { namespace = "orders", copy = "mail" },
    }, store:subscriptions())
    store:publish({ id = "a", namespace = "orders" })
    assert.same({ "a:audit", "a:mail" }, support.pluck(store:ready_entries(), "id"))
  end)

  it("that is the last one makes an entry of what follows", function()
    store:publish({ id = "a", namespace = "orders" })
    store:unsubscribe("orders", "mail")
    store:publish({ id = "b", namespace = "orders" })
    store:unsubscribe("orders", "stock")
    store:publish({ id = "c", namespace = "orders" })
    assert.same({ "a:mail", "a:stock", "b:stock", "c" }, support.pluck(store:ready_entries(), "id"))
  end)

  sqlite_it("makes all copies of a call or none", function()
    support.sql(store, "CREATE TRIGGER refuse AFTER INSERT ON outbox_ready"
      .. " WHEN NEW.namespace = 'stock' AND NEW.key = 'bad'"
      .. " BEGIN SELECT RAISE(ABORT, 'no stock'); END")
    local bad = { namespace = "orders", key = "bad" }
    local many = {}
    for i = 1, 40 do
      many[i] = i == 39 and bad or { namespace = "orders" }
    end
    local function refused()
      assert.matches("no stock", support.raised(store.publish, store, bad).message, 1, true)
      assert.matches("no stock", support.raised(store.publish, store,
        table.unpack(many)).message, 1, true)
    end
    refused()
    store:publish({ namespace = "orders", id = "good" })
    refused()
    store:transaction(function()
      refused()
      store:publish({ namespace = "orders", id = "better" })
      refused()
    end)
    assert.same({ "good:mail", "good:stock", "better:mail", "better:stock" },
      support.pluck(store:ready_entries(), "id"))
  end)

  it("gives no seq twice, however many messages a call has", function()
    local seen, count = {}, 0
    local function empty()
      for _, entry in ipairs(store:ready_entries({ limit = 1000 })) do
        assert.is_nil(seen[entry.seq])
        seen[entry.seq] = true
        count = count + 1
        store:delete_entries(entry.id)
      end
    end
    for _, size in ipairs({ 1, 16, 2, 100, 17, 15, 33 }) do
      local messages = {}
      for i = 1, size do
        messages[i] = { namespace = "orders" }
      end
      store:publish(table.unpack(messages))
      empty()
    end
    assert.equal(2 * (1 + 16 + 2 + 100 + 17 + 15 + 33), count)
  end)

  sqlite_it("gives no seq twice where a trigger leaves copies out", function()
    store:publish({ id = "a" }, { id = "b" }, { id = "c" })
    store:delete_entries("a", "b", "c")
    support.sql(store, "CREATE TABLE other (n)")
    support.sql(store, "CREATE TRIGGER leave BEFORE INSERT ON outbox_ready"
      .. " WHEN NEW.namespace IN ('mail', 'stock') BEGIN SELECT RAISE(IGNORE); END")
    local many = {}
    for i = 1, 20 do
      many[i] = { namespace = i > 1 and "others" or "orders" }
    end
    store:transaction(function(txn)
      txn:execute("INSERT INTO other (rowid) VALUES (1)")
      txn:publish(table.unpack(many))
    end)
    assert.equal(4, store:ready_entries()[1].seq)
  end)

  sqlite_it("lets publish raise what a trigger makes of it", function()
    support.sql(store, "CREATE TRIGGER clear AFTER INSERT ON outbox_ready BEGIN"
      .. " UPDATE outbox_ready SET attempts = NULL WHERE seq = NEW.seq; END")
    for _, namespace in ipairs({ "orders", "other" }) do
      assert.equal("constraint", support.raised(store.publish, store,
        { namespace = namespace }).code)
    end
  end)

  sqlite_it("is for a prefix in another case, and for ids that are numbers in SQL", function()
    local other <close> = outbox.open(path, { prefix = "OUTBOX_" })
    other:publish({ id = "a", namespace = "orders" })
    support.sql(store, "INSERT INTO outbox_entries (id, namespace) VALUES (5, 'orders')")
    assert.same({ "a:mail", "a:stock", "5:mail", "5:stock" },
      support.pluck(store:ready_entries(), "id"))
  end)

  it("refuses an id that a copy of the same call has", function()
    store:subscribe("orders", "mail:mail")
    for _, count in ipairs({ 2, 16 }) do
      local messages = {}
      for i = 1, count do
        messages[i] = { id = "m" .. i, namespace = "orders" }
      end
      messages[count].id = "m1:mail" -- its copy in "mail" has the id of m1's in "mail:mail"
      assert.equal("duplicate", support.raised(store.publish, store, table.unpack(messages)).code)
      assert.equal(0, store:stats().ready)
    end
  end)

  sqlite_it("is for a connection in any state", function()
    outbox.install()
    local db = require("luasql.sqlite3").sqlite3():connect(path)
    local attached = outbox.attach(db)
    local function publish(id)
      attached:publish({ id = id, namespace = "orders" })
      attached:publish({ namespace = "orders" }, { id = id .. "+", namespace = "other" })
    end
    publish("a") -- each in a transaction of its own
    for _, begin in ipairs({ "BEGIN", "BEGIN IMMEDIATE" }) do
      for _ = 1, 2 do
        assert(db:execute(begin))
        publish(begin)
        publish(begin .. "2")
        assert(db:execute("ROLLBACK"))
      end
    end
    assert(db:execute("BEGIN"))
    publish("b")
    assert(db:execute("COMMIT"))
    attached:close()
    db:close()
    assert.equal(10, #store:ready_entries())
    local pipe = io.popen(("sqlite3 -cmd '.load %s' -cmd '.timeout 5000' %s \""
      .. "CREATE TABLE log (id); INSERT INTO log SELECT outbox_publish('orders', NULL, '1');"
      .. "CREATE TEMP TABLE t (id); INSERT INTO t SELECT outbox_publish('orders', NULL, '2');"
      .. "INSERT INTO t SELECT outbox_publish('orders', NULL, '3')\""):format(EXTENSION, path))
    pipe:read("a")
    assert(pipe:close())
    assert.equal(16, #store:ready_entries())
  end)

  it("reaches processes that have the database open", function()
    local other <close> = outbox.open(path)
    other:publish({ id = "a", namespace = "late" })
    store:subscribe("late", "mail")
    other:publish({ id = "b", namespace = "late" })
    store:unsubscribe("late", "mail")
    other:publish({ id = "c", namespace = "late" })
    assert.same({ "a", "b:mail", "c" }, support.pluck(store:ready_entries(), "id"))
  end)

  sqlite_it("outlives the upgrade from version 5, where triggers made the copies", function()
    for _, statement in ipairs({
      "DROP TRIGGER outbox_entries_insert", "DROP TRIGGER outbox_entries_copy",
      "DROP TRIGGER outbox_copy_scheduled",
      "ALTER TABLE outbox_schema DROP COLUMN fans_out", "UPDATE outbox_schema SET version = 5",
      "CREATE TRIGGER outbox_copy BEFORE INSERT ON outbox_ready BEGIN"
        .. " SELECT RAISE(ABORT, 'not yet dropped'); END",
      "CREATE TRIGGER outbox_copy_scheduled BEFORE INSERT ON outbox_delayed BEGIN"
        .. " SELECT RAISE(ABORT, 'not yet dropped'); END",
    }) do
      support.sql(store, statement)
    end
    local newer <close> = outbox.open(path)
    newer:migrate()
    newer:publish({ id = "a", namespace = "orders" })
    support.sql(newer, "INSERT INTO outbox_entries (id, namespace) VALUES ('b', 'orders')")
    support.sql(newer, "INSERT INTO outbox_entries (id, namespace) VALUES ('c', 'other')")
    assert.same({ "a:mail", "a:stock", "b:mail", "b:stock", "c" },
      support.pluck(newer:ready_entries(), "id"))
  end)

  it("belongs to its prefix", function()
    local other <close> = outbox.open(path, { prefix = "my_" })
    other:migrate()
    other:subscribe("orders", "mine")
    other:publish({ id = "a", namespace = "orders" })
    store:publish({ id = "a", namespace = "orders" })
    assert.same({ "a:mine" }, support.pluck(other:ready_entries(), "id"))
    assert.same({ "a:mail", "a:stock" }, support.pluck(store:ready_entries(), "id"))
  end)

  it("needs two strings", function()
    for _, arguments in ipairs({ { "a" }, { "a", 1 }, { {}, "b" } }) do
      assert.has_error(function()
        store:subscribe(table.unpack(arguments))
      end)
    end
  end)
end)
