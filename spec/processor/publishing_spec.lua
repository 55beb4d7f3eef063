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

    local function raise(value)
      return function()
        error(value, 0)
      end
    end

    local function hostile(metamethods)
      return function()
        return setmetatable({}, metamethods)
      end
    end

    local object = setmetatable({ code = 9 }, { __tostring = function()
      return "in its own words"
    end })
    for name, case in pairs({
      ["false"] = { "the publisher returned false", function()
        return false
      end },
      ["false and a reason"] = { "closed", function()
        return false, "closed"
      end },
      ["nil and false"] = { "false", function()
        return nil, false
      end },
      ["nil and a table"] = { "refused", function()
        return nil, { message = "refused", code = 7 }
      end },
      ["an error that is nil"] = { "the publisher raised nil", raise(nil) },
      ["an error with a message"] = { "refused", raise({ message = "refused", code = 7 }) },
      ["an error with other fields"] = { '{ status = 503, text = "a\\nb", why = {...} }',
        raise({ status = 503, text = "a\nb", why = {} }) },
      ["an error that is an empty table"] = { "an empty table", raise({}) },
      ["an error that is an object"] = { "in its own words", raise(object) },
      ["an error that cannot be shown"] = { "an error that cannot be shown",
        raise(setmetatable({}, { __tostring = error })) },
      ["an error whose fields raise"] = { "an error that cannot be shown",
        raise(setmetatable({}, { __index = error })) },
      ["failures whose __pairs raises"] = { "that the publisher returned raised: no pairs",
        hostile({ __pairs = raise("no pairs") }) },
      ["failures whose __index raises"] = { "that the publisher returned raised: no index",
        hostile({ __index = raise("no index") }) },
    }) do
      it("and says what it was told by " .. name, function()
        publish("a")
        processor({ publisher = case[2] }):pump()
        assert.outbox(store).has_entry({ id = "a", attempts = 0 })
        assert.same({ "publisher", 1 }, { errors[1].code, #errors })
        assert.matches(case[1], errors[1].message, 1, true)
      end)
    end

    it("and passes on the value that it returned or raised", function()
      local failures = { [7] = "x" }
      for _, case in ipairs({ { 42 }, { false }, { failures }, { nil, "gone", "gone" } }) do
        publish("a")
        local cause
        processor({ publisher = function()
          return case[1], case[2]
        end, on_error = function(problem)
          cause = problem.cause
        end }):pump()
        assert.equal(case[3] or case[1], cause)
        store:delete_entries("a")
      end
    end)

    it("and charges a failure whose fields raise", function()
      publish("a", "b")
      local reasons = {}
      processor({ publisher = function()
        return { setmetatable({}, { __index = error, __pairs = error }) }
      end, on_retry = function(entry, reason)
        reasons[#reasons + 1] = entry.id .. ": " .. reason
      end }):pump()
      assert.same({ "a: an error that cannot be shown" }, reasons)
      assert.outbox(store).has_no_entry({ id = "b" })
    end)

    it("and reads failures that a metatable has", function()
      publish("a", "b")
      processor({ publisher = function()
        return setmetatable({}, { __index = { [2] = "no" } })
      end }):pump()
      assert.outbox(store).has_entries(1)
      assert.outbox(store).has_entry({ id = "b", attempts = 1, last_error = "no" })
    end)

    it("and takes false for a message that is delivered", function()
      publish("a", "b")
      assert.equal(1, processor({ publisher = function()
        return { false, "no" }
      end }):pump())
      assert.outbox(store).has_entry({ id = "b", last_error = "no" })
    end)

    it("and reports a failure with an unknown field, which is an ordinary one", function()
      publish("a", "b", "c")
      processor({ publisher = function()
        return { [2] = { reason = "no", permament = true }, [3] = { permament = true } }
      end }):pump()
      assert.outbox(store).has_entry({ id = "b", attempts = 1, last_error = "no" })
      assert.outbox(store).has_entry({ id = "c", last_error = "{ permament = true }" })
      assert.same({ 1, "publisher", "" }, { #errors, errors[1].code, errors[1].namespace })
      assert.equal("the failure of message 2 has an unknown field 'permament'", errors[1].message)
    end)

    it("and takes an object with a text of its own for a reason", function()
      publish("a")
      processor({ publisher = function()
        return { object }
      end }):pump()
      assert.outbox(store).has_entry({ id = "a", attempts = 1, last_error = "in its own words" })
      assert.same({}, errors)
    end)

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
