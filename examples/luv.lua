-- A processor in a luv loop, driven by a poll of its descriptor and by a timer.
--
--   lua5.4 examples/luv.lua [DATABASE]

local outbox = require("outbox")
local uv = require("luv")

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

-- SIGTERM and SIGINT stop the processor: it finishes the batch in hand, and gives its claim back.
local signals <close> = outbox.signals()
local alarm = uv.new_poll(signals:pollfd())

local bell, timer, ticks = uv.new_poll(processor:pollfd()), uv.new_timer(), uv.new_timer()
local function step()
  if signals:caught() then
    processor:stop()
  end
  local seconds = processor:step()
  if seconds then
    timer:start(math.ceil(seconds * 1000), 0, step)
  else
    for _, handle in ipairs({ bell, timer, alarm, ticks }) do
      handle:close()
    end
  end
end
bell:start("r", step)
alarm:start("r", function()
  alarm:stop()
  step()
end)
step()

-- The application. It has a connection of its own, as it would in another process.
local application <close> = outbox.open(path)
local number = 0
ticks:start(20, 20, function()
  number = number + 1
  if number <= 5 then
    application:publish({ namespace = "greetings", payload = "hello " .. number })
  else
    application:publish({ namespace = "greetings", payload = "good bye" })
    ticks:stop()
  end
end)

uv.run()
