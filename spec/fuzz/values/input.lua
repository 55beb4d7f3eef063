-- What the parts of the target `values` share in the run of one input: how they take the input's
-- bytes, and the values that have come up. Returns a new table for each run.

local fuzz = require("fuzz")
local take = fuzz.take

local run = {
  DEPTH = 5, -- actions in callbacks in actions
  steps = 80, -- actions and callbacks still to come, so that every input ends
  depth = 0,
  calls = 0, -- calls of public functions so far
  failed = false, -- whether the last of them failed
  time = 1000,
  made = 0, -- ids generated so far
  tuned = false, -- whether the collector's settings were changed
  raised = setmetatable({}, { __mode = "k" }), -- by callbacks
  started = setmetatable({}, { __mode = "k" }), -- all coroutines that are not collected yet
  stores = {},
  transactions = {},
  iterators = {},
  processors = {},
  connections = {},
  threads = {},
  tables = {}, -- arguments, to be changed while they are in use
}
run.lists = { run.stores, run.transactions, run.iterators, run.processors, run.connections,
  run.threads, run.tables }

function run.choose(count)
  return take() % count
end

function run.one_of(list)
  return list[1 + take() % #list]
end

-- Never true at the end of the input, where all bytes are zero.
function run.rarely(times)
  return take() % times == 1
end

function run.recall(list)
  return list[1 + take() % 16 % math.max(#list, 1)]
end

-- The value that falls out of the list is left to the collector.
function run.remember(list, value)
  if #list > 3 then
    table.remove(list, 1 + take() % #list)
  end
  list[#list + 1] = value
  return value
end

return run
