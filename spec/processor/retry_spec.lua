-- What becomes of entries whose delivery fails.

local outbox = require("outbox")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("a failed delivery", function()
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
    options.store, options.publisher = store, options.publisher or publisher
    options.on_error = function(problem)
      errors[#errors + 1] = problem
    end
    return outbox.processor(options)
  end

  -- Runs until nothing is left, on a clock that flies.
  local function run(options)
    local p
    options.on_batch = function()
      local stats = store:stats()
      if stats.ready + stats.delayed == 0 then
        p:stop()
      end
    end
    p = processor(options)
    p:run()
    return p
  end

  local function fill(count, key)
    for first = 1, count, 100 do
      local messages = {}
      for i = first, math.min(first + 99, count) do
        messages[#messages + 1] = { id = tostring(i), key = key and key(i) or tostring(i) }
      end
      store:publish(table.unpack(messages))
    end
  end

  it("is tried again, and in the end a dead letter with the last error", function()
    local delays, tries = {}, 0
    store:publish({ id = "a" })
    run({ retry = { max_attempts = 4, base = 8, factor = 4, cap = 40 }, publisher = function()
      tries = tries + 1
      return { "failure " .. tries }
    end, on_retry = function(_, _, delay)
      delays[#delays + 1] = delay
    end })
    assert.equal(4, tries)
    assert.outbox(store).has_dead_entry({ id = "a", attempts = 4, last_error = "failure 4" })
    assert.equal(3, #delays)
    for i, most in ipairs({ 8, 32, 40 }) do
      assert.is_true(delays[i] >= 0 and delays[i] <= most)
    end
  end)

  it("is backed off from with full jitter, up to the cap", function()
    local longest = { 0, 0, 0 }
    fill(200)
    run({ retry = { max_attempts = 4, base = 1, factor = 10, cap = 50 }, batch_size = 200,
      publisher = function(messages)
        local failures = {}
        for i in ipairs(messages) do
          failures[i] = "no"
        end
        return failures
      end, on_retry = function(entry, _, delay)
        longest[entry.attempts + 1] = math.max(longest[entry.attempts + 1], delay)
      end })
    -- 200 draws: all below half of the most once in 10^60 runs.
    for i, most in ipairs({ 1, 10, 50 }) do
      assert.is_true(longest[i] > most / 2 and longest[i] <= most)
    end
  end)

  it("may be permanent", function()
    store:publish({ id = "a" })
    publisher:fail("a", { reason = "404", permanent = true })
    run({})
    assert.outbox(store).has_dead_entry({ id = "a", attempts = 1, last_error = "404" })
  end)

  it("may name its own delay", function()
    store:publish({ id = "a" })
    publisher:fail("a", { reason = "429", retry_after = 123 }, 1)
    run({})
    assert.is_true(math.abs(clock.now() - 1123) < 0.01)
  end)

  describe("that is uncharged", function()
    it("is handed out again, nothing held against it", function()
      store:publish({ id = "a" }, { id = "b" }, { id = "c" })
      publisher:fail("b", { reason = "unsent", uncharged = true }, 1)
      processor({}):pump()
      assert.same({ "a", "c", "b" }, support.pluck(publisher.messages, "id"))
      assert.equal(0, publisher.messages[3].attempts)
      assert.same({}, errors)
    end)

    it("holds back those behind it, though they were delivered", function()
      store:publish({ id = "a", key = "k" }, { id = "b", key = "k" }, { id = "c" })
      publisher:fail("a", { uncharged = true }, 1)
      processor({}):pump()
      assert.same({ "b", "c", "a", "b" }, support.pluck(publisher.messages, "id"))
    end)

    it("is free once the one before it is a dead letter", function()
      store:publish({ id = "a", key = "k" }, { id = "b", key = "k" })
      publisher:fail("a", "no", 1)
      publisher:fail("b", { reason = "unsent", uncharged = true }, 1)
      processor({ retry = { max_attempts = 1 } }):pump()
      assert.outbox(store).has_dead_entry({ id = "a" })
      assert.same({ "b" }, support.pluck(publisher.messages, "id"))
      assert.equal(0, publisher.messages[1].attempts)
    end)

    it("is an outage where nothing else has come of the call", function()
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

    it("comes again when it says, and those of its key after it", function()
      store:publish({ id = "a", key = "k" }, { id = "b", key = "k" }, { id = "c" })
      publisher:fail("a", { reason = "503", uncharged = true, retry_after = 30 })
      local p = processor({})
      p:pump()
      publisher:recover()
      clock.advance(29)
      p:pump()
      assert.same({ "b", "c" }, support.pluck(publisher.messages, "id"))
      clock.advance(1)
      p:pump()
      assert.same({ "b", "c", "a", "b" }, support.pluck(publisher.messages, "id"))
      assert.equal(0, publisher.messages[3].attempts)
      assert.same({}, errors)
    end)

    it("is not charged, though others get through, by one who says when to come again", function()
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

    it("comes again when it says, also where it is alone", function()
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

    it("keeps its order, where its rest ends while a batch is in hand", function()
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

    it("ends a rest though each step comes after the claim has lapsed", function()
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

    it("is told of in the numbers", function()
      store:publish({ id = "a" }, { id = "b" })
      publisher:fail("a", { uncharged = true, retry_after = 30 })
      local p = processor({})
      p:pump()
      assert.same({ 1, 1, 0 }, { p:stats().delivered, p:stats().deferred, p:stats().retried })
    end)

    it("keeps no other waiting for long, though several are refused again and again", function()
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

    it("and permanent is a dead letter", function()
      store:publish({ id = "a" })
      publisher:fail("a", { uncharged = true, permanent = true })
      processor({}):pump()
      assert.outbox(store).has_dead_entry({ id = "a", attempts = 1 })
    end)
  end)

  it("is tried again within a year, whatever the publisher asks for", function()
    for i, delay in ipairs({ math.huge, 1e300, 0 / 0, -5, "soon" }) do
      store:publish({ id = "a" })
      publisher:fail("a", { reason = "429", retry_after = delay }, 1)
      local p = processor({})
      p:pump()
      clock.advance(366 * 86400)
      p:pump()
      assert.equal(i, #publisher.messages)
    end
    assert.same({}, errors)
  end)

  it("may be of an id that plain SQL has used twice", function()
    for _, answer in ipairs({ { permanent = true }, { retry_after = 1000 } }) do
      for _ = 1, 2 do
        store:transaction(function(txn)
          txn:execute("INSERT INTO outbox_entries (id) VALUES ('twice')")
        end)
        publisher:fail("twice", answer, 1)
        processor({}):pump()
      end
    end
    assert.same({}, errors)
    assert.outbox(store).has_entry({ id = "twice" })
    assert.outbox(store).has_dead_entry({ id = "twice" })
    assert.outbox(store).has_dead_entry({ id = "twice~2" })
    assert.outbox(store).has_entry({ id = "twice~4" })
  end)

  it("may have a reason that cannot even be looked into", function()
    store:publish({ id = "a" }, { id = "b" })
    publisher:fail("a", setmetatable({}, { __index = error, __tostring = function()
      return "odd"
    end }))
    processor({}):pump()
    assert.outbox(store).has_entry({ id = "a", attempts = 1, last_error = "odd" })
    assert.outbox(store).has_entries(1)
  end)

  it("may have any value for a reason", function()
    store:publish({ id = "a" }, { id = "b" }, { id = "c" })
    publisher:fail("a", setmetatable({}, { __tostring = error }))
    publisher:fail("b", 503)
    publisher:fail("c", true)
    processor({}):pump()
    assert.outbox(store).has_entry({ id = "a", last_error = "an error that cannot be shown" })
    assert.outbox(store).has_entry({ id = "b", last_error = "503" })
    assert.outbox(store).has_entry({ id = "c", last_error = "true" })
  end)

  it("of one message at the head of 10,000 stops none of the others", function()
    fill(10000)
    publisher:fail("1", "no")
    local p = processor({})
    assert.equal(9999, p:pump())
    assert.outbox(store).has_entries(1)
    assert.outbox(store).has_entry({ id = "1", attempts = 1 })
  end)

  describe("of a publisher that raises", function()
    it("is charged to no message when nothing gets through", function()
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

    it("at the head of 10,000 stops none of the others, and is charged once others get through",
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
        p:pump()
        assert.outbox(store).has_entries(1)
        assert.is_true(#publisher.calls < 10000 / 100 + 100 + 10)
        for i = 1, 20 do -- each message that gets through shows that the destination is up
          store:publish({ id = "after " .. i })
          clock.advance(1000)
          p:pump()
        end
        assert.outbox(store).has_dead_entry({ id = "1", attempts = 10 })
      end)

    it("for an hour sends nothing to the dead letters, and is no hot loop", function()
      fill(1000, function(i)
        return "key " .. i % 7
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
      assert.is_true(calls < 700, calls)
      assert.is_true(clock.now() < up_at + 120)
      local last = {}
      for _, message in ipairs(publisher.messages) do
        assert.is_true(tonumber(message.id) > (last[message.key] or 0))
        last[message.key] = tonumber(message.id)
      end
    end)

    it("leaves nothing to wait for long for whoever comes next", function()
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

    it("for one namespace leaves the others alone, however much of it there is", function()
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

    it("for one namespace leaves the others alone", function()
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
  end)
end)
