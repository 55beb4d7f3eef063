-- The same work as baseline.c, through the Lua API. Prints how many seconds it took, and the
-- largest memory of the process in KiB.
--
--   lua5.4 outbox.lua publish DATABASE COUNT PER_TRANSACTION [each]
--   lua5.4 outbox.lua claim DATABASE COUNT
--   lua5.4 outbox.lua drain DATABASE BATCH_SIZE
--
-- `each`: publish the messages of a transaction one by one instead of in one call.

local outbox = require("outbox")

local operation, database, number, per_transaction, each = table.unpack(arg)
local store <close> = outbox.open(database, { synchronous = "normal" })
local now = outbox.clock.now
local payload = ("x"):rep(200)

-- A batch becomes garbage all at once, so it is collected half as often as Lua does by default.
collectgarbage("incremental", 400)

local function message(i)
  return { namespace = "bench", key = ("key-%07d"):format(i), payload = payload }
end

local function publish(count, size)
  for first = 1, count, size do
    local last = math.min(first + size - 1, count)
    if each then
      store:transaction(function(txn)
        for i = first, last do
          txn:publish(message(i))
        end
      end)
    else
      local messages = {}
      for i = first, last do
        messages[#messages + 1] = message(i)
      end
      store:publish(table.unpack(messages))
    end
  end
end

local function claim(count)
  for _ = 1, count do
    store:claim_entries("bench", now() + 3600)
  end
end

local function drain(batch_size)
  claim(1)
  repeat
    local entries = store:get_claimed_entries("bench", batch_size)
    local ids = {}
    for i, entry in ipairs(entries) do
      ids[i] = entry.id
    end
    store:delete_entries(table.unpack(ids))
  until #entries == 0
end

local work = ({ publish = publish, claim = claim, drain = drain })[operation]
store:migrate()
-- Prepares the statements, because a program does that only once.
store:claim_entries("bench", 0)
store:get_claimed_entries("bench", 1)
store:delete_entries("none")
local start = now()
work(tonumber(number), tonumber(per_transaction))
local seconds = now() - start

local status = io.open("/proc/self/status")
local memory = status and status:read("a"):match("VmHWM:%s*(%d+)") or "0"
print(("%.6f %s"):format(seconds, memory))
