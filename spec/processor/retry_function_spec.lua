-- A function as retry policy: when it is asked, what its answers mean, and what its errors do.

local outbox = require("outbox")
local shared = require("spec.processor.support")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("a retry function", function()
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

  -- Fails every delivery of a message; returns the processor and the delays that it told of.
  local function fail(retry, reason)
    local delays = {}
    store:publish({ id = "a" })
    publisher:fail("a", reason or "no")
    local p = processor({ retry = retry, on_retry = function(_, _, delay)
      delays[#delays + 1] = delay
    end })
    p:pump()
    return p, delays
  end

  -- Makes a processor die with the message in hand; returns the one that takes over.
  local function take_over(options)
    store:publish({ id = "a" })
    store:claim_entries("dead", clock.now() + 1)
    store:get_claimed_entries("dead", 1, { hold = true })
    clock.advance(2)
    return processor(options)
  end

  it("gets the entry as the publisher got it, and the attempts with this one", function()
    local asked, given = {}, {}
    store:publish({ id = "a", payload = "p" })
    local p = processor({ publisher = function(messages)
      given[#given + 1] = messages[1]
      return { "no" }
    end, retry = function(entry, attempts)
      asked[#asked + 1] = { entry, attempts, entry.attempts }
      return 10
    end })
    for _ = 1, 3 do
      p:pump()
      clock.advance(10)
    end
    assert.equal(3, #asked)
    for i = 1, 3 do
      assert.equal(given[i], asked[i][1])
      assert.same({ i, i - 1 }, { asked[i][2], asked[i][3] })
    end
    assert.equal("p", asked[1][1].payload)
  end)

  it("says how long the entry waits", function()
    local p, delays = fail(function(_, attempts)
      return 100 * attempts
    end)
    publisher:recover()
    clock.advance(99)
    assert.equal(0, p:pump())
    clock.advance(1)
    assert.equal(1, p:pump())
    assert.same({ 100 }, delays)
    assert.same({}, errors)
  end)

  it("makes a dead letter with nil, and frees the entries behind it", function()
    store:publish({ id = "a", key = "k" }, { id = "b", key = "k" })
    publisher:fail("a", "no")
    processor({ batch_size = 1, retry = function() end }):pump()
    assert.outbox(store).has_dead_entry({ id = "a", attempts = 1, last_error = "no" })
    assert.same({ "b" }, support.pluck(publisher.messages, "id"))
    assert.same({}, errors)
  end)

  it("decides alone how often an entry is tried", function()
    local p = fail(function(_, attempts)
      return attempts < 30 and 1 or nil
    end)
    for _ = 1, 40 do
      clock.advance(1)
      p:pump()
    end
    assert.equal(30, #publisher.calls)
    assert.outbox(store).has_dead_entry({ id = "a", attempts = 30 })
  end)

  it("is asked about some messages of a call, and not about the others", function()
    local asked = {}
    for _, id in ipairs({ "delivered", "uncharged", "permanent", "failed" }) do
      store:publish({ id = id })
    end
    publisher:fail("uncharged", { uncharged = true, retry_after = 5 })
    publisher:fail("permanent", { permanent = true })
    publisher:fail("failed", "no")
    processor({ retry = function(entry)
      asked[#asked + 1] = entry.id
      return 1
    end }):pump()
    assert.same({ "failed" }, asked)
    assert.outbox(store).has_dead_entry({ id = "permanent" })
  end)

  it("is not asked when the publisher raises, until an entry is poison", function()
    local asked = {}
    store:publish({ id = "poison" })
    local p = processor({ publisher = function(messages)
      assert(messages[1].id ~= "poison", "poison!")
    end, retry = function(entry, attempts)
      asked[#asked + 1] = { entry.id, attempts }
      return 1
    end })
    p:pump()
    assert.same({}, asked)
    clock.advance(60)
    for _ = 1, 3 do -- one before it fails again, and two after
      assert.same({}, asked)
      store:publish({})
      p:pump()
    end
    assert.same({ { "poison", 1 } }, asked)
  end)

  describe("asked about a failure with a retry_after", function()
    it("does not set the delay", function()
      local _, delays = fail(function()
        return 1
      end, { reason = "429", retry_after = 50 })
      assert.same({ 50 }, delays)
    end)

    it("still makes a dead letter with nil", function()
      fail(function() end, { reason = "429", retry_after = 50 })
      assert.outbox(store).has_dead_entry({ id = "a", last_error = "429" })
    end)
  end)

  it("may return a negative number, which is 0, and more than a year, which is a year", function()
    local answers = { -5, 1e300, 0 }
    local p, delays = fail(function()
      return table.remove(answers, 1)
    end)
    p:pump()
    clock.advance(365 * 86400)
    p:pump()
    assert.same({ 0, 365 * 86400, 0 }, delays)
    assert.same({}, errors)
  end)

  for name, broken in pairs({
    ["raises"] = function()
      error("broken")
    end,
    ["raises a value that cannot be shown"] = function()
      error(setmetatable({}, { __tostring = error }))
    end,
    ["returns false"] = function()
      return false
    end,
    ["returns a string, even that of a number"] = function()
      return "5"
    end,
    ["returns a table"] = function()
      return {}
    end,
    ["returns infinity"] = function()
      return math.huge
    end,
    ["returns minus infinity"] = function()
      return -math.huge
    end,
    ["returns no number"] = function()
      return 0 / 0
    end,
  }) do
    it("that " .. name .. " neither loses nor buries an entry, and is reported", function()
      local p, delays = fail(broken)
      for _ = 1, 14 do
        clock.advance(300)
        p:pump()
      end
      assert.outbox(store).has_entry({ id = "a", attempts = 15, last_error = "no" })
      assert.equal(0, store:stats().dead)
      assert.same({ 15, 15, 15 }, { #errors, #delays, #publisher.calls })
      for i, delay in ipairs(delays) do
        assert.equal("hook", errors[i].code)
        assert.matches("^retry r", errors[i].message)
        assert.is_true(delay >= 0 and delay <= math.min(2 ^ (i - 1), 300))
      end
    end)
  end

  it("that raises does no harm when on_error raises too", function()
    local output = support.run([[-e '
      local outbox = require("outbox")
      local store = outbox.open(":memory:")
      store:migrate()
      store:publish({})
      outbox.processor({ store = store, publisher = function() return { "no" } end,
        retry = function() error("broken", 0) end,
        on_error = function() error("again", 0) end }):pump()
      print(store:stats().delayed)']])
    assert.equal("outbox: retry raised: broken (hook)\n"
      .. "outbox: on_error raised: again (hook)\n1\n", output)
  end)

  describe("asked after a processor died with an entry in hand", function()
    it("gets the attempt that was charged for it", function()
      local asked
      take_over({ retry = function(entry, attempts)
        asked = { entry.id, entry.attempts, attempts, entry.last_error }
        return 3600
      end }):pump()
      assert.same({ "a", 1, 1, outbox.LAPSED }, asked)
    end)

    it("lets it be delivered at once with a number", function()
      assert.equal(1, take_over({ retry = function()
        return 3600
      end }):pump())
    end)

    it("makes a dead letter with nil, without a delivery", function()
      local dead
      assert.equal(0, take_over({ retry = function() end, on_dead = function(entry, reason)
        dead = { entry.id, reason }
      end }):pump())
      assert.same({ "a", outbox.LAPSED }, dead)
      assert.outbox(store).has_dead_entry({ id = "a", attempts = 1, last_error = outbox.LAPSED })
      assert.same({}, publisher.calls)
    end)

    it("lets it be delivered at once when the function raises", function()
      assert.equal(1, take_over({ retry = error }):pump())
      assert.equal("hook", errors[1].code)
    end)

    it("is asked about the next failure with one attempt more", function()
      local asked = {}
      publisher:fail("a", "no")
      take_over({ retry = function(_, attempts)
        asked[#asked + 1] = attempts
        return 60
      end }):pump()
      assert.same({ 1, 2 }, asked)
    end)
  end)

  it("does not say how long a destination that is down rests", function()
    publisher:raise("down")
    store:publish({ id = "a" })
    local p = processor({ retry = function()
      return 86400
    end })
    repeat
      local seconds = p:step()
    until seconds > 0
    assert.is_true(p:timeout() <= 1)
    publisher:recover()
    clock.advance(1)
    p:pump()
    assert.outbox(store).is_empty()
  end)

  it("may yield, and meanwhile nothing else is done", function()
    store:publish({ id = "a" }, { id = "b" })
    publisher:fail("a", "no")
    local p = processor({ batch_size = 1, retry = function()
      coroutine.yield("waiting")
      return 100
    end })
    local pump = coroutine.wrap(function()
      return p:pump()
    end)
    assert.equal("waiting", pump())
    assert.equal(10, p:step())
    assert.matches("at work", support.raised(p.pump, p))
    assert.equal(1, #publisher.calls)
    assert.equal(1, pump())
    assert.outbox(store).has_entry({ id = "a", attempts = 1 })
    assert.same({}, errors)
  end)

  it("that is cut off leaves the batch in hand, which is charged", function()
    store:publish({ id = "a" })
    publisher:fail("a", "no", 1)
    local is_first = true
    local p = processor({ retry = function()
      if is_first then
        is_first = false
        coroutine.yield()
      end
      return 0
    end })
    local cut = coroutine.create(p.pump)
    coroutine.resume(cut, p)
    coroutine.close(cut)
    assert.equal(1, p:pump())
    assert.same({ 1, outbox.LAPSED },
      { publisher.messages[1].attempts, publisher.messages[1].last_error })
  end)

  it("may call the processor: a step does nothing, a pump is refused", function()
    local p, step
    store:publish({ id = "a" })
    publisher:fail("a", "no")
    p = processor({ retry = function()
      step = p:step()
      p:pump()
    end })
    p:pump()
    assert.equal(10, step)
    assert.equal("hook", errors[1].code)
    assert.matches("at work", errors[1].message)
    assert.outbox(store).has_entry({ id = "a", attempts = 1 })
  end)

  it("may stop the processor, after the batch in hand", function()
    local p
    store:publish({ id = "a" }, { id = "b" }, { id = "c" })
    publisher:fail("a", "no")
    p = processor({ batch_size = 2, retry = function()
      p:stop()
      return 60
    end })
    p:run()
    assert.same({ "b" }, support.pluck(publisher.messages, "id"))
    assert.same({ 1, 1 }, { store:stats().ready, store:stats().delayed })
    assert.same({}, store:stats().leases)
  end)

  it("may publish to the same outbox", function()
    store:publish({ id = "a" })
    publisher:fail("a", "no")
    processor({ retry = function(entry)
      store:publish({ id = entry.id .. " failed" })
    end }):pump()
    assert.same({ "a failed" }, support.pluck(publisher.messages, "id"))
    assert.outbox(store).has_dead_entry({ id = "a" })
    assert.same({}, errors)
  end)

  it("may be any function or a table, but nothing else", function()
    for _, other in ipairs({ "5", 5, true }) do
      assert.matches("retry must be a table or a function", support.raised(outbox.processor,
        { store = store, publisher = publisher, retry = other }), 1, true)
    end
  end)
end)
