local broker = require("spec.support.broker")
local cqueues = require("cqueues")
local mosquitto = require("spec.support.mosquitto")
local outbox = require("outbox")
local process = require("process")
local server = require("spec.support.server")
local socket = require("socket")
local support = require("spec.support")

local STOP, CONTINUE = 19, 18

describe("the mqtt publisher's connection", function()
  local port, instance, reader

  setup(function()
    port = server.port()
    instance = mosquitto.broker(port)
    instance:start()
    reader = mosquitto.reader(port)
  end)

  teardown(function()
    reader:close()
    server.stop()
  end)

  before_each(function()
    reader:all()
  end)

  local function url()
    return "mqtt://127.0.0.1:" .. port
  end

  local function message(id, key)
    return { id = id, key = key, created_at = 1 }
  end

  local function arrived()
    return support.pluck(support.pluck(reader:all(), "user"), "id")
  end

  it("waits while nobody listens", function()
    local unused = server.port()
    local publisher <close> = outbox.publisher("mqtt://127.0.0.1:" .. unused)
    assert.same({ nil, ("127.0.0.1:%d: Connection refused"):format(unused) },
      { publisher:publish({ message("1") }, "") })
    local nowhere <close> = outbox.publisher("mqtt://no.such.host.invalid")
    local answer, reason = nowhere:publish({ message("1") }, "")
    assert.is_nil(answer)
    assert.matches("^no.such.host.invalid: .*[Nn]ame", reason)
  end)

  it("gives up on a broker that does not answer", function()
    local publisher <close> = outbox.publisher(url(), { timeout = 0.2 })
    local connected <close> = outbox.publisher(url(), { timeout = 0.2 })
    assert.same({}, connected:publish({ message("1") }, ""))
    process.kill(instance.pid, STOP)
    local answers = { publisher:publish({ message("2") }, "") }
    local others = { connected:publish({ message("3") }, "") }
    process.kill(instance.pid, CONTINUE)
    local reason = ("127.0.0.1:%d: no answer within 0.2 s"):format(port)
    assert.same({ nil, reason }, answers)
    assert.same({ nil, "no answer within 0.2 s" }, others)
    assert.same({}, publisher:publish({ message("4") }, ""))
    assert.same({}, connected:publish({ message("5") }, ""))
    local ids = arrived() -- 3 may have arrived before its connection was closed
    assert.same({ "4", "5" }, { ids[#ids - 1], ids[#ids] })
  end)

  it("does not give up on a large message while bytes are being sent", function()
    local listener = assert(socket.bind("127.0.0.1", 0))
    local _, slow = listener:getsockname()
    local pid = process.fork(function()
      local connection = listener:accept()
      connection:setoption("recv-buffer-size", 65536)
      connection:receive(2 + connection:receive(2):byte(2) - 2)
      connection:send("\x20\x03\0\0\0")
      for _ = 1, 16 do
        connection:receive(1000000)
        outbox.clock.sleep(0.1)
      end
      connection:send("\x40\x02\0\1")
      connection:receive("*a")
    end)
    listener:close()
    local publisher = outbox.publisher("mqtt://127.0.0.1:" .. slow, { timeout = 1 })
    local failures, reason = publisher:publish({ { id = "1", created_at = 1,
      payload = ("x"):rep(16000000) } }, "")
    publisher:close()
    assert.equal(0, (process.wait(pid)))
    assert.same({}, failures, reason)
  end)

  it("is made again if the broker has closed it", function()
    local publisher <close> = outbox.publisher(url(), { client_id = "mine" })
    assert.same({}, publisher:publish({ message("1") }, ""))
    assert.is_true(mosquitto.publish(port, "-i mine -t other -n")) -- takes the session over
    assert.same({}, publisher:publish({ message("2") }, ""))
    publisher:close()
    assert.same({}, publisher:publish({ message("3") }, ""))
    assert.same({ "outbox", "other", "outbox", "outbox" }, support.pluck(reader:all(), "topic"))
    instance:kill()
    local answer, reason = publisher:publish({ message("4") }, "")
    assert.same({ nil, ("127.0.0.1:%d: Connection refused"):format(port) }, { answer, reason })
    instance:start()
    reader:all()
    assert.same({}, publisher:publish({ message("5") }, ""))
    assert.same({ "5" }, arrived())
  end)

  it("leaves no descriptor behind, whatever became of it", function()
    local function descriptors()
      collectgarbage()
      local list <close> = assert(io.popen(("ls /proc/%d/fd | wc -l"):format(process.pid())))
      return list:read("n")
    end
    local function try(target, options)
      local publisher <close> = outbox.publisher(target, options)
      publisher:publish({ message("1") }, "")
    end
    local before
    for round = 1, 4 do
      try(url())
      before = round == 1 and descriptors() or before -- what the library keeps is there by now
      try("mqtt://127.0.0.1:" .. server.port())
      try("mqtts://127.0.0.1:" .. port, { timeout = 0.05 })
      process.kill(instance.pid, STOP)
      try(url(), { timeout = 0.05 })
      process.kill(instance.pid, CONTINUE)
    end
    assert.equal(before, descriptors())
  end)

  it("lets the loop of cqueues or luv go on meanwhile", function()
    local publisher <close> = outbox.publisher(url())
    broker.deliver_in_loops(function()
      process.kill(instance.pid, STOP)
      return publisher:publish({ message("1") }, "")
    end, 5, function(ticks) -- the broker answers after some ticks, and not before
      if ticks == 5 then
        process.kill(instance.pid, CONTINUE)
      end
    end)
    assert.same({ "1", "1" }, arrived())
  end)

  it("does not take the answers to a call that was cut off for those to the next call", function()
    local publisher <close> = outbox.publisher(url(), { topic = "{key}" })
    assert.same({}, publisher:publish({ message("0", "x") }, ""))
    local loop, answer = cqueues.new(), nil
    loop:wrap(function()
      answer = publisher:publish({ message("1", "x"), message("2", "x") }, "")
    end)
    process.kill(instance.pid, STOP)
    assert(loop:step(0)) -- and never again
    process.kill(instance.pid, CONTINUE)
    local failures = publisher:publish({ message("3", "y"), message("4", "y+") }, "")
    assert.same({ nil, true }, { failures[1], failures[2].permanent })
    assert.is_nil(answer)
    local ids = arrived() -- 1 and 2 may have arrived before their connection was closed
    assert.same({ "0", "3" }, { ids[1], ids[#ids] })
  end)

  it("loses nothing and keeps the order per key if the broker is killed meanwhile", function()
    -- The broker forgets who has subscribed. Until the reader is back, messages have to wait.
    local publisher <close> = outbox.publisher(url(), { mandatory = true })
    local killed, restarted = false, false
    broker.deliver_many("n", function(delivered)
      return function(messages, namespace)
        if not killed and delivered() >= 4000 then
          killed = process.fork(function() -- during the call or just after it
            process.kill(instance.pid)
          end)
        end
        return publisher:publish(messages, namespace)
      end
    end, function()
      if killed and not restarted then
        restarted = true
        process.wait(killed)
        instance:start()
      end
    end)
    assert.is_true(restarted)
    local list = {}
    for i, each in ipairs(reader:all()) do
      list[i] = { each.user.id, each.user.key }
    end
    local doubles = broker.count_doubles(list)
    assert.is_true(doubles <= 200, doubles)
  end)
end)
