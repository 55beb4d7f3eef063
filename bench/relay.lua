-- Holds a relay with four destinations under steady traffic: one hangs, one goes down every five
-- seconds for five, two are well. Prints for each route how long a message took from its
-- publication to its delivery.
--
--   make bench-relay, or lua5.4 bench/relay.lua SECONDS

local outbox = require("outbox")
local support = require("bench.support")

local SECONDS = tonumber(arg[1]) or 60
local PER_SECOND = 200
local COMMAND = "lua_modules/bin/outbox"

local path = os.tmpname()
local function file(name)
  return path .. "." .. name
end

local function write(name, text)
  local handle <close> = assert(io.open(file(name), "w"))
  handle:write(text)
end

write("hangs", "read -r message; sleep 100000")
write("flaps", [[
while read -r message; do
  [ $(($(date +%s) / 5 % 2)) = 0 ] && exit 1
  echo ok
done]])

local store = outbox.open(path, { synchronous = "normal" })
store:migrate()
local relay = assert(io.popen(("echo $$; exec %s relay %s --verbose --to 'hangs=exec:sh %s' "
  .. "--to 'flaps=exec:sh %s' --to a=file:%s --to 'b=exec:sh -c \"while read -r m; do echo ok; "
  .. "done\"' 2>%s"):format(COMMAND, path, file("hangs"), file("flaps"), file("a"), file("log"))))
local pid = relay:read("l")

-- Waits until all workers have started.
repeat
  outbox.clock.sleep(0.05)
  local log <close> = assert(io.open(file("log")))
  local _, started = log:read("a"):gsub(" started route=", "")
until started == 4

local routes = { "a", "b", "flaps", "hangs" }
local start, published = outbox.clock.now(), 0
while published < SECONDS * PER_SECOND do
  local due = math.floor((outbox.clock.now() - start) * PER_SECOND)
  while published < due do
    published = published + 1
    store:publish({ namespace = routes[published % 4 + 1], key = tostring(published % 100),
      payload = ("x"):rep(200) })
  end
  outbox.clock.sleep(0.002)
end
outbox.clock.sleep(1)
local left = store:stats({ by_namespace = true }).namespaces
os.execute("kill " .. pid)
os.execute("pkill -f 'sleep 100000'")
relay:close()
store:close()

local latencies = {}
for line in io.lines(file("log")) do
  local route, latency = line:match(" delivered route=(%S+) .* latency=(%S+)$")
  if route then
    latencies[route] = latencies[route] or {}
    table.insert(latencies[route], tonumber(latency))
  end
end
print(("%d s, %d messages a second on four routes"):format(SECONDS, PER_SECOND))
print(("%-6s %10s %10s %10s %10s"):format("route", "delivered", "p50 ms", "p99 ms", "max ms"))
for _, route in ipairs(routes) do
  local list = latencies[route] or {}
  table.sort(list)
  local function at(part)
    return list[1] and ("%.1f"):format(support.percentile(list, part) * 1000) or "-"
  end
  print(("%-6s %10d %10s %10s %10s"):format(route, #list, at(0.5), at(0.99), at(1)))
end
for _, each in ipairs(left) do
  print(("%-6s %d ready, %d delayed%s"):format(each.namespace, each.ready, each.delayed,
    each.down_since and ", down" or ""))
end
for _, name in ipairs({ "hangs", "flaps", "a", "log" }) do
  os.remove(file(name))
end
for _, suffix in ipairs({ "", "-wal", "-shm" }) do
  os.remove(path .. suffix)
end
