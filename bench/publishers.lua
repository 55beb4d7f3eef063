-- Measures how fast `outbox relay` fills a Redis stream. The baseline is a loop of the same client
-- that sends the same fields, with as many messages per pipeline, and has no outbox. Both use a
-- Redis server that is started for them. Batches of 100 are the default of the relay.
--
--   make bench-publishers

local outbox = require("outbox")
local redis = require("redis")
local support = require("bench.support")

local COUNT, ROUNDS = 100000, 5
local median, shell = support.median, support.shell
local now = outbox.clock.now
local payload = ("x"):rep(200)

local function key_of(i)
  return ("key-%07d"):format(i)
end

-- The baseline.
local function loop(port, batch_size)
  local client = redis.connect("127.0.0.1", port)
  client.xadd = redis.command("XADD", function(reply)
    return reply
  end)
  for first = 1, COUNT, batch_size do
    local replies = client:pipeline(function(pipeline)
      for i = first, math.min(first + batch_size - 1, COUNT) do
        pipeline:xadd("outbox:bench", "*", "id", ("0193640e-7a5c-7000-8000-%012x"):format(i),
          "namespace", "bench", "key", key_of(i), "payload", payload,
          "created_at", "2026-11-26T05:00:00.000000Z")
      end
    end)
    for _, reply in ipairs(replies) do
      assert(type(reply) == "string", reply)
    end
  end
end

if arg[1] == "loop" then
  loop(tonumber(arg[2]), tonumber(arg[3]))
  return
end

local server = require("spec.support.server")
local port = server.port()
local instance = server.new(("redis-server --port %d --bind 127.0.0.1 --dir $DIRECTORY --save '' "
  .. "--appendonly no"):format(port), port)
local closing <close> = setmetatable({}, { __close = server.stop }) -- luacheck: ignore
instance:start()
local client = redis.connect("127.0.0.1", port)
client.xlen = redis.command("XLEN")
local original, database = instance.directory .. "/original.db", instance.directory .. "/bench.db"

local function fill()
  local store <close> = outbox.open(original, { synchronous = "off" })
  store:migrate()
  for first = 1, COUNT, 1000 do
    local messages = {}
    for i = first, first + 999 do
      messages[#messages + 1] = { namespace = "bench", key = key_of(i), payload = payload }
    end
    store:publish(table.unpack(messages))
  end
end

-- Returns how many seconds a program takes, from its start to its end. Then all messages must be in
-- the stream.
local function time(command, ...)
  client:flushall()
  local start = now()
  shell(command, ...)
  local seconds = now() - start
  assert(client:xlen("outbox:bench") == COUNT)
  return seconds
end

fill()
print(("%-34s %14s %14s %6s"):format("", "client alone", "outbox relay", "ratio"))
for _, batch_size in ipairs({ 20, 100, 1000 }) do
  local alone, relay, ratios = {}, {}, {}
  for round = 1, ROUNDS do
    alone[round] = time("%q %q loop %d %d", arg[-1], arg[0], port, batch_size)
    support.copy(original, database)
    relay[round] = time("%q bin/outbox relay %s --to redis://127.0.0.1:%d --batch-size %d --once "
      .. "2>/dev/null", arg[-1], database, port, batch_size)
    ratios[round] = alone[round] / relay[round]
  end
  print(("%-34s %13.0f/s %13.0f/s %6.2f"):format("a Redis stream, batches of " .. batch_size,
    COUNT / median(alone), COUNT / median(relay), median(ratios)))
end
