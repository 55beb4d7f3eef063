-- The simplest processor: it blocks until it is told to stop.
--
--   lua5.4 examples/loop.lua [DATABASE]

local outbox = require("outbox")

local store <close> = outbox.open(arg[1] or ":memory:")
store:migrate()
for number = 1, 5 do
  store:publish({ namespace = "greetings", payload = "hello " .. number })
end
local soon = outbox.clock.now() + 0.2
store:publish({ namespace = "greetings", payload = "good bye", deliver_at = soon })

local processor
processor = outbox.processor({
  store = store,
  publisher = function(messages, namespace)
    for _, message in ipairs(messages) do
      print(namespace, message.payload)
      if message.payload == "good bye" then
        processor:stop() -- when this batch is done
      end
    end
  end,
})
processor:run()
