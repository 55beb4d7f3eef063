-- A transaction that writes and stays open: a backup script, a migration, a session that somebody
-- forgot. It may have published, and nobody knows where. A processor goes on beside it, does not
-- walk again and again past what it has deleted, and misses nothing once it ends.

local outbox = require("outbox")
local postgres = require("spec.support.postgres")
local support = require("spec.support")

local describe = support.only("postgres", describe)

describe("while a transaction stays open on PostgreSQL", function()
  local server, store, publisher, writer

  setup(function()
    -- Without autovacuum what was deleted is there still.
    server = postgres.server({ autovacuum = "off" })
  end)

  teardown(postgres.stop)

  before_each(function()
    postgres.sql(server.url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    publisher = outbox.open(server.url)
    publisher:migrate()
    store, writer = outbox.open(server.url), outbox.open(server.url)
    store:serve({ processor_id = "reader", duration = 3600 })
  end)

  after_each(function()
    writer:close()
    publisher:close()
    store:close()
    support.remove()
  end)

  -- Settles what is in hand as delivered, reads on, and returns what was read.
  local function go_on(batch_size)
    local verdicts = {}
    for i = 1, #store:batch() do
      verdicts[i] = { outcome = "delivered" }
    end
    store:advance(verdicts, { batch_size = batch_size or 100, join = true })
    return support.pluck(store:batch(), "payload")
  end

  -- How many entries of indexes one reading goes by, deleted ones too.
  local function cost()
    local function read()
      return support.sql(store, "SELECT pg_stat_force_next_flush(), pg_stat_clear_snapshot()")
        and support.sql(store, "SELECT idx_tup_read::bigint AS count FROM pg_stat_user_indexes"
          .. " WHERE indexrelname = 'outbox_entries_pkey'")[1].count
    end
    local before = read()
    go_on()
    return read() - before
  end

  local function publish(count)
    local messages = {}
    for i = 1, count do
      messages[i] = { payload = "x" } -- without a key, because a key waits for others of its class
    end
    publisher:publish(table.unpack(messages))
  end

  -- Delivers more and more until the processor does not wait for the open transaction any more: a
  -- reading does not go by all that was deleted.
  local function pass_by()
    local deleted = 0
    for _ = 1, 200 do
      publish(1000)
      repeat until #go_on() == 0
      deleted = deleted + 1000
      if deleted > 3000 and cost() < 1000 then
        return
      end
    end
    error("a reading goes by all that was deleted")
  end

  it("a reading does not go by all that was deleted", function()
    writer:transaction(function(txn)
      txn:execute("CREATE TABLE mine (a int)")
      pass_by()
      for _ = 1, 5 do
        publish(1000)
        repeat until #go_on() == 0
        assert.is_true(cost() < 1000)
      end
    end)
    assert.same({}, go_on())
  end)

  for how, publish_late in pairs({
    ["by itself"] = function(txn)
      txn:publish({ key = "late", payload = "late" })
    end,
    ["after it was passed by"] = function(txn)
      txn:execute("CREATE TABLE mine (a int)")
      pass_by()
      txn:publish({ key = "late", payload = "late" })
    end,
    ["in a savepoint"] = function(txn)
      txn:execute("SAVEPOINT a")
      txn:execute("INSERT INTO outbox_entries (key, payload) VALUES ('late', 'late')")
      txn:execute("RELEASE a")
    end,
  }) do
    it("what it has published " .. how .. " comes before what follows in its key", function()
      go_on()
      writer:transaction(function(txn)
        publish_late(txn)
        pass_by()
      end)
      publisher:publish({ key = "late", payload = "later" })
      local found = {}
      repeat
        local batch = go_on(1)
        table.move(batch, 1, #batch, #found + 1, found)
      until #batch == 0
      assert.same({ "late", "later" }, found)
    end)
  end

  it("several may end in any order", function()
    local found = {}
    local function nest(depth)
      local session <close> = outbox.open(server.url)
      session:transaction(function(txn)
        txn:publish({ key = "late " .. depth, payload = "late " .. depth })
        if depth < 5 then
          nest(depth + 1)
        else
          pass_by()
        end
      end)
      publisher:publish({ key = "late " .. depth, payload = "later " .. depth })
      if depth % 2 == 1 then
        publish(1000) -- the reading that finds it does not come to an end
      end
      repeat
        local batch = go_on(10)
        for _, payload in ipairs(batch) do
          found[#found + 1] = payload ~= "x" and payload or nil
        end
      until #batch == 0
    end
    nest(1)
    assert.same({ "late 5", "later 5", "late 4", "later 4", "late 3", "later 3", "late 2",
      "later 2", "late 1", "later 1" }, found)
  end)

  it("what it has published is found by a lap, too", function()
    local function verdicts(outcome)
      local list = {}
      for i = 1, #store:batch() do
        list[i] = { outcome = outcome }
      end
      return list
    end
    writer:transaction(function(txn)
      txn:publish({ namespace = "down", key = "late", payload = "late" })
      pass_by()
      store:park("down")
      publisher:publish({ namespace = "down", key = "other", payload = "other" })
      assert.same({}, go_on())
    end)
    publisher:publish({ namespace = "down", key = "late", payload = "later" })
    store:recover("down")
    local found = {}
    for _ = 1, 10 do
      store:advance(verdicts("delivered"), { batch_size = 1 })
      found[#found + 1] = (store:batch()[1] or {}).payload
    end
    table.sort(found, function(a, b) -- of other keys
      return (a == "other" and 0 or 1) < (b == "other" and 0 or 1)
    end)
    assert.same({ "other", "late", "later" }, found)
  end)
end)
