-- Processors that pump, and the options of a processor.

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

  local function fill(count, make)
    shared.fill(store, count, make)
  end

  local function delivered()
    return support.pluck(publisher.messages, "id")
  end

  describe("that pumps", function()
    it("delivers all entries, in order and in batches, and returns", function()
      fill(45)
      local function in_order(ids) -- on PostgreSQL, those of a key alone
        if support.engine == "postgres" then
          table.sort(ids, function(a, b)
            return tonumber(a) < tonumber(b)
          end)
        end
        return ids
      end
      assert.equal(45, processor():pump())
      assert.same({ 20, 20, 5 },
        { #publisher.calls[1].messages, #publisher.calls[2].messages,
          #publisher.calls[3].messages })
      for i, id in ipairs(in_order(delivered())) do
        assert.equal(tostring(i), id)
      end
      assert.outbox(store).is_empty()
      assert.same({}, store:stats().leases)
    end)

    it("leaves entries that are not due, and messages that were published for later", function()
      publish("a")
      store:publish({ id = "later", deliver_at = 1010 })
      local p = processor()
      assert.equal(1, p:pump())
      clock.advance(10)
      assert.equal(1, p:pump())
      assert.same({ "a", "later" }, delivered())
    end)

    it("brings back more due entries than one claim does", function()
      fill(2500, function(i)
        return { id = tostring(i), deliver_at = 1001 }
      end)
      clock.advance(1)
      assert.equal(2500, processor({ batch_size = 500 }):pump())
    end)

    it("raises the errors of the database", function()
      publish("a")
      local other <close> = outbox.open(path, { busy_timeout = 0, clock = clock })
      local p = processor({ store = other })
      local txn = coroutine.wrap(function()
        store:transaction(support.keep_busy)
      end)
      txn()
      assert.equal("busy", support.raised(p.pump, p).code)
      txn()
      assert.equal(1, p:pump())
    end)
  end)

  it("takes batches of the publisher's size, unless the option says otherwise", function()
    local function sizes(to, batch_size)
      local list = {}
      for i = 1, 30 do
        store:publish({ payload = tostring(i) })
      end
      processor({ publisher = to, batch_size = batch_size, on_batch = function(batch)
        list[#list + 1] = batch.size
      end }):pump()
      return list
    end
    local function deliver() end
    assert.same({ 20, 10 }, sizes(deliver))
    assert.same({ 20, 10 }, sizes({ publish = deliver }))
    assert.same({ 25, 5 }, sizes({ publish = deliver, batch_size = 25 }))
    assert.same({ 15, 15 }, sizes({ publish = deliver, batch_size = 25 }, 15))
  end)

  it("is refused with all that is wrong in one error", function()
    local message = support.raised(outbox.processor, { publisher = 1, batch_size = 0,
      orderin = "key", retry = { base = -1, cup = 1 }, limit = 5, on_error = "x" })
    for _, part in ipairs({ "store is missing", "publisher must be a function or a table",
      "batch_size must be an integer", "unknown option 'orderin'", "retry.base must be",
      "unknown option 'retry.cup'", "no option 'limit' any more", "on_error must be" }) do
      assert.matches(part, message, 1, true)
    end
    for _, size in ipairs({ 0, 1.5, 100001, "20" }) do
      assert.matches("its batch_size, if any, a positive integer", support.raised(outbox.processor,
        { store = store, publisher = { publish = print, batch_size = size } }), 1, true)
    end
    assert.matches("table expected, got nil", support.raised(outbox.processor))
  end)

  it("takes durations of 1e10 seconds, and refuses longer ones", function()
    local function options(longest)
      return { store = store, publisher = publisher, claim_duration = longest,
        publish_timeout = longest, process_interval = longest,
        retry = { base = longest, cap = longest } }
    end
    for _, longer in ipairs({ 1.1e10, 1e11, 1e12, math.huge }) do
      local message = support.raised(outbox.processor, options(longer))
      for _, name in ipairs({ "claim_duration", "publish_timeout", "process_interval",
        "retry.base", "retry.cap" }) do
        assert.matches(name .. " must be a number of seconds, at most 1e10", message, 1, true)
      end
    end
    publish("a", "b")
    publisher:fail("a", "no")
    local p = processor(options(1e10))
    p:pump()
    assert.same({}, errors)
    assert.same({ "b" }, delivered())
    assert.equal(1, store:stats().delayed)
    local seconds
    repeat
      seconds = p:step()
    until seconds > 0
  end)

  it("makes an id of its own if it is given none", function()
    local a, b = processor().options.processor_id, processor().options.processor_id
    assert.not_equal(a, b)
    assert.is_true(#a > 8)
  end)
end)
