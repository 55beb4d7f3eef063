-- Measures what keeps a healthy message waiting: destinations that are down, messages that make the
-- publisher raise, one that is never answered. Also how processors share ordered work, and how fast
-- a backlog is drained. Each figure stands beside the same without the trouble, and the bound of
-- the promise. The processes are in bench/lanes_worker.lua.
--
--   make bench-lanes
--   lua5.4 bench/lanes.lua [PART] [SIZE]
--
-- PART is down, raising, unanswered, processes, drain or recovery, by default all. SIZE is the
-- number of entries in a backlog, by default 1,000,000; 20,000 is enough for a quick look.

local outbox = require("outbox")
local support = require("bench.support")

local PART, SIZE = arg[1] or "all", tonumber(arg[2]) or 1000000
local WINDOW = 20 -- seconds for which throughput is measured
local MESSAGES = SIZE < 1000000 and 1000 or 2000 -- of which the latency is measured
local ROUNDS = 3 -- of a drain
local median, percentile, shell = support.median, support.percentile, support.shell
local directory = "build/bench"
local original, database = directory .. "/original.db", directory .. "/bench.db"
local filler = ("x"):rep(200)

--- Filling and running ------------------------------------------------------------------------

-- Publishes so many messages. `change` may change each.
local function fill(path, count, change)
  local store <close> = outbox.open(path, { synchronous = "off" })
  store:migrate()
  for first = 1, count, 1000 do
    local messages = {}
    for i = first, math.min(first + 999, count) do
      local message = { namespace = "healthy", key = ("key-%07d"):format(i), payload = filler }
      messages[#messages + 1] = message
      if change then
        change(message, i)
      end
    end
    store:publish(table.unpack(messages))
  end
end

local function refill(count, change)
  shell("mkdir -p %s; rm -f %s/*", directory, directory)
  fill(database, count, change)
  shell("sync %s", database)
end

local function publish_one(payload)
  local store <close> = outbox.open(database)
  store:publish({ namespace = "healthy", key = "one", payload = payload })
end

local function start(operation, options)
  return assert(io.popen(("%q bench/lanes_worker.lua %s %q %s"):format(arg[-1], operation, database,
    options)))
end

-- Reads what a processor has measured.
local function finish(worker)
  local run = { called = {} }
  for line in worker:lines() do
    local number, time = line:match("^called (%d+) (%S+)")
    if number then
      run.called[tonumber(number)] = tonumber(time)
    else
      local name, value = line:match("^([%a_]+) (%S+)")
      if name then
        run[name] = tonumber(value)
      end
    end
  end
  assert(worker:close())
  return run
end

-- Reads what a publisher has measured: sorted lists of the seconds that each commit took, and by
-- number when it was done.
local function read_publisher(publisher)
  local times, done = {}, {}
  for line in publisher:lines() do
    local number, begun, ended = line:match("^(%d+) (%S+) (%S+)")
    times[#times + 1] = ended - begun
    done[tonumber(number)] = tonumber(ended)
  end
  assert(publisher:close())
  table.sort(times)
  return times, done
end

-- The latencies of numbered messages, sorted, in seconds.
local function latencies(done, called)
  local list = {}
  for number, time in pairs(done) do
    list[#list + 1] = math.max(0, (called[number] or math.huge) - time)
  end
  table.sort(list)
  return list
end

--- Printing -----------------------------------------------------------------------------------

local function title(text, with, without)
  print(("\n%-52s %12s %12s  %s"):format(text, with or "with", without or "without", "bound"))
end

local function line(label, format, with, without, bound)
  print(("  %-50s %12s %12s  %s"):format(label, format:format(with),
    without and format:format(without) or "", bound or ""))
end

local function lines_of(label, list, base, bound50, bound99)
  for part, bound in pairs({ bound50 or "", bound99 or "" }) do
    local point = part == 1 and 0.5 or 0.99
    line(("%s p%d"):format(label, point * 100), "%.2f ms", percentile(list, point) * 1e3,
      base and percentile(base, point) * 1e3, bound)
  end
end

--- Namespaces that are down ---------------------------------------------------------------------

local function down_among(count)
  return function(message, i)
    message.namespace = ("down-%d"):format((i - 1) % count + 1)
  end
end

-- A processor, and messages that others publish beside a backlog of namespaces that are down.
local function measure_down(count)
  refill(count > 0 and SIZE or 0, down_among(count))
  publish_one("0")
  local worker = start("serve", ("half=%d"):format(MESSAGES))
  assert(worker:read("l") == "ready")
  local own, done = read_publisher(start("publish", ("first=1 last=%d"):format(MESSAGES)))
  local other, done_there = read_publisher(start("publish",
    ("first=%d last=%d handler=1"):format(MESSAGES + 1, 2 * MESSAGES)))
  for number, time in pairs(done_there) do
    done[number] = time
  end
  publish_one("stop")
  local run = finish(worker)
  return { own = own, other = other, latency = latencies(done, run.called),
    walk = run.ready - run.began,
    first_half = (run.half_cpu - run.ready_cpu) / (run.half - run.ready) * 100,
    second_half = (run.cpu - run.half_cpu) / (run.last - run.half) * 100 }
end

local function down()
  local base = measure_down(0)
  for _, count in ipairs({ 1, 20, 500 }) do
    local run = measure_down(count)
    title(("%d entries of %d namespaces that are down"):format(SIZE, count))
    line("from the start to a healthy message", "%.3f s", run.walk, base.walk, "1 s")
    lines_of("latency of a healthy message", run.latency, base.latency, nil, "20 ms")
    line("CPU of the processor, first half", "%.1f %%", run.first_half, base.first_half)
    line("CPU of the processor, second half", "%.1f %%", run.second_half, base.second_half,
      "10 % more")
    lines_of("publishing", run.own, base.own, "as without", "5 ms")
    lines_of("publishing with SQLite's own busy handler", run.other, base.other)
  end
end

--- Messages that raise, or are never answered ---------------------------------------------------

-- A message takes 0.1 ms, so what is ahead of the others must not take longer than that.
local COST = 0.0001

local function measure_ahead(count, payload, options)
  refill(WINDOW / COST // 1 + count, function(message, i)
    message.payload = i <= count and payload or filler
  end)
  local run = finish(start("serve", ("cost=%f window=%d %s"):format(COST, WINDOW, options)))
  return run.ready - run.began, run.count / (run.last - run.ready)
end

local function raising()
  local first, rate = measure_ahead(0, "", "")
  for _, count in ipairs({ 10, 20, 200 }) do
    local after, with = measure_ahead(count, "raise", "")
    title(("%d messages that make the publisher raise"):format(count))
    line("from the start to a healthy message", "%.3f s", after, first, "5 s")
    line("delivered from then on", "%.0f/s", with, rate, "half of it")
  end
end

local function unanswered()
  local _, rate = measure_ahead(0, "", "")
  local _, with = measure_ahead(1, "hang", "failure=1")
  title("one message that is never answered, timeout 1 s")
  line("delivered after its first timeout", "%.0f/s", with, rate, "half of it")
end

--- Sharing --------------------------------------------------------------------------------------

-- Seconds in which so many processes deliver `count` messages, of 1,000 keys.
local function measure_shared(processes, count)
  refill(count, function(message, i)
    message.key = "key-" .. i % 1000
  end)
  local workers, first, last, sum = {}, math.huge, 0, 0
  for i = 1, processes do
    workers[i] = start("serve", "cost=0.001 idle=1")
  end
  for i = 1, processes do
    local run = finish(workers[i])
    first, last, sum = math.min(first, run.first), math.max(last, run.drained), sum + run.count
  end
  assert(sum == count, sum)
  return last - first
end

local function processes()
  local count = math.min(SIZE, 20000)
  local alone = measure_shared(1, count)
  title(("%d messages of 1 ms, in order per key"):format(count), "processes", "one")
  for number, bound in pairs({ [2] = "1.8 times", [4] = "3 times" }) do
    local seconds = measure_shared(number, count)
    line(("%d processes, %.2f times"):format(number, alone / seconds), "%.0f/s", count / seconds,
      count / alone, bound)
  end
end

--- Draining -------------------------------------------------------------------------------------

local function drain()
  refill(SIZE)
  shell("mv %s %s", database, original)
  title(("draining %d"):format(SIZE), "processor", "by hand")
  for _, batch in ipairs({ 20, 100, 1000 }) do
    local ours, by_hand, ratios = {}, {}, {}
    for round = 1, ROUNDS do
      support.copy(original, database)
      local run = finish(start("serve", ("batch=%d expect=%d"):format(batch, SIZE)))
      ours[round] = run.last - run.ready
      support.copy(original, database)
      local pipe = assert(io.popen(("%q bench/outbox.lua drain %q %d"):format(arg[-1], database,
        batch)))
      by_hand[round] = tonumber(pipe:read("a"):match("%S+"))
      pipe:close()
      ratios[round] = by_hand[round] / ours[round]
    end
    line(("batches of %d, %.2f times"):format(batch, median(ratios)), "%.0f/s",
      SIZE / median(ours), SIZE / median(by_hand))
  end
end

--- Recovery -------------------------------------------------------------------------------------

-- Of namespaces that are down, one or all recover soon after the start, while others publish.
local function measure_recovery(count, rows, options)
  refill(SIZE, down_among(count))
  publish_one("0")
  local worker = start("serve", ("up=5 expect=%d %s"):format(rows, options))
  assert(worker:read("l") == "ready")
  local publisher = start("publish", "first=1 last=1000000")
  local run = finish(worker)
  shell("touch %s.stop", database)
  local _, done = read_publisher(publisher)
  for number, time in pairs(done) do
    done[number] = time <= run.last - 0.1 and time or nil
  end
  return run, latencies(done, run.called)
end

-- How fast the same rows are drained among the same entries, when nothing is down.
local function drain_rate(count, rows, options)
  refill(SIZE, down_among(count))
  local run = finish(start("serve", ("healthy=1 expect=%d %s"):format(rows, options)))
  return rows / (run.drained - run.first)
end

local function recovery()
  local base = measure_down(0).latency
  local function compare(label, count, rows, options, base_options)
    local run, latency = measure_recovery(count, rows, options)
    title(("%s among %d entries"):format(label, SIZE))
    line("from the recovery to the first delivery", "%.3f s", run.first - run.ready - 5)
    line(("draining %d"):format(rows), "%.0f/s", rows / (run.drained - run.first),
      drain_rate(count, rows, base_options))
    lines_of("latency of a healthy message", latency, base)
  end
  compare("one of 20 namespaces recovers", 20, SIZE // 20, "only=1", "alone=1")
  compare("500 namespaces recover at once", 500, SIZE, "", "")
end

local parts = { "down", "raising", "unanswered", "processes", "drain", "recovery",
  functions = { down = down, raising = raising, unanswered = unanswered, processes = processes,
    drain = drain, recovery = recovery } }
for _, name in ipairs(parts) do
  if PART == "all" or PART == name then
    parts.functions[name]()
  end
end
shell("rm -rf %s", directory)
