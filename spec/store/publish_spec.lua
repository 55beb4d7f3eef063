local outbox = require("outbox")
local support = require("spec.support")

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
    local bytes = {}
    for i = 0, 255 do
      bytes[#bytes + 1] = string.char(i)
    end
    bytes = table.concat(bytes) .. "\0"
    store:publish({ id = bytes, namespace = bytes, key = bytes, payload = bytes })
    store:publish({ id = "", namespace = "", key = "", payload = "" })
    store:publish({ id = "\0" }, { id = "\0\0" })
    local all = entries()
    for _, field in ipairs({ "id", "namespace", "key", "payload" }) do
      assert.equal(bytes, all[1][field])
      assert.equal("", all[2][field])
    end
    assert.same({ "\0", "\0\0" }, { all[3].id, all[4].id })
    assert.is_nil(all[3].key)
    assert.is_nil(all[3].payload)
    assert.equal(1, store:delete_entries("\0"))
    assert.equal(2, store:delete_entries(bytes, ""))
    assert.equal("\0\0", entries()[1].id)
  end)

  it("keeps every byte of headers", function()
    local headers = { ["\0\1"] = "\0\n\"\\", utf8 = "\u{1F4EE}", [""] = "" }
    store:publish({ headers = headers }, { headers = {} })
    assert.same({ headers, {} }, support.pluck(entries(), "headers"))
    local rows = support.sql(store, "SELECT headers ->> 'utf8' AS value FROM outbox_entries")
    assert.equal("\u{1F4EE}", rows[1].value)
  end)

  it("takes a payload of 16 MiB", function()
    local payload = ("0123456789abcdef"):rep(1024 * 1024)
    store:publish({ payload = payload })
    assert.is_true(entries()[1].payload == payload)
  end)

  it("refuses a payload that is larger than SQLite allows", function()
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

  it("takes an integer for a key, and stores its text, as SQL does", function()
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
end)

describe("the ID generator", function()
  after_each(support.remove)

  it("is a function that is called with the clock and the message", function()
    local clock = support.clock()
    local seen
    local store <close> = support.store({
      clock = clock,
      id_generator = function(...)
        seen = table.pack(...)
        return "id-" .. seen[2].payload
      end,
    })
    assert.equal("id-x", store:publish({ payload = "x" }))
    assert.equal(2, seen.n)
    assert.equal(clock, seen[1])
    assert.same({ payload = "x" }, seen[2])
    assert.equal("own", store:publish({ id = "own", payload = "y" }))
    assert.equal("x", seen[2].payload)
  end)

  it("is a table whose function is looked up for each call", function()
    local generator = {
      generate_id = function()
        return "first"
      end,
    }
    local store <close> = support.store({ id_generator = generator })
    assert.equal("first", store:publish({}))
    generator.generate_id = function()
      return "second"
    end
    assert.equal("second", store:publish({}))
  end)

  it("is called with a clock even when the store uses the system's", function()
    local store <close> = support.store({
      id_generator = function(clock)
        return tostring(clock == outbox.clock)
      end,
    })
    assert.equal("true", store:publish({}))
  end)

  it("can be one of the UUID generators", function()
    local v4 <close> = support.store({ id_generator = outbox.uuid_v4 })
    assert.matches("^%x+%-%x+%-4", v4:publish({}))
    local v7 <close> = support.store({ id_generator = outbox.uuid_v7, clock = support.clock(0) })
    assert.matches("^00000000%-0000%-7", v7:publish({}))
  end)

  it("must return a string", function()
    local store <close> = support.store({ id_generator = function() end })
    assert.matches("the ID generator must return a string, not a nil",
      support.raised(store.publish, store, {}))
    assert.equal(0, store:stats().ready)
  end)

  it("is called before the database is locked", function()
    local store, path
    local other
    store, path = support.store({
      id_generator = function()
        other:publish({ payload = "from inside" }) -- would wait if the store held the lock
        return "outer"
      end,
    })
    other = outbox.open(path, { busy_timeout = 0 })
    store:publish({})
    assert.equal(2, store:stats().ready)
    store:close()
    other:close()
  end)
end)

describe("a callback", function()
  after_each(support.remove)

  -- A store for each kind of callback.
  local function with(callback)
    return { (support.store({ id_generator = callback })), (support.store({ clock = callback })) }
  end

  it("that raises fails the publish, and its error is raised unchanged", function()
    local thrown = setmetatable({}, { __tostring = error })
    for _, store in ipairs(with(function()
      error(thrown)
    end)) do
      assert.equal(thrown, support.raised(store.publish, store, {}, {}))
      assert.equal(0, support.sql(store, "SELECT count(*) AS n FROM outbox_entries")[1].n)
      store:close()
    end
  end)

  it("that raises in a transaction rolls the whole transaction back", function()
    local fail = false
    local store <close> = support.store({
      id_generator = function(clock)
        return fail and error("no id") or outbox.uuid_v7(clock)
      end,
    })
    local problem = support.raised(store.transaction, store, function(txn)
      txn:publish({})
      fail = true
      txn:publish({})
    end)
    assert.matches("no id", problem)
    assert.equal(0, store:stats().ready)
  end)

  it("that yields is an error, and nothing is published", function()
    for _, store in ipairs(with(coroutine.yield)) do
      local co = coroutine.create(function()
        store:publish({})
      end)
      local ok, problem = coroutine.resume(co)
      assert.is_false(ok)
      assert.matches("attempt to yield across a C%-call boundary", problem)
      assert.equal(0, support.sql(store, "SELECT count(*) AS n FROM outbox_entries")[1].n)
      store:close()
    end
  end)

  it("may itself publish", function()
    local store
    local depth = 0
    store = support.store({
      id_generator = function(clock)
        depth = depth + 1
        if depth < 5 then
          store:publish({})
        end
        return outbox.uuid_v7(clock)
      end,
    })
    store:publish({})
    assert.equal(5, store:stats().ready)
    store:close()
  end)

  it("that closes the store makes the call fail", function()
    local store, path
    store, path = support.store({
      id_generator = function()
        store:close()
        return "id"
      end,
    })
    assert.equal("closed", support.raised(store.publish, store, {}).code)
    local again <close> = outbox.open(path)
    assert.equal(0, again:stats().ready)
  end)

  it("may change the message", function()
    local store <close> = support.store({
      id_generator = function(_, message)
        message.payload = nil
        message.key = "changed"
        collectgarbage()
        return "id"
      end,
    })
    store:publish({ payload = ("x"):rep(100), key = ("y"):rep(100) })
    store:claim_entries("p", outbox.clock.now() + 60)
    local entry = store:get_claimed_entries("p", 1)[1]
    assert.same({ nil, "changed" }, { entry.payload, entry.key })
  end)

  it("that is the clock may also change the message", function()
    local message
    local store <close> = support.store({
      clock = function()
        message.payload = nil
        collectgarbage()
        collectgarbage()
        return 1000
      end,
    })
    message = { payload = ("x"):rep(100000), key = "k" }
    store:publish(message)
    store:claim_entries("p", 2000)
    local entry = store:get_claimed_entries("p", 1)[1]
    assert.same({ nil, "k" }, { entry.payload, entry.key })
  end)

  it("that is the clock must return a time to every method", function()
    for _, value in ipairs({ "now", 0 / 0, math.huge, false }) do
      local now = 1000
      local store <close> = support.store({
        clock = function()
          return now
        end,
      })
      store:publish({ id = "a" })
      now = value
      for method, arguments in pairs({
        publish = { {} },
        claim_entries = { "p", 0 },
        get_claimed_entries = { "p", 1 },
        bury_entry = { "a" },
        stats = {},
      }) do
        assert.matches("the clock's now%(%) must return a time in seconds, not ",
          support.raised(store[method], store, table.unpack(arguments)))
      end
      now = 1000
      assert.equal(1, store:stats().ready)
    end
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
