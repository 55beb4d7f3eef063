-- outbox.attach(function): stores on any other binding, which runs the SQL itself.

local outbox = require("outbox")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("a store on a function", function()
  local path, run, seen

  before_each(function()
    local own
    own, path = support.store()
    own:close()
    seen = {}
    -- A minimal function, which runs each statement in a transaction of another store. It ignores
    -- savepoints, because that store sets its own.
    run = function(sql, ...)
      if sql:find("SAVEPOINT") then
        return
      end
      seen[#seen + 1] = { sql, select("#", ...) }
      local other <close> = outbox.open(path)
      local values = table.pack(...)
      other:transaction(function(txn)
        txn:execute(sql, table.unpack(values, 1, values.n))
      end)
    end
  end)

  after_each(support.remove)

  local function entries()
    local own <close> = outbox.open(path)
    return own:ready_entries()
  end

  it("publishes with that function, and keeps every byte", function()
    local store = outbox.attach(run, { id_generator = testing.ids(), clock = testing.clock(5) })
    assert.equal("id-1", store:publish({ namespace = "n", key = "k", payload = "p",
      headers = { a = "b" } }))
    assert.equal("i\0", store:publish({ id = "i\0", key = "k\0", payload = "\0\255\n" }))
    assert.equal(2, #seen)
    for _, statement in ipairs(seen) do
      local _, parameters = statement[1]:gsub("%?", "")
      assert.equal(parameters, statement[2])
    end
    local list = entries()
    assert.same({ "id-1", "n", "k", "p", { a = "b" }, 5 }, { list[1].id, list[1].namespace,
      list[1].key, list[1].payload, list[1].headers, list[1].created_at })
    assert.same({ "i\0", "", "k\0", "\0\255\n" },
      { list[2].id, list[2].namespace, list[2].key, list[2].payload })
  end)

  it("publishes scheduled messages, and refuses an id that is in any table", function()
    local store = outbox.attach(run)
    store:publish({ id = "late", deliver_at = os.time() + 1000 })
    assert.equal(0, #entries())
    assert.matches("CHECK", tostring(support.raised(store.publish, store, { id = "late" })))
    store:publish({ id = "now" })
    assert.is_false((pcall(store.publish, store, { id = "now" })))
    assert.equal(1, #entries())
    local twice = outbox.attach(run, { id_generator = function()
      return "late"
    end })
    assert.matches("CHECK", tostring(support.raised(twice.publish, twice, {})))
  end)

  it("raises what the function raises for a constraint of the application's own", function()
    local store, own <close> = outbox.attach(run), outbox.open(path)
    own:transaction(function(txn)
      txn:execute("CREATE UNIQUE INDEX own ON outbox_ready (namespace, key)")
    end)
    store:publish({ key = "k" })
    local problem = support.raised(store.publish, store, { key = "k" })
    assert.same({ "constraint",
      "UNIQUE constraint failed: outbox_ready.namespace, outbox_ready.key" },
      { problem.code, problem.message })
    assert.equal(1, #entries())
  end)

  it("fails unless the function returns nothing or true", function()
    for _, answer in ipairs({ { false }, { nil, "locked" }, { 0 }, { 1 }, { 101 }, { "ok" } }) do
      local store = outbox.attach(function()
        return table.unpack(answer, 1, 2)
      end)
      local problem = support.raised(store.publish, store, {})
      assert.equal("error", problem.code)
      assert.matches(answer[2] or answer[1] and "the function returned " .. answer[1]
        or "the function returned false", problem.message)
      assert.equal(("outbox: %s (error)"):format(problem.message), tostring(problem))
    end
    assert.equal(36, #outbox.attach(function()
      return true
    end):publish({}))
  end)

  it("sets a savepoint, and rolls it back whatever fails", function()
    local UNDONE = { "ROLLBACK TO SAVEPOINT ", "RELEASE SAVEPOINT " }
    local ALL = { "SAVEPOINT ", "INSERT INTO ", "INSERT INTO ", "RELEASE SAVEPOINT " }
    for failing = 1, #ALL do
      for _, answer in ipairs({ "raise", 1, false }) do
        local ran = {}
        local store = outbox.attach(function(sql)
          ran[#ran + 1] = sql:match("^[%u ]+")
          if #ran == failing and answer == "raise" then
            error("full")
          elseif #ran >= failing then
            return answer -- the same for all later statements
          end
        end)
        assert.is_false((pcall(store.publish, store, {}, {})))
        local expected = table.move(ALL, 1, failing, 1, {})
        assert.same(table.move(UNDONE, 1, 2, failing + 1, expected), ran)
      end
    end
  end)

  it("checks messages and options as other stores do", function()
    local store = outbox.attach(run)
    for message, wrong in pairs({
      ["table expected, got number"] = 1,
      ["unknown field 'payloads'"] = { payloads = "" },
      ["field 'id' must be a string, not a number"] = { id = 1 },
      ["field 'deliver_at' is out of range"] = { deliver_at = 0 / 0 },
      ["headers must be named by strings"] = { headers = { 1 } },
    }) do
      assert.matches(message, support.raised(store.publish, store, {}, wrong), 1, true)
    end
    assert.matches("no value", support.raised(store.publish, store))
    local careless = outbox.attach(run, { id_generator = function() end })
    assert.matches("must return a string, not a nil",
      support.raised(careless.publish, careless, { id = "a" }, {}))
    assert.equal(0, #seen)
    for message, options in pairs({
      ["unknown option 'synchronous'"] = { synchronous = "full" },
      ["plain identifier"] = { prefix = "a-b" },
      ["clock must be a function"] = { clock = 1 },
      ["id_generator must be a function"] = { id_generator = {} },
      ["#2 to 'attach' (table expected, got string)"] = "outbox_",
    }) do
      assert.matches(message, support.raised(outbox.attach, run, options), 1, true)
    end
    local timeless = outbox.attach(run, { clock = function() end })
    assert.matches("the clock's now%(%) must return a time in seconds, not nil",
      support.raised(timeless.publish, timeless, {}))
  end)
end)
