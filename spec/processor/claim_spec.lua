-- How a processor keeps its claim, and what happens when it loses it.

local outbox = require("outbox")
local shared = require("spec.processor.support")
local support = require("spec.support")
local testing = require("outbox.testing")

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

  it("does not deliver a batch that lay in hand for longer than the claim", function()
    fill(4)
    local other <close> = outbox.open(path, { clock = clock })
    local p, theirs = processor({ batch_size = 2 }), testing.publisher()
    p:step() -- delivers two, and takes two more
    clock.advance(3600)
    processor({ store = other, publisher = theirs }):pump()
    p:step()
    assert.same({ "1", "2" }, delivered())
    local others = support.pluck(theirs.messages, "id") -- one by one, of two keys
    table.sort(others)
    assert.same({ "3", "4" }, others)
    assert.equal(1, p:stats().lost)
  end)

  it("delivers a batch that lay in hand for long if nobody took over, uncharged", function()
    fill(4)
    local p = processor({ batch_size = 2, retry = { max_attempts = 1 } })
    p:step()
    clock.advance(3600)
    p:step()
    assert.same({ "1", "2", "3", "4" }, delivered())
    assert.same({}, errors)
  end)

  it("keeps its claim while entries only wait for others", function()
    store:publish({ id = "a1", key = "a" }, { id = "a2", key = "a" })
    publisher:fail("a1", { reason = "no", retry_after = 3600 })
    local other <close> = outbox.open(path, { clock = clock })
    local p = processor()
    for _ = 1, 20 do
      p:step()
      clock.advance(0.5)
      assert.is_false((other:claim_entries("other", clock.now() + 2)))
    end
  end)

  it("does not charge entries that it could not hand out", function()
    fill(4)
    local p = processor({ batch_size = 2, retry = { max_attempts = 1 } })
    p:step()
    local txn = coroutine.wrap(function()
      store:transaction(support.keep_busy)
    end)
    txn()
    p:step() -- the store is busy with the transaction
    txn()
    clock.advance(10)
    p:step()
    assert.equal("busy", errors[1].code)
    assert.same({ "1", "2", "3", "4" }, delivered())
    assert.equal(0, store:stats().dead)
  end)

  it("looks again at once after a pump that failed", function()
    publish("a")
    local methods = require("outbox.core").store
    local advance = methods.advance
    function methods.advance()
      methods.advance = advance
      error({ code = "busy" })
    end
    local p = processor()
    assert.equal("busy", support.raised(p.pump, p).code)
    assert.equal(0, p:timeout())
    p:step()
    assert.same({ "a" }, delivered())
  end)

  describe("that loses its claim in the middle of a batch", function()
    local function lose(answer)
      publish("a", "b", "c")
      local other <close> = outbox.open(path, { clock = clock })
      local p
      p = processor({ batch_size = 2, publisher = function(messages)
        publisher:publish(messages, "")
        if #publisher.calls == 1 then
          clock.advance(3)
          assert.is_true(other:claim_entries("other", clock.now() + 10))
          return answer
        end
      end })
      p:pump()
      return p
    end

    it("deletes the delivered entries, delivers no more, and says so", function()
      local p = lose()
      assert.same({ "a", "b" }, delivered())
      assert.outbox(store).has_entries(1)
      local codes = support.pluck(errors, "code")
      table.sort(codes)
      assert.same({ "lost", "overlapped" }, codes)
      assert.equal(1, p:stats().lost)
    end)

    it("ignores a failure, because another processor has the entry", function()
      lose({ [2] = "no" })
      -- The other processor has charged the entries that were in hand.
      assert.outbox(store).has_entry({ id = "b", attempts = 1, last_error = outbox.LAPSED })
      assert.equal(2, store:stats().ready)
    end)
  end)

  describe("has its whole claim left at the beginning of each call", function()
    local left
    local function note_left(_, _)
      left[#left + 1] = store:stats().leases[1].deadline - clock.now()
    end

    before_each(function()
      left = {}
      publish("a", "b")
    end)

    it("though a hook took its time before", function()
      processor({ batch_size = 1, publisher = note_left, on_delivered = function()
        clock.advance(1.7)
      end }):pump()
      assert.same({ 2, 2 }, left)
    end)

    it("though it had to wait for the lock before", function()
      local other <close> = outbox.open(path, { clock = clock })
      local has_waited = false
      local slow <close> = outbox.open(path, { clock = { now = function()
        if not has_waited and other:stats().leases[1] then -- the first time after it has claimed
          has_waited = true
          clock.advance(1.9)
        end
        return clock.now()
      end } })
      processor({ store = slow, publisher = note_left }):pump()
      assert.same({ 2 }, left)
    end)
  end)

  it("that is late goes on if nobody took over", function()
    publish("a", "b")
    local p = processor({ batch_size = 1, publisher = function(messages)
      publisher:publish(messages, "")
      clock.advance(100)
    end })
    assert.equal(2, p:pump())
    assert.same({}, errors)
    assert.same({ "a", "b" }, delivered())
  end)

  it("delivers even if no thread can be started to keep its claim, and says so", function()
    publish("a")
    -- A thread's stack is as large as the main one may grow: here larger than all memory.
    local output = support.run(([[-e '
      local outbox = require("outbox")
      outbox.processor({ store = outbox.open("%s"), publisher = function() end }):pump()
      ']]):format(path), "prlimit --stack=$((1 << 60)):")
    assert.equal("outbox: no thread can be started for the heartbeat (error)\n", output)
    assert.outbox(store).is_empty()
  end)
end)
