local cjson = require("cjson")
local nats = require("spec.support.nats")
local outbox = require("outbox")
local server = require("spec.support.server")
local support = require("spec.support")
local testing = require("outbox.testing")

local CREATED = "2023-11-14T22:13:20.500000Z"

describe("the nats publisher", function()
  local instance, client, store

  setup(function()
    instance = nats.new("max_payload: 100000")
    instance:start()
    client = nats.connect(instance.port)
  end)

  teardown(server.stop)

  before_each(function()
    client:stream("ALL", "outbox.>", { max_msg_size = 80000 })
    store = support.store({ clock = testing.clock(1700000000.5), synchronous = "off" })
  end)

  after_each(function()
    client:delete("ALL")
    store:close()
    support.remove()
  end)

  local function publisher(options, login)
    local made = outbox.publisher(("nats://%s127.0.0.1:%d"):format(login or "", instance.port),
      options)
    finally(function()
      made:close()
    end)
    return made
  end

  local function message(fields)
    fields.id, fields.created_at = fields.id or "1", 1700000000.5
    return fields
  end

  local function publish(fields, options, namespace)
    local failures = assert(publisher(options):publish({ message(fields) }, namespace or "n"))
    return failures[1]
  end

  local errors
  local function processor(options)
    errors = {}
    return outbox.processor({
      store = store, publisher = publisher(options),
      on_error = function(problem)
        errors[#errors + 1] = tostring(problem)
      end,
    })
  end

  local function subjects(list)
    return support.pluck(list or client:messages("ALL"), "subject")
  end

  -- In a bad state of the server no attempt is counted; afterwards the messages are delivered, in
  -- order.
  local function waits_for(expected, mend, options)
    for id = 1, 4 do
      store:publish({ id = tostring(id), key = "k" .. id % 2 })
    end
    local p = processor(options)
    p:pump()
    assert.matches(expected, errors[1], 1, true)
    for id = 1, 4 do
      assert.outbox(store).has_entry({ id = tostring(id), attempts = 0 })
    end
    mend()
    store:clock().advance(60)
    p:pump()
    assert.outbox(store).is_empty()
  end

  -- The ids of the messages of each key, in order.
  local function by_key()
    local lists = {}
    for _, entry in ipairs(client:messages("ALL")) do
      local list = lists[entry.headers.key] or {}
      lists[entry.headers.key] = list
      list[#list + 1] = entry.headers.id
    end
    return lists
  end

  it("publishes a message with all that it has, byte for byte", function()
    store:publish({ id = "1", namespace = "orders", key = "k\xff é", payload = "\0\r\n\xff",
      headers = { traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ["Content-Type"] = "text/x", id = "not this one" } })
    assert.equal(1, processor():pump())
    assert.same({ { subject = "outbox.orders", payload = "\0\r\n\xff", headers = {
      ["Nats-Msg-Id"] = "1", id = "1", namespace = "orders", key = "k\xff é", seq = "1",
      created_at = CREATED, ["Content-Type"] = "text/x",
      traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01" } },
    }, client:messages("ALL"))
  end)

  it("leaves out what a message does not have; no payload is an empty one", function()
    client:stream("ONE", "outbox")
    finally(function()
      client:delete("ONE")
    end)
    store:publish({ id = "1" }, { id = "2", payload = "" })
    assert.equal(2, processor():pump())
    local expected = {}
    for i = 1, 2 do
      local id = tostring(i)
      expected[i] = { subject = "outbox", payload = "", headers = { ["Nats-Msg-Id"] = id, id = id,
        namespace = "", created_at = CREATED, seq = id } }
    end
    assert.same(expected, client:messages("ONE"))
  end)

  it("publishes headers that are no strings as JSON", function()
    local json = '{"n": 3, "list": [1, "a\\n"], "yes": true, "text": "3"}'
    support.sql(store, "INSERT INTO outbox_entries (namespace, headers) VALUES ('n', ?)", json)
    support.sql(store, "INSERT INTO outbox_entries (namespace, headers) VALUES ('n', ?)", "{no}")
    assert.equal(2, processor():pump())
    local list = client:messages("ALL")
    local headers = list[1].headers
    assert.same({ "3", '[1,"a\\n"]', "true", "3" },
      { headers.n, headers.list, headers.yes, headers.text })
    assert.equal("{no}", list[2].headers.headers)
  end)

  it("publishes the id of the message with each copy", function()
    store:subscribe("orders", "mail")
    store:publish({ id = "1", namespace = "orders" })
    processor():pump()
    local headers = client:messages("ALL")[1].headers
    assert.same({ "1:mail", "1:mail", "1" },
      { headers.id, headers["Nats-Msg-Id"], headers.source_id })
  end)

  it("publishes CloudEvents as JSON", function()
    local options = { mode = "cloudevents", source = "/shop/{namespace}", type = "{namespace}.new" }
    assert.is_nil(publish({ key = "k", payload = '{"a":1}', seq = 7, headers = { trace = "\n" } },
      options))
    assert.is_nil(publish({ id = "2", payload = "\0\xff" }, options))
    assert.is_nil(publish({ id = "3", payload = "" }, options))
    assert.is_nil(publish({ id = "4" }, options))
    local list = client:messages("ALL")
    assert.same({ subject = "outbox.n", headers = { ["Nats-Msg-Id"] = "1",
      ["content-type"] = "application/cloudevents+json" } },
      { subject = list[1].subject, headers = list[1].headers })
    assert.same({ specversion = "1.0", id = "1", source = "/shop/n", type = "n.new", trace = "\n",
      time = CREATED, subject = "k", partitionkey = "k", sequence = ("%019d"):format(7),
      datacontenttype = "application/json", data = { a = 1 } }, cjson.decode(list[1].payload))
    local second, third = cjson.decode(list[2].payload), cjson.decode(list[3].payload)
    assert.same({ "AP8=", "application/octet-stream" },
      { second.data_base64, second.datacontenttype })
    assert.same({ "", "text/plain; charset=utf-8" }, { third.data, third.datacontenttype })
    assert.is_nil(list[4].payload:find("data", 1, true))
  end)

  it("makes the subject of the namespace and the key", function()
    local options = { subject = "outbox.{namespace}.by.{key}" }
    publish({ key = "a.b" }, options)
    publish({ id = "2" }, options)
    publish({ id = "3", key = "é*" }, options, "")
    assert.same({ "outbox.n.by.a.b", "outbox.n.by", "outbox.by.é*" }, subjects())
  end)

  it("refuses subjects and headers that NATS cannot have for good, and locally", function()
    local function refused(expected, fields, subject, namespace)
      local failure = publish(fields, { subject = subject }, namespace)
      assert.is_true(failure.permanent)
      assert.matches(expected, failure.reason, 1, true)
    end
    for _, key in ipairs({ "a b", "a..b", ".a", "a.", "*", "a.>", "\n", "a\0", "\127",
      ("x"):rep(4001) }) do
      refused("cannot have the subject", { key = key }, "outbox.{key}")
    end
    refused("cannot have the subject", { key = "$JS.API.STREAM.DELETE.ALL" }, "{key}")
    for _, id in ipairs({ "a\nb", "a\rb", "a\0b", " a", "\ta" }) do
      refused("cannot have the header", { id = id })
    end
    refused('cannot have the header "key"', { key = "\n" })
    refused('cannot have the header "a"', { headers = { a = "\0" } })
    for _, name in ipairs({ "", "a b", "a:b", "a\n", "é" }) do
      refused("cannot have the header", { headers = { [name] = "x" } })
    end
    assert.equal(0, client:state("ALL").messages)
    publish({ key = ("x"):rep(4000 - #"outbox.") }, { subject = "outbox.{key}" })
    publish({ id = "2", headers = { ["!~"] = "", b = "a " } })
    local list = client:messages("ALL")
    assert.same({ "", "a ", 4000 }, { list[2].headers["!~"], list[2].headers.b, #list[1].subject })
  end)

  it("publishes to subjects of the server's own only if the option says so", function()
    client:stream("KV_shop", "$KV.shop.>")
    publish({ key = "price" }, { subject = "$KV.shop.{key}" })
    local list = client:messages("KV_shop")
    client:delete("KV_shop")
    assert.same({ "$KV.shop.price" }, subjects(list))
  end)

  it("makes a dead letter of a message that is too large, and of no other one", function()
    store:publish({ id = "1", namespace = "n" },
      { id = "stream", namespace = "n", payload = ("x"):rep(90000) },
      { id = "server", namespace = "n", payload = ("x"):rep(100000) }, -- with its headers
      { id = "head", namespace = "n", headers = { long = ("x"):rep(70000) } },
      { id = "name", namespace = "n", headers = { [" "] = "" } }, { id = "2", namespace = "n" })
    assert.equal(2, processor():pump())
    assert.same({}, errors)
    local reasons = {}
    for _, letter in ipairs(store:dead_entries()) do
      reasons[letter.id] = letter.last_error
    end
    assert.same({ stream = "message size exceeds maximum allowed",
      server = "larger than the server's max_payload",
      head = "header size exceeds maximum allowed of 64k",
      name = 'NATS cannot have the header " "' }, reasons)
    assert.same({ "1", "2" }, support.pluck(support.pluck(client:messages("ALL"), "headers"), "id"))
  end)

  it("counts an attempt if the message's own headers make the stream refuse it", function()
    store:publish({ id = "1", namespace = "n",
      headers = { ["Nats-Expected-Last-Sequence"] = "7" } },
      { id = "2", namespace = "n", headers = { ["Nats-Rollup"] = "all" } }, { id = "3",
      namespace = "n" })
    assert.equal(1, processor():pump())
    assert.outbox(store).has_entry({ id = "1", attempts = 1,
      last_error = "wrong last sequence: 0" })
    assert.outbox(store).has_entry({ id = "2", attempts = 1,
      last_error = "rollup not permitted" })
  end)

  it("waits while the stream is full, and keeps the order then", function()
    for _, limit in ipairs({ { max_msgs = 2 }, { max_bytes = 300 } }) do
      client:delete("ALL")
      limit.discard = "new"
      client:stream("ALL", "outbox.>", limit)
      local filler = publisher()
      repeat
        local number = client:state("ALL").messages
        local failure = filler:publish({ message({ id = "x" .. number, key = "x" }) }, "n")[1]
      until failure
      waits_for(limit.max_msgs and "maximum messages exceeded" or "maximum bytes exceeded",
        function()
          client:delete("ALL")
          client:stream("ALL", "outbox.>")
        end, { subject = "outbox.x" })
      assert.same({ k0 = { "2", "4" }, k1 = { "1", "3" } }, by_key())
    end
  end)

  it("keeps the order of a key though a stream takes only a part of a batch", function()
    client:delete("ALL")
    client:stream("ALL", "outbox.>", { max_msgs = 2, discard = "new" })
    for id = 1, 9 do
      store:publish({ id = tostring(id), namespace = "n", key = "k" .. id % 3 })
    end
    local p, kept = processor(), { k0 = {}, k1 = {}, k2 = {} }
    repeat -- a wave has three messages, and the stream takes two
      p:pump()
      local lists = by_key()
      for key, list in pairs(lists) do
        table.move(list, 1, #list, #kept[key] + 1, kept[key])
      end
      client:purge("ALL")
      store:clock().advance(60)
    until next(lists) == nil
    assert.same({ k0 = { "3", "6", "9" }, k1 = { "1", "4", "7" }, k2 = { "2", "5", "8" } }, kept)
    assert.outbox(store).is_empty()
    assert.equal(0, p:stats().retried)
  end)

  it("waits while no stream has the subject", function()
    client:delete("ALL")
    waits_for("no stream has the message's subject", function()
      client:stream("ALL", "outbox.>")
    end, { subject = "outbox.x" })
    assert.same({ k0 = { "2", "4" }, k1 = { "1", "3" } }, by_key())
  end)

  it("knows which messages of a batch have no stream", function()
    local mixed = publisher({ subject = "{key}" })
    local failures = mixed:publish({ message({ key = "nobody.a" }), message({ id = "2",
      key = "outbox.b" }), message({ id = "3", key = "nobody.c" }) }, "n")
    local failure = { reason = "no stream has the message's subject", uncharged = true }
    assert.same({ [1] = failure, [3] = failure }, failures)
    assert.same({ "outbox.b" }, subjects())
  end)

  it("waits while another stream than the expected one has the subject", function()
    client:delete("ALL")
    client:stream("OTHER", "outbox.>")
    waits_for("expected stream does not match", function()
      client:delete("OTHER")
      client:stream("ALL", "outbox.>")
    end, { subject = "outbox.x", stream = "ALL" })
    assert.equal("ALL", client:messages("ALL")[1].headers["Nats-Expected-Stream"])
  end)

  it("does not publish a message twice that comes twice", function()
    publish({})
    assert.is_nil(publish({}))
    assert.equal(1, client:state("ALL").messages)
  end)

  it("needs a URL and options that make sense", function()
    local function refused(expected, ...)
      assert.matches(expected, support.raised(outbox.publisher, ...), 1, true)
    end
    for _, wrong in ipairs({ "nats:", "nats:host", "nats://", "nats://host/x", "nats://host:port",
      "nats://a:1,:2", "nats://host?x=1" }) do
      refused("nats://[user:password@|token@]host[:port][,host[:port]]... expected", wrong)
    end
    refused("(credentials must be a file of credentials; mode must be \"plain\" or "
      .. "\"cloudevents\"; subject must be a string; timeout must be a number of seconds, at least "
      .. "0.001; unknown option 'stram')", "nats://host", { mode = "binary", subject = 1,
      timeout = 0, stram = "x", credentials = "Makefile" })
    refused("'verify' is for TLS, which is off", "nats://host", { verify = false })
    refused("only one of 'user', 'token' and 'credentials'", "nats://x@host", { user = "u" })
    refused("'password' needs 'user'", "nats://host", { password = "p" })
  end)
end)
