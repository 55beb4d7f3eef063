-- Measures how fast `outbox relay` delivers to each broker. The baseline is a loop of the same
-- client that sends the same records, waits for the same confirmations, and has no outbox. Both use
-- a server that is started for them. Batches of 100 are the default of the relay.
--
--   make bench-publishers [ONLY="NAME..."]    only these brokers

local core = require("outbox.core")
local outbox = require("outbox")
local server = require("spec.support.server")
local support = require("bench.support")

local ROUNDS = 5
local median, shell = support.median, support.shell
local now = outbox.clock.now
local payload = ("x"):rep(200)

local function key_of(i)
  return ("key-%07d"):format(i)
end

local function id_of(i)
  return ("0193640e-7a5c-7000-8000-%012x"):format(i)
end

local cluster -- of Kafka; it ends when nobody refers to it any more

-- For each broker: how many messages, and a function that starts a server and returns its URL.
local brokers = {
  redis = { count = 100000, start = function()
    local port = server.port()
    server.new(("redis-server --port %d --bind 127.0.0.1 --dir $DIRECTORY --save '' "
      .. "--appendonly no"):format(port), port):start()
    return "redis://127.0.0.1:" .. port
  end },
  nats = { count = 50000, start = function()
    local nats = require("spec.support.nats")
    local instance = nats.new()
    instance:start()
    nats.connect(instance.port):stream("BENCH", "outbox.bench")
    return "nats://127.0.0.1:" .. instance.port
  end },
  mqtt = { count = 50000, start = function()
    local port = server.port()
    require("spec.support.mosquitto").broker(port):start()
    return "mqtt://127.0.0.1:" .. port
  end },
  amqp = { count = 10000, start = function()
    local instance = require("spec.support.rabbitmq").new("", {
      vhosts = { { name = "/" } },
      users = { { name = "guest", password = "guest", tags = "administrator" } },
      permissions = {
        { user = "guest", vhost = "/", configure = ".*", write = ".*", read = ".*" },
      },
      queues = { { name = "outbox.bench", vhost = "/", durable = true, auto_delete = false } },
    })
    instance:start()
    return "amqp://127.0.0.1:" .. instance.plain_port
  end },
  kafka = { count = 10000, start = function()
    cluster = require("spec.support.kafka").start()
    return "kafka://127.0.0.1:" .. cluster.port
  end },
}

--- The baseline --------------------------------------------------------------------------------

-- Works until all is answered.
local function await(client)
  local left = assert(client:work())
  while left > 0 do
    core.await_descriptor(client:pollfd(), client:events(), 10)
    left = assert(client:work())
  end
end

-- Returns a function that makes the record of a message from one that the publisher has made.
local function copies_of(record)
  local length, ids, keys = #record, {}, {}
  for i, value in ipairs(record) do
    if value == id_of(0) then
      ids[#ids + 1] = i
    elseif value == key_of(0) then
      keys[#keys + 1] = i
    end
  end
  return function(i)
    local copy, id, key = table.move(record, 1, length, 1, {}), id_of(i), key_of(i)
    for k = 1, #ids do
      copy[ids[k]] = id
    end
    for k = 1, #keys do
      copy[keys[k]] = key
    end
    return copy
  end
end

local function loop(url, count, batch_size)
  local publisher = outbox.publisher(url)
  local copy = copies_of(publisher:item({ id = id_of(0), namespace = "bench", key = key_of(0),
    payload = payload, created_at = 1700000000.5, seq = 1 }, "bench"))
  local client <close> = assert(publisher:connect())
  await(client)
  for first = 1, count, batch_size do
    local items = {}
    for i = first, math.min(first + batch_size - 1, count) do
      items[#items + 1] = copy(i)
    end
    client:send(items)
    await(client)
    local results = client:results()
    for i = 1, #items do
      assert(results[i] == true or results[i] and not publisher:judge(results[i], #items))
    end
  end
end

if arg[1] == "loop" then
  loop(arg[2], tonumber(arg[3]), tonumber(arg[4]))
  return
end

--- Comparing -----------------------------------------------------------------------------------

local function fill(path, count)
  local store <close> = outbox.open(path, { synchronous = "off" })
  store:migrate()
  for first = 1, count, 1000 do
    local messages = {}
    for i = first, first + 999 do
      messages[#messages + 1] = { namespace = "bench", key = key_of(i), payload = payload }
    end
    store:publish(table.unpack(messages))
  end
end

local function time(command, ...)
  local start = now()
  shell(command, ...)
  return now() - start
end

-- Whether the relay has delivered everything.
local function is_empty(path)
  local store <close> = outbox.open(path)
  local stats = store:stats()
  return stats.ready + stats.delayed + stats.dead == 0
end

local function measure(name, broker)
  local closing <close> = setmetatable({}, { __close = server.stop }) -- luacheck: ignore
  local url, directory = broker.start(), os.tmpname()
  os.remove(directory)
  shell("mkdir %s", directory)
  local original, database = directory .. "/original.db", directory .. "/bench.db"
  fill(original, broker.count)
  for _, batch_size in ipairs({ 20, 100, 1000 }) do
    local alone, relay, ratios = {}, {}, {}
    for round = 1, ROUNDS do
      alone[round] = time("%q %q loop %s %d %d", arg[-1], arg[0], url, broker.count, batch_size)
      support.copy(original, database)
      relay[round] = time("%q bin/outbox relay %s --to %s --batch-size %d --once 2>/dev/null",
        arg[-1], database, url, batch_size)
      assert(is_empty(database))
      ratios[round] = alone[round] / relay[round]
    end
    print(("%-34s %13.0f/s %13.0f/s %6.2f"):format(("%s, batches of %d"):format(name, batch_size),
      broker.count / median(alone), broker.count / median(relay), median(ratios)))
  end
  shell("rm -r %s", directory)
end

print(("%-34s %14s %14s %6s"):format("", "client alone", "outbox relay", "ratio"))
for _, name in ipairs(arg[1] and arg or { "redis", "nats", "mqtt", "amqp", "kafka" }) do
  measure(name, brokers[name])
end
