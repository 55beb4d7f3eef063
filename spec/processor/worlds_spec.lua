-- Whole worlds before a processor: destinations that are down, messages that nobody can deliver,
-- messages that are never answered. A call takes 5 ms, unless a spec says otherwise.
--
-- This is policy. It runs once: the sanitizers, which need five times as long, learn nothing of it.
if os.getenv("OUTBOX_TREE") then
  return
end

local outbox = require("outbox")
local support = require("spec.support")
local world = require("spec.support.world")

local HANG = 10 -- seconds until a call that is never answered is given up

-- So many messages, the first of them bad.
local function messages(bad, good, make)
  local list = {}
  for i = 1, bad + (good or 0) do
    list[i] = make and make(i) or {}
    list[i].payload = i <= bad and "bad" or nil
  end
  return list
end

local function any_bad(list)
  for _, message in ipairs(list) do
    if message.payload == "bad" then
      return true
    end
  end
  return false
end

local function one()
  return {}
end

-- Raises for a call with a bad message, after so many seconds.
local function raising(seconds)
  return function(list)
    if any_bad(list) then
      return "raise", seconds
    end
  end
end

-- Raises from one time to another.
local function down(from, to, otherwise)
  return function(list, time, namespace)
    if time >= from and time < to then
      return "raise"
    end
    return otherwise and otherwise(list, time, namespace)
  end
end

local function failures(count, failure)
  local list = {}
  for i = 1, count do
    list[i] = failure
  end
  return list
end

