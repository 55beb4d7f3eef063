-- One message of a key per call, unless the publisher keeps the order itself.

local outbox = require("outbox")
local shared = require("spec.processor.support")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("the messages of a key", function()
  local store, path, clock, publisher, errors

  before_each(function()
    clock = testing.clock()
    store, path = support.store({ clock = clock, synchronous = "off" })
    publisher, errors = testing.publisher(), {}
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function processor(options)
    return shared.processor(store, publisher, options, errors)
  end

  -- The first letter of an id is its key; "-" stands for none.
  local function publish(ids)
    local messages = {}
    for id in ids:gmatch("%S+") do
      messages[#messages + 1] = { id = id, key = id:match("^%a") }
    end
    store:publish(table.unpack(messages))
  end

  local function calls()
    local list = {}
    for i, call in ipairs(publisher.calls) do
      list[i] = table.concat(support.pluck(call.messages, "id"), " ")
    end
    return list
  end

  it("are handed out in different calls, those of other keys together", function()
    publish("a1 a2 b1 -1 a3 -2 b2")
    local batches = 0
    local p = processor({ on_batch = function()
      batches = batches + 1
    end })
    assert.equal(7, p:pump())
    assert.same({ "a1 b1 -1 -2", "a2 b2", "a3" }, calls())
    assert.equal(1, batches)
  end)

  it("are told apart by their namespaces", function()
    store:publish({ id = "1", key = "k" }, { id = "2", key = "k", namespace = "n" },
      { id = "3", key = "k" })
    processor({}):pump()
    assert.same({ "1", "3", "2" }, calls())
  end)

  it("may be empty like any other key", function()
    store:publish({ id = "1", key = "" }, { id = "2", key = "" }, { id = "3" })
    processor({}):pump()
    assert.same({ "1 3", "2" }, calls())
  end)

  it("may be long, and hold any bytes", function()
    local long, odd = ("x"):rep(10000), support.ODD
    local a, b = long .. odd .. "a", long .. odd .. "b"
    for i, key in ipairs({ a, b, a, odd, "", odd }) do
      store:publish({ id = tostring(i), key = key })
    end
    processor({}):pump()
    assert.same({ "1 2 4 5", "3 6" }, calls())
  end)

  it("are not handed out behind a failed one", function()
    publish("a1 a2 a3 b1 b2")
    publisher:fail("a1", "no", 1)
    local p = processor({})
    p:pump()
    assert.same({ "a1 b1", "b2" }, calls())
    clock.advance(1)
    p:pump()
    assert.same({ "a1 b1", "b2", "a1", "a2", "a3" }, calls())
    assert.same({ "b1", "b2", "a1", "a2", "a3" }, support.pluck(publisher.messages, "id"))
  end)

  it("are handed out behind a dead letter", function()
    publish("a1 a2 b1")
    publisher:fail("a1", { permanent = true })
    processor({}):pump()
    assert.same({ "a1 b1", "a2" }, calls())
  end)

  it("are not handed out after a call that raised", function()
    publish("a1 b1 a2 b2")
    publisher:raise("down", 1)
    local p = processor({})
    p:step()
    assert.same({ "a1 b1" }, calls())
    assert.outbox(store).has_entries(4)
    clock.advance(60)
    p:pump()
    assert.same({ "b1", "a1", "a2", "b2" }, support.pluck(publisher.messages, "id"))
  end)

  it("leave a receiver that drops what it has seen with the newest state", function()
    local receiver <close> = outbox.open(":memory:")
    receiver:migrate()
    local inbox, state, refused = outbox.inbox({ store = receiver }), {}, {}
    for i = 1, 60 do
      store:publish({ key = "k" .. i % 7, payload = tostring(i) })
    end
    local p = processor({ retry = { base = 0.1 }, publisher = function(messages)
      local failures = {}
      for i, message in ipairs(messages) do
        if tonumber(message.payload) % 5 == 1 and not refused[message.id] then
          refused[message.id], failures[i] = true, "no"
        else
          inbox:once(message.id, function()
            assert.is_true(tonumber(message.payload) > (state[message.key] or 0))
            state[message.key] = tonumber(message.payload)
          end)
        end
      end
      return failures
    end })
    for _ = 1, 100 do
      p:pump()
      clock.advance(1)
    end
    assert.outbox(store).is_empty()
    assert.same({ k0 = 56, k1 = 57, k2 = 58, k3 = 59, k4 = 60, k5 = 54, k6 = 55 }, state)
    assert.same({}, errors)
  end)

  it("are handed out together to a publisher that keeps the order itself", function()
    publish("a1 a2 b1 a3")
    publisher.ordered = true
    processor({}):pump()
    assert.same({ "a1 a2 b1 a3" }, calls())
  end)

  it("keep their order when a call with several of them raises", function()
    for raises = 1, 4 do
      local delivered, calls_so_far = {}, 0
      publisher = { ordered = true, publish = function(_, messages)
        calls_so_far = calls_so_far + 1
        if calls_so_far <= raises then
          error("down", 0)
        end
        for _, message in ipairs(messages) do
          delivered[#delivered + 1] = message.id
        end
      end }
      publish("a1 a2 b1 a3 b2")
      local p = processor()
      for _ = 1, 200 do
        p:pump()
        clock.advance(0.5)
      end
      local order = table.concat(delivered, " ")
      assert.equal("a1 a2 a3", (order:gsub(" ?b%d ?", " "):gsub("^ ", ""):gsub(" +", " ")
        :gsub(" $", "")), order)
      assert.is_true(order:find("b1") < order:find("b2"), order)
    end
  end)

  it("are handed out together where there is no order", function()
    publish("a1 a2 a3")
    processor({ ordering = "none" }):pump()
    assert.same({ "a1 a2 a3" }, calls())
  end)

  it("are, in strict order, all messages", function()
    publish("a1 b1 -1")
    processor({ ordering = "strict" }):pump()
    assert.same({ "a1", "b1", "-1" }, calls())
    publisher.calls, publisher.ordered = {}, true
    publish("a1 b1 -1")
    processor({ ordering = "strict" }):pump()
    assert.same({ "a1 b1 -1" }, calls())
  end)

  it("are given back when the processor is stopped between two calls", function()
    publish("a1 a2 a3")
    local p
    p = processor({ publisher = function(messages)
      publisher:publish(messages)
      p:stop()
    end })
    p:run()
    assert.same({ "a1" }, calls())
    assert.outbox(store).has_entry({ id = "a2", attempts = 0 })
    local other <close> = outbox.open(path, { clock = clock })
    assert.equal(2, processor({ store = other }):pump())
  end)

  it("are read again when the calls before them took too long for the claim", function()
    publish("a1 a2 a3")
    local p = processor({ claim_duration = 2, publisher = function(messages)
      publisher:publish(messages)
      clock.advance(1.5)
      assert.equal(3 - (#publisher.calls - 1), store:stats().ready)
    end })
    assert.equal(3, p:pump())
    assert.same({ "a1", "a2", "a3" }, calls())
    assert.same({}, errors)
  end)

  it("keep their order when a failure makes the calls of a batch smaller", function()
    local seed = tonumber(os.getenv("OUTBOX_SEED")) or os.time()
    math.randomseed(seed)
    for i = 1, 300 do
      store:publish({ key = "k" .. i % 4, payload = tostring(i) })
    end
    local newest = {}
    local p = processor({ batch_size = 8, retry = { base = 0.001, cap = 0.01, max_attempts = 1000 },
      publisher = function(messages)
        local failures = {}
        for i, message in ipairs(messages) do
          local number, key = tonumber(message.payload), message.key
          if math.random(20) == 1 then
            error("raised")
          elseif math.random(5) == 1 then
            failures[i] = "no"
          else
            assert(number - (newest[key] or number - 4) <= 4, "an earlier one was not delivered")
            newest[key] = math.max(newest[key] or 0, number)
          end
        end
        return failures
      end })
    for _ = 1, 4000 do
      p:step()
      clock.advance(0.1)
    end
    local stats = store:stats()
    assert.equal(0, stats.ready + stats.delayed + stats.dead, "seed " .. seed)
    for _, problem in ipairs(errors) do
      assert.matches("raised$", problem.message, 1, false, "seed " .. seed)
    end
  end)

  describe("in a table of routes", function()
    local function sent(route)
      for _, id in ipairs({ "1", "2" }) do
        store:publish({ id = id, key = "k", namespace = "x" })
      end
      processor({ publisher = outbox.publisher(route) }):pump()
      return calls()
    end

    it("are handed out together if all publishers keep the order themselves", function()
      publisher.ordered = true
      assert.same({ "1 2" }, sent({ x = publisher, y = "stdout:" }))
    end)

    it("are handed out in different calls if one does not", function()
      publisher.ordered = true
      assert.same({ "1", "2" }, sent({ x = publisher, y = function() end }))
    end)
  end)

  it("need a publisher that says so with a boolean", function()
    assert.error_matches(function()
      processor({ publisher = { publish = function() end, ordered = "yes" } })
    end, "its ordered, if any, true or false", 1, false)
  end)
end)
