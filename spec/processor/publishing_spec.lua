-- How a processor calls its publisher, and what becomes of the messages.

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

  describe("calls its publisher", function()
    it("once for each namespace of a batch, in order", function()
      store:publish({ namespace = "a" }, { namespace = "b" }, { namespace = "a" })
      processor():pump()
      assert.same({ "a", "b" }, support.pluck(publisher.calls, "namespace"))
      assert.same({ "id-1", "id-3", "id-2" }, delivered())
    end)

    it("as a function or as a method", function()
      publish("a")
      local given
      processor({ publisher = function(messages, namespace)
        given = { messages[1].id, messages[1].key, namespace }
      end }):pump()
      assert.same({ "a", "key of a", "" }, given)
    end)

    it("without holding a lock", function()
      publish("a")
      local other <close> = outbox.open(path, { busy_timeout = 0 })
      processor({ publisher = function(messages)
        if messages[1].id == "a" then
          other:publish({ id = "meanwhile" })
        end
      end }):pump()
      assert.same({}, errors)
    end)

    it("which may return true, or an empty table", function()
      publish("a", "b")
      local answers = { true, {} }
      processor({ batch_size = 1, publisher = function()
        return table.remove(answers, 1)
      end }):pump()
      assert.outbox(store).is_empty()
    end)

    for name, answer in pairs({
      ["false"] = { false },
      ["nil and a reason, as Lua's libraries do"] = { nil, "closed" },
      ["a number"] = { 17 },
      ["a failure of a message that is not there"] = { { [9] = "no" } },
      ["failures by id"] = { { a = "no" } },
    }) do
      it("and does not count " .. name .. " as a delivery", function()
        publish("a")
        processor({ publisher = function()
          return table.unpack(answer, 1, 2)
        end }):pump()
        assert.outbox(store).has_entry({ id = "a", attempts = 0 })
        assert.equal("publisher", errors[1].code)
      end)
    end

    it("which may change the messages that it is given", function()
      publish("a", "b", "c")
      local seen = 0
      processor({ publisher = function(messages)
        messages[1].id, messages[1].created_at = "c", "yesterday"
        messages[2], messages[3] = nil, nil
        return { [3] = "no" }
      end, on_batch = function()
        seen = seen + 1
      end }):pump()
      assert.outbox(store).has_entries(1)
      assert.outbox(store).has_entry({ id = "c", attempts = 1 })
      assert.same({ 1, {} }, { seen, errors })

      store:publish({ id = "k1", key = "k" }, { id = "k2", key = "k" })
      processor({ publisher = function(messages)
        for _, message in ipairs(messages) do
          message.id, message.key, message.attempts = nil, nil, nil
        end
        return { "no" }
      end }):pump()
      assert.outbox(store).has_entry({ id = "k1", attempts = 1 })
      assert.outbox(store).has_entry({ id = "k2", attempts = 0 }) -- waits for k1
    end)

    it("which may publish to the same outbox", function()
      publish("a")
      local p
      p = processor({ publisher = function(messages)
        if messages[1].id == "a" then
          store:publish({ id = "b" })
        end
        publisher:publish(messages, "")
      end })
      assert.equal(2, p:pump())
      assert.same({ "a", "b" }, delivered())
    end)

    it("which may yield", function()
      publish("a", "b")
      local p = processor({ batch_size = 1, publisher = function(messages)
        coroutine.yield("waiting")
        publisher:publish(messages, "")
      end })
      local pump = coroutine.wrap(function()
        return p:pump()
      end)
      assert.equal("waiting", pump())
      assert.equal(10, p:step()) -- a pump is under way: nothing happens
      assert.equal(10, p:timeout())
      assert.matches("at work", support.raised(p.pump, p))
      assert.equal("waiting", pump())
      assert.equal(2, pump())
      assert.same({ "a", "b" }, delivered())
    end)

    it("and charges the entry that it was cut off at", function()
      publish("a")
      local is_first, seen = true, nil
      local p = processor({ publisher = function()
        if is_first then
          is_first = false
          coroutine.yield()
        end
      end, on_delivered = function(entry)
        seen = entry
      end })
      local cut = coroutine.create(p.pump)
      coroutine.resume(cut, p)
      coroutine.close(cut)
      assert.equal(1, p:pump())
      assert.same({ 1, outbox.LAPSED }, { seen.attempts, seen.last_error })
    end)
  end)

  describe("whose publisher fails for some messages", function()
    it("keeps only the failed message of two namespaces, whichever it is", function()
      for failing = 1, 4 do
        local messages = {}
        for i = 1, 4 do
          messages[i] = { id = failing .. "-" .. i, namespace = i % 2 == 0 and "even" or "odd" }
        end
        store:publish(table.unpack(messages))
        publisher:fail(failing .. "-" .. failing, "no")
        processor():pump()
        assert.outbox(store).has_entries(failing)
        assert.outbox(store).has_entry({ id = failing .. "-" .. failing, attempts = 1,
          last_error = "no" })
      end
    end)

    it("never deletes a failed message nor keeps a delivered one, whatever fails", function()
      local seed = tonumber(os.getenv("OUTBOX_SEED")) or os.time()
      math.randomseed(seed)
      local accepted, left = {}, 0
      fill(500, function(i)
        return { id = tostring(i), namespace = "n" .. math.random(4) }
      end)
      local p = processor({ publisher = function(messages)
        local failures = {}
        if math.random(10) == 1 then
          error("raised")
        end
        for i, message in ipairs(messages) do
          if math.random(3) == 1 then
            failures[i] = "no"
          else
            accepted[message.id] = true
          end
        end
        return failures
      end })
      p:pump()
      for i = 1, 500 do
        local there = #support.sql(store, "SELECT 1 FROM outbox_entries WHERE id = ?1 UNION ALL"
          .. " SELECT 1 FROM outbox_delayed WHERE id = ?1", tostring(i))
        assert.equal(accepted[tostring(i)] and 0 or 1, there, "seed " .. seed)
        left = left + there
      end
      assert.is_true(left > 0)
    end)

    it("deletes the messages of the first namespace when the call for the second raises", function()
      store:publish({ namespace = "first" }, { namespace = "second" }, { namespace = "second" })
      processor({ publisher = function(_, namespace)
        if namespace == "second" then
          error("down")
        end
      end }):pump()
      assert.outbox(store).has_no_entry({ namespace = "first" })
      assert.outbox(store).has_entries(2)
    end)
  end)
end)
