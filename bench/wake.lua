-- Measures the time from a commit in one process to the publisher's call in another. The baseline
-- is a processor that polls every 10 ms. Also measures the CPU time of an idle processor.
--
--   make bench-wake

local outbox = require("outbox")
local support = require("bench.support")

local MESSAGES, IDLE = 2000, 10
local now, sleep = outbox.clock.now, outbox.clock.sleep
local path = arg[2] or os.tmpname()

-- Publishes with random gaps of 1 to 3 ms, and prints the time at which each commit returned.
local function publish()
  local store <close> = outbox.open(path)
  io.stdout:setvbuf("full")
  for number = 1, MESSAGES do
    sleep(0.001 + 0.002 * math.random())
    store:publish({ payload = tostring(number) })
    print(("%.6f"):format(now()))
  end
end

local function percentile(values, part)
  return support.percentile(values, part) * 1e6
end

-- Delivers the messages of a second process. `run` drives the processor until it stops.
local function measure(label, run)
  local store <close> = outbox.open(path, { synchronous = "normal" })
  local called, processor = {}, nil
  processor = outbox.processor({ store = store, publisher = function(messages)
    local time = now()
    for _, message in ipairs(messages) do
      called[tonumber(message.payload)] = time
    end
    if messages[#messages].payload == tostring(MESSAGES) then
      processor:stop()
    end
  end })
  local publisher = assert(io.popen(("%q %q publish %q"):format(arg[-1], arg[0], path)))
  run(processor)
  local latencies = {}
  for line in publisher:lines() do
    latencies[#latencies + 1] = math.max(0, called[#latencies + 1] - tonumber(line))
  end
  assert(publisher:close() and #latencies == MESSAGES)
  table.sort(latencies)
  print(("%-28s %9.0f us %9.0f us %9.0f us"):format(label, percentile(latencies, 0.5),
    percentile(latencies, 0.99), percentile(latencies, 1)))
end

local function idle()
  local store <close> = outbox.open(path, { synchronous = "normal" })
  local processor = outbox.processor({ store = store, publisher = function() end })
  processor:pump()
  local waits, start, cpu = 0, now(), os.clock()
  while now() < start + IDLE do
    local seconds = processor:step()
    if store:wait(math.min(seconds, start + IDLE - now())) then
      processor:wake()
    end
    waits = waits + 1
  end
  print(("idle for %d s: %.1f ms of CPU, %d waits"):format(IDLE, (os.clock() - cpu) * 1e3, waits))
end

if arg[1] == "publish" then
  publish()
else
  local store <close> = outbox.open(path)
  store:migrate()
  print(("%-28s %12s %12s %12s"):format("from commit to publisher", "p50", "p99", "max"))
  measure("woken by the commit", function(processor)
    processor:run()
  end)
  measure("polling every 10 ms", function(processor)
    local seconds = processor:step()
    while seconds do
      if seconds > 0 then
        sleep(0.01)
        processor:wake()
      end
      seconds = processor:step()
    end
  end)
  idle()
  for _, suffix in ipairs({ "", "-wal", "-shm" }) do
    os.remove(path .. suffix)
  end
end
