-- Measures what subscriptions cost those who publish: messages that become two copies, beside the
-- same messages without subscriptions, in turn.
--
--   make bench-copies

local outbox = require("outbox")
local support = require("bench.support")

local ROUNDS = 7
local PAYLOAD = ("x"):rep(200)
local now = outbox.clock.now
local path = arg[1] or os.tmpname()

local function remove()
  support.shell("rm -f %s*", path)
end

-- Returns the seconds that one message takes.
local function publish(subscribers, count, synchronous, in_a_call, in_a_transaction)
  remove()
  local store <close> = outbox.open(path, { synchronous = synchronous })
  store:migrate()
  for i = 1, subscribers do
    store:subscribe("orders", "subscriber " .. i)
  end
  local messages = {}
  for i = 1, in_a_call do
    messages[i] = { namespace = "orders", key = "key " .. i, payload = PAYLOAD }
  end
  local calls = in_a_transaction // in_a_call
  local function call()
    for _ = 1, calls do
      store:publish(table.unpack(messages))
    end
  end
  local start = now()
  for _ = 1, count // in_a_transaction do
    if calls == 1 then
      call()
    else
      store:transaction(call)
    end
  end
  return (now() - start) / count
end

local function compare(label, ...)
  local ones, twos, ratios = {}, {}, {}
  for round = 1, ROUNDS do
    ones[round], twos[round] = publish(0, ...), publish(2, ...)
    ratios[round] = twos[round] / ones[round]
  end
  print(("%-40s %9.1f us %9.1f us %6.2f"):format(label, support.median(ones) * 1e6,
    support.median(twos) * 1e6, support.median(ratios)))
end

print(("%-40s %12s %12s %6s"):format("a message", "alone", "two copies", "ratio"))
compare("1 a transaction, synchronous full", 2000, "full", 1, 1)
compare("1 a transaction, synchronous normal", 6000, "normal", 1, 1)
compare("10 in a call", 30000, "normal", 10, 10)
compare("100 in a call", 60000, "normal", 100, 100)
compare("100 a transaction, a call each", 60000, "normal", 1, 100)
remove()
