-- What a processor tells its hooks, and counts.

local shared = require("spec.processor.support")
local support = require("spec.support")
local testing = require("outbox.testing")

local sqlite_it = support.only("sqlite", it)

describe("a processor", function()
  local store, clock, publisher, errors

  before_each(function()
    clock = testing.clock()
    store = support.store({ clock = clock, id_generator = testing.ids() })
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

  describe("has hooks", function()
    it("for everything that happens", function()
      local seen = {}
      local function note(name)
        return function(first, ...)
          seen[#seen + 1] = { name, type(first) == "table" and first.id or nil, (...) }
        end
      end
      publish("good", "bad", "hopeless")
      publisher:fail("bad", "not now")
      publisher:fail("hopeless", { reason = "never", permanent = true })
      local batch
      local p = processor({ on_delivered = note("delivered"), on_retry = note("retry"),
        on_dead = note("dead"), on_batch = function(b)
          batch = b
        end })
      p:pump()
      assert.same({ { "delivered", "good" }, { "retry", "bad", "not now" },
        { "dead", "hopeless", "never" } }, seen)
      assert.same({ size = 3, delivered = 1, retried = 1, dead = 1, seconds = 0 }, batch)
    end)

    for name, trigger in pairs({
      ["a trigger that raises"] = "SELECT RAISE(ABORT, 'entries are kept')",
      ["a UNIQUE constraint in a trigger"] = "INSERT INTO audit VALUES (old.namespace)",
    }) do
      sqlite_it("that are told in SQLite's words why nothing can be deleted: " .. name, function()
        support.sql(store, "CREATE TABLE audit (name UNIQUE)")
        support.sql(store, "INSERT INTO audit VALUES ('orders')")
        support.sql(store, ("CREATE TRIGGER t BEFORE DELETE ON outbox_ready"
          .. " WHEN old.namespace = 'orders' BEGIN %s; END"):format(trigger))
        store:publish({ id = "a", namespace = "orders" })
        store:publish({ id = "b", namespace = "mails" })
        local p
        p = processor({ on_error = function(problem)
          errors[#errors + 1] = problem
          if #errors == 3 then
            support.sql(store, "DROP TRIGGER t")
          end
        end, on_batch = function()
          if store:stats().ready == 0 then
            p:stop()
          end
        end })
        p:run()
        assert.equal(3, #errors)
        for _, problem in ipairs(errors) do
          assert.equal("constraint", problem.code)
          assert.equal(trigger:match("'(entries.+)'") or "UNIQUE constraint failed: audit.name",
            problem.message)
        end
        assert.same({ "a", "b" }, support.pluck(publisher.messages, "id")) -- each once
      end)
    end

    it("which do no harm when they raise; the errors are reported", function()
      publish("good", "bad", "hopeless")
      publisher:fail("bad", "not now")
      publisher:fail("hopeless", { permanent = true })
      local p = processor({ on_delivered = error, on_retry = error, on_dead = error,
        on_batch = error })
      assert.equal(1, p:pump())
      assert.equal(4, #errors)
      assert.equal("hook", errors[1].code)
      local stats = store:stats()
      assert.same({ 0, 1, 1 }, { stats.ready, stats.delayed, stats.dead })
    end)

    it("among them on_error; the default writes to stderr, and so do errors of on_error", function()
      local output, ok = support.run([[-e '
        local outbox = require("outbox")
        local store = outbox.open(":memory:")
        store:migrate()
        local function try(name, on_error)
          store:publish({})
          outbox.processor({ store = store, on_error = on_error, publisher = function() end,
            on_delivered = function() error(name, 0) end }):pump()
        end
        try("default")
        try("raising", function() error("again", 0) end)']])
      assert.is_true(ok, output)
      assert.equal("outbox: on_delivered raised: default (hook)\n"
        .. "outbox: on_delivered raised: raising (hook)\n"
        .. "outbox: on_error raised: again (hook)\n", output)
    end)
  end)

  it("counts, and measures from created to delivered", function()
    publish("a")
    clock.advance(2)
    publish("b", "bad")
    publisher:fail("bad", "no")
    clock.advance(1)
    local p = processor()
    p:pump()
    assert.same({ delivered = 2, retried = 1, deferred = 0, dead = 0, batches = 1, errors = 0,
      lost = 0, waits = 0, last_delivered_at = 1003, down = {},
      latency = { count = 2, sum = 4, max = 3 } }, p:stats())
  end)
end)
