-- How messages become records, and what a cluster's errors mean. See also kafka_down_spec.lua.

local kafka = require("spec.support.kafka")
local outbox = require("outbox")
local support = require("spec.support")
local testing = require("outbox.testing")

-- Requests and errors of Kafka's protocol.
local PRODUCE, METADATA, INIT_PRODUCER_ID = 0, 3, 22
local UNKNOWN_TOPIC, TOO_LARGE, NOT_ENOUGH_REPLICAS, TOPIC_AUTHORIZATION = 3, 10, 19, 29
local CLUSTER_AUTHORIZATION, OUT_OF_ORDER, INVALID_RECORD, INVALID_MSG = 31, 45, 87, 2

describe("the kafka publisher", function()
  local cluster, count = nil, 0

  setup(function()
    cluster = kafka.start()
  end)

  teardown(function()
    cluster:close()
  end)

  after_each(support.remove)

  -- Each test has a namespace of its own, and so a topic of its own with one partition.
  local function new_namespace()
    count = count + 1
    local namespace = "n" .. count
    cluster:tell("topic outbox.event.%s 1", namespace)
    return namespace
  end

  local function new(options)
    return outbox.publisher("kafka://" .. cluster.servers, options)
  end

  local function messages(...)
    local list = {}
    for i, id in ipairs({ ... }) do
      list[i] = { id = id, key = id, created_at = 1700000000.5 }
    end
    return list
  end

  local function keys(topic)
    local list = support.pluck(cluster:read(topic), "key")
    table.sort(list)
    return list
  end

  describe("in the mode plain", function()
    it("makes each message a record, byte for byte", function()
      local namespace = new_namespace()
      local store <close> = support.store({ clock = testing.clock(1700000000.5) })
      store:publish({ id = "1", namespace = namespace, key = "k", payload = "\0\r\n\xff",
        headers = { a = "b", traceparent = "00-1-2-01" } })
      local publisher <close> = new()
      assert.equal(1, outbox.processor({ store = store, publisher = publisher }):pump())
      assert.same({ { partition = 0, time = 1700000000500, key = "k", value = "\0\r\n\xff",
        headers = { id = "1", namespace = namespace, key = "k", seq = "1", a = "b",
          created_at = "2023-11-14T22:13:20.500000Z", traceparent = "00-1-2-01" } } },
        cluster:read("outbox.event." .. namespace))
    end)

    it("tells what is absent from what is empty", function()
      local namespace = new_namespace()
      local publisher <close> = new()
      local function send(message)
        message.id, message.created_at = "1", 1
        assert.same({}, publisher:publish({ message }, namespace))
      end
      send({})
      send({ key = "", payload = "" })
      local records = cluster:read("outbox.event." .. namespace)
      assert.is_nil(records[1].key)
      assert.is_nil(records[1].value)
      assert.is_nil(records[1].headers.key)
      assert.equal("", records[2].key)
      assert.equal("", records[2].value)
      assert.equal("", records[2].headers.key)
    end)

    it("writes headers that are no strings as JSON, and does not replace its own", function()
      local namespace = new_namespace()
      local publisher <close> = new()
      local headers = { n = 7, yes = true, list = { 1, "a" }, id = "other", ["\xff\n"] = "\0\xfe" }
      assert.same({}, publisher:publish({ { id = "1:n", source_id = "1", created_at = 1,
        headers = headers }, { id = "2", created_at = 1, headers = "no JSON" } }, namespace))
      local first = cluster:read("outbox.event." .. namespace)[1].headers
      assert.same({ id = "1:n", source_id = "1", namespace = namespace, n = "7", yes = "true",
        list = '[1,"a"]', ["\xff\n"] = "\0\xfe", created_at = "1970-01-01T00:00:01.000000Z" },
        first)
      assert.equal("no JSON", cluster:read("outbox.event." .. namespace)[2].headers.headers)
    end)
  end)

  it("makes each message an event in the mode cloudevents", function()
    local namespace = new_namespace()
    local publisher <close> = new({ mode = "cloudevents", source = "/shop", type = "placed" })
    assert.same({}, publisher:publish({ { id = "é 1", key = "k\xff", payload = '{"a":1}', seq = 3,
      created_at = 1, headers = { ["X-Name"] = "Zoë", n = 7 } }, { id = "2", created_at = 1,
      headers = { ["content-type"] = "text/html" }, payload = "" } }, namespace))
    local records = cluster:read("outbox.event." .. namespace)
    assert.same({ ce_specversion = "1.0", ce_id = "é 1", ce_source = "/shop", ce_type = "placed",
      ce_time = "1970-01-01T00:00:01.000000Z", ce_sequence = "0000000000000000003",
      ce_subject = "k%FF", ce_partitionkey = "k%FF", ce_xname = "Zoë", ce_n = "7",
      ["content-type"] = "application/json" }, records[1].headers)
    assert.equal('{"a":1}', records[1].value)
    assert.equal("k\xff", records[1].key)
    assert.equal("text/html", records[2].headers["content-type"])
    assert.equal("", records[2].value)
  end)

  it("puts the records of a key into the partition that Java's clients choose", function()
    local namespace = new_namespace()
    cluster:tell("topic spread.%s 7", namespace)
    local publisher <close> = new({ topic = "spread.{namespace}" })
    -- From the tests of Kafka: the murmur2 of these keys.
    local murmur2 = { ["21"] = -973932308, foobar = -790332482, ["a-little-bit-long-string"] =
      -985981536, ["a-little-bit-longer-string"] = -1486304829 }
    for key in pairs(murmur2) do
      assert.same({}, publisher:publish(messages(key), namespace))
    end
    for _, record in ipairs(cluster:read("spread." .. namespace)) do
      assert.equal((murmur2[record.key] & 0x7fffffff) % 7, record.partition)
      murmur2[record.key] = nil
    end
    assert.is_nil(next(murmur2))
  end)

  it("sends to the topic that the option names", function()
    local namespace = new_namespace()
    local publisher <close> = new({ topic = "{key}.of.{namespace}" })
    assert.same({}, publisher:publish(messages("a", "b"), namespace))
    assert.same({ "a" }, keys("a.of." .. namespace))
    assert.same({ "b" }, keys("b.of." .. namespace))
    local standard <close> = new()
    assert.same({}, standard:publish(messages("c"), ""))
    assert.same({ "c" }, keys("outbox.event"))
  end)

  it("refuses a name that no topic can have, as the message's own fault", function()
    local namespace = new_namespace()
    local publisher <close> = new({ topic = "{key}" })
    local names = { "a b", "é", "a/b", "a\0", ("x"):rep(250), ".", "..", namespace,
      ("x"):rep(249) }
    local failures = publisher:publish(messages(table.unpack(names)), namespace)
    for i = 1, 7 do
      assert.same({ reason = ("a topic cannot have the name '%s'"):format(names[i]),
        permanent = true }, failures[i])
    end
    assert.is_nil(failures[8])
    assert.is_nil(failures[9])
    assert.same({ namespace }, keys(namespace))
    failures = publisher:publish(messages("a b"), namespace)
    assert.is_true(failures[1].permanent)
  end)

  it("compresses, and takes any property of librdkafka's", function()
    local namespace = new_namespace()
    for _, codec in ipairs({ "none", "gzip", "snappy", "lz4" }) do
      local publisher <close> = new({ compression = codec,
        config = { ["linger.ms"] = 0, ["batch.size"] = "9999", ["socket.nagle.disable"] = true } })
      assert.same({}, publisher:publish({ { id = codec, created_at = 1, key = codec,
        payload = ("x"):rep(10000) } }, namespace))
    end
    local records = cluster:read("outbox.event." .. namespace)
    assert.same({ "none", "gzip", "snappy", "lz4" }, support.pluck(records, "key"))
    for _, record in ipairs(records) do
      assert.equal(("x"):rep(10000), record.value)
    end
  end)

  --- Refusals ----------------------------------------------------------------------------------

  it("buries a message that is larger than the client sends", function()
    local namespace = new_namespace()
    local publisher <close> = new({ config = { ["message.max.bytes"] = 1000 } })
    local list = messages("a", "b")
    list[1].payload = ("x"):rep(2000)
    assert.same({ { reason = "Broker: Message size too large", permanent = true } },
      publisher:publish(list, namespace))
    assert.same({ "b" }, keys("outbox.event." .. namespace))
  end)

  it("buries a message that the cluster refuses, but none that were in one request with it",
    function()
      for _, code in ipairs({ TOO_LARGE, INVALID_RECORD }) do
        local namespace = new_namespace()
        local publisher <close> = new()
        cluster:tell("fail %d 1 %d", PRODUCE, code)
        local failures = publisher:publish(messages("a", "b"), namespace)
        for i = 1, 2 do
          assert.is_true(failures[i].uncharged)
          assert.is_nil(failures[i].permanent)
        end
        cluster:tell("fail %d 1 %d", PRODUCE, code)
        failures = publisher:publish(messages("a"), namespace)
        assert.is_true(failures[1].permanent)
        assert.matches("^Broker: ", failures[1].reason)
        assert.same({}, publisher:publish(messages("c"), namespace))
        assert.same({ "c" }, keys("outbox.event." .. namespace))
      end
    end)

  -- In a bad state of the cluster no attempt is counted; afterwards the messages are delivered.
  local function waits_for(expected, namespace, options, mend)
    local store <close> = support.store({ clock = testing.clock(1700000000.5) })
    store:publish({ id = "a", key = "a", namespace = namespace },
      { id = "b", key = "b", namespace = namespace })
    local publisher <close> = new(options)
    local reported = {}
    local p = outbox.processor({ store = store, publisher = publisher, on_error = function(problem)
      reported[#reported + 1] = tostring(problem)
    end })
    p:pump()
    assert.matches(expected, reported[1], 1, true)
    assert.outbox(store).has_entry({ id = "a", attempts = 0 })
    assert.outbox(store).has_entry({ id = "b", attempts = 0 })
    mend()
    store:clock().advance(60)
    p:pump()
    assert.outbox(store).is_empty()
    assert.same({ "a", "b" }, keys("outbox.event." .. namespace))
  end

  it("waits while it may not write to the topic", function()
    cluster:tell("fail %d 1000 %d", PRODUCE, TOPIC_AUTHORIZATION)
    waits_for("Topic authorization failed", new_namespace(), {}, function()
      cluster:tell("heal %d", PRODUCE)
    end)
  end)

  it("waits while there is no such topic", function()
    local namespace = new_namespace()
    local topic = "outbox.event." .. namespace
    cluster:tell("refuse %s %d", topic, UNKNOWN_TOPIC)
    waits_for("Unknown topic or partition", namespace, { timeout = 2 }, function()
      cluster:tell("refuse %s 0", topic)
    end)
  end)

  it("waits while it may not use the cluster", function()
    cluster:tell("fail %d 1000 %d", INIT_PRODUCER_ID, CLUSTER_AUTHORIZATION)
    waits_for("Cluster authorization failed", new_namespace(), {}, function()
      cluster:tell("heal %d", INIT_PRODUCER_ID)
    end)
  end)

  it("sends again by itself while replicas are missing", function()
    local namespace = new_namespace()
    local publisher <close> = new()
    cluster:tell("fail %d 2 %d", PRODUCE, NOT_ENOUGH_REPLICAS)
    cluster:tell("fail %d 1 %d", METADATA, NOT_ENOUGH_REPLICAS)
    assert.same({}, publisher:publish(messages("a", "b"), namespace))
    assert.same({ "a", "b" }, keys("outbox.event." .. namespace))
  end)

  it("makes a new producer after an error that is fatal to one", function()
    local namespace = new_namespace()
    local publisher <close> = new({ config = { ["enable.gapless.guarantee"] = true } })
    assert.same({}, publisher:publish(messages("a"), namespace))
    cluster:tell("fail %d 1 %d", PRODUCE, OUT_OF_ORDER)
    local failures, reason = publisher:publish(messages("b"), namespace)
    assert.is_true(failures == nil and reason ~= nil or failures[1].uncharged)
    assert.same({}, publisher:publish(messages("c"), namespace))
  end)

  it("tries a record again that was damaged on its way", function()
    local namespace = new_namespace()
    local publisher <close> = new()
    cluster:tell("fail %d 1 %d", PRODUCE, INVALID_MSG)
    local failures = publisher:publish(messages("a"), namespace)
    assert.is_string(failures[1])
  end)

  it("needs a URL and options that make sense", function()
    local function refused(expected, ...)
      assert.matches(expected, support.raised(outbox.publisher, ...), 1, true)
    end
    for _, wrong in ipairs({ "kafka:", "kafka:host", "kafka://", "kafka://host/x", "kafka://host,",
      "kafka://host:port", "kafka://host?a=b", "kafka://a:b:c", "kafka://host:0" }) do
      refused("kafka://[user:password@]host[:port][,host[:port]]... expected", wrong)
    end
    refused('(compression must be "none", "gzip", "snappy", "lz4" or "zstd"; config must be a '
      .. "table of librdkafka's properties; "
      .. 'mechanism must be "PLAIN", "SCRAM-SHA-256" or "SCRAM-SHA-512"; '
      .. 'mode must be "plain" or "cloudevents"; timeout must be a number of seconds, at least '
      .. "0.001; tls must be true or false; topic must be a string; unknown option 'topik')",
      "kafka://host", { compression = "zip", config = { 1 }, mechanism = "plain", mode = "binary",
        timeout = 0, tls = 1, topic = 1, topik = "x" })
    refused("'user' and 'password' need each other", "kafka://al@host")
    refused("'user' and 'password' need each other", "kafka://host", { password = "x" })
    refused("'mechanism' needs 'user' and 'password'", "kafka://host",
      { mechanism = "SCRAM-SHA-256" })
    refused("'verify' is for TLS, which is off", "kafka://host", { verify = false })
  end)

  it("needs properties that librdkafka knows, in a combination that it takes", function()
    local function refused(expected, config)
      assert.matches(expected, support.raised(outbox.publisher, "kafka://host",
        { config = config }), 1, true)
    end
    refused('No such configuration property: "linger.sm"', { ["linger.sm"] = 5 })
    refused("Invalid value for configuration property", { ["linger.ms"] = "much" })
    refused("`acks` must be set to `all` when `enable.idempotence` is true", { acks = 1 })
    refused("'config.bootstrap.servers' cannot be set: the URL has the hosts",
      { ["bootstrap.servers"] = "host" })
    refused("'config.message.timeout.ms' cannot be set: there is the option 'timeout'",
      { ["message.timeout.ms"] = 1 })
  end)

  it("takes properties from the command", function()
    local namespace = new_namespace()
    local store <close>, path = support.store()
    store:publish({ id = "1", key = "k", namespace = namespace })
    local command = "bin/outbox relay %s --once --to kafka://%s --option config.linger.%s=5 "
      .. "--option tls=false --option compression=gzip"
    assert.matches('No such configuration property: "linger.sm"',
      support.run(command:format(path, cluster.servers, "sm")), 1, true)
    local output, ok = support.run(command:format(path, cluster.servers, "ms"))
    assert.is_true(ok, output)
    assert.same({ "k" }, keys("outbox.event." .. namespace))
  end)
end)
