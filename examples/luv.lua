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

local bell, timer = uv.new_poll(processor:pollfd()), uv.new_timer()
local function step()
  local seconds = processor:step()
  if seconds then
    timer:start(math.ceil(seconds * 1000), 0, step)
  else
    bell:close()
    timer:close()
  end
end
bell:start("r", step)
step()

-- The application. It has a connection of its own, as it would in another process.
local application <close> = outbox.open(path)
local number, ticks = 0, uv.new_timer()
ticks:start(20, 20, function()
  number = number + 1
  if number <= 5 then
    application:publish({ namespace = "greetings", payload = "hello " .. number })
  else
    application:publish({ namespace = "greetings", payload = "good bye" })
    ticks:close()
  end
end)

uv.run()
