local outbox = require("outbox")
local rabbitmq = require("rabbitmq")
local server = require("spec.support.server")
local support = require("spec.support")
local testing = require("outbox.testing")

local function queue(name, arguments)
  return { name = name, vhost = "/", durable = true, auto_delete = false, arguments = arguments }
end

local function grant(user, vhost, write)
  return { user = user, vhost = vhost, configure = ".*", write = write, read = ".*" }
end

local DEFINITIONS = {
  vhosts = { { name = "/" }, { name = "a/b" } },
  users = { { name = "guest", password = "guest", tags = "administrator" },
    { name = "al:i@ce", password = "p:@/ %", tags = "" } },
  permissions = { grant("guest", "/", ".*"), grant("al:i@ce", "a/b", ".*"),
    grant("al:i@ce", "/", "^open$") },
  exchanges = { { name = "events.orders", vhost = "/", type = "topic", durable = true,
    auto_delete = false, internal = false } },
  queues = { queue("outbox"), queue("outbox.orders"), queue("outbox.mail"), queue("topic"),
    queue("full", { ["x-max-length"] = 1, ["x-overflow"] = "reject-publish" }) },
  bindings = { { source = "events.orders", vhost = "/", destination = "topic",
    destination_type = "queue", routing_key = "new.*" } },
}

local SETTINGS = "max_message_size = 2000000"

