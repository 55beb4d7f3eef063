local broker = require("spec.support.broker")
local cjson = require("cjson")
local cqueues = require("cqueues")
local outbox = require("outbox")
local process = require("process")
local redis = require("redis")
local server = require("spec.support.server")
local socket = require("socket")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("the redis publisher", function()
  local port, instance, client, store

  local function connect()
    local connection = redis.connect("127.0.0.1", port)
    connection.xrange, connection.acl = redis.command("XRANGE"), redis.command("ACL")
    connection.xlen = redis.command("XLEN")
    return connection
  end

  setup(function()
    port = server.port()
    instance = server.new(("redis-server --port %d --bind 127.0.0.1 --dir $DIRECTORY --save '' "
      .. "--appendonly yes --appendfsync always"):format(port), port)
    instance:start()
  end)

  teardown(server.stop)

  before_each(function()
    client = connect()
    client:flushall()
    store = support.store({ clock = testing.clock(1700000000.5), synchronous = "off" })
  end)

  after_each(function()
    client.network.socket:close()
    store:close()
    support.remove()
  end)

  -- The entries of a stream, each with its fields by name.
  local function entries(stream)
    local list = {}
    for i, entry in ipairs(client:xrange(stream, "-", "+")) do
      list[i] = {}
      for j = 1, #entry[2], 2 do
        list[i][entry[2][j]] = entry[2][j + 1]
      end
    end
    return list
  end

  local function url(login, db)
    return ("redis://%s127.0.0.1:%d%s"):format(login or "", port, db or "")
  end

  local errors
  local function processor(publisher, options)
    errors = {}
    options = options or {}
    options.store, options.publisher = options.store or store, publisher
    function options.on_error(problem)
      errors[#errors + 1] = tostring(problem)
    end
    return outbox.processor(options)
  end

  -- In a bad state of the server no attempt is counted; afterwards the messages are delivered.
  local function waits_for(expected, mend)
    store:publish({ id = "a", key = "a" }, { id = "b", key = "b" })
    local publisher <close> = outbox.publisher(url())
    local p = processor(publisher)
    p:pump()
    assert.matches(expected, errors[1], 1, true)
    assert.outbox(store).has_entry({ id = "a", attempts = 0 })
    assert.outbox(store).has_entry({ id = "b", attempts = 0 })
    mend()
    store:clock().advance(60)
    p:pump()
    assert.outbox(store).is_empty()
    assert.equal(2, client:xlen("outbox"))
  end

  it("adds the headers as they lie in the database, byte for byte", function()
    local json = '{"n": 9007199254740993,\n "l":[], "f":0.30000000000000004}'
    support.sql(store, "INSERT INTO outbox_entries (headers) VALUES (?)", json)
    local publisher <close> = outbox.publisher(url())
    assert.equal(1, processor(publisher):pump())
    assert.equal(json, entries("outbox")[1].headers)
  end)

  it("adds each message to the stream of its namespace, in order", function()
    store:publish({ id = "1", namespace = "orders", key = "k", payload = "\0\r\n\xff",
      headers = { a = "b" } }, { id = "2", namespace = "orders" }, { id = "3" })
    local publisher <close> = outbox.publisher(url())
    assert.equal(3, processor(publisher):pump())
    local orders = entries("outbox:orders")
    assert.same({ a = "b" }, cjson.decode(orders[1].headers))
    orders[1].headers = nil
    assert.same({
      { id = "1", namespace = "orders", key = "k", payload = "\0\r\n\xff",
        created_at = "2023-11-14T22:13:20.500000Z", seq = "1" },
      { id = "2", namespace = "orders", created_at = "2023-11-14T22:13:20.500000Z", seq = "2" },
    }, orders)
    assert.same({ { id = "3", namespace = "", created_at = "2023-11-14T22:13:20.500000Z",
      seq = "3" } }, entries("outbox"))
  end)

  it("adds the id of the message to each copy", function()
    store:subscribe("orders", "mail")
    store:publish({ id = "1", namespace = "orders", headers = { a = "b" } })
    local publisher <close> = outbox.publisher(url())
    processor(publisher):pump()
    local copy = entries("outbox:mail")[1]
    assert.same({ "1:mail", "1" }, { copy.id, copy.source_id })
  end)

  it("adds to the stream that the option names, and keeps it short", function()
    local messages = {}
    for i = 1, 1000 do
      messages[i] = { id = tostring(i), namespace = "a%1", created_at = 1 }
    end
    local publisher <close> = outbox.publisher(url(), { stream = "{namespace}:all", maxlen = 100 })
    publisher:publish(messages, "a%1")
    local length = client:xlen("a%1:all")
    assert.is_true(length >= 100 and length < 1000, length)
    local all = outbox.publisher(url(), { stream = "all" })
    all:publish({ messages[1] }, "a%1")
    all:publish({ messages[2] }, "")
    all:close()
    assert.equal(2, client:xlen("all"))
  end)

  it("logs in, and selects the database", function()
    client:acl("SETUSER", "al:i@ce", "on", ">p:@/ %", "~*", "+@all")
    local publisher <close> = outbox.publisher(url("al%3Ai%40ce:p%3A%40%2F %25@", "/3"))
    assert.same({}, publisher:publish({ { id = "1", created_at = 1 } }, ""))
    client:acl("DELUSER", "al:i@ce")
    client:select(3)
    assert.equal(1, client:xlen("outbox"))
    client:config("SET", "requirepass", "secret")
    local with_password <close> = outbox.publisher(url(":secret@", "/3"))
    assert.same({}, with_password:publish({ { id = "2", created_at = 1 } }, ""))
    local without <close> = outbox.publisher(url())
    local _, reason = without:publish({ { id = "3", created_at = 1 } }, "")
    client:config("SET", "requirepass", "")
    assert.matches("NOAUTH", reason, 1, true)
    local wrong <close> = outbox.publisher(url("nobody:x@"))
    _, reason = wrong:publish({ { id = "3", created_at = 1 } }, "")
    assert.matches("WRONGPASS", reason, 1, true)
    assert.equal(2, client:xlen("outbox"))
  end)

  it("counts an attempt only if the server refuses the message itself", function()
    client:set("outbox:bad", "no stream")
    store:publish({ id = "1", namespace = "bad" }, { id = "2", namespace = "bad" },
      { id = "3", namespace = "good" })
    local publisher <close> = outbox.publisher(url())
    local p = processor(publisher)
    assert.equal(1, p:pump())
    assert.same({}, errors)
    for id = 1, 2 do
      assert.outbox(store).has_entry({ id = tostring(id), attempts = 1,
        last_error = "WRONGTYPE Operation against a key holding the wrong kind of value" })
    end
    client:del("outbox:bad")
    store:publish({ id = "4", namespace = "good" })
    store:clock().advance(1)
    assert.equal(3, p:pump())
    local ids = support.pluck(entries("outbox:bad"), "id")
    table.sort(ids) -- without a key they have no order
    assert.same({ "1", "2" }, ids)
    assert.same({ "3", "4" }, support.pluck(entries("outbox:good"), "id"))
  end)

  it("waits while the server is full", function()
    client:config("SET", "maxmemory", "1")
    waits_for("OOM command not allowed", function()
      client:config("SET", "maxmemory", "0")
    end)
  end)

  it("waits while the server is a replica", function()
    client:slaveof("127.0.0.1", "1")
    waits_for("READONLY", function()
      client:slaveof("NO", "ONE")
    end)
  end)

  it("waits while the server may not be written to", function()
    client:acl("SETUSER", "default", "resetkeys", "~other")
    waits_for("NOPERM", function()
      client:acl("SETUSER", "default", "allkeys")
    end)
  end)

  it("waits while nobody listens", function()
    local unused = server.port()
    local publisher <close> = outbox.publisher("redis://127.0.0.1:" .. unused)
    assert.same({ nil, ("127.0.0.1:%d: Connection refused"):format(unused) },
      { publisher:publish({ { id = "1", created_at = 1 } }, "") })
  end)

  it("gives up on a server that does not answer, and closes the connection", function()
    local publisher <close> = outbox.publisher(url(), { timeout = 0.05 })
    process.kill(instance.pid, 19) -- SIGSTOP
    local answer, reason = publisher:publish({ { id = "1", created_at = 1 } }, "")
    process.kill(instance.pid, 18) -- SIGCONT
    assert.is_nil(answer)
    assert.equal(("127.0.0.1:%d: no answer within 0.05 s"):format(port), reason)
    local deadline = outbox.clock.now() + 30
    repeat
      assert.is_true(outbox.clock.now() < deadline, "it is still connected")
      local _, connections = client:client("LIST"):gsub("\n", "")
    until connections == 1
    assert.same({}, publisher:publish({ { id = "2", created_at = 1 } }, ""))
  end)

  it("does not give up on a large batch while bytes are being sent", function()
    local listener = assert(socket.bind("127.0.0.1", 0))
    local _, slow_port = listener:getsockname()
    local pid = process.fork(function()
      local connection = listener:accept()
      connection:setoption("recv-buffer-size", 65536)
      connection:receive(#"*2\r\n$6\r\nSELECT\r\n$1\r\n0\r\n")
      connection:send("+OK\r\n")
      for _ = 1, 16 do
        connection:receive(1000000)
        outbox.clock.sleep(0.1)
      end
      connection:send("$3\r\n1-1\r\n")
      connection:receive("*l") -- the rest: if it is not read, the connection is reset
    end)
    listener:close()
    local publisher <close> = outbox.publisher("redis://127.0.0.1:" .. slow_port, { timeout = 1 })
    local message = { id = "1", created_at = 1, payload = ("x"):rep(16000000) }
    local failures, reason = publisher:publish({ message }, "")
    publisher:close()
    assert.equal(0, (process.wait(pid)))
    assert.same({}, failures, reason)
  end)

  it("lets the loop of cqueues or luv go on meanwhile", function()
    local message = { id = "1", created_at = 1 }
    local publisher <close> = outbox.publisher(url())
    broker.deliver_in_loops(function()
      client:client("PAUSE", 100, "WRITE") -- for so many milliseconds
      return publisher:publish({ message }, "")
    end, 2)
    assert.equal(2, client:xlen("outbox"))
  end)

  it("does not take the answers to a call that was cut off for those to the next call", function()
    client:set("bad", "no stream")
    local publisher <close> = outbox.publisher(url(), { stream = "{key}" })
    assert.same({}, publisher:publish({ { id = "0", key = "good", created_at = 1 } }, ""))
    client:client("PAUSE", 100, "WRITE")
    local loop = cqueues.new()
    loop:wrap(function()
      publisher:publish({ { id = "1", key = "bad", created_at = 1 } }, "")
    end)
    assert(loop:step(0)) -- it waits for an answer; the loop is not run any more
    assert.same({}, publisher:publish({ { id = "2", key = "good", created_at = 1 } }, ""))
    assert.equal(2, client:xlen("good"))
  end)

  it("connects again if the server has closed the connection", function()
    local publisher <close> = outbox.publisher(url())
    assert.same({}, publisher:publish({ { id = "1", created_at = 1 } }, ""))
    client:client("KILL", "TYPE", "normal") -- but itself
    assert.same({}, publisher:publish({ { id = "2", created_at = 1 } }, ""))
    assert.same({ "1", "2" }, support.pluck(entries("outbox"), "id"))
    publisher:close()
    assert.same({}, publisher:publish({ { id = "3", created_at = 1 } }, ""))
  end)

  it("delivers 10,000 messages in order per key, even if the server is killed meanwhile", function()
    local gone = process.fork(function() -- kills the server during a batch or just after it
      local mine = connect()
      repeat
        outbox.clock.sleep(0.001)
      until mine:xlen("outbox:n") >= 4000
      process.kill(instance.pid)
    end)
    local publisher <close> = outbox.publisher(url())
    broker.deliver_many("n", function()
      return publisher
    end, function()
      if gone then
        assert.equal(0, (process.wait(gone)))
        gone = nil
        instance:start()
      end
    end)
    assert.is_nil(gone)
    client = connect()
    local list = {}
    for i, entry in ipairs(entries("outbox:n")) do
      list[i] = { entry.id, entry.key }
    end
    broker.count_doubles(list)
  end)

  it("needs a URL and options that make sense", function()
    local function refused(expected, ...)
      assert.matches(expected, support.raised(outbox.publisher, ...), 1, true)
    end
    for _, wrong in ipairs({ "redis:", "redis:host", "redis://", "redis://user@host",
      "redis://host/x", "redis://host:port", "redis://host?db=1", "redis://a:b:c" }) do
      refused("redis://[user:password@]host[:port][/db] expected", wrong)
    end
    refused("(maxlen must be an integer from 1 to 9223372036854775807; stream must be a string; "
      .. "timeout must be a number of seconds, at least 0.001; unknown option 'streem')",
      "redis://host", { maxlen = 0, stream = 1, timeout = 0, streem = "x" })
  end)

  it("says at once if it has no TLS", function()
    local has_tls = require("outbox.destinations.redis").has_tls
    local made, reason = pcall(outbox.publisher, "rediss://localhost")
    assert.equal(has_tls, made)
    assert.is_true(has_tls or reason:find("rediss: needs hiredis 1.0 or newer", 1, true) ~= nil)
    local path = support.path()
    local file <close> = assert(io.open(path, "w"))
    file:write("-----BEGIN CERTIFICATE-----\n")
    file:close()
    assert.matches("'ca_file' is for TLS, which is off",
      support.raised(outbox.publisher, url(), { ca_file = path }))
  end)

  it("names the rock that it needs", function()
    local output = support.run([[-e '
      package.preload["outbox.destinations.redis"] = function()
        error("module \x27outbox.destinations.redis\x27 not found")
      end
      print(pcall(require("outbox").publisher, "redis://x"))']])
    assert.equal("false\tthe redis publisher needs outbox-redis: "
      .. "luarocks --lua-version 5.4 install outbox-redis\n", output)
  end)
end)
