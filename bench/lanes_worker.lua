-- The processes that bench/lanes.lua starts. Times are seconds since the epoch. OPTIONS are written
-- NAME=NUMBER.
--
--   lua5.4 bench/lanes_worker.lua serve DATABASE [OPTIONS]
--
-- A processor. Messages of the namespaces down-… make its publisher raise. So does one whose
-- payload is "raise", and one whose payload is "hang", after a second. The payload of a numbered
-- message is its number. Prints "ready" with the first delivery, or with `failure=1` the first
-- failure. From then on it measures, and at the end prints lines of a name and values.
--
--   batch=20     entries in a batch
--   cost=0       seconds that a message takes
--   up=1         so many seconds after "ready" no namespace is down, with `only=1` but down-1
--   healthy=1    no namespace is ever down
--   alone=1      serves down-1 alone
--   window=10    ends so many seconds after "ready"
--   expect=1000  ends after so many deliveries of what is not numbered
--   idle=1       ends after so many seconds without a call
--   half=1000    the number of the message up to which the first half lasts
--
--   lua5.4 bench/lanes_worker.lua publish DATABASE [OPTIONS]
--
-- Publishes numbered messages, with gaps of 5 to 15 ms, and prints when each commit was begun and
-- done. Ends when DATABASE.stop is there, or after the last.
--
--   first=1 last=1000  the numbers
--   handler=1          waits for locks as SQLite's own busy handler does

local outbox = require("outbox")

local HANG = 1
local now, sleep = outbox.clock.now, outbox.clock.sleep
local operation, path = arg[1], arg[2]
local options = {}
for i = 3, #arg do
  local name, value = arg[i]:match("^(%a+)=(.+)$")
  options[name] = assert(tonumber(value), arg[i])
end

local function publish()
  local store <close> = outbox.open(path)
  if options.handler then
    store:transaction(function(txn)
      for _ in txn:rows("PRAGMA busy_timeout = 5000") do end
    end)
  end
  io.stdout:setvbuf("full")
  for number = options.first, options.last do
    sleep(0.005 + 0.01 * math.random())
    local stop = io.open(path .. ".stop")
    if stop then
      stop:close()
      break
    end
    local message = { namespace = "healthy", key = "key-" .. number, payload = tostring(number) }
    local begun = now()
    store:publish(message)
    print(("%d %.6f %.6f"):format(number, begun, now()))
  end
end

-- What is measured.
local run = { began = now(), count = 0, called = {} }

local function is_down(namespace)
  if options.healthy or not namespace:find("^down") then
    return false
  end
  local up = options.up and run.ready and now() >= run.ready + options.up
  return not (up and (not options.only or namespace == "down-1"))
end

local function begin()
  run.ready, run.ready_cpu = now(), os.clock()
  print("ready")
  io.stdout:flush()
end

local function note(messages, time)
  for _, message in ipairs(messages) do
    local number = tonumber(message.payload)
    if number then
      run.called[number] = time
      if number == options.half then
        run.half, run.half_cpu = time, os.clock()
      end
    else
      run.count = run.count + 1
      run.first = run.first or time
      run.drained = time
    end
  end
end

local function deliver(messages, namespace)
  if is_down(namespace) then
    error("down", 0)
  end
  for _, message in ipairs(messages) do
    if message.payload == "raise" then
      error("raised", 0)
    elseif message.payload == "hang" then
      sleep(HANG)
      error("timeout", 0)
    end
  end
  local time = now()
  if options.cost then
    sleep(options.cost * #messages)
  end
  if run.ready or not options.failure then
    note(messages, time)
  end
end

local function is_over(messages)
  return options.window and run.ready and run.last >= run.ready + options.window
    or options.expect and run.count >= options.expect or messages[#messages].payload == "stop"
end

local function new_processor(store)
  local processor
  processor = outbox.processor({ store = store, batch_size = options.batch, publish_timeout = HANG,
    namespaces = options.alone and { "down-1" } or nil,
    on_error = function(problem)
      if problem.code ~= "publisher" then
        io.stderr:write(tostring(problem), "\n")
      end
    end,
    publisher = function(messages, namespace)
      local ok, trouble = pcall(deliver, messages, namespace)
      if not run.ready and ok == not options.failure then
        begin()
      end
      run.last = now()
      if is_over(messages) then
        processor:stop()
      end
      return ok or error(trouble, 0)
    end })
  return processor
end

-- Ends when nothing is left to do.
local function run_until_idle(processor, store)
  repeat
    local seconds = processor:step()
    if seconds > 0 and store:wait(math.min(seconds, 0.1)) then
      processor:wake()
    end
  until run.last and now() >= run.last + options.idle
  processor:stop()
  while processor:step() do end
end

local function serve()
  local store <close> = outbox.open(path, { synchronous = "normal" })
  local processor = new_processor(store)
  if options.idle then
    run_until_idle(processor, store)
  else
    processor:run()
  end
  run.cpu = os.clock()
  for name, value in pairs(run) do
    if name ~= "called" then
      print(("%s %.6f"):format(name, value))
    end
  end
  for number, time in pairs(run.called) do
    print(("called %d %.6f"):format(number, time))
  end
end

collectgarbage("incremental", 400) -- as bench/outbox.lua
local operations = { serve = serve, publish = publish }
operations[operation]()
