local broker = require("spec.support.broker")
-- The NATS publisher while its server is away, slow or gone.

local cqueues = require("cqueues")
local nats = require("spec.support.nats")
local outbox = require("outbox")
local process = require("process")
local server = require("spec.support.server")
local support = require("spec.support")
local uv = require("luv")

describe("the nats publisher", function()
  local instance, client

  setup(function()
    instance = nats.new()
    instance:start()
  end)

  teardown(server.stop)

  before_each(function()
    client = nats.connect(instance.port)
    client:stream("ALL", "outbox.>")
  end)

  after_each(function()
    client:delete("ALL")
    client:close()
    support.remove()
  end)

  local function url(port)
    return "nats://127.0.0.1:" .. (port or instance.port)
  end

  local function message(id, key)
    return { id = id, key = key, created_at = 1 }
  end

  local function ids(stream)
    local list = {}
    for i, entry in ipairs(client:messages(stream)) do
      list[i] = entry.headers["Nats-Msg-Id"]
    end
    return list
  end

  it("waits while nobody listens", function()
    local unused = server.port()
    local publisher <close> = outbox.publisher(url(unused))
    assert.same({ nil, ("127.0.0.1:%d: No server available for connection"):format(unused) },
      { publisher:publish({ message("1") }, "n") })
  end)

  it("takes the first of its hosts that answers", function()
    local hosts = ("127.0.0.1:%d,127.0.0.1:%d"):format(server.port(), instance.port)
    local publisher <close> = outbox.publisher("nats://" .. hosts)
    assert.same({}, publisher:publish({ message("1") }, "n"))
    assert.same({ "1" }, ids("ALL"))
  end)

  it("takes the next host if one does not answer in time", function()
    local other = nats.new()
    other:start()
    nats.pause(other)
    finally(function()
      nats.continue(other)
    end)
    local hosts = ("127.0.0.1:%d,127.0.0.1:%d"):format(other.port, instance.port)
    local publisher <close> = outbox.publisher("nats://" .. hosts, { timeout = 0.5 })
    assert.same({}, publisher:publish({ message("1") }, "n"))
  end)

  it("gives up on a server that does not answer, and closes the connection", function()
    local publisher <close> = outbox.publisher(url(), { timeout = 0.5 })
    assert.same({}, publisher:publish({ message("1") }, "n"))
    nats.pause(instance)
    local answer, reason = publisher:publish({ message("2") }, "n")
    local unconnected <close> = outbox.publisher(url(), { timeout = 0.05 })
    local unheard, why = unconnected:publish({ message("2") }, "n")
    nats.continue(instance)
    assert.same({ nil, "no answer within 0.5 s" }, { answer, reason })
    assert.is_nil(unheard)
    assert.is_true((why:find("Timeout$") or why:find("no answer within 0.05 s$")) ~= nil, why)
    local patient <close> = outbox.publisher(url())
    assert.same({}, patient:publish({ message("3") }, "n"))
  end)

  it("gives up on a large batch that a server does not read, and drops it", function()
    local publisher <close> = outbox.publisher(url(), { timeout = 0.5 })
    assert.same({}, publisher:publish({ message("1") }, "n"))
    nats.pause(instance)
    local list = {}
    for i = 1, 30 do
      list[i] = message("large " .. i)
      list[i].payload = ("x"):rep(1000000)
    end
    local answer, reason = publisher:publish(list, "n")
    nats.continue(instance)
    assert.is_nil(answer)
    assert.matches("no answer within 0.5 s", reason, 1, true)
    local patient <close> = outbox.publisher(url())
    assert.same({}, patient:publish({ message("last") }, "n"))
    assert.is_true(client:state("ALL").messages < 30)
  end)

  it("connects again if the server was restarted", function()
    local publisher <close> = outbox.publisher(url())
    assert.same({}, publisher:publish({ message("1") }, "n"))
    instance:kill()
    local _, reason = publisher:publish({ message("2") }, "n")
    assert.matches("No server available", reason, 1, true)
    instance:start()
    client = nats.connect(instance.port)
    assert.same({}, publisher:publish({ message("2") }, "n"))
    publisher:close()
    assert.same({}, publisher:publish({ message("3") }, "n"))
    assert.same({ "1", "2", "3" }, ids("ALL"))
  end)

  it("delivers 10,000 messages in order per key, even if the server is killed meanwhile", function()
    local gone = process.fork(function() -- kills the server during a batch or just after it
      local mine = nats.connect(instance.port)
      repeat
        outbox.clock.sleep(0.001)
      until mine:state("ALL").messages >= 4000
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
    client = nats.connect(instance.port)
    local list = {}
    for i, entry in ipairs(client:messages("ALL")) do
      list[i] = { entry.headers.id, entry.headers.key }
    end
    assert.equal(0, broker.count_doubles(list)) -- by Nats-Msg-Id
  end)

  it("connects again if the server has closed the connection", function()
    local impatient = nats.new('ping_interval: "100ms", ping_max: 1')
    impatient:start()
    nats.connect(impatient.port):stream("ALL", "outbox.>")
    local publisher <close> = outbox.publisher(url(impatient.port))
    assert.same({}, publisher:publish({ message("1") }, "n"))
    local established = (" 0100007F:%04X 01 "):format(impatient.port)
    repeat -- nobody answers the server's PING
      outbox.clock.sleep(0.005)
      local file <close> = assert(io.open("/proc/net/tcp"))
    until not file:read("a"):find(established, 1, true)
    assert.same({}, publisher:publish({ message("2") }, "n"))
  end)

  -- Publishes while the server stands still until the other part of the loop has gone on.
  local function deliver(publisher, state)
    state.ticks, state.answer = 0, nil
    nats.pause(instance)
    local answer, reason = publisher:publish({ message("1") }, "n")
    state.answer = answer or reason
  end

  local function tick(state)
    state.ticks = state.ticks + 1
    if state.ticks == 3 then
      nats.continue(instance)
    end
    return state.answer == nil
  end

  it("lets the loop of cqueues go on while it connects and waits for answers", function()
    local publisher <close> = outbox.publisher(url())
    for _ = 1, 2 do -- the second time it is connected
      local loop, state = cqueues.new(), {}
      loop:wrap(deliver, publisher, state)
      loop:wrap(function()
        repeat
          cqueues.sleep(0.001)
        until not tick(state)
      end)
      assert(loop:loop())
      assert.same({}, state.answer)
      assert.is_true(state.ticks >= 3)
    end
  end)

  it("lets the loop of luv go on while it connects and waits for answers", function()
    local publisher <close> = outbox.publisher(url())
    for _ = 1, 2 do
      local state, timer = {}, uv.new_timer()
      uv.new_timer():start(0, 0, coroutine.wrap(function()
        deliver(publisher, state)
      end))
      timer:start(1, 1, function()
        if not tick(state) then
          timer:close()
        end
      end)
      uv.run()
      assert.same({}, state.answer)
      assert.is_true(state.ticks >= 3)
    end
  end)

  it("does not take the answers to a call that was cut off for those to the next call", function()
    client:stream("SMALL", "small.>", { max_msg_size = 1 })
    local publisher <close> = outbox.publisher(url(), { subject = "{key}" })
    local loop, answer = cqueues.new(), nil
    loop:wrap(function()
      for _ = 1, 2 do -- while it connects, and while it waits
        local first = coroutine.create(publisher.publish)
        assert(coroutine.resume(first, publisher, { message("1", "small.x") }, "n"))
        coroutine.close(first)
        answer = publisher:publish({ message("2", "outbox.x") }, "n")
        assert.same({}, answer)
      end
    end)
    assert(loop:loop())
    client:delete("SMALL")
    assert.same({}, answer)
    assert.same({ "2" }, ids("ALL"))
  end)
end)
