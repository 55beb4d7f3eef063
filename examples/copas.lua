-- A processor in a copas loop: copas cannot poll a foreign descriptor, so it sleeps between steps,
-- and no longer than a message may wait.
--
--   lua5.4 examples/copas.lua [DATABASE]

local copas = require("copas")
local outbox = require("outbox")

local LATENCY = 0.01

local path = arg[1] or os.tmpname()
local store <close> = outbox.open(path, { synchronous = "normal" })
store:migrate()

local processor
processor = outbox.processor({
  store = store,
  publisher = function(messages, namespace)
    copas.sleep(0.01) -- a publisher may yield: others run meanwhile
    for _, message in ipairs(messages) do
      print(namespace, message.payload)
      if message.payload == "good bye" then
        processor:stop()
      end
    end
  end,
})

copas.addthread(function()
  for seconds in processor.step, processor do
    copas.sleep(math.min(seconds, LATENCY))
  end
end)

-- The application, which has a connection of its own, as it would in another process.
copas.addthread(function()
  local application <close> = outbox.open(path)
  for number = 1, 5 do
    application:publish({ namespace = "greetings", payload = "hello " .. number })
    copas.sleep(0.02)
  end
  application:publish({ namespace = "greetings", payload = "good bye" })
end)

copas.loop()
