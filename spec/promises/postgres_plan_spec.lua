-- The plans of the statements that run for every batch and every call of publish: they follow an
-- index to where the work is, however long the backlog is.

local outbox = require("outbox")
local postgres = require("spec.support.postgres")
local support = require("spec.support")
local torture = require("spec.support.torture")

local describe = support.only("postgres", describe)

local BACKLOG = torture.long and 1000000 or 100000
local FILL = "INSERT INTO outbox_entries (partition, seq, namespace, key, payload)"
  .. " SELECT (outbox_hash('shop', 'key-' || i %% 1000) & 63)::smallint, nextval('outbox_seq'),"
  .. " 'shop', 'key-' || i %% 1000, 'x' FROM generate_series(1, %d) AS i"
local RETRIES = "INSERT INTO outbox_delayed (seq, namespace, key, payload, due_at, position,"
  .. " partition) SELECT s, 'shop', 'late', 'x', 9e15, s, 0 FROM generate_series(-1000, -1) AS s"

describe("at a long backlog on PostgreSQL", function()
  local server, store

  setup(function()
    server = postgres.server({ shared_preload_libraries = "auto_explain", autovacuum = "off",
      ["auto_explain.log_min_duration"] = 0, ["auto_explain.log_nested_statements"] = "off" })
    local first <close> = outbox.open(server.url)
    first:migrate()
    postgres.sql(server.url, FILL:format(BACKLOG) .. ";" .. RETRIES)
  end)

  teardown(postgres.stop)

  -- Marks the end of what the log has now, and returns what it is followed by later.
  local function follow_log()
    local path = server.folder .. "/log"
    local file <close> = assert(io.open(path))
    local size = file:seek("end")
    return function()
      local later <close> = assert(io.open(path))
      later:seek("set", size)
      return later:read("a")
    end
  end

  -- Returns the plans, by the beginning of their statements.
  local function plans_of(log)
    local plans = {}
    for text, plan in (log .. "\n2"):gmatch("Query Text: ([^\n]*)(.-)\n%f[%d]") do
      plans[#plans + 1] = { text = text, plan = plan }
    end
    return plans
  end

  -- The statements that name one of the large tables never read all of it, nor all of a partition
  -- to sort it, and find an entry by its partition and seq, or by its id.
  local function check(log)
    local checked = 0
    for _, it in ipairs(plans_of(log)) do
      local shown = it.text .. it.plan
      for _, name in ipairs({ "outbox_entries", "outbox_delayed" }) do
        checked = checked + (it.text:find(name, 1, true) and 1 or 0)
        assert.is_nil(it.plan:find("Seq Scan on " .. name, 1, true), shown)
        assert.is_nil(it.plan:find("Bitmap Heap Scan on " .. name, 1, true), shown)
      end
      for below in it.plan:gmatch("%->  Sort [^\n]*\n([^\n]*\n[^\n]*)") do
        assert.is_nil(below:find("Scan using outbox_", 1, true), shown)
      end
      for below in it.plan:gmatch("Scan using outbox_entries_pkey[^\n]*\n([^\n]*)") do
        assert.is_truthy(below:find("partition =", 1, true), shown)
      end
    end
    return checked
  end

  local function advance(verdict, want)
    local verdicts = {}
    for i = 1, #store:batch() do
      verdicts[i] = verdict
    end
    store:advance(verdicts, want)
    return #store:batch()
  end

  -- In the state `analyzed`, the planner knows how much there is; otherwise it guesses.
  local function test(analyzed)
    if analyzed then
      postgres.sql(server.url, "VACUUM ANALYZE")
    end
    store = outbox.open(server.url)
    finally(function()
      store:close()
    end)
    local read_log = follow_log()
    store:publish({ namespace = "shop", key = "one", payload = "x" })
    store:transaction(function(txn)
      txn:publish({ namespace = "shop", key = "one", payload = "x" }, { payload = "x" })
    end)
    store:serve({ processor_id = "reader", duration = 3600 })
    local delivered = { outcome = "delivered" }
    for _, size in ipairs({ 100, 100, 1, 1 }) do
      assert.equal(size, advance(delivered, { batch_size = size, join = true }))
    end
    advance({ outcome = "retry", at = 0, error = "no" }, { batch_size = 10 })
    for _ = 1, 4 do
      advance(delivered, { batch_size = 10 })
    end
    store:park("shop")
    for _ = 1, 3 do
      advance(delivered, { batch_size = 10 })
    end
    store:recover("shop")
    for _ = 1, 3 do
      advance(delivered, { batch_size = 10 })
    end
    advance(delivered, { batch_size = 0, leave = true })
    assert.is_true(check(read_log()) > 20)
  end

  it("no statement reads or sorts it before there are statistics", function()
    test(false)
  end)

  it("no statement reads or sorts it when the planner knows its size", function()
    test(true)
  end)
end)
