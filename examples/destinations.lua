-- A processor for each destination, all in one cqueues loop, each with a store of its own. One
-- destination does not answer, which keeps only its own messages waiting.
--
--   lua5.4 examples/destinations.lua [DATABASE]

local cqueues = require("cqueues")
local outbox = require("outbox")

local path = arg[1] or os.tmpname()
local application <close> = outbox.open(path)
application:migrate()
for number = 1, 3 do
  application:publish({ namespace = "broker", payload = "message " .. number },
    { namespace = "webhook", payload = "message " .. number },
    { namespace = "audit", payload = "message " .. number })
end

local loop, delivered = cqueues.new(), 0

-- A publisher that yields: the other processors go on meanwhile.
local function hang()
  cqueues.sleep(3600)
end

local function deliver(messages, namespace)
  for _, message in ipairs(messages) do
    print(namespace, message.payload)
    delivered = delivered + 1
  end
end

local function run(namespaces, publisher)
  loop:wrap(function()
    local store <close> = outbox.open(path, { synchronous = "normal" })
    local processor = outbox.processor({
      store = store, namespaces = namespaces, publisher = publisher,
    })
    while processor:step() do
      cqueues.poll(processor)
    end
  end)
end

run({ "webhook" }, hang)
run({ "broker" }, deliver)
run({ except = { "webhook", "broker" } }, deliver)

repeat
  assert(loop:step())
until delivered == 6
