-- Measures how fast a processor drains a backlog when publishing costs nothing. The first baseline
-- is the same work in C on raw SQLite. The second comparison is between the processor and itself,
-- when every third entry is stuck behind one failing key.
--
--   make bench-processor

local outbox = require("outbox")
local support = require("bench.support")

local BACKLOG, STUCK, ROUNDS, BATCH = 1000000, 100000, 5, 1000
local median, shell = support.median, support.shell
local now = outbox.clock.now
local directory = "build/bench"
local original, database = directory .. "/original.db", directory .. "/bench.db"

local function run(command, ...)
  local pipe = assert(io.popen(command:format(...)))
  local output = pipe:read("a")
  assert(pipe:close(), command)
  return tonumber(output)
end

local function fill(count, key_of)
  shell("mkdir -p %s; rm -f %s/*", directory, directory)
  local store <close> = outbox.open(original, { synchronous = "off" })
  store:migrate()
  local payload = ("x"):rep(200)
  for first = 1, count, 1000 do
    local messages = {}
    for i = first, math.min(first + 999, count) do
      messages[#messages + 1] = { namespace = "bench", key = key_of(i), payload = payload }
    end
    store:publish(table.unpack(messages))
  end
end

-- The publisher of the second comparison. The publisher of the first does nothing.
local function fail_the_stuck(messages)
  local failures
  for i, message in ipairs(messages) do
    if message.key == "stuck" then
      failures = failures or {}
      failures[i] = { reason = "stuck", retry_after = 3600 }
    end
  end
  return failures
end

-- The program that is measured. Prints how many seconds a processor takes.
local function drain(publisher)
  collectgarbage("incremental", 400) -- as bench/outbox.lua
  local store <close> = outbox.open(arg[2], { synchronous = "normal" })
  local processor = outbox.processor({ store = store, batch_size = BATCH, on_error = error,
    publisher = publisher })
  local start = now()
  processor:pump()
  print(("%.6f"):format(now() - start))
end

local function ours(publisher)
  support.copy(original, database)
  return run("%q %q drain %q %s", arg[-1], arg[0], database, publisher)
end

if arg[1] == "drain" then
  drain(arg[3] == "idle" and function() end or fail_the_stuck)
  return
end

local baseline, processor, ratios = {}, {}, {}
fill(BACKLOG, function(i)
  return ("key-%07d"):format(i)
end)
for round = 1, ROUNDS do
  support.copy(original, database)
  baseline[round] = run("build/baseline drain %q %d", database, BATCH)
  processor[round] = ours("idle")
  ratios[round] = baseline[round] / processor[round]
end
print(("draining %d, batches of %d: SQLite in C %.0f/s, the processor %.0f/s, ratio %.2f"):format(
  BACKLOG, BATCH, BACKLOG / median(baseline), BACKLOG / median(processor), median(ratios)))

local others = 2 * STUCK
local free, stuck = {}, {}
fill(others, function(i)
  return ("key-%07d"):format(i)
end)
for round = 1, ROUNDS do
  free[round] = ours("failing")
end
fill(others + STUCK, function(i)
  return i % 3 == 1 and "stuck" or ("key-%07d"):format(i)
end)
for round = 1, ROUNDS do
  stuck[round] = ours("failing")
end
print(("%d of other keys: %.0f/s; with %d stuck among them %.0f/s, ratio %.2f"):format(others,
  others / median(free), STUCK, others / median(stuck), median(free) / median(stuck)))
shell("rm -rf %s", directory)
