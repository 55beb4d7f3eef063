local broker = require("spec.support.broker")
-- What the kafka publisher does when the cluster is gone, is slow, or comes back.

local cqueues = require("cqueues")
local kafka = require("spec.support.kafka")
local outbox = require("outbox")
local process = require("process")
local server = require("spec.support.server")
local support = require("spec.support")

local PRODUCE, HANG_UP = 0, -195

describe("the kafka publisher", function()
  local cluster

  before_each(function()
    cluster = kafka.start()
    cluster:tell("topic outbox.event 1")
  end)

  after_each(function()
    cluster:close()
    support.remove()
  end)

  local function new(options)
    return outbox.publisher("kafka://" .. cluster.servers, options)
  end

  local function message(id)
    return { id = id, key = "k", created_at = 1 }
  end

  local function ids(topic)
    local list = {}
    for i, record in ipairs(cluster:read(topic or "outbox.event")) do
      list[i] = record.headers.id
    end
    return list
  end

  it("waits while nobody listens, or the host has no address", function()
    local function reason_for(host)
      local publisher <close> = outbox.publisher("kafka://" .. host, { timeout = 0.2 })
      local failures = publisher:publish({ message("1") }, "")
      assert.is_true(failures[1].uncharged)
      return failures[1].reason
    end
    assert.matches("Connection refused", reason_for("127.0.0.1:" .. server.port()), 1, true)
    assert.matches("Failed to resolve", reason_for("host.invalid"), 1, true)
  end)

  it("finds the cluster through any of several hosts", function()
    local publisher <close> = outbox.publisher(("kafka://127.0.0.1:%d,127.0.0.1:%d")
      :format(server.port(), cluster.port))
    assert.same({}, publisher:publish({ message("1") }, ""))
    assert.same({ "1" }, ids())
  end)

  it("gives up on a cluster that does not answer, and leaves nothing behind", function()
    local publisher <close> = new({ timeout = 2 })
    assert.same({}, publisher:publish({ message("1") }, ""))
    process.kill(cluster.pid, 19) -- SIGSTOP
    local failures = publisher:publish({ message("2") }, "")
    process.kill(cluster.pid, 18) -- SIGCONT
    assert.is_true(failures[1].uncharged)
    assert.matches("^Local: Message timed out", failures[1].reason)
    local longer <close> = new()
    assert.same({}, longer:publish({ message("3") }, ""))
    local found = table.concat(ids(), " ") -- the cluster may have read the second one all the same
    assert.is_true(found == "1 3" or found == "1 2 3", found)
  end)

  it("closes a producer that does not report in time", function()
    local publisher <close> = new({ timeout = 100 })
    publisher.timeout = 0.05
    process.kill(cluster.pid, 19)
    local failures, reason = publisher:publish({ message("1") }, "")
    process.kill(cluster.pid, 18)
    assert.is_nil(failures)
    assert.equal("no answer within 0.05 s", reason)
    publisher.timeout = 100
    assert.same({}, publisher:publish({ message("2") }, ""))
    assert.same({ "2" }, ids())
  end)

  it("delivers again once the cluster is back", function()
    local publisher <close> = new({ timeout = 2 })
    assert.same({}, publisher:publish({ message("1") }, ""))
    cluster:tell("down")
    local failures = publisher:publish({ message("2") }, "")
    assert.is_true(failures[1].uncharged)
    assert.matches("Connection refused", failures[1].reason, 1, true)
    cluster:tell("up")
    local deadline = outbox.clock.now() + 30
    repeat
      failures = publisher:publish({ message("3") }, "")
      assert.is_true(outbox.clock.now() < deadline, "it is still down")
    until failures[1] == nil
    assert.same({ "1", "3" }, ids())
  end)

  it("does not notice that the cluster has closed an idle connection", function()
    local publisher <close> = new()
    assert.same({}, publisher:publish({ message("1") }, ""))
    cluster:tell("down")
    cluster:tell("up")
    assert.same({}, publisher:publish({ message("2") }, ""))
    cluster:tell("fail %d 1 %d", PRODUCE, HANG_UP)
    assert.same({}, publisher:publish({ message("3") }, ""))
    publisher:close()
    assert.same({}, publisher:publish({ message("4") }, ""))
    assert.same({ "1", "2", "3", "4" }, ids())
  end)

  it("does not take the reports to a call that was cut off for those to the next call", function()
    local publisher <close> = new()
    local loop, answer = cqueues.new(), nil
    loop:wrap(function()
      local first = coroutine.create(publisher.publish)
      local refused = message("1")
      refused.payload = ("x"):rep(2000000)
      cluster:tell("delay 200")
      assert(coroutine.resume(first, publisher, { message("1"), refused }, ""))
      coroutine.close(first)
      cluster:tell("delay 0")
      answer = publisher:publish({ message("2"), message("3") }, "")
    end)
    assert(loop:loop())
    assert.same({}, answer)
    local found = table.concat(ids(), " ")
    assert.is_true(found == "2 3" or found == "1 2 3", found)
  end)

  it("makes a producer of its own in a process that was forked", function()
    local publisher <close> = new()
    assert.same({}, publisher:publish({ message("1") }, ""))
    assert.equal(0, (process.wait(process.fork(function()
      local failures = publisher:publish({ message("2") }, "")
      assert(failures == nil) -- the producer of the parent
      assert(next(publisher:publish({ message("3") }, "")) == nil)
      publisher:close()
    end))))
    assert.same({}, publisher:publish({ message("4") }, ""))
    assert.same({ "1", "3", "4" }, ids())
  end)

  it("leaves no descriptor and no thread behind", function()
    local function count(folder)
      local command = ("ls /proc/%d/%s | wc -l"):format(process.pid(), folder)
      local pipe <close> = assert(io.popen(command))
      return pipe:read("n")
    end
    local function use()
      local publisher <close> = new()
      assert.same({}, publisher:publish({ message("1") }, ""))
      local nobody = "kafka://127.0.0.1:" .. server.port()
      local gone <close> = outbox.publisher(nobody, { timeout = 0.1 })
      gone:publish({ message("1") }, "")
      assert(not pcall(new, { config = { a = 1 } }))
      assert(not pcall(new, { config = { acks = 1 } }))
    end
    use()
    local descriptors, threads = count("fd"), count("task")
    for _ = 1, 3 do
      use()
    end
    assert.same({ descriptors, threads }, { count("fd"), count("task") })
  end)

  it("writes nothing to standard error, whatever happens", function()
    local output = support.run(([[-e '
      local outbox = require("outbox")
      local message = { { id = "1", created_at = 1, payload = ("x"):rep(2000000) },
        { id = "2", created_at = 1 } }
      for _, servers in ipairs({ "127.0.0.1:%d", "host.invalid", "%s" }) do
        for _, tls in ipairs({ true, false }) do
          local publisher <close> = outbox.publisher("kafka://a:b@" .. servers,
            { timeout = 0.1, tls = tls, config = { log_level = 7, debug = "all" } })
          publisher:publish(message, "")
        end
      end']]):format(server.port(), cluster.servers))
    assert.equal("", output)
  end)

  it("lets the loop of cqueues or luv go on meanwhile", function()
    local publisher <close> = new()
    cluster:tell("delay 100")
    broker.deliver_in_loops(function()
      return publisher:publish({ message("1") }, "")
    end, 2)
    cluster:tell("delay 0")
    assert.same({ "1", "1" }, ids())
  end)

  -- The mock brokers keep nothing when they are killed. So they hang up, in the middle of
  -- requests, and refuse connections for longer than the timeout.
  it("delivers 10,000 messages in order per key, even if the cluster is down meanwhile", function()
    cluster:close()
    cluster = kafka.start(4) -- mock brokers are slow with two requests at a time: Nagle
    cluster:tell("topic outbox.event.n 4")
    local publisher <close> = new({ timeout = 2 })
    local errors, delivered, state = 0, 0, "up"
    broker.deliver_many("n", function()
      return publisher
    end, function()
      errors = errors + 1
      if state == "down" then
        cluster:tell("up")
        state = "up again"
      end
    end, function(batch)
      delivered = delivered + batch.delivered
      if delivered >= 4000 and state == "up" then
        cluster:tell("fail %d 3 %d", PRODUCE, HANG_UP) -- what was written may be lost or not
        state = "shaken"
      elseif delivered >= 5000 and state == "shaken" then
        cluster:tell("down")
        state = "down"
      end
    end)
    assert.equal("up again", state)
    assert.is_true(errors > 0)
    local list = {}
    for i, record in ipairs(cluster:read("outbox.event.n")) do
      list[i] = { record.headers.id, record.key }
    end
    local double = broker.count_doubles(list) -- mock brokers do not know what they get twice
    assert.is_true(double <= 400, double)
  end)
end)
