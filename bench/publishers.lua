-- Measures how fast `outbox relay` delivers to each broker. The baseline is a loop of the same
-- client that sends messages of the same fields, waits for the same confirmations, and has no
-- outbox. Both use a server that is started for them. Batches of 100 are the default of the relay.
--
--   make bench-publishers [ONLY="NAME..."]    only these brokers

local core = require("outbox.core")
local outbox = require("outbox")
local server = require("spec.support.server")
local support = require("bench.support")

local COUNT, ROUNDS = 100000, 5
local median, shell = support.median, support.shell
local now = outbox.clock.now
local payload = ("x"):rep(200)

local function key_of(i)
  return ("key-%07d"):format(i)
end

local function id_of(i)
  return ("0193640e-7a5c-7000-8000-%012x"):format(i)
end

local CREATED_AT = "2026-11-26T05:00:00.000000Z"

-- For each broker: the command of a server on a port, the URL, what its client connects to, and the
-- item of a message.
local brokers = {
  redis = {
    command = "redis-server --port %d --bind 127.0.0.1 --dir $DIRECTORY --save '' --appendonly no",
    item = function(i)
      return { "XADD", "outbox:bench", "*", "id", id_of(i), "namespace", "bench", "key", key_of(i),
        "payload", payload, "created_at", CREATED_AT, "seq", tostring(i) }
    end,
  },
}

-- Works until all is answered.
local function await(client)
  local left = assert(client:work())
  while left > 0 do
    core.await_descriptor(client:pollfd(), client:events(), 10)
    left = assert(client:work())
  end
end

-- The baseline.
local function loop(name, port, batch_size)
  local broker = brokers[name]
  local client <close> = assert(require("outbox.destinations." .. name).connect({
    host = "127.0.0.1", port = port, timeout = 10,
  }))
  await(client)
  for first = 1, COUNT, batch_size do
    local items = {}
    for i = first, math.min(first + batch_size - 1, COUNT) do
      items[#items + 1] = broker.item(i)
    end
    client:send(items)
    await(client)
    for i, result in ipairs(client:results()) do
      assert(result == true, items[i])
    end
    assert(#client:results() == #items)
  end
end

if arg[1] == "loop" then
  loop(arg[2], tonumber(arg[3]), tonumber(arg[4]))
  return
end

local function fill(path)
  local store <close> = outbox.open(path, { synchronous = "off" })
  store:migrate()
  for first = 1, COUNT, 1000 do
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
  local port = server.port()
  local instance = server.new(broker.command:format(port), port)
  instance:start()
  local original, database = instance.directory .. "/original.db", instance.directory .. "/bench.db"
  fill(original)
  for _, batch_size in ipairs({ 20, 100, 1000 }) do
    local alone, relay, ratios = {}, {}, {}
    for round = 1, ROUNDS do
      alone[round] = time("%q %q loop %s %d %d", arg[-1], arg[0], name, port, batch_size)
      support.copy(original, database)
      relay[round] = time("%q bin/outbox relay %s --to %s://127.0.0.1:%d --batch-size %d --once "
        .. "2>/dev/null", arg[-1], database, name, port, batch_size)
      assert(is_empty(database))
      ratios[round] = alone[round] / relay[round]
    end
    print(("%-34s %13.0f/s %13.0f/s %6.2f"):format(("%s, batches of %d"):format(name, batch_size),
      COUNT / median(alone), COUNT / median(relay), median(ratios)))
  end
end

print(("%-34s %14s %14s %6s"):format("", "client alone", "outbox relay", "ratio"))
local names = arg[1] and arg or { "redis" }
for _, name in ipairs(names) do
  measure(name, brokers[name])
end
