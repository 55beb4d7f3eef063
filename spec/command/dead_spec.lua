local command = require("spec.support.command")
local outbox = require("outbox")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

local fail, run, succeed = command.fail, command.run, command.succeed

describe("outbox dead", function()
  local store, path

  before_each(function()
    store, path = support.store()
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function bury(...)
    command.bury(store, ...)
  end

  it("puts dead letters back by their ids", function()
    bury("a", "b", "c")
    assert.equal("requeued 2\n", succeed("dead requeue " .. path .. " a c"))
    assert.same({ "a", "c" }, support.pluck(store:ready_entries(), "id"))
    assert.same({ "b" }, support.pluck(store:dead_entries(), "id"))
  end)

  it("purges dead letters by their ids", function()
    bury("a", "b", "c")
    assert.equal("purged 2\n", succeed("dead purge " .. path .. " a c"))
    assert.same({ "b" }, support.pluck(store:dead_entries(), "id"))
    assert.equal(0, store:stats().ready)
  end)

  it("moves the others if one is missing or a duplicate, and says so", function()
    bury("a", "b", "c")
    local out, status, err = run("dead requeue " .. path .. " a x b")
    assert.same({ "requeued 2\n", 3, "outbox: no dead letter has the id x\n" },
      { out, status, err })
    bury("d")
    support.sql(store, "INSERT INTO outbox_entries (id) VALUES ('c')") -- SQL looks at one table
    out, status, err = run("dead requeue " .. path .. " --all")
    assert.same({ "requeued 1\n", 1 }, { out, status })
    assert.equal(3, select(2, run("dead requeue " .. path .. " x c")))
    assert.equal("outbox: c: an entry with this id is already in the outbox (duplicate)\n", err)
    assert.same({ "c" }, support.pluck(store:dead_entries(), "id"))
  end)

  sqlite_it("moves the others if a constraint of the application stops one, and says so", function()
    bury("a", "b", "c")
    support.sql(store, "CREATE TABLE audit (id UNIQUE)")
    support.sql(store, "INSERT INTO audit VALUES ('b')")
    support.sql(store, "CREATE TRIGGER t AFTER INSERT ON outbox_ready BEGIN"
      .. " INSERT INTO audit VALUES (new.id); END")
    local out, status, err = run("dead requeue " .. path .. " a b c")
    assert.same({ "requeued 2\n", 1 }, { out, status })
    assert.equal("outbox: b: UNIQUE constraint failed: audit.id (constraint)\n", err)
    assert.same({ "b" }, support.pluck(store:dead_entries(), "id"))
  end)

  it("puts all back, or those of a namespace, any number of them", function()
    for i = 1, 250 do
      local id = tostring(i)
      store:publish({ id = id, namespace = i % 2 == 0 and "even" or "odd" })
      store:bury_entry(id)
    end
    assert.equal("requeued 125\n", succeed("dead requeue " .. path .. " --all --namespace even"))
    assert.same({ 125, 125 }, { store:stats().ready, store:stats().dead })
    assert.equal("requeued 125\n", succeed("dead requeue " .. path .. " --all"))
    assert.equal("requeued 0\n", succeed("dead requeue " .. path .. " --all"))
  end)

  it("says how many that it puts back are so old that receivers may have forgotten them", function()
    bury("a", "b", "c", "d")
    support.sql(store, "UPDATE outbox_dead SET created_at = created_at - ?1 WHERE id IN ('a', 'b')",
      366 * 86400 * 1000000)
    support.sql(store, "UPDATE outbox_dead SET created_at = created_at - ?1 WHERE id = 'c'",
      364 * 86400 * 1000000)
    local out, status, err = run("dead requeue " .. path .. " a c d")
    assert.same({ "requeued 3\n", 0 }, { out, status })
    assert.equal("outbox: 1 of them published more than a year ago: a receiver that has forgotten "
      .. "their ids handles them again\n", err)
    assert.matches("1 of them", select(3, run("dead requeue " .. path .. " --all")))
    bury("e")
    assert.equal("", select(3, run("dead requeue " .. path .. " e")))
  end)

  it("leaves dead letters alone that die meanwhile", function()
    bury("a")
    local later <close> = outbox.open(path, { clock = function()
      return outbox.clock.now() + 1000
    end })
    later:publish({ id = "b" })
    later:bury_entry("b")
    assert.equal("requeued 1\n", succeed("dead requeue " .. path .. " --all"))
    assert.same({ "b" }, support.pluck(store:dead_entries(), "id"))
  end)

  it("purges all only with --yes", function()
    bury("a", "b")
    fail(2, "say %-%-yes", "dead purge " .. path .. " --all")
    assert.equal(2, store:stats().dead)
    assert.equal("purged 2\n", succeed("dead purge " .. path .. " --all --yes"))
    fail(2, "name the ids", "dead purge " .. path)
    fail(2, "name the ids", "dead requeue " .. path .. " a --all")
    fail(2, "%-%-namespace needs %-%-all", "dead requeue " .. path .. " a --namespace n")
  end)
end)
