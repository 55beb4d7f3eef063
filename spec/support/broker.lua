-- What the specs of all brokers do alike: publish in the loops of others, and deliver 10,000
-- messages while the broker fails.

local assert = require("luassert")
local cqueues = require("cqueues")
local outbox = require("outbox")
local support = require("spec.support")
local uv = require("luv")

local M = {}

--- Calls `deliver` in a loop of cqueues, and then in one of luv; it returns what the publisher
-- answers, which must be no failure. Meanwhile the loop turns, at least `least` times; each time
-- `on_tick`, if there is one, gets the number.
function M.deliver_in_loops(deliver, least, on_tick)
  local ticks, answer
  local function run()
    ticks, answer = 0, nil
    answer = deliver()
  end
  local function tick()
    ticks = ticks + 1
    if on_tick then
      on_tick(ticks)
    end
    return answer == nil
  end
  local loop = cqueues.new()
  loop:wrap(run)
  loop:wrap(function()
    repeat
      cqueues.sleep(0.001)
    until not tick()
  end)
  assert(loop:loop())
  assert.same({}, answer)
  assert.is_true(ticks >= least)
  uv.new_timer():start(0, 0, coroutine.wrap(run))
  local timer = uv.new_timer()
  timer:start(1, 1, function()
    if not tick() then
      timer:close()
    end
  end)
  uv.run()
  assert.same({}, answer)
  assert.is_true(ticks >= least)
end

--- Delivers the messages "1" to "10000" of the namespace, of 7 keys. `make(delivered)` returns the
-- publisher; `delivered()` is how many are delivered. `on_error` and, if there is one, `on_batch`
-- are hooks of the processor. No message may be charged or die.
function M.deliver_many(namespace, make, on_error, on_batch)
  local store <close> = outbox.open(support.path(), { synchronous = "off" })
  store:migrate()
  store:transaction(function(txn)
    for i = 1, 10000 do
      txn:publish({ id = tostring(i), namespace = namespace, key = tostring(i % 7) })
    end
  end)
  local p
  p = outbox.processor({
    store = store, batch_size = 200, retry = { base = 0.01, cap = 0.05 }, on_error = on_error,
    publisher = make(function()
      return p:stats().delivered
    end),
    on_batch = function(batch)
      if on_batch then
        on_batch(batch)
      end
      if store:stats().ready + store:stats().delayed == 0 then
        p:stop()
      end
    end,
  })
  p:run()
  local stats = p:stats()
  assert.same({ 10000, 0, 0 }, { stats.delivered, stats.retried, store:stats().dead })
end

--- Checks that all of these messages arrived, in order per key. `list` has an array { id, key } for
-- each, in the order of arrival. Returns how many came again.
function M.count_doubles(list)
  local last, count, doubles = {}, 0, 0
  for _, each in ipairs(list) do
    local number, key = math.tointeger(tonumber(each[1])), each[2]
    local before = last[key] or (number - 1) % 7 - 6
    if number > before then -- else it was added before
      assert.equal(before + 7, number)
      last[key], count = number, count + 1
    else
      doubles = doubles + 1
    end
  end
  assert.equal(10000, count)
  return doubles
end

return M
