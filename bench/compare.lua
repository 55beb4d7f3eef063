-- Runs baseline.c and outbox.lua in turn, on copies of the same database. Prints their medians, and
-- the median of the ratios of the pairs, because a noisy machine slows both runs of a pair.
--
--   make bench

local support = require("bench.support")

local ROUNDS = 5
local BASELINE, LUA = "build/baseline", ("%q bench/outbox.lua"):format(arg[-1])
local median, shell = support.median, support.shell
local directory = arg[1] or "build/bench"
local database, original = directory .. "/bench.db", directory .. "/original.db"

local function run(program, ...)
  local command = table.concat({ program, ... }, " ")
  local pipe = assert(io.popen(command))
  local output = pipe:read("a")
  assert(pipe:close(), command)
  local seconds, memory = output:match("^(%S+) ?(%d*)")
  return tonumber(seconds), tonumber(memory)
end

local function fill(count)
  shell("rm -f %s/*", directory)
  run(LUA, "publish", original, count, 1000)
end

-- Prints one line. Returns the median of outbox in seconds, and its largest memory in KiB.
local function compare(label, work, unit, operation, number, ...)
  local baseline, ours, ratios, most = {}, {}, {}, 0
  for round = 1, ROUNDS do
    support.copy(original, database)
    baseline[round] = run(BASELINE, operation, database, number, (...))
    support.copy(original, database)
    local memory
    ours[round], memory = run(LUA, operation, database, number, ...)
    ratios[round] = baseline[round] / ours[round]
    most = math.max(most, memory)
  end
  local figure = unit == "/s" and function(seconds) return work / seconds end
    or function(seconds) return seconds / work * 1e6 end
  print(("%-48s %11.0f%-3s %11.0f%-3s %6.2f"):format(
    label, figure(median(baseline)), unit, figure(median(ours)), unit, median(ratios)))
  return median(ours), most
end

shell("mkdir -p %s", directory)
print(("%-48s %14s %14s %6s"):format("", "SQLite in C", "outbox in Lua", "ratio"))

fill(0)
compare("publish, 1 a transaction", 20000, "/s", "publish", 20000, 1)
compare("publish, 1,000 a transaction, one call", 200000, "/s", "publish", 200000, 1000)
compare("publish, 1,000 a transaction, a call each", 200000, "/s", "publish", 200000, 1000, "each")

local claims, memory = {}, nil
for _, backlog in ipairs({ 1000, 100000, 1000000 }) do
  local name = ("%d"):format(backlog):reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^,", "")
  fill(backlog)
  claims[#claims + 1] = compare("claim, backlog " .. name, 1000, "us", "claim", 1000) / 1000
  compare("drain, batches of 20, backlog " .. name, backlog, "/s", "drain", 20)
  memory = select(2,
    compare("drain, batches of 1,000, backlog " .. name, backlog, "/s", "drain", 1000))
end
shell("rm -rf %s", directory)

print(("\na claim at 1,000,000 entries takes %.0f us, %.1f times one at 1,000"):format(
  claims[3] * 1e6, claims[3] / claims[1]))
print(("a process that drains 1,000,000 entries needs at most %.1f MiB"):format(memory / 1024))
