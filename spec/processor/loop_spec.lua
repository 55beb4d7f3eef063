-- How a processor runs, steps, sleeps and stops.

local outbox = require("outbox")
local shared = require("spec.processor.support")
local support = require("spec.support")
local testing = require("outbox.testing")

local sqlite_it = support.only("sqlite", it)

describe("a processor", function()
  local store, path, clock, publisher, errors

  before_each(function()
    clock = testing.clock()
    store, path = support.store({ clock = clock, id_generator = testing.ids() })
    publisher, errors = testing.publisher(), {}
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function processor(options)
    return shared.processor(store, publisher, options, errors)
  end

  local function publish(...)
    for _, id in ipairs({ ... }) do
      store:publish({ id = id, key = "key of " .. id })
    end
  end

  local function fill(count)
    shared.fill(store, count)
  end

  local function delivered()
    return support.pluck(publisher.messages, "id")
  end

  describe("that runs", function()
    it("processes waiting entries before it sleeps", function()
      publish("a")
      local p
      p = processor({ on_delivered = function()
        p:stop()
      end })
      p:run()
      assert.equal(1000, clock.now())
      assert.same({ "a" }, delivered())
    end)

    it("stops in the publisher after the batch in hand, and gives the claim back", function()
      fill(60)
      local p
      p = processor({ publisher = function(messages)
        publisher:publish(messages, "")
        p:stop()
      end })
      p:run()
      assert.equal(20, #publisher.messages)
      assert.outbox(store).has_entries(40)
      assert.same({}, store:stats().leases)
      assert.outbox(store).has_no_entry({ attempts = 1 })
      local second = processor()
      assert.equal(40, second:pump())
      publish("again")
      p:run() -- until the publisher stops it again
      assert.outbox(store).is_empty()
    end)

    it("stops when another coroutine says so", function()
      local p
      clock.sleep = function(seconds)
        clock.advance(seconds)
        coroutine.yield()
      end
      p = processor()
      local run = coroutine.create(p.run)
      for _ = 1, 3 do
        assert.is_true(coroutine.resume(run, p))
      end
      p:stop()
      assert.is_true(coroutine.resume(run, p))
      assert.equal("dead", coroutine.status(run))
    end)

    it("sleeps until the next entry falls due, and no longer than the interval", function()
      local naps = {}
      store:publish({ id = "soon", deliver_at = 1003 })
      local p
      clock.sleep = function(seconds)
        naps[#naps + 1] = seconds
        clock.advance(seconds)
        if #naps == 4 then
          p:stop()
        end
      end
      p = processor({ publisher = publisher })
      p:run()
      assert.is_true(math.abs(naps[1] - 3) < 0.001)
      assert.is_true(naps[2] <= 1) -- then it gives its claim back
      assert.is_true(naps[3] > 7 and naps[3] <= 10)
      assert.is_true(naps[4] > 7 and naps[4] <= 10 and naps[3] ~= naps[4]) -- not in step
      assert.same({ "soon" }, delivered())
    end)

    it("survives a database that is busy, reports it and backs off", function()
      publish("a")
      local other <close> = outbox.open(path, { busy_timeout = 0, clock = clock })
      local p, naps = nil, 0
      p = processor({ store = other, on_delivered = function()
        p:stop()
      end })
      local txn = coroutine.wrap(function()
        store:transaction(support.keep_busy)
      end)
      txn()
      clock.sleep = function(seconds)
        clock.advance(seconds)
        naps = naps + 1
        if naps == 5 then
          txn()
        end
      end
      p.sleep = clock.sleep
      p:run()
      assert.equal("busy", errors[1].code)
      assert.equal(5, naps)
      assert.same({ "a" }, delivered())
    end)

    it("tries a deletion that fails again, before it delivers anything else", function()
      publish("a", "b")
      local other <close> = outbox.open(path, { busy_timeout = 0, clock = clock })
      local p
      local txn
      p = processor({ store = other, batch_size = 1, publisher = function(messages)
        publisher:publish(messages, "")
        if messages[1].id == "a" then
          txn = coroutine.wrap(function()
            store:transaction(support.keep_busy)
          end)
          txn()
        else
          p:stop()
        end
      end })
      p.sleep = function(seconds)
        clock.advance(seconds)
        if txn and #errors == 3 then
          txn()
          txn = nil
        end
      end
      p:run()
      assert.same({ "a", "b" }, delivered())
      assert.outbox(store).is_empty()
    end)

    it("gives up a deletion that fails while it stops, and says so", function()
      publish("a")
      local other <close> = outbox.open(path, { busy_timeout = 0, clock = clock })
      local p, txn
      p = processor({ store = other, publisher = function()
        txn = coroutine.wrap(function()
          store:transaction(support.keep_busy)
        end)
        txn()
        p:stop()
      end })
      p:run()
      txn()
      assert.equal("lost", errors[#errors].code)
      assert.outbox(store).has_entry({ id = "a" })
    end)

    it("does not give it up because it is stepped too often", function()
      publish("a")
      local other <close> = outbox.open(path, { busy_timeout = 0, clock = clock })
      local p, txn
      p = processor({ store = other, publisher = function()
        txn = coroutine.wrap(function()
          store:transaction(support.keep_busy)
        end)
        txn()
        p:stop()
      end })
      p:step()
      for _ = 1, 100 do
        assert.is_true(p:step() > 0)
      end
      txn()
      clock.advance(5)
      assert.is_nil(p:step())
      assert.outbox(store).is_empty()
    end)

    it("raises errors that do not come from the database, such as that of Ctrl-C", function()
      local p = processor()
      clock.sleep = function()
        error("interrupted!")
      end
      p.sleep = clock.sleep
      assert.matches("interrupted!", support.raised(p.run, p))
      p.sleep = clock.advance
      clock.now = function()
        error("no time")
      end
      assert.matches("no time", support.raised(p.run, p))
    end)

    it("raises when its store is closed", function()
      local p = processor({ publisher = function()
        store:close()
      end })
      publish("a")
      assert.equal("closed", support.raised(p.run, p).code)
    end)
  end)

  it("delivers entries that fall due while there is always something else to do", function()
    store:publish({ id = "scheduled", deliver_at = 1001 }, { id = "retried", key = "k" })
    publisher:fail("retried", "no", 1)
    local p = processor({ publisher = function(messages)
      clock.advance(0.1)
      store:publish({})
      return publisher:publish(messages)
    end })
    repeat
      p:step()
      assert.is_true(clock.now() < 1010, "it starves")
      local ids = " " .. table.concat(delivered(), " ") .. " "
    until ids:find(" scheduled ", 1, true) and ids:find(" retried ", 1, true)
  end)

  sqlite_it("does nothing, and writes nothing, when there is nothing", function()
    local watcher <close> = outbox.open(path)
    local function version()
      return support.sql(watcher, "PRAGMA data_version")[1].data_version
    end
    publish("a")
    local p = processor()
    p:pump()
    local before = version()
    for _ = 1, 5 do
      clock.advance(10)
      p:step()
    end
    assert.equal(before, version())
  end)

  it("that steps does at most one batch, and says when to call it again", function()
    fill(30)
    local p = processor()
    assert.equal(0, p:step())
    assert.equal(20, #publisher.messages)
    p:step()
    assert.equal(30, #publisher.messages)
    local seconds = p:step()
    while seconds <= 7 do -- its own commit may have hidden another; then it gives its claim back
      clock.advance(seconds)
      seconds = p:step()
    end
    assert.is_true(p:timeout() > 7)
    assert.equal("r", p:events())
    assert.equal(store:pollfd(), p:pollfd())
    p:wake()
    assert.equal(0, p:timeout())
    p:step()
    p:stop()
    assert.is_nil(p:step())
  end)

  it("that stands by ignores commits for a moment, but not `wake`", function()
    local other <close> = outbox.open(path, { clock = clock })
    publish("a")
    other:claim_entries("other", clock.now() + 60)
    local p = processor()
    local seconds = p:step()
    assert.is_true(seconds > 0 and seconds <= 0.01)
    other:publish({ id = "b" })
    assert.is_true(p:step() > 0)
    p:wake()
    assert.equal(0, p:timeout())
    other:release_claim("other")
    p:step()
    assert.same({ "a", "b" }, delivered())
  end)

  it("that backs off from a database that fails is not hurried by `wake`", function()
    local other <close> = outbox.open(path, { busy_timeout = 0, clock = clock })
    local p = processor({ store = other })
    publish("a")
    local txn = coroutine.wrap(function()
      store:transaction(support.keep_busy)
    end)
    txn()
    local seconds
    repeat
      seconds = p:step()
    until seconds > 0
    txn()
    p:wake()
    assert.equal(seconds, p:timeout())
    assert.equal(seconds, p:step())
    assert.same({}, delivered())
    clock.advance(seconds)
    p:step()
    assert.same({ "a" }, delivered())
  end)

  it("that steps misses no message that comes after its very first step", function()
    local p = processor()
    local seconds = p:step()
    local other <close> = outbox.open(path, { clock = clock })
    other:publish({ key = "a" })
    local descriptor = { pollfd = p:pollfd(), events = "r" }
    local ready = require("cqueues").poll(descriptor, math.min(seconds, 10))
    assert.is_true(ready == descriptor or support.engine == "postgres") -- or it looks again soon
    p:step()
    assert.equal("a", publisher.messages[1].key)
  end)
end)
