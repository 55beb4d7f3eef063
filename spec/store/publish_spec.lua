local outbox = require("outbox")
local support = require("spec.support")

local sqlite_it, postgres_it = support.only("sqlite", it), support.only("postgres", it)

describe("store:publish", function()
  local store, clock

  before_each(function()
    clock = support.clock()
    store = support.store({ clock = clock })
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function entries()
    store:claim_entries("reader", clock.time + 10)
    return store:get_claimed_entries("reader", 1000)
  end

  it("keeps every field, and returns the ids", function()
    local id, own = store:publish(
      { namespace = "orders", key = "k", payload = "p", headers = { a = "1", ["b c"] = "" } },
      { id = "mine" })
    assert.equal("mine", own)
    assert.same({
      {
        id = id,
        namespace = "orders",
        key = "k",
        payload = "p",
        headers = { a = "1", ["b c"] = "" },
        created_at = 1000,
        attempts = 0,
        seq = 1,
      },
      { id = "mine", namespace = "", created_at = 1000, attempts = 0, seq = 2 },
    }, entries())
  end)

  it("keeps the order of many messages in one call", function()
    for _, count in ipairs({ 1, 15, 16, 17, 100 }) do
      local messages, payloads = {}, {}
      for i = 1, count do
        payloads[i] = tostring(i)
        messages[i] = { payload = payloads[i] }
      end
      assert.equal(count, select("#", store:publish(table.unpack(messages))))
      local all = entries()
      assert.same(payloads, support.pluck(all, "payload"))
      store:delete_entries(table.unpack(support.pluck(all, "id")))
    end
  end)

  it("keeps every byte, and distinguishes the empty string from nil", function()
    local bytes, letters = {}, {}
    for i = 0, 255 do
      bytes[#bytes + 1] = string.char(i)
      letters[#letters + 1] = utf8.char(i + 1)
    end
    bytes = table.concat(bytes) .. "\0"
    local name = support.engine == "sqlite" and bytes or table.concat(letters) .. "\u{1F4EE}"
    local odd = support.ODD
    store:publish({ id = name, namespace = name, key = name, payload = bytes })
    store:publish({ id = "", namespace = "", key = "", payload = "" })
    store:publish({ id = odd }, { id = odd .. odd })
    local all = entries()
    for _, field in ipairs({ "id", "namespace", "key", "payload" }) do
      assert.equal(field == "payload" and bytes or name, all[1][field])
      assert.equal("", all[2][field])
    end
    assert.same({ odd, odd .. odd }, { all[3].id, all[4].id })
    assert.is_nil(all[3].key)
    assert.is_nil(all[3].payload)
    assert.equal(1, store:delete_entries(odd))
    assert.equal(2, store:delete_entries(name, ""))
    assert.equal(odd .. odd, entries()[1].id)
  end)

  it("keeps every byte of headers", function()
    local headers = { ["\0\1"] = "\0\n\"\\", utf8 = "\u{1F4EE}", [""] = "" }
    store:publish({ headers = headers }, { headers = {} })
    assert.same({ headers, {} }, support.pluck(entries(), "headers"))
    local json = support.engine == "sqlite" and "headers"
      or [[CAST(replace(headers, '\u0000', '') AS JSON)]] -- in which it takes no NUL
    local rows = support.sql(store, ("SELECT %s ->> 'utf8' AS value FROM outbox_entries"
      .. " ORDER BY seq"):format(json))
    assert.equal("\u{1F4EE}", rows[1].value)
  end)

  it("takes a payload of 16 MiB", function()
    local payload = ("0123456789abcdef"):rep(1024 * 1024)
    store:publish({ payload = payload })
    assert.is_true(entries()[1].payload == payload)
  end)

  sqlite_it("refuses a payload that is larger than SQLite allows", function()
    local payload = ("x"):rep(1000):rep(1000001)
    local problem = support.raised(store.publish, store, {}, { payload = payload })
    assert.equal("toobig", problem.code)
    assert.equal(0, store:stats().ready)
  end)

  it("refuses wrong messages, names the field, and publishes none of them", function()
    local function refused(pattern, message)
      assert.matches(pattern, support.raised(function()
        store:publish({}, message)
      end))
    end
    refused("bad argument #2 to 'publish' %(table expected, got string%)", "payload")
    refused("bad argument #2 to 'publish' %(unknown field 'paylod'%)", { paylod = "x" })
    refused("bad argument #2 to 'publish' %(a list is not a message: pass messages as arguments%)",
      { { payload = "x" }, { payload = "y" } })
    refused("pass messages as arguments", { "x" })
    refused("unknown field 'true'", { [true] = "x" })
    for _, key in ipairs({ 7.0, 7.5, 0 / 0, 2 ^ 53 }) do
      refused("field 'key' must be a string or an integer, not a float", { key = key })
    end
    refused("field 'key' must be a string or an integer, not a boolean", { key = true })
    for _, field in ipairs({ "id", "namespace", "payload" }) do
      refused(("field '%s' must be a string, not a number"):format(field), { [field] = 1 })
    end
    refused("field 'headers' must be a table, not a string", { headers = "{}" })
    refused("headers must be strings: 'a' is a number", { headers = { a = 1 } })
    refused("headers must be named by strings, not by a number", { headers = { "a" } })
    refused("field 'deliver_at' must be a number, not a string", { deliver_at = "1" })
    refused("field 'deliver_at' is out of range", { deliver_at = math.huge })
    assert.equal(0, store:stats().ready)
  end)

  sqlite_it("takes an integer for a key, and stores its text, as SQL does", function()
    local keys = { 7, 0, -1, math.maxinteger, math.mininteger }
    local messages = {}
    for i, key in ipairs(keys) do
      messages[i] = { key = key, headers = { h = "1" } }
    end
    store:publish({ key = 7 })
    store:publish(table.unpack(messages))
    store:transaction(function(txn)
      txn:publish({ key = 8 }, { key = "8" })
      txn:execute("INSERT INTO outbox_entries (key) VALUES (?)", 8)
    end)
    local expected = { "7", "7", "0", "-1", "9223372036854775807", "-9223372036854775808", "8", "8",
      "8" }
    assert.same(expected, support.pluck(entries(), "key"))
    assert.same({ { type = "text", count = 9 } }, support.sql(store,
      "SELECT typeof(key) AS type, count(*) AS count FROM outbox_entries GROUP BY 1"))
    assert.equal(7, messages[1].key)
  end)

  it("leaves an integer key to the ID generator as it is", function()
    local seen
    local own <close> = outbox.open(":memory:", { id_generator = function(_, message)
      seen = message.key
      collectgarbage()
      return "id"
    end })
    own:migrate()
    own:publish({ key = 7 })
    assert.same({ 7, "7" }, { seen, own:ready_entries()[1].key })
  end)

  it("raises before it stores anything when Lua cannot return that many ids", function()
    local message, messages = {}, {}
    for i = 1, 600000 do
      messages[i] = message
    end
    assert.matches("too many messages", support.raised(function()
      store:publish(table.unpack(messages))
    end))
    assert.equal(0, store:stats().ready)
  end)

  it("reads headers with `pairs`", function()
    local real = { a = "b" }
    store:publish({ headers = setmetatable({}, { __pairs = function() return pairs(real) end }) })
    assert.same({ a = "b" }, entries()[1].headers)
  end)

  it("delays a message until deliver_at", function()
    store:publish({ payload = "later", deliver_at = 1005 }, { payload = "now", deliver_at = 1000 },
      { payload = "past", deliver_at = 1 })
    assert.same({ "now", "past" }, support.pluck(entries(), "payload"))
    clock.time = 1004.999999
    assert.equal(2, #entries())
    clock.time = 1005
    store:publish({ payload = "next" })
    assert.same({ "now", "past", "next", "later" }, support.pluck(entries(), "payload"))
    assert.equal(1000, entries()[4].created_at)
  end)

  describe("refuses an id that is in the outbox", function()
    local function duplicate(...)
      local before = store:stats()
      assert.equal("duplicate", support.raised(store.publish, store, ...).code)
      local after = store:stats()
      assert.same({ before.ready, before.delayed }, { after.ready, after.delayed })
    end

    it("in the same call", function()
      duplicate({ id = "a" }, { id = "b" }, { id = "a" })
    end)

    it("ready, delayed or dead", function()
      store:publish({ id = "ready" }, { id = "delayed", deliver_at = 2000 }, { id = "dead" })
      store:bury_entry("dead")
      for _, id in ipairs({ "ready", "delayed", "dead" }) do
        duplicate({}, { id = id })
        duplicate({ id = id, deliver_at = 3000 })
      end
    end)

    it("until it is deleted", function()
      store:publish({ id = "a" })
      store:delete_entries("a")
      assert.equal("a", store:publish({ id = "a" }))
    end)
  end)

  it("stores the ready and delayed messages of one call together or not at all", function()
    local messages = {}
    for i = 1, 40 do
      messages[i] = { id = "id" .. i, deliver_at = i % 3 == 0 and 2000 or nil }
    end
    messages[41] = { id = "id33" }
    assert.equal("duplicate", support.raised(store.publish, store, table.unpack(messages)).code)
    local stats = store:stats()
    assert.same({ 0, 0 }, { stats.ready, stats.delayed })
  end)

  postgres_it("fails where its commit does, because a constraint is deferred to it", function()
    support.sql(store, "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
      .. " $$ BEGIN RAISE check_violation; END $$")
    support.sql(store, "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON outbox_entries"
      .. " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()")
    assert.equal("constraint", support.raised(store.publish, store, { id = "1" }).code)
    assert.equal(0, store:stats().ready)
    support.sql(store, "DROP TRIGGER refuse ON outbox_entries")
    assert.equal("2", store:publish({ id = "2" }))
  end)

  postgres_it("reads what is committed meanwhile, whatever the role's isolation is", function()
    local url = support.database() .. "%20-cdefault_transaction_isolation%3Dserializable"
    local other <close> = outbox.open(url)
    other:migrate()
    support.sql(other, "ALTER TABLE outbox_entries ADD COLUMN level text"
      .. " DEFAULT current_setting('transaction_isolation')")
    other:publish({})
    assert.equal("read committed", support.sql(other, "SELECT level FROM outbox_entries")[1].level)
  end)
end)

describe("headers without lua-cjson", function()
  it("name the rock to install; nothing else needs it", function()
    local program = [[-e '
      package.preload.cjson = function() error("module \x27cjson\x27 not found") end
      local outbox = require("outbox")
      local store = outbox.open(":memory:")
      store:migrate()
      store:publish({ payload = "x" })
      print(pcall(store.publish, store, { headers = {} }))']]
    local output = support.run(program)
    assert.equal("false\theaders need lua-cjson: "
      .. "luarocks --lua-version 5.4 install lua-cjson (Debian: lua-cjson)\n", output)
  end)
end)
