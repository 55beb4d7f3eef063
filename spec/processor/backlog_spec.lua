-- Destinations that are down with a large backlog of few keys: only the first entry of each key may
-- be tried, so a look at them finds little, and must end. This is policy, so it runs once, without
-- the sanitizers.
if os.getenv("OUTBOX_TREE") then
  return
end

local outbox = require("outbox")
local support = require("spec.support")

describe("a backlog of few keys, and a destination that is down,", function()
  after_each(support.remove)

  -- Runs a processor for so many seconds of its clock, with a message of a healthy namespace each
  -- second. Returns how many of these were delivered, and the number of its calls.
  local function run(spaces, keys, rows, seconds)
    local clock = support.clock()
    local store <close> = support.store({ clock = clock, synchronous = "off" })
    support.sql(store, "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n"
      .. " WHERE i < ?) INSERT INTO outbox_entries (id, namespace, key) SELECT CAST(i AS TEXT),"
      .. " 'down ' || (i % ?), CAST(i / ? % ? AS TEXT) FROM n", rows, spaces, spaces, keys)
    local delivered, busy, calls = 0, 0, 0
    local p = outbox.processor({ store = store, on_error = function() end,
      publisher = function(_, namespace)
        calls = calls + 1
        if namespace ~= "up" then
          error("down", 0)
        end
        delivered = delivered + 1
      end })
    for _ = 1, seconds do
      store:publish({ namespace = "up" })
      p:wake()
      local left = 1
      while left > 0 do
        local rest = p:step()
        busy = busy + (rest == 0 and 1 or 0)
        assert.is_true(busy < 100 * seconds, "it looks again and again")
        rest = math.max(rest, 0.0005) -- what a step takes
        left = left - rest
        clock.advance(math.min(rest, left + rest))
      end
    end
    return delivered, calls
  end

  for _, world in ipairs({ { 1, 1, 12000 }, { 1, 1, 25000 }, { 2, 3, 15000 }, { 20, 5, 30000 } }) do
    it(("of %d namespaces, %d keys each and %d entries keeps nobody waiting"):format(world[1],
      world[2], world[3]), function()
      local delivered, calls = run(world[1], world[2], world[3], 40)
      assert.is_true(delivered >= 39, delivered)
      assert.is_true(calls - delivered >= world[1], calls) -- each is tried
    end)
  end
end)
