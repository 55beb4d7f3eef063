-- A processor in a cqueues loop, beside other coroutines.
--
--   lua5.4 examples/cqueues.lua [DATABASE]

local cqueues = require("cqueues")
local outbox = require("outbox")

local path = arg[1] or os.tmpname()
local store <close> = outbox.open(path, { synchronous = "normal" })
store:migrate()
local loop = cqueues.new()

local processor
processor = outbox.processor({
  store = store,
  publisher = function(messages, namespace)
    cqueues.sleep(0.01) -- a publisher may yield: other coroutines run meanwhile
    for _, message in ipairs(messages) do
      print(namespace, message.payload)
      if message.payload == "good bye" then
        processor:stop()
      end
    end
  end,
})

-- SIGTERM and SIGINT stop the processor: it finishes the batch in hand, and gives its claim back.
local signals <close> = outbox.signals()
loop:wrap(function()
  while processor:step() do
    cqueues.poll(processor, signals) -- waits for their descriptors, or for the processor's timeout
    if signals:caught() then
      processor:stop()
    end
  end
end)

-- The application. It has a connection of its own, as it would in another process.
loop:wrap(function()
  local application <close> = outbox.open(path)
  for number = 1, 5 do
    application:publish({ namespace = "greetings", payload = "hello " .. number })
    cqueues.sleep(0.02)
  end
  application:publish({ namespace = "greetings", payload = "good bye" })
end)

assert(loop:loop())