describe("a processor", function()
  after_each(support.remove)

  describe("with messages ahead that make the publisher raise", function()
    for _, count in ipairs({ 1, 10, 20, 200 }) do
      it(("delivers others within 5 s, %d of them"):format(count), function()
        local found = world.run({ seconds = 60, messages = messages(count), answer = raising(),
          rate = 10, arrivals = one })
        assert.is_true(found.first <= 5, found.first)
        assert.is_true(found.longest <= 10, found.longest)
        assert.equal(0, found.charges)
        assert.is_true(found.left_charges > 0)
      end)
    end

    it("delivers others at half its rate or more, 200 of them", function()
      local found = world.run({ seconds = 10, messages = messages(200, 30000),
        answer = raising() })
      assert.is_true(found.first <= 1, found.first)
      assert.is_true(found.delivered >= 10 / 0.005 * 20 / 2, found.delivered)
    end)

    it("finds the others behind 12,000 of different keys", function()
      local found = world.run({ seconds = 20, answer = raising(), messages = messages(12000, 100,
        function(i)
          return { key = tostring(i) }
        end) })
      assert.is_true(found.first <= 5, found.first)
      assert.is_true(found.delivered >= 90, found.delivered)
    end)

    it("makes dead letters of them, and charges nobody else", function()
      local found = world.run({ seconds = 60, messages = messages(5), answer = raising(), rate = 10,
        arrivals = one, options = { retry = { max_attempts = 3 } } })
      assert.equal(5, #found.dead)
      for _, entry in ipairs(found.dead) do
        assert.same({ "bad", 2 }, { entry.payload, entry.attempts }) -- before the last
      end
      assert.same({ 0, 0 }, { found.charges, found.left })
    end)
  end)

  describe("with messages that are never answered", function()
    it("delivers the others at half its rate or more after the first timeout", function()
      local found = world.run({ seconds = 60, messages = messages(1, 10000), answer = function(list)
        return raising(HANG)(list), any_bad(list) and HANG or 0.1
      end })
      assert.is_true(found.first <= HANG + 1, found.first)
      assert.is_true(found.delivered >= (60 - HANG) / 0.1 * 20 / 2, found.delivered)
    end)

    for _, count in ipairs({ 1, 10 }) do
      it(("keeps others waiting for two timeouts at most, %d of them"):format(count), function()
        local found = world.run({ seconds = 150, messages = messages(count), rate = 20,
          arrivals = one, answer = raising(HANG) })
        assert.is_true(found.longest <= 2 * HANG, found.longest)
        assert.equal(0, found.charges)
      end)
    end

    it("suspects one that alone of its call was not answered, and charges it in the end", function()
      local found = world.run({ seconds = 100, messages = messages(1), rate = 20, arrivals = one,
        answer = function(list)
          local failed = {}
          for i, message in ipairs(list) do
            failed[i] = message.payload == "bad" and { reason = "none", uncharged = true } or nil
          end
          return failed, any_bad(list) and HANG or nil
        end })
      assert.is_true(found.longest <= 2 * HANG, found.longest)
      assert.equal(0, found.charges)
      assert.is_true(found.left_charges > 0)
    end)
  end)

  describe("with a destination that is down", function()
    it("goes on with the others, and calls it seldom", function()
      local found = world.run({ seconds = 60, messages = messages(0, 200, function(i)
        return { namespace = "down " .. i % 20 }
      end), rate = 20, arrivals = function()
        return { namespace = "up" }
      end, answer = function(_, _, namespace)
        return namespace ~= "up" and "raise" or nil
      end })
      assert.equal(20 * 60 - 1, found.delivered)
      assert.is_true(#found.failing <= 20 * 15, #found.failing)
      for _, it in pairs(found.published) do
        assert.is_true(it.message.namespace ~= "up" or it.delivered_at - it.at < 1)
      end
      assert.equal(0, found.charges)
    end)

    it("charges nobody, and is back within 30 s of its end", function()
      local found = world.run({ seconds = 700, messages = messages(0, 5), rate = 0.5,
        arrivals = one, answer = down(0, 600) })
      assert.is_true(found.first <= 630, found.first)
      assert.same({ 0, 0 }, { found.charges, found.left })
      assert.is_true(#found.failing <= 100, #found.failing)
      assert.equal(#found.failing, #found.errors)
    end)

    it("is back within 30 s of its end though messages wait that make it raise", function()
      local found = world.run({ seconds = 700, messages = messages(20, 5), rate = 2, arrivals = one,
        answer = down(0, 600, raising()) })
      assert.is_true(found.first <= 630, found.first)
      assert.equal(0, found.charges)
      assert.is_true(found.left <= 21, found.left) -- the last one that came may wait still
    end)

    it("has no dead letters though nothing else comes for an hour", function()
      local found = world.run({ seconds = 3600, messages = messages(1), answer = raising(),
        options = { retry = { max_attempts = 1 } } })
      assert.same({ 1, 0 }, { found.left, found.left_charges })
      assert.is_true(#found.failing > 3600 / 60 and #found.failing < 3600 / 10, #found.failing)
      assert.equal(#found.failing, #found.errors)
    end)

    it("buries nobody though it goes up and down in a moment", function()
      for rate, answer in pairs({ [5] = function(_, time)
        return time % 0.6 >= 0.3 and "raise" or nil
      end, [2] = function()
        return math.random() < 0.5 and "raise" or nil
      end }) do
        local found = world.run({ seconds = 200, answer = answer, rate = rate, arrivals = one })
        assert.same({}, found.dead)
        assert.is_true(found.delivered > 200 * rate / 2, found.delivered)
      end
    end)
  end)

  describe("that is started again", function()
    it("delivers at once if the destination is back", function()
      local found = world.run({ seconds = 130, restart = 101, messages = messages(0, 100),
        answer = down(0, 100.5) })
      assert.is_true(found.first < 101.5, found.first)
      assert.equal(0, found.left)
    end)

    it("calls at once during an outage, and delivers within 30 s of its end", function()
      local found = world.run({ seconds = 150, restart = 90, messages = messages(0, 100),
        answer = down(0, 110) })
      local calls = 0
      for _, at in ipairs(found.failing) do
        calls = calls + (at >= 90 and at < 90.1 and 1 or 0)
      end
      assert.is_true(calls > 0)
      assert.is_true(found.first <= 140, found.first)
      assert.equal(0, found.left)
    end)

    it("goes on with others beside messages that make the publisher raise", function()
      local found = world.run({ seconds = 100, restart = 20, messages = messages(20), rate = 10,
        arrivals = one, answer = raising() })
      assert.is_true(found.longest <= 10, found.longest)
      assert.equal(0, found.charges)
    end)
  end)

  describe("with an answer for each message", function()
    it("charges a bad one at once, and lets the others pass", function()
      local found = world.run({ seconds = 30, messages = messages(30), rate = 10, arrivals = one,
        options = { retry = { max_attempts = 3 } }, answer = function(list)
          local failed = {}
          for i, message in ipairs(list) do
            failed[i] = message.payload == "bad" and "unknown field" or nil
          end
          return failed
        end })
      assert.equal(30, #found.dead)
      assert.is_true(found.longest <= 0.2, found.longest)
      assert.same({ 0, 0 }, { found.charges, found.left })
    end)

    it("waits as told, and charges nobody", function()
      local found = world.run({ seconds = 240, messages = messages(0, 50), rate = 1, arrivals = one,
        answer = function(list, time)
          return time < 200 and failures(#list, { uncharged = true, retry_after = 20 }) or nil
        end })
      assert.is_true(#found.failing <= 2 * 200 / 20 + 3, #found.failing)
      assert.is_true(found.first >= 200 and found.first <= 221, found.first)
      assert.same({ 0, 0 }, { found.charges, found.left })
    end)

    it("waits for one message as told, and not with the others", function()
      local found = world.run({ seconds = 100, messages = messages(1), rate = 10, arrivals = one,
        answer = function(list)
          local failed = {}
          for i, message in ipairs(list) do
            failed[i] = message.payload == "bad" and { uncharged = true, retry_after = 20 } or nil
          end
          return failed
        end })
      assert.equal(5, #found.failing)
      assert.is_true(found.longest <= 0.2, found.longest)
      assert.same({ 1, 0 }, { found.left, found.left_charges })
    end)

    it("learns how many messages a call may have", function()
      for most, calls in pairs({ [10] = 3000 / 3, [1] = 1.5 * 3000 }) do
        local found = world.run({ seconds = 30, messages = messages(0, 3000),
          answer = function(list)
            return #list > most and "raise" or nil
          end })
        assert.same({ 0, 0 }, { found.charges, found.left })
        assert.is_true(found.calls <= calls, found.calls)
        assert.is_true(#found.failing <= calls / 3, #found.failing)
      end
    end)
  end)

  describe("among four of one namespace", function()
    it("judges by its own share", function()
      local found = world.run({ seconds = 60, processors = 4, messages = messages(20), rate = 20,
        arrivals = one, answer = raising() })
      assert.is_true(found.first <= 6, found.first)
      assert.is_true(found.longest <= 10, found.longest)
      assert.equal(0, found.charges)
      assert.is_true(found.left_charges > 0)
    end)

    it("calls a destination that is down as often as each would alone", function()
      local found = world.run({ seconds = 200, processors = 4, messages = messages(0, 100),
        answer = down(0, 150) })
      assert.is_true(#found.failing <= 4 * 25, #found.failing)
      assert.is_true(found.first <= 180, found.first)
      assert.same({ 0, 0 }, { found.charges, found.left })
    end)
  end)

  it("looks at the clock no more often for each call when many namespaces rest", function()
    local function looks_per_call(spaces)
      local fake, looks, calls = support.clock(), 0, 0
      local clock = { now = function()
        looks = looks + 1
        return fake.now()
      end }
      local store <close> = support.store({ clock = clock, synchronous = "off" })
      for i = 1, 20 * spaces do
        store:publish({ namespace = "down " .. i % spaces })
      end
      local p = outbox.processor({ store = store, on_error = function() end, publisher = function()
        calls = calls + 1
        error("down", 0)
      end })
      local all_looks, all_calls = 0, 0
      for round = 1, 600 do
        looks, calls = 0, 0
        p:pump()
        if round > 200 and calls > 0 then
          all_looks, all_calls = all_looks + looks, all_calls + calls
        end
        fake.advance(0.1)
      end
      return all_looks / all_calls
    end
    local few, many = looks_per_call(2), looks_per_call(100)
    assert.is_true(many <= 2 * few, many)
  end)

  it("remembers nothing of what is well again", function()
    local clock = support.clock()
    local store <close> = support.store({ clock = clock, synchronous = "off" })
    local p = outbox.processor({ store = store, on_error = function() end,
      publisher = function(list)
        assert(list[1].last_error, "once")
      end })
    local function round(first)
      for i = first, first + 999 do
        store:publish({ namespace = "namespace " .. i })
      end
      repeat
        p:pump()
        clock.advance(1)
      until store:stats().ready + store:stats().delayed == 0
      collectgarbage()
      collectgarbage()
      return collectgarbage("count")
    end
    local before = round(1)
    local after = math.max(round(1001), round(2001))
    assert.is_true(after - before < 200, after - before) -- kB, for 2,000 namespaces
  end)
end)
