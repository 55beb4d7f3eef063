-- outbox.attach on PostgreSQL: stores on connections of the application's. The same specs run with
-- each binding. A second store, of outbox.open, reads what was committed.

local bindings = require("spec.support.postgres_bindings")
local outbox = require("outbox")
local postgres = require("spec.support.postgres")
local support = require("spec.support")
local testing = require("outbox.testing")

local ready = postgres.url() and pcall(require, "outbox.postgres")
local describe = ready and describe or pending

local HARD = {
  "plain", "", [[it's "quoted", a\b, \\, \' and a last \]], "\u{fc}\t\r\n\u{1f600}",
  "\0\1\255 no UTF-8", ("0123456789"):rep(10000), "$1 ? :x %s @now() # -- /* $$", [[\'?]], "'?",
  "E'\\x41'", ("\0'\\"):rep(1000),
}

for name, binding in pairs(bindings) do
  describe("a store on PostgreSQL, by " .. name .. ",", function()
    local attach = binding.attach
    local url, schema, own, connection, store

    before_each(function()
      url, schema = postgres.schema()
      own = outbox.open(url)
      own:migrate()
      connection = binding.open(url)
      store = attach(connection)
      binding.execute(connection, "CREATE TABLE orders (number integer PRIMARY KEY)")
    end)

    after_each(function()
      pcall(connection.close, connection)
      own:close()
      postgres.remove()
    end)

    local function execute(sql)
      binding.execute(connection, sql)
    end

    -- The numbers of orders and of ready messages that others see.
    local function committed()
      return { tonumber(postgres.sql(url, "SELECT count(*) FROM orders")), own:stats().ready }
    end

    it("commits and rolls back with the application's transaction", function()
      execute("BEGIN")
      execute("INSERT INTO orders VALUES (1)")
      local id = store:publish({ namespace = "orders", key = 1, payload = "one",
        headers = { a = "?" } })
      assert.same({ 0, 0 }, committed())
      execute("COMMIT")
      assert.same({ 1, 1 }, committed())
      execute("BEGIN")
      execute("INSERT INTO orders VALUES (2)")
      store:publish({}, {})
      execute("ROLLBACK")
      assert.same({ 1, 1 }, committed())
      local entry = own:ready_entries()[1]
      assert.same({ id, "orders", "1", "one", { a = "?" } },
        { entry.id, entry.namespace, entry.key, entry.payload, entry.headers })
      assert.is_true(math.abs(entry.created_at - os.time()) < 60)
    end)

    it("takes part in its savepoints, and is undone with them", function()
      execute("BEGIN")
      execute("SAVEPOINT outbox")
      store:publish({ key = "undone" })
      execute("ROLLBACK TO SAVEPOINT outbox")
      store:publish({ key = "kept" })
      execute("COMMIT")
      assert.same({ "kept" }, support.pluck(own:ready_entries(), "key"))
    end)

    for _, conforming in ipairs({ "on", "off" }) do
      it("keeps every byte, with standard_conforming_strings " .. conforming, function()
        execute("SET escape_string_warning = off")
        execute("SET standard_conforming_strings = " .. conforming)
        execute("BEGIN")
        local messages = {}
        for i, payload in ipairs(HARD) do
          local text = utf8.len(payload) and not payload:find("\0") and payload or "n"
          messages[i] = { namespace = "hard", key = text, payload = payload,
            headers = { h = payload:sub(1, 100):gsub("[^ -~]", "") } }
        end
        store:publish({ namespace = "hard" }, table.unpack(messages))
        for i, message in ipairs(messages) do
          message.id = i .. message.key:sub(1, 50)
          store:publish(message)
        end
        execute("COMMIT")
        local entries = own:ready_entries()
        assert.equal(2 * #HARD + 1, #entries)
        assert.is_nil(entries[1].payload)
        assert.is_nil(entries[1].key)
        for i, message in ipairs(messages) do
          for _, entry in ipairs({ entries[1 + i], entries[1 + #HARD + i] }) do
            assert.is_true(entry.payload == message.payload, ("payload %d"):format(i))
            assert.is_true(entry.key == message.key, ("key %d"):format(i))
            assert.equal(message.headers.h, entry.headers.h)
          end
          assert.is_true(entries[1 + #HARD + i].id == message.id, ("id %d"):format(i))
        end
      end)
    end

    it("refuses ids that are there, and leaves the transaction usable", function()
      own:publish({ id = "ready" }, { id = "late", deliver_at = os.time() + 1000 }, { id = "dead" })
      own:bury_entry("dead")
      store:publish({ id = "mine" })
      local function refuse()
        for _, id in ipairs({ "ready", "late", "dead", "mine" }) do
          for _, at in ipairs({ 0, os.time() + 1000 }) do
            local problem = support.raised(store.publish, store, {}, { id = id, deliver_at = at })
            assert.equal("outbox: an entry with this id is already in the outbox (duplicate)",
              tostring(problem))
          end
        end
        assert.equal("duplicate", support.raised(store.publish, store, { id = "new" },
          { id = "new", deliver_at = os.time() + 1000 }).code)
      end
      refuse()
      execute("BEGIN")
      execute("INSERT INTO orders VALUES (1)")
      store:publish({ id = "before" })
      refuse()
      store:publish({ id = "after" })
      execute("COMMIT")
      assert.same({ "ready", "mine", "before", "after" },
        support.pluck(own:ready_entries(), "id"))
      assert.same({ 1, 4 }, committed())
      assert.equal(1, own:stats().delayed)
    end)

    it("refuses an id that another generator makes twice", function()
      local fixed = attach(connection, { id_generator = function()
        return "same"
      end })
      execute("BEGIN")
      fixed:publish({})
      assert.equal("duplicate", support.raised(fixed.publish, fixed, {}).code)
      execute("COMMIT")
      assert.equal(1, own:stats().ready)
    end)

    it("schedules messages by the server's clock, or by one of its own", function()
      local ids = { store:publish({ key = "k", deliver_at = os.time() + 1000.5 },
        { key = "past", deliver_at = 5 }, { key = "now" }, { deliver_at = os.time() + 2000,
          payload = "\0" }) }
      local late = own:delayed_entries()
      assert.same({ ids[1], ids[4] }, support.pluck(late, "id"))
      assert.equal("\0", late[2].payload)
      assert.is_true(math.abs(late[1].due_at - os.time() - 1000.5) < 60)
      assert.same({ "past", "now" }, support.pluck(own:ready_entries(), "key"))

      local other = attach(connection, { clock = testing.clock(100), id_generator = testing.ids() })
      other:publish({ deliver_at = 101 }, { deliver_at = 99 })
      assert.equal(101, own:find_entries("id-1")[1].due_at)
      assert.equal(100, own:find_entries("id-2")[1].created_at)
    end)

    it("makes copies for subscriptions", function()
      own:subscribe("orders", "audit")
      own:subscribe("orders", "broker")
      execute("BEGIN")
      local id = store:publish({ namespace = "orders", key = "k", payload = "p" })
      store:publish({ id = "late", namespace = "orders", deliver_at = os.time() + 1000 })
      execute("COMMIT")
      local copies = own:ready_entries()
      assert.same({ id .. ":audit", id .. ":broker" }, support.pluck(copies, "id"))
      assert.same({ "audit", "broker" }, support.pluck(copies, "namespace"))
      assert.same({ id, id }, support.pluck(copies, "source_id"))
      assert.same({ "p", "p" }, support.pluck(copies, "payload"))
      assert.same({ "late:audit", "late:broker" }, support.pluck(own:delayed_entries(), "id"))
      assert.equal("duplicate", support.raised(store.publish, store,
        { id = "late", namespace = "orders" }).code)
    end)

    it("keeps the order of commits within a key", function()
      local other = outbox.open(url, { busy_timeout = 0.05 })
      execute("BEGIN")
      store:publish({ key = "k", payload = "1" }, { key = "other", payload = "1" },
        { key = "k", payload = "2" })
      assert.equal("busy", support.raised(other.publish, other, { key = "k" }).code)
      other:publish({ key = "elsewhere" })
      execute("COMMIT")
      other:publish({ key = "k", payload = "3" })
      store:publish({ key = "k", payload = "4" })
      other:close()
      local seen = {}
      outbox.processor({ store = own, publisher = function(messages)
        for _, message in ipairs(messages) do
          seen[#seen + 1] = message.key == "k" and message.payload or nil
        end
      end }):pump()
      assert.same({ "1", "2", "3", "4" }, seen)
    end)

    it("refuses what PostgreSQL cannot hold, before it sends anything", function()
      execute("BEGIN")
      for field, value in pairs({ id = "\255", namespace = "a\0b", key = "\xed\xa0\x80",
        headers = { a = "\255" } }) do
        local problem = support.raised(store.publish, store, {}, { [field] = value })
        assert.equal("encoding", problem.code)
        assert.matches("the " .. field .. " of message 2 is not UTF%-8", problem.message)
      end
      store:publish({})
      execute("COMMIT")
      assert.equal(1, own:stats().ready)
      execute("SET client_encoding = 'LATIN1'")
      local problem = support.raised(store.publish, store, {})
      assert.equal("encoding", problem.code)
      assert.matches("client_encoding is LATIN1, not UTF8", problem.message)
    end)

    it("refuses synchronous_commit = off unless it is meant", function()
      execute("BEGIN")
      execute("SET LOCAL synchronous_commit = off")
      local problem = support.raised(store.publish, store, {})
      assert.equal("misuse", problem.code)
      assert.matches('synchronous = "off"', problem.message, 1, true)
      attach(connection, { synchronous = "off" }):publish({})
      execute("SET LOCAL synchronous_commit = local")
      store:publish({})
      execute("COMMIT")
      assert.equal(2, own:stats().ready)
    end)

    it("says what failed, but shows no payload", function()
      execute("ALTER TABLE outbox_entries ADD CONSTRAINT small CHECK (length(payload) < 100)")
      execute("BEGIN")
      local secret = ("secret"):rep(20)
      local problem = support.raised(store.publish, store, { payload = secret })
      assert.equal("error", problem.code)
      assert.matches('violates check constraint "small"', problem.message, 1, true)
      assert.is_nil(tostring(problem):find("secret"))
      store:publish({ payload = "small" })
      execute("COMMIT")
      execute("SET search_path = pg_catalog")
      problem = support.raised(store.publish, store, { payload = secret })
      assert.equal("schema", problem.code)
      assert.matches("call migrate first", problem.message)
      assert.is_nil(tostring(problem):find("secret"))
      attach(connection, { schema = schema }):publish({ deliver_at = os.time() + 1000 }, {})
      assert.equal(2, own:stats().ready)
      connection:close()
      assert.equal("error", support.raised(store.publish, store, {}).code)
    end)

    it("works with another prefix", function()
      local more <close> = outbox.open(url, { prefix = "More_" })
      more:migrate()
      local other = attach(connection, { prefix = "More_" })
      other:publish({ id = "a" })
      assert.equal("duplicate", support.raised(other.publish, other, { id = "a" }).code)
      assert.equal(1, more:stats().ready)
      assert.equal(0, own:stats().ready)
    end)

    it("needs no right but to insert", function()
      own:subscribe("orders", "audit")
      local role = "role_" .. schema
      postgres.sql(url, ([[CREATE ROLE %s; GRANT USAGE ON SCHEMA %s TO %s;
        GRANT INSERT ON %s.outbox_entries, %s.outbox_delayed TO %s]]):format(role, schema,
        role, schema, schema, role))
      finally(function()
        postgres.sql(url, ("DROP OWNED BY %s; DROP ROLE %s"):format(role, role))
      end)
      execute("SET ROLE " .. role)
      store:publish({ id = "a", key = "k" }, { namespace = "orders" },
        { deliver_at = os.time() + 1000 })
      assert.equal("duplicate", support.raised(store.publish, store, { id = "a" }).code)
      execute("INSERT INTO outbox_entries (namespace, key, payload) VALUES ('orders', '1', 'p')")
      execute("RESET ROLE")
      assert.equal(3, own:stats().ready)
      assert.equal(1, own:stats().delayed)
    end)

    it("refuses wrong messages and options as other stores do", function()
      for message, wrong in pairs({
        ["table expected, got number"] = 1,
        ["unknown field 'payloads'"] = { payloads = "" },
        ["field 'deliver_at' is out of range"] = { deliver_at = 0 / 0 },
        ["headers must be named by strings"] = { headers = { 1 } },
      }) do
        local problem = support.raised(store.publish, store, {}, wrong)
        assert.matches(message, problem, 1, true)
      end
      for message, options in pairs({
        ["unknown option 'mode'"] = { mode = "read" },
        ["the prefix is not a plain identifier"] = { prefix = "a-b" },
        ["the schema is not a plain identifier"] = { schema = 'a"b' },
        ["schema must be a string"] = { schema = 1 },
        ['synchronous must be "off" or nil, not full'] = { synchronous = "full" },
        ["clock must be a function"] = { clock = 1 },
      }) do
        local problem = support.raised(function()
          attach(connection, options):publish({})
        end)
        assert.matches("bad argument #2 to 'attach' (" .. message, problem, 1, true)
        assert.matches("^spec/attach/postgres_spec.lua:", problem)
      end
      assert.equal(0, own:stats().ready)
    end)
  end)
end
