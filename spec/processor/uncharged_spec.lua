-- What becomes of messages that fail without being charged for it.

local shared = require("spec.processor.support")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("a failed delivery that is uncharged", function()
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

  local function fill(count)
    shared.fill(store, count)
  end

  it("is repeated after a moment, without a charge", function()
    store:publish({ id = "a" }, { id = "b" }, { id = "c" })
    publisher:fail("b", { reason = "unsent", uncharged = true }, 1)
    local p = processor({})
    p:pump()
    assert.outbox(store).has_entry({ id = "b", attempts = 0, last_error = "unsent" })
    clock.advance(1)
    p:pump()
    assert.same({ "a", "c", "b" }, support.pluck(publisher.messages, "id"))
    assert.equal(0, publisher.messages[3].attempts)
    assert.same({}, errors)
  end)

  it("holds back later messages of the key, though they were delivered", function()
    store:publish({ id = "a", key = "k" }, { id = "b", key = "k" }, { id = "c" })
    publisher.ordered = true
    publisher:fail("a", { uncharged = true }, 1)
    local p = processor({})
    p:pump()
    assert.same({ "b", "c" }, support.pluck(publisher.messages, "id"))
    clock.advance(1)
    p:pump()
    assert.same({ "b", "c", "a", "b" }, support.pluck(publisher.messages, "id"))
  end)

  it("is repeated once the message before it is a dead letter", function()
    store:publish({ id = "a", key = "k" }, { id = "b", key = "k" })
    publisher.ordered = true
    publisher:fail("a", "no", 1)
    publisher:fail("b", { reason = "unsent", uncharged = true }, 1)
    local p = processor({ retry = { max_attempts = 1 } })
    p:pump()
    assert.outbox(store).has_dead_entry({ id = "a" })
    clock.advance(1)
    p:pump()
    assert.same({ "b" }, support.pluck(publisher.messages, "id"))
    assert.equal(0, publisher.messages[1].attempts)
  end)

  it("is an outage if the call delivered nothing and charged nothing", function()
    store:publish({ id = "a", key = "k" }, { id = "b", key = "k" }, { id = "c" })
    publisher:fail("a", { reason = "too many requests", uncharged = true })
    publisher:fail("c", { uncharged = true })
    processor({}):pump()
    assert.matches("too many requests", errors[1])
    assert.is_true(#publisher.calls < 10)
    publisher:recover()
    clock.advance(60)
    processor({}):pump()
    assert.outbox(store).is_empty()
  end)

  it("is repeated when it says, and later messages of the key after it", function()
    store:publish({ id = "a", key = "k" }, { id = "b", key = "k" }, { id = "c" })
    publisher:fail("a", { reason = "503", uncharged = true, retry_after = 30 })
    local p = processor({})
    p:pump()
    publisher:recover()
    clock.advance(29)
    p:pump()
    assert.same({ "c" }, support.pluck(publisher.messages, "id"))
    clock.advance(1)
    p:pump()
    assert.same({ "c", "a", "b" }, support.pluck(publisher.messages, "id"))
    assert.equal(0, publisher.messages[2].attempts)
    assert.same({}, errors)
  end)

  it("is not charged though others get through, if it says when to come again", function()
    local since, allowed, calls = 0, 0, 0
    fill(50)
    local p = run({ retry = { max_attempts = 1 }, publisher = function(messages)
      local failures = {}
      calls = calls + 1
      if clock.now() >= since + 10 then
        since, allowed = clock.now(), 5
      end
      for i in ipairs(messages) do
        allowed = allowed - 1
        if allowed < 0 then
          failures[i] =
            { reason = "429", uncharged = true, retry_after = since + 10 - clock.now() }
        end
      end
      return failures
    end })
    local stats = p:stats()
    assert.same({ 50, 0, 0 }, { stats.delivered, stats.retried, stats.dead })
    assert.is_true(calls < 50, calls)
  end)

  it("is repeated when it says, also if the message is alone", function()
    for _, ordering in ipairs({ "key", "strict" }) do
      local start, times = clock.now(), {}
      store:publish({ id = "a", key = "k" })
      local p = processor({ ordering = ordering, publisher = function()
        times[#times + 1] = math.floor(clock.now() - start + 0.5)
        return { #times == 1 and { uncharged = true, retry_after = 30 } or nil }
      end })
      repeat
        clock.advance(p:step())
      until p:stats().delivered == 1
      p:stop()
      p:step()
      assert.same({ 0, 30 }, times)
    end
  end)

  it("keeps the order if its rest ends while a batch is in hand", function()
    local up, order, failed = false, {}, false
    local p = processor({ batch_size = 1, publisher = function(messages, namespace)
      if namespace == "slow" and not up then
        return { { uncharged = true, retry_after = 2 } }
      elseif messages[1].id == "z1" and not failed then
        failed = true
        return { { reason = "no", retry_after = 0.5 } }
      end
      order[#order + 1] = messages[1].id
    end })
    store:publish({ id = "x", namespace = "slow" }, { id = "a1", namespace = "slow", key = "k" },
      { id = "z0" }, { id = "z1" }, { id = "a2", namespace = "slow", key = "k" })
    p:step()
    p:step()
    up = true
    clock.advance(2)
    p:pump()
    clock.advance(5)
    p:pump()
    assert.matches("a1.* a2", table.concat(order, " "))
  end)

  it("does not rest for ever though each step comes after the claim has lapsed", function()
    for _, ordering in ipairs({ "key", "none" }) do
      local up = false
      local p = processor({ ordering = ordering, publisher = function()
        assert(up, "down")
      end })
      fill(5)
      for step = 1, 40 do
        up = step > 4
        p:step()
        clock.advance(2.5)
      end
      assert.outbox(store).is_empty()
      p:stop()
      p:step()
    end
  end)

  it("is counted as deferred", function()
    store:publish({ id = "a" }, { id = "b" })
    publisher:fail("a", { uncharged = true, retry_after = 30 })
    local p = processor({})
    p:pump()
    assert.same({ 1, 1, 0 }, { p:stats().delivered, p:stats().deferred, p:stats().retried })
  end)

  it("does not hold up others for long, though several are refused again and again", function()
    for _, id in ipairs({ "a", "b", "c" }) do
      publisher:fail(id, { uncharged = true, retry_after = 5 })
      store:publish({ id = id, key = id })
    end
    local p = processor({})
    p:step()
    store:publish({ id = "d", key = "d" })
    local start = clock.now()
    repeat
      clock.advance(p:step())
    until #publisher.messages > 0
    assert.is_true(clock.now() <= start + 60, clock.now())
    assert.same({ "d" }, support.pluck(publisher.messages, "id"))
  end)

  it("may later make the publisher raise, while others get through", function()
    for seed = 1, 20 do
      math.randomseed(seed)
      local id, told = "told " .. seed, false
      store:publish({ id = id, key = "1" }, { key = "2" }, { key = "3" })
      local p = shared.processor(store, function(messages)
        for i, message in ipairs(messages) do
          if message.id == id and not told then
            told = true
            return { [i] = { uncharged = true, retry_after = 0 } }
          end
          assert(message.id ~= id, "down")
        end
      end, {}, {})
      for i = 1, 100 do
        p:step()
        store:publish(i % 2 == 0 and { key = "other " .. i } or { id = seed .. "." .. i })
        clock.advance(0.3)
      end
      store:bury_entry(id)
      p:pump()
      assert.equal(0, store:stats().ready + store:stats().delayed)
    end
  end)

  it("and permanent makes a dead letter", function()
    store:publish({ id = "a" })
    publisher:fail("a", { uncharged = true, permanent = true })
    processor({}):pump()
    assert.outbox(store).has_dead_entry({ id = "a", attempts = 1 })
  end)
end)
