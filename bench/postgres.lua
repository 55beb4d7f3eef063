-- Measures the engine for PostgreSQL beside the same work in C on libpq (bench/postgres.c): rows
-- with a status, which is how most queues on PostgreSQL work, and rows that stay locked while they
-- are delivered. All run in turns on one server, which it starts itself and which does not sync.
--
--   make bench-postgres
--   lua5.4 bench/postgres.lua [PART] [SIZE]
--
-- PART is drain, publish, claim, wake, processes, distance or snapshot, by default all. SIZE is the
-- number of entries in a backlog, by default 1,000,000. The processes are in
-- bench/postgres_worker.lua.

local outbox = require("outbox")
local support = require("bench.support")

local PART, SIZE = arg[1] or "all", tonumber(arg[2]) or 1000000
local DRAINED = math.min(SIZE, 100000) -- of the backlog
local ROUNDS = 3
local ROUND_TRIP = 1000 -- microseconds
local median, percentile = support.median, support.percentile
local now = outbox.clock.now

--- The server ---------------------------------------------------------------------------------

local function run(command, ...)
  command = command:format(...)
  local pipe = assert(io.popen(command))
  local output = pipe:read("a")
  assert(pipe:close(), command)
  return output
end

local folder = os.tmpname()
os.remove(folder)
local url = run("tools/postgres start %s shared_buffers=512MB max_wal_size=4GB"
  .. " checkpoint_timeout=30min autovacuum_naptime=5s", folder):gsub("%s+$", "")
local Server <close> = setmetatable({}, { __close = function() -- luacheck: no unused
  run("tools/postgres stop %s", folder)
end })
local psql = run("tools/postgres bin"):gsub("%s+$", "") .. "/psql"

local function sql(text)
  return run("%s -qAtX -v ON_ERROR_STOP=1 -c \"%s\" '%s'", psql, text, url)
end

local COLUMNS = " id text NOT NULL UNIQUE, namespace text NOT NULL, key text, payload text,"
  .. " payload_bytes bytea, headers text, created_at bigint NOT NULL,"
  .. " attempts bigint NOT NULL DEFAULT 0, last_error text, source_id text"

local function make_tables()
  sql("CREATE TABLE rows (partition smallint NOT NULL, seq bigint NOT NULL," .. COLUMNS
    .. ", PRIMARY KEY (partition, seq))")
  sql("CREATE TABLE jobs (number bigint PRIMARY KEY, status smallint NOT NULL DEFAULT 0," .. COLUMNS
    .. ") WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 10000,"
    .. " autovacuum_vacuum_cost_delay = 0)")
  sql("CREATE INDEX ON jobs (number) WHERE status = 0")
end

local VALUES = " outbox_uuid7(), 'bench', 'key-' || lpad(i::text, 7, '0'),"
  .. " repeat('x', 200), 0 FROM generate_series(1, %d) AS i"

local function fill_jobs(count)
  sql("TRUNCATE jobs")
  sql(("INSERT INTO jobs (number, id, namespace, key, payload, created_at) SELECT i,"
    .. VALUES):format(count))
  sql("VACUUM ANALYZE jobs")
end

local function fill_entries(count)
  sql("TRUNCATE outbox_entries, outbox_delayed, outbox_claims, outbox_batches")
  sql(("INSERT INTO outbox_entries (partition, seq, id, namespace, key, payload, created_at)"
    .. " SELECT (outbox_hash('bench', 'key-' || lpad(i::text, 7, '0')) & 63)::smallint,"
    .. " nextval('outbox_seq')," .. VALUES):format(count))
  sql("VACUUM ANALYZE outbox_entries")
end

local function baseline(operation, count, size, at)
  return tonumber((run("build/baseline_postgres %s '%s' %d %d", operation, at or url, count, size)))
end

local function command(operation, options, at)
  return ("%s bench/postgres_worker.lua %s '%s' %s"):format(arg[-1], operation, at or url, options)
end

local function ours(operation, count, size, at)
  return tonumber((run("%s", command(operation, ("%d %d"):format(count, size), at))))
