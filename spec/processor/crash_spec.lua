-- Processors that die, hang or are slow, each in a process of its own; and clocks that jump.

local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")
local testing = require("outbox.testing")

local sqlite_it = support.only("sqlite", it)

describe("a processor", function()
  local path, log

  before_each(function()
    local store
    store, path = support.store({ synchronous = "off" })
    store:close()
    log = support.path()
  end)

  after_each(support.remove)

  local function publish(...)
    local store <close> = outbox.open(path)
    for _, id in ipairs({ ... }) do
      store:publish({ id = id, key = id })
    end
  end

  local function note(id)
    local file <close> = assert(io.open(log, "a"))
    file:write(id, "\n")
  end

  -- How often each id was delivered.
  local function noted()
    local counts = {}
    for id in assert(io.open(log)):read("a"):gmatch("(.-)\n") do
      counts[id] = (counts[id] or 0) + 1
    end
    return counts
  end

  -- Works in a child until nothing is left; returns how the child ended.
  local function work(options, publisher)
    local pid = process.fork(function()
      local store <close> = outbox.open(path, { synchronous = "normal" })
      local p
      options.store, options.on_error = store, function() end
      options.publisher = publisher
      options.on_batch = function()
        local stats = store:stats()
        if stats.ready + stats.delayed == 0 then
          p:stop()
        end
      end
      p = outbox.processor(options)
      p:run()
    end)
    return (process.wait(pid))
  end

  -- It knows which entries are in one batch. For PostgreSQL see promises/postgres_kill_spec.lua.
  sqlite_it("killed in its publisher is replaced at the deadline; nothing is lost", function()
    local ids = {}
    for i = 1, 50 do
      ids[i] = tostring(i)
    end
    publish(table.unpack(ids))
    assert.equal(-9, work({ batch_size = 10, claim_duration = 0.3 }, function(messages)
      for i, message in ipairs(messages) do
        note(message.id)
        if message.id == "25" then
          assert(i == 5)
          process.kill(process.pid())
        end
      end
    end))
    local last = 0
    assert.equal(0, work({ batch_size = 10, claim_duration = 0.3 }, function(messages)
      for _, message in ipairs(messages) do
        assert(tonumber(message.id) == last + 1 or last == 0)
        last = tonumber(message.id)
        note(message.id)
      end
    end))
    local counts = noted()
    for i = 1, 50 do -- only the batch in hand came twice
      assert.equal(i >= 21 and i <= 25 and 2 or 1, counts[tostring(i)], i)
    end
  end)

  it("killed by a message again and again buries it, and delivers the others", function()
    publish("a", "b", "killer", "c", "d")
    local deaths = 0
    repeat
      local status = work({ claim_duration = 0.05, retry = { max_attempts = 3 } },
        function(messages)
          for _, message in ipairs(messages) do
            if message.id == "killer" then
              process.kill(process.pid())
            end
            note(message.id)
          end
        end)
      deaths = deaths + (status == -9 and 1 or 0)
    until status ~= -9
    local store <close> = outbox.open(path)
    assert.equal(3, deaths)
    assert.outbox(store).has_dead_entry({ id = "killer", attempts = 3, last_error = outbox.LAPSED })
    assert.outbox(store).has_entries(0)
    local counts = noted()
    assert.same({ c = 1, d = 1 }, { c = counts.c, d = counts.d })
    -- Requeued, it is given all its attempts again.
    store:requeue_entries("killer")
    local p = outbox.processor({ store = store, retry = { max_attempts = 1 }, publisher = function()
    end })
    assert.equal(1, (p:pump()))
    assert.outbox(store).has_entries(0)
  end)

  it("started again with the same id charges the entry it died with, at once", function()
    publish("killer", "other")
    local deaths = 0
    repeat
      local status = work({ processor_id = "worker", claim_duration = 3600, batch_size = 1,
        retry = { max_attempts = 2 } }, function(messages)
          if messages[1].id == "killer" then
            process.kill(process.pid())
          end
          note(messages[1].id)
        end)
      deaths = deaths + (status == -9 and 1 or 0)
    until status ~= -9
    assert.equal(2, deaths)
    assert.same({ other = 1 }, noted())
  end)

  it("keeps its claim while its publisher blocks for longer", function()
    publish("a", "b", "c")
    local claimed, go = process.gate(), process.gate()
    local slow = process.fork(function()
      local store <close> = outbox.open(path)
      local p
      p = outbox.processor({ store = store, processor_id = "first", claim_duration = 0.5,
        publisher = function(messages)
          claimed:open()
          go:wait()
          for _, message in ipairs(messages) do
            note(message.id)
          end
          p:stop()
        end })
      p:run()
    end)
    claimed:wait()
    local store <close> = outbox.open(path)
    local p = outbox.processor({ store = store, publisher = function()
      note("twice")
    end })
    local function deadline_of_first()
      for _, lease in ipairs(store:stats().leases) do
        if lease.processor_id == "first" then
          return lease.deadline
        end
      end
    end
    local first = deadline_of_first()
    local start = outbox.clock.now()
    repeat
      p:pump()
      local deadline = deadline_of_first()
      assert.is_true(outbox.clock.now() < start + 60, "the claim is not renewed")
    until deadline > first + 0.6
    go:open()
    assert.equal(0, (process.wait(slow)))
    assert.same({ a = 1, b = 1, c = 1 }, noted())
    assert.outbox(store).is_empty()
  end)

  it("that sleeps is woken by a commit, and stopped by a signal", function()
    local delivered = process.gate()
    local pid = process.fork(function()
      local store <close> = outbox.open(path)
      local p
      p = outbox.processor({ store = store, process_interval = 3600, publisher = function()
        delivered:open()
      end })
      process.on_term(function()
        p:stop()
      end)
      p:run()
    end)
    publish("a")
    delivered:wait()
    repeat -- a signal that comes just before it falls asleep is lost
      process.kill(pid, 15)
      outbox.clock.sleep(0.01)
    until process.ended(pid)
    assert.equal(0, (process.wait(pid)))
    local store <close> = outbox.open(path)
    assert.outbox(store).is_empty()
    assert.same({}, store:stats().leases)
  end)

  it("that hangs in its publisher loses its claim in the end", function()
    publish("a")
    local claimed, never = process.gate(), process.gate()
    local hung = process.fork(function()
      local store <close> = outbox.open(path)
      outbox.processor({ store = store, claim_duration = 0.1, publish_timeout = 0.2,
        publisher = function()
          claimed:open()
          never:wait()
        end }):pump()
    end)
    claimed:wait()
    assert.equal(0, work({}, function(messages)
      note(messages[1].id)
    end))
    assert.same({ a = 1 }, noted())
    process.kill(hung)
    process.wait(hung)
    never:open()
  end)

  describe("whose clock jumps", function()
    for name, jump in pairs({ back = -3600, forward = 3600 }) do
      it(name .. " by an hour, goes on, and another can take over", function()
        local clock = testing.clock(1e6)
        local store <close> = outbox.open(path, { clock = clock })
        local publisher = testing.publisher()
        for i = 1, 6 do
          store:publish({ id = tostring(i) })
        end
        local p = outbox.processor({ store = store, batch_size = 2, publisher = function(messages)
          publisher:publish(messages)
          if #publisher.calls == 1 then
            clock.advance(jump)
          end
        end })
        p:step()
        p:step()
        assert.same({ "1", "2", "3", "4" }, support.pluck(publisher.messages, "id"))

        -- It dies now, with a claim of the time before the jump.
        clock.advance(jump)
        local second <close> = outbox.open(path, { clock = clock })
        local other = outbox.processor({ store = second, publisher = publisher })
        clock.advance(2.1)
        assert.equal(2, other:pump())
        assert.outbox(store).is_empty()
      end)
    end
  end)
end)
