-- What becomes of entries whose delivery fails.

local shared = require("spec.processor.support")
local support = require("spec.support")
local testing = require("outbox.testing")

local sqlite_it = support.only("sqlite", it)

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
    return shared.processor(store, publisher, options, errors)
  end

  local function run(options)
    return shared.run(store, publisher, options, errors)
  end

  local function fill(count)
    shared.fill(store, count)
  end

  it("is tried again, and in the end the entry is a dead letter with the last error", function()
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

  it("is repeated at once when the clock was ahead and is set right", function()
    local messages = { { id = "1", key = "k" }, { id = "2", key = "k" }, { id = "3" } }
    store:publish(table.unpack(messages))
    publisher:fail("1", "no", 1)
    publisher:fail("3", { reason = "later", uncharged = true, retry_after = 600 }, 1)
    clock.advance(1e8)
    local p = processor({ retry = { base = 300, factor = 1 } })
    p:pump()
    assert.equal(2, store:stats().delayed)
    publisher.messages = {}
    clock.advance(-1e8)
    p:pump()
    assert.same({ "1", "3", "2" }, support.pluck(publisher.messages, "id"))
  end)

  it("is retried after a backoff with full jitter, up to the cap", function()
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
    -- Of 200 draws all are below half of the maximum once in 10^60 runs.
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

  it("is tried again within an hour, however long the publisher asks to wait", function()
    for i, delay in ipairs({ 3601, 99999999, 1e300, math.huge, math.maxinteger }) do
      store:publish({ id = "a" })
      publisher:fail("a", { reason = "429", retry_after = delay }, 1)
      local p = processor({})
      p:pump()
      assert.equal(3600, store:delayed_entries()[1].due_at - clock.now())
      clock.advance(3601)
      p:pump()
      assert.equal(i, #publisher.messages)
    end
    assert.same({}, errors)
  end)

  describe("with a retry_after that makes no sense", function()
    local WRONG = { -5, -1e-9, -math.huge, math.mininteger, 0 / 0, "soon", {}, "-1" }

    it("is an error of the publisher, and waits as without it", function()
      for i, delay in ipairs(WRONG) do
        local id, failure = tostring(i), { reason = "429", retry_after = delay }
        store:publish({ id = id, namespace = "orders" })
        publisher:fail(id, failure, 1)
        processor({ retry = function()
          return 7
        end }):pump()
        assert.equal(i, #errors)
        assert.equal("publisher", errors[i].code)
        assert.equal("orders", errors[i].namespace)
        assert.equal(failure, errors[i].cause)
        assert.matches("retry_after = .*, not a number of seconds from 0", errors[i].message)
        assert.outbox(store).has_entry({ id = id, attempts = 1, last_error = "429" })
        assert.equal(7, store:delayed_entries()[1].due_at - clock.now())
        clock.advance(8)
        processor({}):pump()
        assert.equal(i, #publisher.messages)
      end
    end)

    it("is reported once for a call, whatever the number of its failures", function()
      store:publish({ id = "1" }, { id = "2" }, { id = "3" })
      publisher:fail(function(message)
        return message.id ~= "3"
      end, { reason = "429", retry_after = -1 })
      processor({}):pump()
      assert.equal(1, #errors)
    end)

    it("does not make a loop of uncharged failures", function()
      store:publish({ id = "a" })
      publisher:fail("a", { reason = "429", uncharged = true, retry_after = -1 })
      processor({}):pump()
      assert.is_true(#publisher.calls < 3)
      assert.outbox(store).has_entry({ id = "a", attempts = 0 })
    end)
  end)

  it("does not use up its attempts in an instant when its retry_after is 0", function()
    for i, delay in ipairs({ 0, -0.0, 1e-9 }) do
      local id = tostring(i)
      store:publish({ id = id })
      publisher:fail(id, { reason = "429", retry_after = delay })
      processor({ retry = function()
        return 7
      end }):pump()
      assert.outbox(store).has_entry({ id = id, attempts = 1 })
      assert.equal(7, store:delayed_entries()[1].due_at - clock.now())
      assert.equal(1, store:delete_entries(id))
    end
    assert.same({}, errors)
  end)

  sqlite_it("may concern an id that plain SQL has used twice", function()
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

  it("of the first of 10,000 messages stops none of the others", function()
    fill(10000)
    publisher:fail("1", "no")
    local p = processor({})
    assert.equal(9999, p:pump())
    assert.outbox(store).has_entries(1)
    assert.outbox(store).has_entry({ id = "1", attempts = 1 })
  end)
end)