end

--- Printing -----------------------------------------------------------------------------------

local function title(text)
  print("\n" .. text)
end

-- Prints the rates of some ways to do the same, each beside the first.
local function compare(names, seconds, count)
  for i, name in ipairs(names) do
    local ratios = {}
    for round, time in ipairs(seconds[name]) do
      ratios[round] = seconds[names[1]][round] / time
    end
    print(("  %-44s %9.0f/s%s"):format(name, count / median({ table.unpack(seconds[name]) }),
      i > 1 and ("  %5.2f times"):format(median(ratios)) or ""))
  end
end

-- Measures them in turns. `measures` is a list of a name and a function each.
local function in_turns(measures, count)
  local names, seconds = {}, {}
  for round = 1, ROUNDS do
    for i, measure in ipairs(measures) do
      names[i] = measure[1]
      seconds[measure[1]] = seconds[measure[1]] or {}
      seconds[measure[1]][round] = measure[2]()
    end
  end
  compare(names, seconds, count)
end

--- The parts ----------------------------------------------------------------------------------

local parts = {}

function parts.drain()
  title(("draining %d of %d, in batches of 100; wanted 2.5 times"):format(DRAINED, SIZE))
  local function by_hand(operation)
    return function()
      fill_jobs(SIZE)
      return baseline(operation, DRAINED, 100)
    end
  end
  local function through(operation)
    return function()
      fill_entries(SIZE)
      return ours(operation, DRAINED, 100)
    end
  end
  in_turns({ { "a status: UPDATE ... SKIP LOCKED, DELETE", by_hand("status") },
    { "held open: FOR UPDATE SKIP LOCKED, DELETE", by_hand("locked") },
    { "the store", through("raw") }, { "the processor", through("processor") } }, DRAINED)
end

function parts.publish()
  for _, per_call in ipairs({ 1000, 100, 1 }) do
    local count = per_call == 1 and 5000 or 50000
    title(("publishing %d in a call; wanted 0.8 times at 1,000"):format(per_call))
    local function by_hand(operation)
      return function()
        sql("TRUNCATE rows")
        return baseline(operation, count, per_call)
      end
    end
    in_turns({ { "INSERT of many rows", by_hand("insert") }, { "COPY", by_hand("copy") },
      { "publish", function()
        fill_entries(0)
        return ours("publish", count, per_call)
      end } }, count)
  end
end

