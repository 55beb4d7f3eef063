local broker = require("spec.support.broker")
local cqueues = require("cqueues")
local outbox = require("outbox")
local process = require("process")
local rabbitmq = require("rabbitmq")
local server = require("spec.support.server")
local support = require("spec.support")

local DEFINITIONS = {
  vhosts = { { name = "/" } },
  users = { { name = "guest", password = "guest", tags = "administrator" } },
  permissions = { { user = "guest", vhost = "/", configure = ".*", write = ".*", read = ".*" } },
  queues = { { name = "outbox", vhost = "/", durable = true, auto_delete = false } },
}

local STOP, CONTINUE = 19, 18 -- signals

describe("the amqp publisher, when something fails,", function()
  local instance, client

  setup(function()
    instance = require("spec.support.rabbitmq").new("heartbeat = 1", DEFINITIONS)
    instance:start()
  end)

  teardown(server.stop)

  before_each(function()
    client = rabbitmq.connect(instance.plain_port)
    client:get("outbox")
  end)

  after_each(function()
    client:close()
    support.remove()
  end)

  local function new(options)
    return outbox.publisher("amqp://127.0.0.1:" .. instance.plain_port, options)
  end

  local function message(id, fields)
    fields = fields or {}
    fields.id, fields.created_at = id, 1
    return fields
  end

  local function ids()
    return support.pluck(client:get("outbox"), "message_id")
  end

  -- The signal has reached every thread when this returns.
  local function freeze()
    process.kill(instance.pid, STOP)
    local going
    repeat
      local threads <close> = assert(io.popen(("cat /proc/%d/task/*/stat"):format(instance.pid)))
      going = threads:read("a"):find("%) [^T]")
    until not going
  end

  it("waits while nobody listens", function()
    local unused = server.port()
    local publisher <close> = outbox.publisher("amqp://127.0.0.1:" .. unused)
    local answer, reason = publisher:publish({ message("1") }, "")
    assert.is_nil(answer)
    -- librabbitmq tells no more where the refusal comes later.
    assert.is_true(reason == ("127.0.0.1:%d: Connection refused"):format(unused)
      or reason == ("127.0.0.1:%d: a socket error occurred"):format(unused), reason)
  end)

  it("gives up on a server that does not let it in", function()
    local publisher <close> = new({ timeout = 0.05 })
    freeze()
    local answer, reason = publisher:publish({ message("1") }, "")
    process.kill(instance.pid, CONTINUE)
    assert.is_nil(answer)
    assert.equal(("127.0.0.1:%d: no answer in time"):format(instance.plain_port), reason)
    local patient <close> = new()
    assert.same({}, patient:publish({ message("2") }, ""))
    assert.same({ "2" }, ids())
  end)

  it("gives up on a server that does not answer, also while it takes no bytes", function()
    local publisher <close> = new()
    for _, payload in ipairs({ "", ("x"):rep(30000000) }) do -- the latter fits into no buffer
      assert.same({}, publisher:publish({ message("1") }, ""))
      publisher.timeout = 0.05
      freeze()
      local answer, reason = publisher:publish({ message("2", { payload = payload }) }, "")
      process.kill(instance.pid, CONTINUE)
      publisher.timeout = 5
      assert.same({ nil, "no answer within 0.05 s" }, { answer, reason })
    end
    assert.same({}, publisher:publish({ message("3") }, ""))
    local got = ids()
    assert.same({ "1", "3" }, { got[1], got[#got] })
  end)

  it("gives up on a server that is short of memory, and says so", function()
    local publisher <close> = new({ timeout = 1 })
    assert.same({}, publisher:publish({ message("1") }, ""))
    instance.control("set_vm_memory_high_watermark 0")
    local failures = publisher:publish({ message("2"), message("3") }, "")
    instance.control("set_vm_memory_high_watermark 0.4")
    -- RabbitMQ takes the first message, and only then stops reading.
    assert.same({ nil, { uncharged = true,
      reason = "no answer within 1 s: connection.blocked: low on memory" } }, failures)
    assert.same({}, publisher:publish({ message("4") }, ""))
    local got = ids()
    assert.same({ "1", "2", "4" }, { got[1], got[2], got[#got] })
  end)

  it("keeps a connection without heartbeats, because nobody could send them", function()
    local publisher <close> = new()
    assert.same({}, publisher:publish({ message("1") }, ""))
    local before = publisher.client
    cqueues.sleep(4) -- the server wants one each second, and would close after three
    assert.same({}, publisher:publish({ message("2") }, ""))
    assert.equal(before, publisher.client)
  end)

  it("connects again if the server has closed the connection", function()
    local publisher <close> = new()
    assert.same({}, publisher:publish({ message("1") }, ""))
    local before = publisher.client
    client:close()
    instance.control("close_all_connections why")
    assert.same({}, publisher:publish({ message("2") }, ""))
    assert.not_equal(before, publisher.client)
    client = rabbitmq.connect(instance.plain_port)
    assert.same({ "1", "2" }, ids())
    publisher:close()
    assert.same({}, publisher:publish({ message("3") }, ""))
  end)

  it("does not take the answers to a call that was cut off for those to the next call", function()
    local publisher <close> = new({ routing_key = "{key}" })
    assert.same({}, publisher:publish({ message("0", { key = "outbox" }) }, ""))
    local loop, ended = cqueues.new(), false
    loop:wrap(function()
      publisher:publish({ message("1", { key = "nowhere" }) }, "")
      ended = true
    end)
    freeze()
    assert(loop:step(0))
    loop:close()
    process.kill(instance.pid, CONTINUE)
    assert.is_false(ended)
    assert.same({}, publisher:publish({ message("1", { key = "outbox" }) }, ""))
    assert.same({ "0", "1" }, ids())
  end)

  it("lets the loop of cqueues or luv go on meanwhile", function()
    local publisher <close> = new()
    assert.same({}, publisher:publish({ message("0") }, "")) -- connecting blocks
    broker.deliver_in_loops(function()
      freeze()
      return publisher:publish({ message("1") }, "")
    end, 20, function(ticks) -- the server goes on only if this loop does
      if ticks == 20 then
        process.kill(instance.pid, CONTINUE)
      end
    end)
    assert.same({ "0", "1", "1" }, ids())
  end)

  it("leaves the loop of cqueues intact if it gives up", function()
    local publisher <close> = new()
    assert.same({}, publisher:publish({ message("1") }, ""))
    local loop, reason, patient = cqueues.new(), nil, nil
    loop:wrap(function()
      publisher.timeout = 0.05
      freeze()
      reason = select(2, publisher:publish({ message("2") }, ""))
      process.kill(instance.pid, CONTINUE)
      publisher.timeout = 5
      patient = publisher:publish({ message("3") }, "")
    end)
    assert(loop:loop())
    assert.equal("no answer within 0.05 s", reason)
    assert.same({}, patient)
  end)

  it("delivers 10,000 messages in order per key, even if the server is killed meanwhile", function()
    local gone = process.fork(function() -- kills the server during a batch or just after it
      local mine = rabbitmq.connect(instance.plain_port)
      while mine:count("outbox") < 4000 do
        outbox.clock.sleep(0.001)
      end
      process.kill(instance.pid)
    end)
    local publisher <close> = new()
    broker.deliver_many("", function()
      return publisher
    end, function()
      if gone then
        assert.equal(0, (process.wait(gone)))
        gone = nil
        instance:start()
      end
    end)
    assert.is_nil(gone)
    client:close()
    client = rabbitmq.connect(instance.plain_port)
    local list = {}
    for i, got in ipairs(client:get("outbox")) do
      list[i] = { got.message_id, got.headers.key }
    end
    local doubles = broker.count_doubles(list)
    assert.is_true(doubles <= 200, doubles) -- those of one batch
  end)
end)
