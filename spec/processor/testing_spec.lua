local outbox = require("outbox")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("outbox.testing", function()
  it("has a clock that moves only when it is told to", function()
    local clock = testing.clock()
    assert.equal(1000, clock.now())
    clock.advance(5)
    clock.sleep(3600)
    assert.equal(4605, clock.now())
    clock.time = 7
    assert.equal(7, clock.now())
    assert.equal(50, testing.clock(50).now())
  end)

  it("has an ID generator that counts", function()
    local store <close> = outbox.open(":memory:", { id_generator = testing.ids() })
    store:migrate()
    assert.same({ "id-1", "id-2" }, { store:publish({}, {}) })
    assert.equal("x1", testing.ids("x")())
  end)

  describe("has a publisher", function()
    local a, b = { id = "a" }, { id = "b", key = "k" }

    it("that records the messages that it accepts", function()
      local publisher = testing.publisher()
      assert.is_nil(publisher:publish({ a, b }, "n"))
      assert.same({ a, b }, publisher.messages)
      assert.same({ { namespace = "n", messages = { a, b } } }, publisher.calls)
    end)

    it("that fails for some, as often as it is told", function()
      local publisher = testing.publisher()
      publisher:fail("a", "no", 1)
      publisher:fail(function(message)
        return message.key == "k"
      end, { permanent = true })
      assert.same({ "no", { permanent = true } }, publisher:publish({ a, b }, ""))
      assert.same({ [2] = { permanent = true } }, publisher:publish({ a, b }, ""))
      assert.same({ a }, publisher.messages)
      publisher:recover()
      assert.is_nil(publisher:publish({ b }, ""))
    end)

    it("that refuses to fail for nothing, or without a reason", function()
      local publisher = testing.publisher()
      for _, match in ipairs({ {}, 7, true }) do
        assert.matches("an id or a function expected",
          support.raised(publisher.fail, publisher, match, "no"), 1, true)
      end
      assert.matches("a reason expected", support.raised(publisher.fail, publisher, "a"), 1, true)
      assert.matches("a reason expected", support.raised(publisher.fail, publisher, "a", false), 1,
        true)
      for _, times in ipairs({ 0, -1, 1.5, "1" }) do
        assert.matches("bad argument #3 to 'fail'",
          support.raised(publisher.fail, publisher, "a", "no", times), 1, true)
        assert.matches("bad argument #2 to 'raise'",
          support.raised(publisher.raise, publisher, "no", times), 1, true)
      end
      assert.is_nil(publisher:publish({ a }, ""))
    end)

    it("that raises what it is told", function()
      local publisher, problem = testing.publisher(), {}
      publisher:raise(problem, 1)
      assert.equal(problem, support.raised(publisher.publish, publisher, { a }, ""))
      assert.is_nil(publisher:publish({ a }, ""))
    end)
  end)

  describe("has assertions", function()
    local store

    before_each(function()
      store = support.store({ id_generator = testing.ids() })
    end)

    after_each(function()
      store:close()
      support.remove()
    end)

    it("on ready and delayed entries", function()
      assert.outbox(store).is_empty()
      store:publish({ key = "k", payload = "p", headers = { h = "1" } })
      store:publish({ namespace = "n", deliver_at = os.time() + 1000 })
      assert.outbox(store).is_not_empty()
      assert.outbox(store).has_entries(2)
      assert.outbox(store).has_no_entries(1)
      assert.outbox(store).has_entry({ key = "k", payload = "p", headers = { h = "1" } })
      assert.outbox(store).has_entry({ namespace = "n" })
      assert.outbox(store).has_no_entry({ namespace = "n", key = "k" })
    end)

    it("on dead letters", function()
      store:publish({})
      assert.outbox(store).has_no_dead_entry({ id = "id-1" })
      store:bury_entry("id-1", "no")
      assert.outbox(store).has_dead_entry({ id = "id-1", last_error = "no" })
      assert.outbox(store).has_no_entry({ id = "id-1" })
      assert.outbox(store).is_not_empty()
    end)

    it("that fail, and show what there is", function()
      store:publish({ key = "k" })
      local function fails(check)
        return tostring(support.raised(check))
      end
      assert.matches('waiting id%-1: namespace "", key "k"', fails(function()
        assert.outbox(store).has_entry({ key = "other" })
      end))
      assert.matches("key = other", fails(function()
        assert.outbox(store).has_entry({ key = "other" })
      end))
      fails(function()
        assert.outbox(store).is_empty()
      end)
      fails(function()
        assert.outbox(store).has_entries(2)
      end)
      fails(function()
        assert.outbox(store).has_no_entry({ key = "k" })
      end)
      fails(function()
        assert.outbox(store).has_dead_entry({})
      end)
    end)

    it("which need a store", function()
      assert.matches("assert.empty needs a store: assert.outbox(store).empty",
        support.raised(assert.empty), 1, true)
    end)

    it("that refuse what no entry could ever have", function()
      store:publish({ key = "7" })
      local outbox_has = function(name, ...)
        return support.raised(assert.outbox(store)[name], ...)
      end
      for given, wanted in pairs({
        [{ topic = "orders" }] = "unknown field 'topic'",
        [{ id = "id-1", topik = 1 }] = "unknown field 'topik'",
        [{ "id-1" }] = "unknown field '1'",
        [{ payload = 7 }] = "field 'payload' must be a string, not a number",
        [{ key = 7.0 }] = "field 'key' must be a string, not a number",
        [{ attempts = "0" }] = "field 'attempts' must be a number, not a string",
        [{ headers = "h" }] = "field 'headers' must be a table, not a string",
        ["id-1"] = "a table of fields expected, got string",
      }) do
        for _, name in ipairs({ "has_entry", "has_no_entry", "has_dead_entry",
          "has_no_dead_entry" }) do
          assert.matches(wanted, outbox_has(name, given), 1, true)
        end
      end
      assert.matches("unknown field 'died_at'", outbox_has("has_no_entry", { died_at = 1 }), 1,
        true)
      assert.matches("unknown field 'due_at'", outbox_has("has_no_dead_entry", { due_at = 1 }), 1,
        true)
      assert.matches("got nil", outbox_has("has_no_entry"), 1, true)
      assert.matches("a number of entries", outbox_has("has_no_entries"), 1, true)
      assert.matches("a number of entries", outbox_has("has_no_entries", "1"), 1, true)
      assert.matches("at most 1 argument", outbox_has("has_entry", {}, { id = "id-2" }), 1, true)
      assert.matches("at most 0 arguments", outbox_has("is_not_empty", {}), 1, true)
      assert.outbox(store).has_entry({ key = 7 })
      assert.outbox(store).has_no_entry({ key = 8 })
    end)

    it("that refuse a name that would check nothing", function()
      assert.matches("say has_entry", support.raised(assert.outbox(store).has_message, {}), 1, true)
      assert.matches("say has_entry", support.raised(assert.outbox(store).has_no_message, "x"), 1,
        true)
      support.raised(function()
        return assert.outbox(store).has_messages({})
      end)
      assert.message("luassert's own stays").is_true(true)
    end)

    it("that show a text of the test's own when they fail", function()
      assert.matches("no order was placed\nexpected of the outbox", tostring(support.raised(
        assert.outbox(store).has_entry, { key = "k" }, "no order was placed")), 1, true)
    end)

    it("which need a store that is one", function()
      for _, value in ipairs({ {}, "outbox.db", 7, testing.publisher() }) do
        assert.matches("a store of the outbox expected", support.raised(assert.outbox, value), 1,
          true)
      end
      assert.matches("got nil", support.raised(assert.outbox), 1, true)
    end)

    it("on more than one page", function()
      for _ = 1, 250 do
        store:publish({})
      end
      assert.outbox(store).has_entries(250)
      assert.outbox(store).has_entry({ id = "id-250" })
    end)
  end)
end)
