-- The option `rate`: so many messages of a namespace a second, and no more.

if os.getenv("OUTBOX_TREE") then
  return -- it takes long, and has no C of its own
end

local outbox = require("outbox")
local shared = require("spec.processor.support")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("a rate", function()
  local store, path, clock, errors, sent, stores

  before_each(function()
    clock = testing.clock()
    store, path = support.store({ clock = clock, synchronous = "off" })
    errors, sent, stores = {}, {}, { store }
  end)

  after_each(function()
    for _, each in ipairs(stores) do
      each:close()
    end
    support.remove()
  end)

  -- A processor with a store of its own; what it sends is noted with its time.
  local function processor(options)
    options = options or {}
    stores[#stores + 1] = outbox.open(path, { clock = clock, synchronous = "off" })
    options.store = stores[#stores]
    local publish = options.publisher or function() end
    local call = { rate = options.field, publish = function(_, messages, namespace)
      for _, message in ipairs(messages) do
        sent[#sent + 1] = { at = clock.time, namespace = namespace, key = message.key,
          size = #messages }
      end
      return publish(messages, namespace)
    end }
    options.field = nil
    options.publisher = call
    return shared.processor(nil, nil, options, errors)
  end

  -- Steps all processors through so many seconds.
  local function run_for(seconds, ...)
    local ends, next_at = clock.time + seconds, {}
    while clock.time < ends do
      local soonest = ends
      for i, p in ipairs({ ... }) do
        if (next_at[i] or 0) <= clock.time then
          next_at[i] = clock.time + p:step()
        end
        soonest = math.min(soonest, next_at[i])
      end
      clock.advance(math.max(soonest - clock.time, 1e-5))
    end
  end

  local function fill(count, namespace)
    shared.fill(store, count, function(i)
      return { namespace = namespace, key = tostring(i) }
    end)
  end

  local function count(namespace, from)
    local number = 0
    for _, message in ipairs(sent) do
      if message.namespace == namespace and message.at >= (from or 0) then
        number = number + 1
      end
    end
    return number
  end

  local function assert_within(number, wanted)
    assert.is_true(math.abs(number - wanted) <= 0.05 * wanted, ("%d of %d"):format(number, wanted))
  end

  it("is kept over a minute, whatever it is", function()
    for _, per_second in ipairs({ 2, 50, 333.3 }) do
      sent = {}
      local namespace = tostring(per_second)
      fill(math.ceil(70 * per_second), namespace)
      local p = processor({ rate = { per_second = per_second } })
      run_for(60, p)
      assert_within(count(namespace), 60 * per_second)
      p:stop()
      p:step()
      store:delete_entries(table.unpack(support.pluck(
        store:ready_entries({ limit = 100000 }), "id")))
    end
    assert.same({}, errors)
  end)

  it("is never broken for a second by more than the messages of a second", function()
    fill(2000, "a")
    run_for(30, processor({ rate = { per_second = 20 } }))
    for i, message in ipairs(sent) do
      local later = sent[i + 41]
      assert.is_true(not later or later.at - message.at >= 0.99, i)
    end
  end)

  it("less than one a second is kept, too", function()
    fill(20, "a")
    run_for(100, processor({ rate = { per_second = 0.1 } }))
    assert.is_true(count("a") >= 10 and count("a") <= 11)
    assert.is_true(sent[3].at - sent[2].at > 9.9)
  end)

  it("charges nothing, keeps the order, and calls with more than one message", function()
    shared.fill(store, 300, function(i)
      return { namespace = "a", key = i % 2 == 0 and "even" or tostring(i), payload = tostring(i) }
    end)
    local last, largest = 0, 0
    local p = processor({ rate = { per_second = 100 }, publisher = function(messages)
      largest = math.max(largest, #messages)
      for _, message in ipairs(messages) do
        assert(message.attempts == 0)
        if message.key == "even" then
          assert(tonumber(message.payload) > last)
          last = tonumber(message.payload)
        end
      end
    end })
    run_for(5, p)
    assert.same({}, errors)
    assert.equal(300, #sent)
    assert.is_true(largest > 5)
    assert.outbox(store).is_empty()
    assert.equal(0, p:stats().retried + p:stats().deferred)
  end)

  it("is that of each namespace, and keeps no other waiting", function()
    fill(500, "slow")
    local publisher = outbox.publisher({
      slow = { rate = { per_second = 5 }, publish = function(_, messages)
        for _ = 1, #messages do
          sent[#sent + 1] = { at = clock.time, namespace = "slow" }
        end
      end },
      ["*"] = function(messages)
        for _ = 1, #messages do
          sent[#sent + 1] = { at = clock.time, namespace = "fast" }
        end
      end,
    })
    stores[2] = outbox.open(path, { clock = clock, synchronous = "off" })
    local p = shared.processor(stores[2], publisher, {}, errors)
    run_for(10, p)
    fill(3000, "fast")
    local start = clock.time
    run_for(1, p)
    assert.equal(3000, count("fast"))
    assert.is_true(clock.time - start < 1.1)
    run_for(49, p)
    assert_within(count("slow"), 300)
  end)

  it("is kept by several processors together", function()
    fill(4000, "a")
    local processors = {}
    for i = 1, 4 do
      processors[i] = processor({ rate = { per_second = 50 }, batch_size = 10 })
    end
    run_for(5, table.unpack(processors)) -- they share the keys by now
    local start = clock.time
    run_for(60, table.unpack(processors))
    assert_within(count("a", start), 3000)
    assert.same({}, errors)
    for _, p in ipairs(processors) do
      assert.is_true(p:stats().delivered > 500)
    end
  end)

  it("is kept while the destination fails, and rests as it would without", function()
    fill(200, "a")
    local down = true
    local p = processor({ rate = { per_second = 10 }, publisher = function()
      if down then
        error("down")
      end
    end })
    run_for(60, p)
    assert.is_true(#sent < 40)
    down, sent = false, {}
    run_for(31, p)
    local first = sent[1].at
    assert.is_true(#sent <= 10 * (clock.time - first) + 11)
    run_for(60, p)
    assert.outbox(store).is_empty()
  end)

  it("is kept in strict order", function()
    fill(100, "a")
    run_for(60, processor({ rate = { per_second = 1 }, ordering = "strict" }))
    assert.is_true(count("a") >= 58 and count("a") <= 62, count("a"))
    for i, message in ipairs(sent) do
      assert.equal(tostring(i), message.key)
    end
  end)

  it("may be a field of the publisher", function()
    fill(100, "a")
    run_for(10, processor({ field = { per_second = 2 } }))
    assert.is_true(count("a") >= 19 and count("a") <= 22)
  end)

  it("must be a number of messages a second", function()
    for _, rate in ipairs({ 5, {}, { per_second = 0 }, { per_second = -1 }, { per_second = "5" },
      { per_second = 1 / 0 }, { per_second = 0 / 0 }, { per_second = 5, burst = 3 } }) do
      assert.error_matches(function()
        outbox.processor({ store = store, publisher = print, rate = rate })
      end, "rate must be a table { per_second = number above 0 }", 1, true)
      assert.error_matches(function()
        outbox.processor({ store = store, publisher = { publish = print, rate = rate } })
      end, "its rate, if any, a table", 1, true)
    end
  end)

  for _, case in ipairs({ { rate = 5, count = 12, least = 2.2, most = 3 },
    { rate = 100, count = 200, least = 1.98, most = 2.2 },
    { rate = 0.5, count = 3, least = 4, most = 6.1 } }) do
    it(("of %g lets pump say when to go on"):format(case.rate), function()
      fill(case.count, "a")
      local p = processor({ rate = { per_second = case.rate } })
      local sum, seconds = p:pump()
      while seconds do
        clock.advance(seconds)
        local delivered
        delivered, seconds = p:pump()
        sum = sum + delivered
      end
      assert.same({ {}, case.count, case.count }, { errors, #sent, sum })
      local passed = clock.time - 1000
      assert.is_true(passed >= case.least and passed < case.most, passed)
      store:publish({ namespace = "a" })
      assert.equal(1, (p:pump()))
    end)
  end
end)
