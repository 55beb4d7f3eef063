-- Two workers, each in a process of its own, share one backlog. Each key has one worker, so its
-- messages stay in order.
--
--   lua5.4 examples/workers.lua

local outbox = require("outbox")

local MESSAGES = 5000

local function work(path, name)
  local store <close> = outbox.open(path, { synchronous = "normal" })
  local processor = outbox.processor({
    store = store,
    publisher = function(messages)
      for _, message in ipairs(messages) do
        print(name, message.payload)
      end
    end,
  })
  while store:stats().ready > 0 do
    outbox.clock.sleep(math.min(processor:step(), 0.01))
  end
  processor:stop()
  processor:step() -- gives its share back
end

local function main()
  local path = os.tmpname()
  local store <close> = outbox.open(path)
  store:migrate()
  local messages = {}
  for number = 1, MESSAGES do
    messages[number] = { payload = tostring(number) }
  end
  store:publish(table.unpack(messages))

  local workers, counts, seen, twice = {}, {}, {}, 0
  for i, name in ipairs({ "first", "second" }) do
    workers[i] = assert(io.popen(("%q %q %q %s"):format(arg[-1], arg[0], path, name)))
  end
  for _, worker in ipairs(workers) do
    for name, number in worker:read("a"):gmatch("(%a+)\t(%d+)") do
      counts[name] = (counts[name] or 0) + 1
      twice = twice + (seen[number] and 1 or 0)
      seen[number] = true
    end
    assert(worker:close())
  end
  print(("first worker: %d, second: %d"):format(counts.first or 0, counts.second or 0))
  print(("delivered twice: %d, left: %d"):format(twice, store:stats().ready))
  for _, suffix in ipairs({ "", "-wal", "-shm" }) do
    os.remove(path .. suffix)
  end
end

if arg[1] then
  work(arg[1], arg[2])
else
  main()
end
