local outbox = require("outbox")
local process = require("process")
local server = require("spec.support.server")
local socket = require("socket")
local support = require("spec.support")
local webhook = require("spec.support.webhook")

local answer, event, events = webhook.answer, webhook.event, webhook.events
local forget_requests, ids_of = webhook.forget_requests, webhook.ids_of
local processor, publish, requests = webhook.processor, webhook.publish, webhook.requests
local store_with = webhook.store_with

describe("the http publisher in binary mode", function()
  setup(webhook.start)

  teardown(server.stop)

  before_each(webhook.reset)

  after_each(support.remove)

  it("makes each message an event, in headers and body", function()
    local payload = "\0 all the bytes\r\n\xff"
    local failures, _, made = publish({ event('id "1"', { key = "naïve%", payload = payload }) })
    assert.same({}, failures)
    assert.equal(1, #made)
    assert.same({
      [":method"] = "POST", [":path"] = "/hook?a=b", [":scheme"] = "http",
      [":authority"] = webhook.instance.authority, ["user-agent"] = "outbox/" .. outbox._VERSION,
      ["content-length"] = tostring(#payload), ["content-type"] = "application/octet-stream",
      ["ce-specversion"] = "1.0", ["ce-id"] = "id%20%221%22", ["ce-source"] = "/outbox",
      ["ce-type"] = "outbox.orders", ["ce-time"] = "2023-11-14T22:13:20.500000Z",
      ["ce-subject"] = "na%C3%AFve%25", ["ce-partitionkey"] = "na%C3%AFve%25",
      ["idempotency-key"] = "id%20%221%22",
    }, made[1].headers)
  end)

  it("keeps the body byte for byte", function()
    local bytes = {}
    for i = 0, 255 do
      bytes[i + 1] = string.char(i)
    end
    local payload = table.concat(bytes):rep(1000)
    local file <close> = assert(io.tmpfile())
    local listener = assert(socket.bind("127.0.0.1", 0))
    local _, port = listener:getsockname()
    local pid = process.fork(function()
      local connection = listener:accept()
      local length
      repeat
        local line = connection:receive("*l")
        length = tonumber(line:match("^content%-length: (%d+)")) or length
      until line == ""
      file:write((connection:receive(length)))
      file:flush()
      connection:send("HTTP/1.1 204 No Content\r\n\r\n")
    end)
    listener:close()
    local publisher <close> = outbox.publisher("http://127.0.0.1:" .. port)
    assert.same({}, publisher:publish({ event("1", { payload = payload }) }, ""))
    assert.equal(0, (process.wait(pid)))
    file:seek("set")
    assert.is_true(file:read("a") == payload)
  end)

  it("takes the type of the payload from its header, else from its content", function()
    local function type_of(fields)
      forget_requests()
      local _, _, made = publish({ event("1", fields) })
      return made[1].headers["content-type"]
    end
    assert.equal("application/json", type_of({ payload = ' {"a":1}' }))
    assert.equal("application/json", type_of({ payload = "[]" }))
    assert.equal("text/plain; charset=utf-8", type_of({ payload = "{a}" }))
    assert.equal("text/plain; charset=utf-8", type_of({ payload = "1" }))
    assert.equal("application/octet-stream", type_of({ payload = '["\xff"]' }))
    assert.equal("image/png", type_of({ payload = "{}",
      headers = { ["Content-Type"] = "image/png" } }))
    assert.equal("application/json", type_of({ payload = "{}",
      headers = { ["content-type"] = "a\r\nevil: header" } }))
    assert.is_nil(type_of({}))
  end)

  it("sends the seq as an attribute that is compared as a string", function()
    local store <close> = store_with({ id = "1" }, { id = "2" })
    local p = processor(store)
    p:pump()
    local sent = requests()
    assert.same({ "0000000000000000001", "0000000000000000002" },
      { sent[1].headers["ce-sequence"], sent[2].headers["ce-sequence"] })
  end)

  it("sends the id of the message with each copy", function()
    local store <close> = store_with({ id = "1" })
    store:subscribe("orders", "mail")
    store:publish({ id = "a b", namespace = "orders" })
    processor(store):pump()
    local sent = requests()
    assert.is_nil(sent[1].headers["ce-sourceid"])
    local copy = sent[2].headers
    assert.same({ "a%20b:mail", "a%20b" }, { copy["ce-id"], copy["ce-sourceid"] })
  end)

  it("makes attributes of headers", function()
    local _, _, made = publish({ event("1", { headers = {
      ["X-Request-Id"] = "7 8", traceparent = "00-1", ["ce-type"] = "com.shop.placed",
      source = "/shop", ["ce-id"] = "another", specversion = "2", time = "now", data = "x",
      ["---"] = "x", empty = "",
    } }) })
    local found = {}
    for name, value in pairs(made[1].headers) do
      if name:find("^ce%-") then
        found[name] = value
      end
    end
    assert.same({ ["ce-id"] = "1", ["ce-specversion"] = "1.0", ["ce-source"] = "/shop",
      ["ce-time"] = "2023-11-14T22:13:20.500000Z", ["ce-type"] = "com.shop.placed",
      ["ce-xrequestid"] = "7%208", ["ce-traceparent"] = "00-1" }, found)
  end)

  it("sends headers that are booleans and numbers, or no JSON", function()
    local store <close> = store_with({ id = "0" })
    for i, json in ipairs({ '{"tenant":7,"flag":true,"off":false,"least":-2147483648,"type":5,'
      .. '"large":2147483648,"float":0.1,"precise":0.30000000000000004,"whole":1.0,"z":null,'
      .. '"list":[1],"object":{"a":1},"huge":9007199254740993,"content-type":true}',
      '{"a":0x10}', '{"\n":}' }) do
      store:transaction(function(txn)
        txn:execute(support.portable("INSERT INTO outbox_entries (id, headers) VALUES (?, ?)"),
          tostring(i), json)
      end)
    end
    local p, errors = processor(store, { concurrency = 1 })
    p:pump()
    assert.same({}, errors)
    local wanted = {
      { tenant = "7", flag = "true", off = "false", least = "-2147483648", type = "5",
        large = "2147483648", float = "0.1", precise = "0.30000000000000004", whole = "1" },
      { headers = "{%22a%22:0x10}", type = "outbox" },
      { headers = "{%22%0A%22:}", type = "outbox" },
    }
    for i, attributes in ipairs(wanted) do
      local found = {}
      for name, value in pairs(requests()[i + 1].headers) do
        found[name:match("^ce%-(.*)") or ""] = value
      end
      for _, name in ipairs({ "", "id", "time", "source", "specversion", "sequence" }) do
        found[name] = nil
      end
      assert.same(attributes, found)
    end
  end)

  it("takes source and type from the options, and more headers", function()
    local _, _, made = publish({ event("1", { namespace = "a b" }) }, {
      source = "https://shop/{namespace}", type = "shop.{namespace}",
      headers = { Authorization = "Bearer token" } })
    assert.equal("https://shop/a%2520b", made[1].headers["ce-source"])
    assert.equal("shop.a%20b", made[1].headers["ce-type"])
    assert.equal("Bearer token", made[1].headers.authorization)
    _, _, made = publish({ event("2", { namespace = "" }) }, { type = "{namespace}" })
    assert.equal("outbox", made[2].headers["ce-type"])
  end)

  it("logs in with the name and the password of the URL", function()
    local publisher <close> = outbox.publisher(("http://me:p%%40ss@%s/")
      :format(webhook.instance.authority))
    assert.same({}, publisher:publish(events(1), "orders"))
    assert.equal("basic bWU6cEBzcw==", requests()[1].headers.authorization)
  end)

  it("sends the messages of a key one after the other, several keys at a time", function()
    answer({ ["*"] = { crowd = 3 } })
    local list = {}
    for i = 1, 9 do
      list[i] = event(tostring(i), { key = "key " .. i % 3 })
    end
    local failures, _, made = publish(list, { concurrency = 3 })
    assert.same({}, failures)
    local last = {}
    for _, request in ipairs(made) do
      local id, key = tonumber(request.headers["ce-id"]), request.headers["ce-subject"]
      assert.equal((last[key] or id % 3 - (id % 3 == 0 and 0 or 3)) + 3, id)
      last[key] = id
    end
    assert.equal(9, #made)
  end)

  it("sends one after the other with concurrency 1, on one connection", function()
    local publisher <close> = outbox.publisher(webhook.url, { concurrency = 1 })
    publisher:publish(events(5), "orders")
    publisher:publish(events(5), "orders")
    local made = requests()
    assert.equal("1 2 3 4 5 1 2 3 4 5", ids_of(made))
    for _, request in ipairs(made) do
      assert.equal(made[1].peer, request.peer)
    end
  end)

  describe("keeps the order of a key", function()
    local function keyed(...)
      local list = {}
      for i, key in ipairs({ ... }) do
        list[i] = { id = tostring(i), key = key }
      end
      return store_with(table.unpack(list))
    end

    it("sends no more messages of a key after one failed, and charges only that one", function()
      answer({ ["1"] = { status = 408 } })
      local store <close> = keyed("a", "a", "b")
      processor(store, { concurrency = 1 }):pump()
      assert.equal("1 3", ids_of(requests()))
      assert.outbox(store).has_entry({ id = "1", attempts = 1 })
      assert.outbox(store).has_entry({ id = "2", attempts = 0 })
      answer({})
      store:clock().advance(60)
      processor(store, { concurrency = 1 }):pump()
      assert.equal("1 3 1 2", ids_of(requests()))
    end)

    it("sends no more messages of a key after an answer that may mean an outage", function()
      answer({ ["1"] = { status = 404 } })
      local store <close> = keyed("a", "a")
      processor(store, { concurrency = 1 }):step()
      assert.equal("1", ids_of(requests()))
      assert.outbox(store).has_entries(2)
    end)

    it("and goes on after a dead letter of any kind", function()
      answer({ ["1"] = { status = 400 }, ["3"] = { status = 408 } })
      local store <close> = keyed("a", "a", "b", "b")
      processor(store, { concurrency = 1 }, { retry = { max_attempts = 1 } }):pump()
      assert.equal("1 2 3 4", ids_of(requests()))
      assert.outbox(store).has_dead_entry({ id = "1", attempts = 1 })
      assert.outbox(store).has_dead_entry({ id = "3", attempts = 1 })
      assert.outbox(store).has_entries(0)
    end)
  end)
end)
