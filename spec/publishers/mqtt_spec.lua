local mosquitto = require("spec.support.mosquitto")
local outbox = require("outbox")
local process = require("process")
local server = require("spec.support.server")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("the mqtt publisher", function()
  local port, instance, reader, store

  setup(function()
    port = server.port()
    instance = mosquitto.broker(port, [[
      max_inflight_messages 5
      max_packet_size 20000
      message_size_limit 15000
    ]])
    instance:start()
    reader = mosquitto.reader(port)
  end)

  teardown(function()
    reader:close()
    server.stop()
  end)

  before_each(function()
    store = support.store({ clock = testing.clock(1700000000.5), synchronous = "off" })
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function url(login)
    return ("mqtt://%s127.0.0.1:%d"):format(login or "", port)
  end

  -- Delivers what is in the store. Returns what arrives.
  local function deliver(options)
    local publisher <close> = outbox.publisher(url(), options)
    local errors = {}
    outbox.processor({ store = store, publisher = publisher, on_error = function(problem)
      errors[#errors + 1] = tostring(problem)
    end }):pump()
    assert.same({}, errors)
    return reader:all()
  end

  -- A message as `publish` gets it.
  local function message(id, fields)
    local result = { id = id, created_at = 1 }
    for name, value in pairs(fields or {}) do
      result[name] = value
    end
    return result
  end

  local function publish(options, ...)
    local publisher <close> = outbox.publisher(url(), options)
    return publisher:publish({ ... }, "n")
  end

  it("publishes each message with its headers and fields as user properties", function()
    store:publish({ id = "1", namespace = "orders", key = "k", payload = "\0\r\n\xff",
      headers = { a = "bé", traceparent = "00-1-2-01", ["Content-Type"] = "text/plain" } },
      { id = "2", namespace = "orders" }, { id = "3", payload = "" })
    local arrived = deliver()
    table.sort(arrived, function(a, b) return a.user.id < b.user.id end)
    local time = "2023-11-14T22:13:20.500000Z"
    assert.same({
      { topic = "outbox/orders/k", payload = "\0\r\n\xff", retain = false,
        content_type = "text/plain", user = { id = "1", namespace = "orders", key = "k",
          created_at = time, seq = "1", a = "bé", traceparent = "00-1-2-01" } },
      { topic = "outbox/orders", payload = "", retain = false,
        user = { id = "2", namespace = "orders", created_at = time, seq = "2" } },
      { topic = "outbox", payload = "", retain = false,
        user = { id = "3", namespace = "", created_at = time, seq = "3" } },
    }, arrived)
  end)

  it("adds the id of the message to each copy", function()
    store:subscribe("orders", "mail")
    store:publish({ id = "1", namespace = "orders" })
    local copy = deliver()[1]
    assert.same({ "1:mail", "1" }, { copy.user.id, copy.user.source_id })
  end)

  it("makes JSON of headers that are no strings, and base64 of what is no text", function()
    support.sql(store, "INSERT INTO outbox_entries (headers) VALUES (?)", '{"n":7,"l":[1,true]}')
    support.sql(store, "INSERT INTO outbox_entries (headers) VALUES (?)", '{"lone":"\\ud800"}')
    store:publish({ key = "k", headers = { tab = "a\tb", ["n\nm"] = "x", empty = "" } })
    local arrived = deliver()
    assert.same({ "7", "[1,true]" }, { arrived[1].user.n, arrived[1].user.l })
    assert.equal('{"lone":"\\ud800"}', arrived[2].user.headers)
    local user = arrived[3].user
    assert.same({ "YQli", "x", "" }, { user.tab_base64, user["n%0Am"], user.empty })
    publish({ topic = "t" }, message("1", { key = "\xff\0", headers = { control = "\u{85}",
      nothing = "\u{fdd0}", ["content-type"] = "a\1" } }))
    user = reader:all()[1].user
    assert.same({ "/wA=", nil, "woU=", "77eQ", "YQE=" }, { user.key_base64, user.key,
      user.control_base64, user.nothing_base64, user["content-type_base64"] })
  end)

  it("publishes events of CloudEvents", function()
    store:publish({ id = "1", namespace = "orders", key = "k%é", payload = '{"a":1}',
      headers = { traceparent = "00-1-2-01", ["X-Odd"] = "a\nb" } },
      { id = "2", namespace = "orders", payload = "", headers = { ["content-type"] = "a/b" } },
      { id = "3", namespace = "orders" })
    local arrived = deliver({ mode = "cloudevents", source = "/shop/{namespace}", type = "t" })
    table.sort(arrived, function(a, b) return a.user.id < b.user.id end)
    assert.same({ specversion = "1.0", id = "1", source = "/shop/orders", type = "t",
      time = "2023-11-14T22:13:20.500000Z", subject = "k%é", partitionkey = "k%é",
      sequence = ("%019d"):format(1), traceparent = "00-1-2-01", xodd = "a%0Ab" },
      arrived[1].user)
    assert.same({ "application/json", '{"a":1}' },
      { arrived[1].content_type, arrived[1].payload })
    assert.same({ "a/b", "" }, { arrived[2].content_type, arrived[2].payload })
    assert.same({ nil, "" }, { arrived[3].content_type, arrived[3].payload })
  end)

  it("publishes to the topic that the option names", function()
    publish({ topic = "{namespace}/x/{key}" }, message("1", { key = "a/b%1" }), message("2"))
    publish({ topic = "all" }, message("3", { key = "k" }))
    assert.same({ "n/x/a/b%1", "n/x", "all" }, support.pluck(reader:all(), "topic"))
  end)

  it("refuses for good what MQTT cannot have, and delivers the others", function()
    local failures = publish({}, message("1", { key = "a+" }), message("2", { key = "#" }),
      message("3", { key = "\0" }), message("4", { key = "\xff" }), message("5", { key = "ok" }),
      message("6", { key = ("k"):rep(65535) }),
      message("7", { headers = { a = ("x"):rep(65536) } }),
      message("8", { headers = { a = ("x"):rep(15000) } }))
    local topic = { reason = "MQTT does not allow the name of the topic", permanent = true }
    local long = { reason = "a property of MQTT has at most 65535 bytes", permanent = true }
    assert.same({ topic, topic, topic, topic, nil, topic, long }, failures)
    assert.same({ "5", "8" }, support.pluck(support.pluck(reader:all(), "user"), "id"))
    failures = publish({ topic = ("t"):rep(65536), mode = "cloudevents" }, message("1"))
    assert.same({ topic }, failures)
  end)

  it("refuses for good what is too large for the broker", function()
    local publisher <close> = outbox.publisher(url())
    local messages, large = {}, { reason = "Packet too large", permanent = true }
    for i = 1, 100 do -- the limit of 20,000 bytes is among them, and 15,000 for the payload alone
      messages[i] = message("1", { headers = { a = ("x"):rep(19850 + i) } })
    end
    messages[101] = message("1", { payload = ("x"):rep(15000) })
    messages[102] = message("1", { payload = ("x"):rep(15001) }) -- refused by a PUBACK
    local failures = publisher:publish(messages, "n")
    local arrived = reader:all()
    -- Beside the header's value: 1 + 3 bytes before the body; 2 + 8 of the topic; 2 of the packet
    -- identifier; 3 before the properties; 5 + 1, 5 + 2 + 1, 5 + 9 + 1 and 5 + 10 + 27 of these.
    local most = 20000 - (4 + 10 + 2 + 3 + 6 + 8 + 15 + 42)
    assert.equal(most, #arrived[#arrived - 1].user.a)
    for i = 1, 102 do
      local is_large = i <= 100 and 19850 + i > most or i == 102
      assert.same(is_large and large or nil, failures[i], i)
    end
    assert.equal(102 - 1 - (19950 - most), #arrived)
  end)

  it("asks the broker to retain messages, and to drop old ones", function()
    publish({ topic = "kept", retain = true, expiry = 1000 }, message("1", { payload = "p" }))
    publish({ topic = "gone" }, message("2", { payload = "p" }))
    local _ = reader:all()
    local later <close> = setmetatable({ mosquitto.reader(port) }, { __close = function(self)
      self[1]:close()
    end })
    publish({ topic = "last" }, message("3"))
    assert.same({ "last" }, support.pluck(later[1]:all(), "topic"))
    local shell <close> = io.popen(("mosquitto_sub -p %d -V 5 -t kept -t gone -C 1 -W 9 "
      .. "-F '%%t %%E'"):format(port))
    local topic, expiry = shell:read("l"):match("^(%S+) (%d+)$")
    assert.equal("kept", topic)
    assert.is_true(tonumber(expiry) > 900)
    assert.is_true(mosquitto.publish(port, "-t kept -r -n"))
    reader:all()
  end)

  it("delivers what nobody gets, unless it is told to wait", function()
    local options = { topic = "$nobody/{key}", mandatory = true }
    local publisher <close> = outbox.publisher(url(), options)
    assert.same({}, publish({ topic = "$nobody/k" }, message("1")))
    local waits = { reason = "No matching subscribers", uncharged = true }
    assert.same({ waits, waits }, publisher:publish({ message("1"), message("2") }, "n"))
    store:publish({ id = "a", key = "k" })
    local reason
    local p = outbox.processor({ store = store, publisher = publisher, on_error = function(problem)
      reason = tostring(problem)
    end })
    p:pump()
    assert.matches("No matching subscribers", reason)
    assert.outbox(store).has_entry({ id = "a", attempts = 0 })
    assert(os.execute(("mosquitto_sub -p %d -V 5 -c -x 60 -i later -q 1 -t '$nobody/#' -E")
      :format(port)))
    store:clock().advance(60)
    p:pump()
    assert.outbox(store).is_empty()
  end)

  it("keeps the order of a call although the broker takes few at a time", function()
    local messages, expected = {}, {}
    for i = 1, 1000 do
      messages[i], expected[i] = message(tostring(i)), tostring(i)
    end
    assert.same({}, publish({}, table.unpack(messages)))
    assert.same(expected, support.pluck(support.pluck(reader:all(), "user"), "id"))
  end)

  -- Of a broker that answers anything: see the helper.
  local GREETING = "\x20\x03\0\0\0"

  it("tells the fault of a message from the state of the broker", function()
    local scripted, pid = mosquitto.scripted(GREETING)
    local publisher = outbox.publisher("mqtt://127.0.0.1:" .. scripted, { topic = "{key}" })
    local failures = publisher:publish({ message("1", { key = "x00" }),
      message("2", { key = "x10" }), message("3", { key = "x80" }), message("4", { key = "x83" }),
      message("5", { key = "x90" }), message("6", { key = "x97" }),
      message("7", { key = "x99" }) }, "")
    assert.same({ nil, nil, { reason = "Unspecified error", uncharged = true },
      { reason = "Implementation specific error", uncharged = true },
      { reason = "Topic Name invalid", permanent = true },
      { reason = "Quota exceeded", uncharged = true },
      { reason = "Payload format invalid", permanent = true } }, failures)
    failures = publisher:publish({ message("1", { key = "x00" }),
      message("2", { key = "d8b" }) }, "")
    assert.same({ nil, { reason = "disconnected: Server shutting down", uncharged = true } },
      failures)
    publisher:close()
    assert.equal(0, (process.wait(pid)))
  end)

  it("says why the broker does not suit", function()
    for greeting, expected in pairs({
      ["\x20\x02\0\1"] = "the broker does not speak MQTT 5", -- MQTT 3.1.1
      ["\x20\x03\0\x84\0"] = "the broker does not speak MQTT 5",
      ["\x20\x03\0\x88\0"] = "refused: Server unavailable",
      ["\x20\x05\0\0\2\x24\0"] = "the broker has no QoS 1",
      ["\x20\x05\0\0\2\x25\0"] = "the broker retains no messages",
      [""] = "no answer within 0.2 s",
    }) do
      local scripted, pid = mosquitto.scripted(greeting)
      local publisher = outbox.publisher("mqtt://127.0.0.1:" .. scripted,
        { retain = true, timeout = 0.2 })
      local answer, reason = publisher:publish({ message("1") }, "")
      assert.is_nil(answer)
      assert.equal(("127.0.0.1:%d: %s"):format(scripted, expected), reason)
      publisher:close()
      process.wait(pid)
    end
  end)

  it("leaves the signals of the process alone", function()
    -- In a process of its own, because LuaSocket ignores SIGPIPE.
    assert.equal("delivered\ttrue\n", support.run(([[-e '
      local function ignored()
        local file <close> = io.open("/proc/self/status")
        return file:read("a"):match("SigIgn:%%s*(%%x+)")
      end
      local before = ignored()
      local publisher <close> = require("outbox").publisher("%s")
      local failures = publisher:publish({ { id = "1", created_at = 1 } }, "")
      print(failures and "delivered", ignored() == before)']]):format(url()),
      "env --default-signal=PIPE"))
  end)

  it("needs a URL and options that make sense", function()
    local function refused(expected, ...)
      assert.matches(expected, support.raised(outbox.publisher, ...), 1, true)
    end
    for _, wrong in ipairs({ "mqtt:", "mqtt:host", "mqtt://", "mqtt://host/x", "mqtt://host:port",
      "mqtt://host?x=1", "mqtt://a:b:c", "mqtt://a,b" }) do
      refused("mqtt://[user:password@]host[:port] expected", wrong)
    end
    refused("mqtts://[user:password@]host[:port] expected", "mqtts:")
    refused("(client_id must be a string; expiry must be an integer from 1 to 4294967295; "
      .. 'mandatory must be true or false; mode must be "plain" or "cloudevents"; retain must be '
      .. "true or false; topic must be a string; unknown option 'qos')", url(), { client_id = 1,
        expiry = 0, mandatory = 1, mode = "batched", retain = "yes", topic = 1, qos = 0 })
    refused("'client_id' must be UTF-8", url(), { client_id = "" })
    refused("'client_id' must be UTF-8", url(), { client_id = "a\0b" })
    refused("the user must be UTF-8", url(), { user = "\xff" })
    refused("the password must have no byte 0", url("user:a%00b@"))
    refused("'verify' is for TLS, which is off", url(), { verify = false })
  end)

  it("names the rock that it needs", function()
    local output = support.run([[-e '
      package.preload["outbox.destinations.mqtt"] = function()
        error("module \x27outbox.destinations.mqtt\x27 not found")
      end
      print(pcall(require("outbox").publisher, "mqtt://x"))']])
    assert.equal("false\tthe mqtt publisher needs outbox-mqtt: "
      .. "luarocks --lua-version 5.4 install outbox-mqtt\n", output)
  end)
end)
