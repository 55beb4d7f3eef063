-- A processor beside a copas server that publishes each line it receives. Between two steps of the
-- processor copas does its own work, and sleeps for at most LATENCY, because nothing wakes it when
-- a message is committed.
--
--   lua5.4 examples/copas.lua [DATABASE]

local copas = require("copas")
local outbox = require("outbox")
local socket = require("socket")

local LATENCY = 0.01 -- seconds that a message may wait

local path = arg[1] or os.tmpname()
local store <close> = outbox.open(path, { synchronous = "normal" })
store:migrate()

local processor
processor = outbox.processor({
  store = store,
  publisher = function(messages, namespace)
    for _, message in ipairs(messages) do
      print(namespace, message.payload)
      if message.payload == "good bye" then
        processor:stop()
      end
    end
  end,
})

local application <close> = outbox.open(path)
local server = assert(socket.bind("127.0.0.1", 0))
copas.addserver(server, function(connection)
  connection = copas.wrap(connection)
  local line = connection:receive()
  while line do
    application:publish({ namespace = "greetings", payload = line })
    line = connection:receive()
  end
end)

-- A client of the server.
local host, port = server:getsockname()
local client = assert(socket.connect(host, port))
for number = 1, 5 do
  client:send("hello " .. number .. "\n")
end
client:send("good bye\n")

-- SIGTERM and SIGINT stop the processor: it finishes the batch in hand, and gives its claim back.
local signals <close> = outbox.signals()
local seconds = processor:step()
while seconds do
  copas.step(math.min(seconds, LATENCY))
  if signals:caught() then
    processor:stop()
  end
  seconds = processor:step()
end
