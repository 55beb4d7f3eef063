-- A batch is deleted where its rows were when it was read. They may have moved since, and others
-- may lie there.

local outbox = require("outbox")
local postgres = require("spec.support.postgres")
local support = require("spec.support")

local describe = support.only("postgres", describe)

describe("a batch on PostgreSQL", function()
  local store, url

  before_each(function()
    url = postgres.schema()
    store = outbox.open(url)
    store:migrate()
    store:serve({ processor_id = "reader", duration = 60 })
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function publish(first, last)
    local messages = {}
    for i = first, last do
      messages[#messages + 1] = { key = "key", payload = tostring(i) }
    end
    store:publish(table.unpack(messages))
  end

  -- Settles what is in hand as delivered, reads on, and returns what was read.
  local function go_on(batch_size)
    local verdicts = {}
    for i = 1, #store:batch() do
      verdicts[i] = { outcome = "delivered" }
    end
    store:advance(verdicts, { batch_size = batch_size, join = true })
    return support.pluck(store:batch(), "payload")
  end

  local function count()
    return support.sql(store, "SELECT count(*) AS count FROM outbox_entries")[1].count
  end

  -- After each, the first three of four are in hand, and delivered.
  for what, statement in pairs({
    ["whose rows were written again"] = "UPDATE outbox_entries SET attempts = attempts",
    ["of which one row was written again"] = "UPDATE outbox_entries SET payload = '2 again'"
      .. " WHERE payload = '2'",
    ["whose table was written again, in another order"] = "CREATE INDEX again ON outbox_entries"
      .. " (payload DESC); CLUSTER outbox_entries USING again",
  }) do
    it(what .. " is deleted, and nothing else", function()
      publish(1, 4)
      assert.same({ "1", "2", "3" }, go_on(3))
      postgres.sql(url, statement)
      assert.same({ "4" }, go_on(10))
      assert.equal(1, count())
      assert.same({}, go_on(10))
      assert.equal(0, count())
    end)
  end

  it("of which a row is gone, and where others lie by now, leaves those", function()
    publish(1, 3)
    assert.same({ "1", "2", "3" }, go_on(3))
    postgres.sql(url, "DELETE FROM outbox_entries WHERE payload <> '1'; VACUUM outbox_entries;"
      .. " INSERT INTO outbox_entries (key, payload) VALUES ('key', '4'), ('key', '5')")
    assert.same({ "4", "5" }, go_on(3))
    assert.equal(2, count())
    assert.same({}, go_on(3))
    assert.equal(0, count())
  end)

  it("that was read through a connection that was lost is deleted", function()
    publish(1, 3)
    assert.same({ "1", "2", "3" }, go_on(3))
    local pid = support.sql(store, "SELECT pg_backend_pid() AS pid")[1].pid
    postgres.sql(url, ("SELECT pg_terminate_backend(%d, 10000)"):format(pid))
    assert.equal("disconnected", support.raised(go_on, 3).code)
    assert.same({}, go_on(3))
    assert.equal(0, count())
  end)
end)
