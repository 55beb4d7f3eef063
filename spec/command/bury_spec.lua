local command = require("spec.support.command")
local support = require("spec.support")

local fail, run, succeed = command.fail, command.run, command.succeed

describe("outbox bury", function()
  local store, path

  before_each(function()
    store, path = support.store()
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  it("makes dead letters of entries, whether they are ready, delayed or scheduled", function()
    store:publish({ id = "ready", key = "k" }, { id = "retry" }, { id = "rest" },
      { id = "scheduled", payload = "p", deliver_at = 4e9 })
    store:retry_entry("retry", 4e9, "no answer")
    assert.equal("buried 3\n", succeed("bury " .. path .. " ready retry scheduled"))
    assert.outbox(store).has_dead_entry({ id = "ready", key = "k", attempts = 0 })
    assert.outbox(store).has_dead_entry({ id = "retry", attempts = 1, last_error = "no answer" })
    assert.outbox(store).has_dead_entry({ id = "scheduled", payload = "p" })
    assert.same({ "rest" }, support.pluck(store:ready_entries(), "id"))
    assert.equal(0, store:stats().delayed)
  end)

  it("can be undone", function()
    store:publish({ id = "a", payload = "p" })
    succeed("bury " .. path .. " a")
    succeed("dead requeue " .. path .. " a")
    assert.outbox(store).has_entry({ id = "a", payload = "p" })
    assert.equal(0, store:stats().dead)
  end)

  it("buries the others if one is missing, and says so", function()
    store:publish({ id = "a" }, { id = "b" })
    succeed("bury " .. path .. " b")
    assert.same({ "buried 1\n", 3, "outbox: no entry that waits has the id x\n"
      .. "outbox: no entry that waits has the id b\n" }, { run("bury " .. path .. " x a b") })
    assert.equal(2, store:stats().dead)
  end)

  it("refuses wrong arguments", function()
    fail(2, "missing argument 'ID'", "bury " .. path)
    fail(1, "%(cantopen%)", "bury /nowhere a")
  end)
end)
