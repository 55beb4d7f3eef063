-- The processes that bench/postgres.lua starts, on a database that is migrated. Each prints how
-- many seconds its work took, unless it says otherwise.
--
--   lua5.4 bench/postgres_worker.lua raw URL COUNT BATCH        what a processor asks of a store
--   lua5.4 bench/postgres_worker.lua processor URL COUNT BATCH  a processor
--   lua5.4 bench/postgres_worker.lua publish URL COUNT PER_CALL
--   lua5.4 bench/postgres_worker.lua claim URL                  the first batch of a processor
--   lua5.4 bench/postgres_worker.lua wake URL COUNT     publishes one by one, with gaps of 1 to 3
--                                                       ms; prints when each commit returned
--   lua5.4 bench/postgres_worker.lua feed URL SECONDS RATE      publishes so many a second
--   lua5.4 bench/postgres_worker.lua churn URL SECONDS BATCH
--
-- `churn` drains beside `feed`; every three seconds it prints how many it has delivered, and the
-- least and the median time of a full batch.

local outbox = require("outbox")
local support = require("bench.support")

collectgarbage("incremental", 400) -- as bench/outbox.lua

local operation, url, count, size = arg[1], arg[2], tonumber(arg[3]), tonumber(arg[4])
local store <close> = outbox.open(url)
local now, sleep = outbox.clock.now, outbox.clock.sleep
local payload = ("x"):rep(200)

local function messages(first, last)
  local list = {}
  for i = first, last do
    list[#list + 1] = { namespace = "bench", key = ("key-%07d"):format(i), payload = payload }
  end
  return table.unpack(list)
end

-- Returns a function that delivers what is in hand, reads on, and returns how many there are.
local function reader(batch_size)
  store:serve({ processor_id = "bench", duration = 60 })
  local want = { batch_size = batch_size, join = true }
  return function()
    local verdicts = {}
    for i = 1, #store:batch() do
      verdicts[i] = { outcome = "delivered" }
    end
    return store:advance(verdicts, want).count
  end
end

local function seconds_of(fn)
  local start = now()
  fn()
  print(("%.6f"):format(now() - start))
end

local work = {}

function work.raw()
  local read, done = reader(size), 0
  seconds_of(function()
    while done < count do
      local found = read()
      assert(found > 0)
      done = done + found
    end
    read()
  end)
end

function work.processor()
  local done, processor = 0, nil
  processor = outbox.processor({ store = store, batch_size = size, on_error = error,
    publisher = function(batch)
      done = done + #batch
      if done >= count then
        processor:stop()
      end
    end })
  seconds_of(function()
    processor:pump()
  end)
end

function work.publish()
  store:publish(messages(count + 1, count + 1)) -- prepares
  seconds_of(function()
    for first = 1, count, size do
      store:publish(messages(first, math.min(first + size - 1, count)))
    end
  end)
end

function work.claim()
  seconds_of(function()
    assert(reader(100)() > 0)
  end)
end

function work.wake()
  io.stdout:setvbuf("full")
  for number = 1, count do
    sleep(0.001 + 0.002 * math.random())
    store:publish({ payload = tostring(number) })
    print(("%.6f"):format(now()))
  end
end

function work.feed()
  local start, done = now(), 0
  while now() < start + count do
    local due = math.min((now() - start) * size // 1, done + 1000)
    if due >= done + 100 then
      store:publish(messages(done + 1, due))
      done = due
    else
      sleep(0.002)
    end
  end
end

function work.churn()
  local read, start, shown = reader(size), now(), 0
  local done, times = 0, {}
  while now() < start + count do
    local began = now()
    local found = read()
    done = done + found
    if found == size then
      times[#times + 1] = now() - began
    elseif found < size / 2 then
      sleep(0.002)
    end
    if now() >= start + shown + 3 then
      shown = shown + 3
      table.sort(times)
      print(("%d %d %.6f %.6f"):format(shown, done, times[1] or 0, support.median(times) or 0))
      done, times = 0, {}
    end
  end
end

work[operation]()
