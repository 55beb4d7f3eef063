-- What the specs of the processor share.

local outbox = require("outbox")

local M = {}

--- Makes a processor. Its errors are added to the list `errors`, unless the options say otherwise.
function M.processor(store, publisher, options, errors)
  options = options or {}
  options.store, options.publisher = options.store or store, options.publisher or publisher
  options.on_error = options.on_error or function(problem)
    errors[#errors + 1] = problem
  end
  return outbox.processor(options)
end

--- Runs a processor until nothing is left, on a clock whose sleep takes no time.
function M.run(store, publisher, options, errors)
  local p
  options.on_batch = function()
    local stats = store:stats()
    if stats.ready + stats.delayed == 0 then
      p:stop()
    end
  end
  p = M.processor(store, publisher, options, errors)
  p:run()
  return p
end

--- Publishes `count` messages: what `make` returns for their number, else one with the number as
-- its id and its key.
function M.fill(store, count, make)
  local messages = {}
  for i = 1, count do
    messages[i] = make and make(i) or { id = tostring(i), key = tostring(i) }
  end
  for first = 1, count, 100 do
    store:publish(table.unpack(messages, first, math.min(first + 99, count)))
  end
end

return M