function parts.claim()
  title("the first batch of a processor; wanted within 2 times")
  local times = {}
  for _, size in ipairs({ 1000, SIZE }) do
    local list = {}
    fill_entries(size)
    for round = 1, 2 * ROUNDS + 1 do
      sql("TRUNCATE outbox_claims, outbox_batches")
      list[round] = ours("claim", 0, 0)
    end
    times[#times + 1] = median(list)
    print(("  %-44s %9.2f ms"):format(("of %d entries"):format(size), times[#times] * 1e3))
  end
  print(("  %-44s %9.2f times"):format("", times[2] / times[1]))
end

function parts.wake()
  local count, called = 2000, {}
  title("from a commit to the publisher, in another process; wanted p50 0.5 ms")
  fill_entries(0)
  local store <close> = outbox.open(url)
  local processor
  processor = outbox.processor({ store = store, publisher = function(messages)
    local time = now()
    for _, message in ipairs(messages) do
      called[tonumber(message.payload)] = time
    end
    if messages[#messages].payload == tostring(count) then
      processor:stop()
    end
  end })
  local publisher = assert(io.popen(command("wake", count)))
  processor:run()
  local latencies = {}
  for line in publisher:lines() do
    latencies[#latencies + 1] = math.max(0, called[#latencies + 1] - tonumber(line))
  end
  assert(publisher:close() and #latencies == count)
  table.sort(latencies)
  for _, part in ipairs({ 0.5, 0.99, 1 }) do
    local label = ("p%.0f"):format(100 * part)
    print(("  %-44s %9.2f ms"):format(label, percentile(latencies, part) * 1e3))
  end
end

-- Seconds in which so many processes deliver `count` messages of 1 ms each.
local function share(processes, count)
  local workers, first, last, sum = {}, math.huge, 0, 0
  fill_entries(count)
  for i = 1, processes do
    workers[i] = assert(io.popen(("%s bench/lanes_worker.lua serve '%s' cost=0.001 idle=1"):format(
      arg[-1], url)))
  end
  for i = 1, processes do
    local of = {}
    for name, value in workers[i]:read("a"):gmatch("([%a_]+) (%d[%d.]*)") do
      of[name] = tonumber(value)
    end
    assert(workers[i]:close())
    first, last, sum = math.min(first, of.first), math.max(last, of.drained), sum + of.count
  end
  assert(sum == count, sum)
  return last - first
end

function parts.processes()
  local count = 6000
  title(("%d messages of 1 ms; wanted 2.5 times"):format(count))
  in_turns({ { "one processor", function()
    return share(1, count)
  end }, { "three processors", function()
    return share(3, count)
  end } }, count)
end

function parts.distance()
  local name = os.tmpname()
  local port
  local proxy = assert(io.popen(("build/delay %s/.s.PGSQL.5432 %d >%s"):format(folder,
    ROUND_TRIP // 2, name), "w"))
  repeat
    local file <close> = assert(io.open(name))
    port = file:read("n")
  until port
  os.remove(name)
  local far = ("postgresql://postgres@127.0.0.1:%d/postgres?sslmode=disable"):format(port)
  title(("at a round trip of %.1f ms"):format(ROUND_TRIP / 1000))
  for batch, wanted in pairs({ [20] = 10000, [100] = 35000 }) do
    local count = batch * 300
    print(("  draining in batches of %d; wanted %d/s"):format(batch, wanted))
    in_turns({ { "a status: UPDATE ... SKIP LOCKED, DELETE", function()
      fill_jobs(count)
      return baseline("status", count, batch, far)
    end }, { "the store", function()
      fill_entries(count)
      return ours("raw", count, batch, far)
    end }, { "the processor", function()
      fill_entries(count)
      return ours("processor", count, batch, far)
    end } }, count)
  end
  print("  publishing 100 in a call; wanted 25000/s")
  in_turns({ { "INSERT of many rows", function()
    sql("TRUNCATE rows")
    return baseline("insert", 30000, 100, far)
  end }, { "publish", function()
    fill_entries(0)
    return ours("publish", 30000, 100, far)
  end } }, 30000)
  proxy:close()
end

function parts.snapshot()
  local length = 30
  title("10,000 messages a second, and a batch of 100; wanted: no slower over time")
  print(("  %-12s %24s %30s"):format("", "no snapshot", "a snapshot is held"))
  local columns = {}
  for column = 1, 2 do
    fill_entries(0)
    local holder = column == 2
      and assert(io.popen(("build/baseline_postgres hold '%s'"):format(url), "w"))
    local feed = assert(io.popen(command("feed", ("%d 10000"):format(length))))
    local churn = assert(io.popen(command("churn", ("%d 100"):format(length))))
    columns[column] = {}
    for line in churn:lines() do
      local second, count, least, middle = line:match("(%S+) (%S+) (%S+) (%S+)")
      table.insert(columns[column], { second, count / 3, least * 1e3, middle * 1e3 })
    end
    assert(churn:close() and feed:close() and (not holder or holder:close()))
  end
  for i, with in ipairs(columns[2]) do
    local free = columns[1][i] or { 0, 0, 0, 0 }
    print(("  after %2d s %9.0f/s %6.2f %6.2f ms %12.0f/s %6.2f %6.2f ms"):format(with[1], free[2],
      free[3], free[4], with[2], with[3], with[4]))
  end
end

do
  local store <close> = outbox.open(url)
  store:migrate()
end
make_tables()
for name in ("drain publish claim wake processes distance snapshot"):gmatch("%S+") do
  if PART == "all" or PART == name then
    parts[name]()
  end
end