describe("the amqp publisher", function()
  local instance, client, store

  setup(function()
    instance = require("spec.support.rabbitmq").new(SETTINGS, DEFINITIONS)
    instance:start()
    client = rabbitmq.connect(instance.plain_port)
  end)

  teardown(server.stop)

  before_each(function()
    for _, one in ipairs(DEFINITIONS.queues) do
      client:get(one.name)
    end
    store = support.store({ clock = testing.clock(1700000000.5), synchronous = "off" })
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function url(login, vhost)
    return ("amqp://%s127.0.0.1:%d%s"):format(login or "", instance.plain_port, vhost or "")
  end

  local function processor(publisher)
    return outbox.processor({ store = store, publisher = publisher, on_error = function() end })
  end

  -- Delivers what is in the store.
  local function deliver(options)
    local publisher <close> = outbox.publisher(url(), options)
    return processor(publisher):pump()
  end

  local function message(id, fields)
    fields = fields or {}
    fields.id, fields.created_at, fields.attempts = id, 1, 0
    return fields
  end

  local TIME = "2023-11-14T22:13:20.500000Z"

  describe("in the mode plain", function()
    it("publishes each field and header, and the bytes of the payload as they are", function()
      store:publish({ id = "1", namespace = "orders", key = "k\xff", payload = "\0\r\n\xff",
        headers = { ["Content-Type"] = "text/x", traceparent = "00-ab-cd-01", ["x y"] = "\xfc" } })
      assert.equal(1, deliver())
      assert.same({ { exchange = "", routing_key = "outbox.orders", body = "\0\r\n\xff",
        message_id = "1", timestamp = 1700000000, delivery_mode = 2, content_type = "text/x",
        headers = { namespace = "orders", key = "k\xff", seq = "1", created_at = TIME,
          traceparent = "00-ab-cd-01", ["x y"] = "\xfc" } } }, client:get("outbox.orders"))
    end)

    it("leaves out what a message does not have; its body is empty then", function()
      store:publish({ id = "none" }, { id = "empty", payload = "", key = "" })
      assert.equal(2, deliver())
      local got = client:get("outbox")
      assert.same({ exchange = "", routing_key = "outbox", body = "", message_id = "none",
        timestamp = 1700000000, delivery_mode = 2,
        headers = { namespace = "", seq = "1", created_at = TIME } }, got[1])
      assert.same({ "empty", "", "" }, { got[2].message_id, got[2].body, got[2].headers.key })
    end)

    it("publishes headers that are no strings as JSON", function()
      support.sql(store, "INSERT INTO outbox_entries (created_at, headers) VALUES (?, ?)",
        1700000000500000, '{"n": 1.5, "b":true, "l":[1,"x"], "content-type": null}')
      support.sql(store, "INSERT INTO outbox_entries (headers) VALUES (?)", "{no JSON}")
      assert.equal(2, deliver())
      local got = client:get("outbox")
      assert.same({ n = "1.5", b = "true", l = '[1,"x"]', namespace = "", seq = "1",
        created_at = TIME }, got[1].headers)
      assert.equal("null", got[1].content_type)
      assert.equal("{no JSON}", got[2].headers.headers)
    end)

    it("says of a copy which message it is of", function()
      store:subscribe("orders", "mail")
      store:publish({ id = "1", namespace = "orders", headers = { a = "b" } })
      deliver()
      local got = client:get("outbox.mail")[1]
      assert.same({ "1:mail", "1" }, { got.message_id, got.headers.source_id })
    end)

    it("keeps a media type that is too long for a property as a header", function()
      store:publish({ id = "1", headers = { ["content-type"] = ("x"):rep(256) } })
      deliver()
      local got = client:get("outbox")[1]
      assert.is_nil(got.content_type)
      assert.equal(("x"):rep(256), got.headers["content-type"])
    end)
  end)

  it("publishes CloudEvents in that mode, their attributes without an encoding", function()
    store:publish({ id = "1", namespace = "orders", key = "k 1%\xc3\xa4",
      payload = '{"a":"\\u0000"}', headers = { traceparent = "00-ab-cd-01",
        ["X-Request-Id"] = "7" } })
    support.sql(store, "INSERT INTO outbox_entries (id, headers) VALUES ('2', ?)",
      '{"yes": true, "n": -7, "type": "t"}')
    assert.equal(2, deliver({ mode = "cloudevents", source = "/shop/{namespace}" }))
    assert.same({ { exchange = "", routing_key = "outbox.orders", body = '{"a":"\\u0000"}',
      message_id = "1", timestamp = 1700000000, delivery_mode = 2,
      content_type = "application/json",
      headers = { ["cloudEvents:specversion"] = "1.0", ["cloudEvents:id"] = "1",
        ["cloudEvents:source"] = "/shop/orders", ["cloudEvents:type"] = "outbox.orders",
        ["cloudEvents:time"] = TIME, ["cloudEvents:sequence"] = "0000000000000000001",
        ["cloudEvents:subject"] = "k 1%\xc3\xa4", ["cloudEvents:partitionkey"] = "k 1%\xc3\xa4",
        ["cloudEvents:traceparent"] = "00-ab-cd-01", ["cloudEvents:xrequestid"] = "7" } } },
      client:get("outbox.orders"))
    local second = client:get("outbox")[1]
    assert.same({ true, -7, "t" }, { second.headers["cloudEvents:yes"],
      second.headers["cloudEvents:n"], second.headers["cloudEvents:type"] })
    assert.is_nil(second.content_type)
  end)

  it("publishes to the exchange and with the routing key that the options name", function()
    local publisher <close> = outbox.publisher(url(),
      { exchange = "events.{namespace}", routing_key = "new.{key}" })
    assert.same({}, publisher:publish({ message("1", { key = "7" }), message("2", { key = "%1" }) },
      "orders"))
    local keys = {}
    for i, got in ipairs(client:get("topic")) do
      keys[i] = got.exchange .. " " .. got.routing_key
    end
    assert.same({ "events.orders new.7", "events.orders new.%1" }, keys)
  end)

  it("publishes a payload of many frames", function()
    local payload = ("\0\xce12345"):rep(285714)
    local publisher <close> = outbox.publisher(url())
    assert.same({}, publisher:publish({ message("1", { payload = payload }), message("2") }, ""))
    local got = client:get("outbox")
    assert.same({ "1", "2" }, { got[1].message_id, got[2].message_id })
    assert.is_true(payload == got[1].body)
  end)

  describe("of a message that the broker does not take", function()
    it("makes a dead letter where AMQP does not have the name", function()
      local long = ("x"):rep(256)
      store:publish({ id = "k", key = long }, { id = long, key = "a" }, { id = "good", key = "b" },
        { id = "h", key = "c", headers = { [long] = "x" } },
        { id = "big", key = "d", headers = { x = ("x"):rep(130001) } })
      assert.equal(0, deliver({ routing_key = "no.{key}" }))
      local reasons = {}
      for _, entry in ipairs(store:dead_entries()) do
        reasons[entry.id] = entry.last_error
      end
      assert.same({ k = "routing_key: longer than 255 bytes", [long] = "id: longer than 255 bytes",
        h = "a header's name is longer than 255 bytes",
        big = "the headers are larger than 130000 bytes" }, reasons)
      local publisher <close> = outbox.publisher(url(), { exchange = "{key}" })
      assert.same({ { reason = "exchange: longer than 255 bytes", permanent = true } },
        publisher:publish({ message("1", { key = long }) }, ""))
    end)

    it("waits for a queue", function()
      store:publish({ id = "1", namespace = "late", key = "a" },
        { id = "2", namespace = "late", key = "b" })
      local publisher <close> = outbox.publisher(url())
      local p = processor(publisher)
      assert.equal(0, p:pump())
      assert.outbox(store).has_entry({ id = "1", attempts = 0 })
      assert.outbox(store).has_entry({ id = "2", attempts = 0 })
      client:declare("outbox.late")
      store:clock().advance(60)
      assert.equal(2, p:pump())
      assert.equal(2, client:count("outbox.late"))
      client:delete("outbox.late")
    end)

    it("names the exchange and the routing key; the others of the call are delivered", function()
      local publisher <close> = outbox.publisher(url(), { routing_key = "{key}" })
      assert.same({ nil, { uncharged = true,
        reason = "NO_ROUTE - exchange '' has no queue for the routing key 'nowhere'" } },
        { table.unpack(publisher:publish({ message("1", { key = "outbox" }),
          message("2", { key = "nowhere" }), message("3", { key = "outbox" }) }, ""), 1, 3) })
      assert.equal(2, client:count("outbox"))
      local gone <close> = outbox.publisher(url(), { routing_key = "nowhere", mandatory = false })
      assert.same({}, gone:publish({ message("4") }, ""))
    end)

    it("waits while a queue is full", function()
      local publisher <close> = outbox.publisher(url(), { routing_key = "full" })
      store:publish({ id = "1", key = "a" }, { id = "2", key = "b" })
      local p = processor(publisher)
      assert.equal(1, p:pump())
      local left = store:delayed_entries()[1] or store:ready_entries()[1]
      assert.equal(0, left.attempts)
      assert.equal(1, #client:get("full"))
      store:clock().advance(60)
      assert.equal(1, p:pump())
      assert.same({ left.id }, support.pluck(client:get("full"), "message_id"))
    end)

    it("makes a dead letter of one that is too large for the broker, and of no other", function()
      store:publish({ id = "1", key = "a" }, { id = "2", key = "b", payload = ("x"):rep(2000001) },
        { id = "3", key = "c" })
      local publisher <close> = outbox.publisher(url())
      local p = processor(publisher)
      local delivered = p:pump()
      store:clock().advance(60)
      assert.equal(2, delivered + p:pump())
      local dead = store:dead_entries()
      assert.same({ "2" }, support.pluck(dead, "id"))
      assert.matches("PRECONDITION_FAILED - message size 2000001 ", dead[1].last_error, 1, true)
      local seen = {} -- a call of several messages is given up, so some may come twice
      for _, got in ipairs(client:get("outbox")) do
        seen[got.message_id] = true
      end
      assert.same({ ["1"] = true, ["3"] = true }, seen)
    end)
  end)

  -- Why a publisher finds the destination down; nil if it delivers.
  local function outage(target, options)
    local publisher <close> = outbox.publisher(target, options)
    local failures, reason = publisher:publish({ message("1"), message("2") }, "orders")
    return not failures and reason or nil
  end

  it("is down where the broker closes the channel", function()
    assert.matches("NOT_FOUND - no exchange 'none' in vhost '/'",
      outage(url(), { exchange = "none" }), 1, true)
    assert.matches("ACCESS_REFUSED - access to exchange 'amq.default' in vhost '/' refused",
      outage(url("al%3Ai%40ce:p%3A%40%2F %25@")), 1, true)
  end)

  it("logs in as the user, to the vhost", function()
    local own = rabbitmq.connect(instance.plain_port, "al:i@ce", "p:@/ %", "a/b")
    own:declare("outbox.orders")
    assert.is_nil(outage(url("al%3Ai%40ce:p%3A%40%2F %25@", "/a%2Fb")))
    assert.is_nil(outage(url(nil, "/a%2Fb"), { user = "al:i@ce", password = "p:@/ %" }))
    assert.equal(4, #own:get("outbox.orders"))
    own:close()
    assert.is_nil(outage(url("guest:guest@", "/%2f")))
    assert.equal(2, #client:get("outbox.orders"))
    local name = "127.0.0.1:" .. instance.plain_port
    local reason = outage(url("guest:wrong@"))
    assert.matches(name .. ": ACCESS_REFUSED - Login was refused", reason, 1, true)
    assert.matches("NOT_ALLOWED - vhost none not found", outage(url(nil, "/none")), 1, true)
    assert.matches("NOT_ALLOWED - access to vhost 'a/b' refused for user 'guest'",
      outage(url(nil, "/a%2Fb")), 1, true)
  end)

  describe("with TLS", function()
    local function reason_for(host, options)
      local directory = instance.directory
      for _, name in ipairs({ "ca_file", "cert_file", "key_file" }) do
        options[name] = options[name] and directory .. "/" .. options[name]
      end
      return outage(("amqps://%s:%d"):format(host, instance.port), options)
    end

    local function own(options)
      options.cert_file, options.key_file = "client.pem", "client.key"
      return options
    end

    it("delivers to a server whose certificate and name are verified", function()
      assert.is_nil(reason_for("localhost", own({ ca_file = "ca.pem" })))
      assert.equal(2, client:count("outbox.orders"))
    end)

    it("does not trust a certificate of an unknown authority", function()
      assert.matches("verification failed", reason_for("localhost", own({})), 1, true)
      local other = own({ ca_file = "client.pem" })
      assert.matches("verification failed", reason_for("localhost", other), 1, true)
      assert.is_nil(reason_for("localhost", own({ verify = false })))
    end)

    it("does not trust a certificate of another host", function()
      assert.matches("hostname", reason_for("127.0.0.1", own({ ca_file = "ca.pem" })), 1, true)
      assert.is_nil(reason_for("127.0.0.1", own({ ca_file = "ca.pem", verify = false })))
    end)

    it("is refused without the client's certificate", function()
      assert.is_string(reason_for("localhost", { ca_file = "ca.pem" }))
      assert.matches("are no certificate and its key", reason_for("localhost",
        { ca_file = "ca.pem", cert_file = "client.pem", key_file = "ca.key" }), 1, true)
      assert.equal(0, client:count("outbox.orders"))
    end)

    it("sends large batches", function()
      local directory, messages = instance.directory, {}
      for i = 1, 30 do
        messages[i] = message(tostring(i), { payload = ("\0x\xff"):rep(i * 10000) })
      end
      local publisher <close> = outbox.publisher("amqps://localhost:" .. instance.port,
        { ca_file = directory .. "/ca.pem", cert_file = directory .. "/client.pem",
          key_file = directory .. "/client.key" })
      assert.same({}, publisher:publish(messages, "orders"))
      for i, got in ipairs(client:get("outbox.orders")) do
        assert.is_true(got.message_id == tostring(i) and got.body == messages[i].payload, i)
        messages[i] = nil
      end
      assert.same({}, messages)
    end)
  end)

  it("needs a URL and options that make sense", function()
    local function refused(expected, ...)
      assert.matches(expected, support.raised(outbox.publisher, ...), 1, true)
    end
    for _, wrong in ipairs({ "amqp:", "amqp:host", "amqp://", "amqp://user@host", "amqp://host/a/b",
      "amqp://host/%00", "amqp://host:port", "amqp://host?x=1", "amqp://a,b",
      "amqp://host/" .. ("x"):rep(256) }) do
      refused("amqp://[user:password@]host[:port][/vhost] expected", wrong)
    end
    refused("amqps://[user:password@]host[:port][/vhost] expected", "amqps://")
    refused('(exchange must be a string; mandatory must be true or false; mode must be "plain" or '
      .. '"cloudevents"; routing_key must be a string; timeout must be a number of seconds, at '
      .. "least 0.001; unknown option 'queue')", "amqp://host", { exchange = 1, mandatory = 1,
      mode = "x", routing_key = 1, timeout = 0, queue = "x" })
    refused("'verify' is for TLS, which is off", "amqp://host", { verify = false })
    refused("'type' is for mode = \"cloudevents\"", "amqp://host", { type = "x" })
    refused("'user' and 'password' need each other", "amqp://host", { user = "x" })
    refused("'cert_file' and 'key_file' need each other", "amqps://host",
      { cert_file = instance.directory .. "/client.pem" })
    refused("ca_file must be a file in PEM format", "amqps://host", { ca_file = "/dev/null" })
  end)
end)
