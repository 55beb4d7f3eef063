-- What a crash of the server undoes: what a processor had settled in the last moments, because that
-- is not synced at once; and numbers that transactions had drawn which were never committed.

local outbox = require("outbox")
local postgres = require("spec.support.postgres")
local process = require("process")
local support = require("spec.support")

local describe = support.only("postgres", describe)

describe("after a crash of PostgreSQL", function()
  local server, store

  setup(function()
    server = postgres.server({ autovacuum = "off", wal_level = "minimal", max_wal_senders = 0 })
  end)

  teardown(postgres.stop)

  before_each(function()
    -- Then nothing is written to the log before a commit waits for that.
    local writer = postgres.sql(server.url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public;"
      .. " SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'")
    process.kill(tonumber(writer), 19) -- SIGSTOP
    store = outbox.open(server.url)
    store:migrate()
    store:serve({ processor_id = "reader", duration = 3600 })
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function advance(outcome)
    local verdicts = {}
    for i = 1, #store:batch() do
      verdicts[i] = { outcome = outcome, at = 0, error = "no" }
    end
    store:advance(verdicts, { batch_size = 10, join = true })
    return support.pluck(store:batch(), "payload")
  end

  local function publish(payload)
    local publisher <close> = outbox.open(server.url)
    publisher:publish({ key = "key", payload = payload })
  end

  local function crash()
    server:crash()
    server:start()
    assert.equal("disconnected", support.raised(advance, "delivered").code)
  end

  -- What the processor hands out until nothing is left, each as delivered.
  local function deliver_all()
    local all = {}
    for _ = 1, 10 do
      for _, payload in ipairs(advance("delivered")) do
        all[#all + 1] = payload
      end
    end
    assert.outbox(store).is_empty()
    return all
  end

  it("a processor delivers again what it had settled in the last moments", function()
    publish("first")
    assert.same({ "first" }, advance())
    advance("delivered")
    crash()
    assert.same({ "first" }, deliver_all())
  end)

  it("a processor delivers what it had failed to deliver in the last moments", function()
    publish("first")
    assert.same({ "first" }, advance())
    store:advance({ { outcome = "retry", at = outbox.clock.now() + 3600, error = "no" } },
      { batch_size = 10 })
    crash()
    assert.same({ "first" }, deliver_all())
  end)

  it("a processor delivers what was waiting for a retry that came back", function()
    publish("first")
    assert.same({ "first" }, advance())
    publish("second")
    assert.same({}, advance("retry"))
    publish("synced") -- and so is the retry
    local all = deliver_all()
    assert.same({ "first", "second", "synced" }, all)
    crash()
    assert.same({ "first", "second", "synced" }, deliver_all())
  end)

  it("a processor finds entries that get numbers which it has seen already", function()
    publish("first")
    assert.same({ "first" }, advance())
    local publisher <close> = outbox.open(server.url)
    pcall(publisher.transaction, publisher, function(txn)
      for _ = 1, 100 do
        txn:publish({ payload = "undone" })
      end
      error("undone")
    end)
    for _ = 1, 3 do
      assert.same({}, advance("delivered"))
    end
    crash()
    publish("second")
    assert.same({ "first", "second" }, deliver_all())
  end)
end)
