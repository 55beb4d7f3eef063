-- What becomes of messages when their publisher raises.

local shared = require("spec.processor.support")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("a publisher that raises", function()
  local store, clock, publisher, errors

  before_each(function()
    clock = testing.clock()
    store = support.store({ clock = clock, synchronous = "off" })
    publisher, errors = testing.publisher(), {}
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function processor(options)
    return shared.processor(store, publisher, options, errors)
  end

  local function run(options)
    return shared.run(store, publisher, options, errors)
  end

  local function fill(count, make)
    shared.fill(store, count, make)
  end

  it("charges no message while nothing gets through", function()
    fill(50)
    publisher:raise("down")
    local p = processor({})
    for _ = 1, 30 do
      p:pump()
      clock.advance(100)
    end
    assert.outbox(store).has_entries(50)
    for _, entry in ipairs(store:ready_entries()) do
      assert.equal(0, entry.attempts)
    end
    assert.is_true(#publisher.calls > 10)
  end)

  it("may raise anything", function()
    store:publish({ id = "a" })
    for _, problem in ipairs({ {}, 17, false, setmetatable({}, { __tostring = error }) }) do
      publisher:raise(problem, 1)
      processor({}):pump()
      clock.advance(1000)
    end
    assert.outbox(store).has_entry({ id = "a", attempts = 0 })
    assert.equal(4, #errors)
    assert.equal("publisher", errors[1].code)
    assert.equal(17, errors[2].cause)
  end)

  it("is reported with the message, if the call had no other", function()
    store:publish({ id = "a", key = "1" }, { id = "b", key = "2" })
    publisher:raise("down", 2)
    local p = processor({})
    p:pump()
    clock.advance(1000)
    p:pump()
    assert.is_nil(errors[1].id)
    assert.is_true(errors[2].id == "a" or errors[2].id == "b")
  end)

  it("for the first of 10,000 messages stops no other, and charges it once others get through",
    function()
      fill(10000)
      local p = processor({ batch_size = 100, publisher = function(messages)
        for _, message in ipairs(messages) do
          if message.id == "1" then
            error("poison")
          end
        end
        publisher:publish(messages)
      end })
      repeat
        p:pump()
        clock.advance(100)
      until #publisher.messages == 9999
      local attempts = store:find_entries("1")[1].attempts
      for _ = 1, 20 do
        clock.advance(1000)
        p:pump()
      end
      assert.outbox(store).has_entry({ id = "1", attempts = attempts }) -- there was no witness
      -- Alone, those that were with it; then half a batch, and each time one more; then the rest.
      assert.is_true(#publisher.calls < 100 + 2 * 50 + 10000 / 100, #publisher.calls)
      for i = 1, 20 do
        for witness = 1, 3 do -- one before it, and two after it
          store:publish({ id = ("after %d, %d"):format(i, witness) })
          p:pump()
        end
        clock.advance(1000)
      end
      assert.outbox(store).has_dead_entry({ id = "1", attempts = 10 })
    end)

  it("for an hour makes no dead letters, and is not called in a busy loop", function()
    fill(1000, function(i)
      return { id = tostring(i), key = "key " .. i % 7 }
    end)
    local up_at, calls = clock.now() + 3600, 0
    local p = run({ retry = { max_attempts = 2 }, publisher = function(messages)
      calls = calls + 1
      if clock.now() < up_at then
        error("connection refused")
      end
      publisher:publish(messages)
    end })
    assert.equal(1000, p:stats().delivered)
    assert.equal(0, p:stats().dead)
    assert.outbox(store).is_empty()
    assert.is_true(calls < 800, calls)
    assert.is_true(clock.now() < up_at + 120)
    local last = {}
    for _, message in ipairs(publisher.messages) do
      assert.is_true(tonumber(message.id) > (last[message.key] or 0))
      last[message.key] = tonumber(message.id)
    end
  end)

  it("leaves no entry that makes the next processor wait for long", function()
    fill(100)
    local p
    p = processor({ publisher = function()
      if clock.now() > 1000 + 3600 then
        p:stop()
      end
      error("down")
    end })
    p:run()
    local up_at = clock.now()
    run({})
    assert.equal(100, #publisher.messages)
    assert.is_true(clock.now() < up_at + 62)
  end)

  it("leaves nothing behind that would stop a later processor in strict order", function()
    fill(2)
    publisher:raise("down", 2)
    local p = processor({ batch_size = 1 })
    p:pump()
    assert.outbox(store).has_entry({ attempts = 0, last_error = "down" })
    clock.advance(60)
    processor({ ordering = "strict" }):pump()
    assert.same({ "1", "2" }, support.pluck(publisher.messages, "id"))
  end)

  it("for one namespace does not hold up the others, however many messages it has", function()
    for _, ordering in ipairs({ "key", "none" }) do
      for i = 1, 1000 do
        store:publish({ namespace = i <= 990 and "down" or "up" })
      end
      local p = processor({ ordering = ordering, publisher = function(messages, namespace)
        if namespace == "down" then
          error("down")
        end
        publisher:publish(messages, namespace)
      end })
      for _ = 1, 20 do
        p:step()
      end
      assert.equal(10, #publisher.messages, ordering)
      p:stop()
      p:step()
      publisher = testing.publisher()
    end
  end)

  it("for one namespace does not hold up the others", function()
    for i = 1, 200 do
      store:publish({ id = tostring(i), namespace = i % 2 == 0 and "up" or "down" })
    end
    local p = processor({ publisher = function(messages, namespace)
      if namespace == "down" then
        error("down")
      end
      publisher:publish(messages, namespace)
    end })
    for _ = 1, 20 do
      p:pump()
      clock.advance(1000)
    end
    assert.equal(100, #publisher.messages)
    assert.outbox(store).has_entries(100)
    assert.outbox(store).has_no_entry({ attempts = 1 })
  end)

  -- The first call makes the namespace flow again, the second parks it anew.
  it("for one call of a batch, behind one that got through, keeps nothing waiting", function()
    local calls, delivered, batches, p = {}, 0, 0, nil
    publisher = function(messages)
      calls[#calls + 1] = #messages
      if #messages == 8 and #calls == 2 then -- all are told to wait
        local failures = {}
        for i = 1, 8 do
          failures[i] = { uncharged = true, retry_after = 1 }
        end
        return failures
      elseif #calls == 1 then
        return { "bad" }
      elseif #calls == 4 then
        clock.advance(10) -- the first message is due again
      elseif #calls >= 6 and #calls <= 8 then
        error("down")
      end
      delivered = delivered + #messages
    end
    p = processor({ ordering = "none", batch_size = 8, retry = function()
      return 10
    end, on_batch = function()
      batches = batches + 1
      if batches > 100 then
        p:stop()
      end
    end })
    store:publish({ id = "first" })
    p:pump()
    fill(40)
    p:pump()
    clock.advance(1)
    p:pump()
    for _ = 1, 100 do
      clock.advance(1)
      p:pump()
    end
    if support.engine == "sqlite" then -- retries do not share a call of PostgreSQL with others
      assert.same({ 1, 8, 1, 2, 1, 3 }, { table.unpack(calls, 1, 6) })
    end
    assert.equal(41, delivered)
    assert.is_true(batches < 60)
  end)
end)
