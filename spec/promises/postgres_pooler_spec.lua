-- Behind a pooler that gives its clients the same session in turn, each for a transaction.

local outbox = require("outbox")
local postgres = require("spec.support.postgres")
local process = require("process")
local support = require("spec.support")
local torture = require("spec.support.torture")

local describe = support.only("postgres", describe)
describe = postgres.has_pooler() and describe or pending

local PUBLISHERS, MESSAGES = 4, 25

-- What a session must not keep of one client for the next. The pooler gives each its own name, and
-- the isolation is that of a transaction, whatever the view says.
local TRACES = [[
SELECT name, setting FROM pg_settings WHERE source = 'session'
  AND name NOT IN ('application_name', 'transaction_isolation')
UNION ALL SELECT 'prepared', name FROM pg_prepared_statements
UNION ALL SELECT 'channel', pg_listening_channels()
UNION ALL SELECT 'lock', mode FROM pg_locks WHERE locktype = 'advisory']]

describe("behind a pooler of transactions", function()
  local server, pooler

  setup(function()
    server = postgres.server({ default_transaction_isolation = "repeatable read" })
    pooler = postgres.pooler(server)
  end)

  teardown(postgres.stop)

  before_each(function()
    postgres.sql(server.url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    local store <close> = outbox.open(pooler.url)
    store:migrate()
  end)

  after_each(function()
    torture.kill_all()
    support.remove()
  end)

  -- What psql itself has set is none.
  local function traces()
    return postgres.sql(pooler.url, "RESET client_min_messages;" .. TRACES)
  end

  local function deliver_all(store)
    local payloads = {}
    local p = outbox.processor({ store = store, publisher = function(messages)
      table.move(support.pluck(messages, "payload"), 1, #messages, #payloads + 1, payloads)
    end })
    p:pump()
    return payloads
  end

  it("stores publish and deliver, each its own", function()
    local pids, expected = {}, {}
    for i = 1, PUBLISHERS do
      pids[i] = torture.fork(function()
        local store <close> = outbox.open(pooler.url)
        for j = 1, MESSAGES, 2 do
          store:publish({ key = i, payload = i .. "." .. j })
          store:transaction(function(txn)
            txn:publish({ key = i, payload = i .. "." .. j + 1 })
          end)
        end
      end)
      for j = 1, MESSAGES + 1 do
        expected[#expected + 1] = i .. "." .. j
      end
    end
    for _, pid in ipairs(pids) do
      assert.equal(0, torture.wait(pid))
    end
    local store <close> = outbox.open(pooler.url)
    local payloads = deliver_all(store)
    table.sort(payloads)
    table.sort(expected)
    assert.same(expected, payloads)
    assert.outbox(store).is_empty()
  end)

  it("a store leaves nothing behind, whatever its options", function()
    assert.equal("", traces())
    local all = { { synchronous = "off" }, { busy_timeout = 1 }, { mode = "read" } }
    for _, options in ipairs(all) do
      local store <close> = outbox.open(pooler.url, options)
      assert.equal(0, store:stats().ready)
      if not options.mode then
        store:publish({ payload = "payload" })
        assert.same({ "payload" }, deliver_all(store))
      end
      assert.equal("", traces())
    end
  end)

  it("the options of a store hold in its transactions", function()
    local reader <close> = outbox.open(pooler.url, { mode = "read" })
    local hasty <close> = outbox.open(pooler.url, { synchronous = "normal", busy_timeout = 0.25 })
    assert.equal("readonly", support.raised(reader.publish, reader, {}).code)
    assert.equal("readonly", support.raised(reader.transaction, reader, function(txn)
      txn:publish({})
    end).code)
    local row = support.sql(hasty, "SELECT current_setting('synchronous_commit') AS synchronous,"
      .. " current_setting('lock_timeout') AS patience,"
      .. " current_setting('transaction_isolation') AS isolation")[1]
    assert.same({ synchronous = "local", patience = "250ms", isolation = "read committed" }, row)
  end)

  it("a processor is not woken, but looks by itself", function()
    local finish = support.sleeping_processor(pooler.url)
    local publisher <close> = outbox.open(server.url)
    publisher:publish({ payload = "payload" })
    assert.equal("payload", finish())
    assert.equal("", traces())
  end)

  it("a session that the pooler has lost is lost", function()
    local store <close> = outbox.open(pooler.url)
    local problem = support.raised(store.transaction, store, function(txn)
      local own = txn:rows("SELECT pg_backend_pid() AS pid")()
      process.kill(own.pid)
      txn:publish({})
    end)
    assert.equal("disconnected", problem.code)
  end)
end)
