-- A processor on a database whose calls to the operating system fail: one after the other, and for
-- a while all of a kind.

local faults = require("faults")
local outbox = require("outbox")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("a processor, whatever call fails,", function()
  setup(faults.begin)
  teardown(faults.finish)
  after_each(support.remove)

  -- Works until all is delivered, from a fault on; returns whether it struck.
  local function work(kind, n, for_ever)
    local clock, counts, patience = testing.clock(1e6), {}, 20
    local path = support.path()
    local store <close> = outbox.open(path, { clock = clock, busy_timeout = 0 })
    store:migrate()
    for i = 1, 10 do
      store:publish({ id = tostring(i), key = tostring(i % 3) })
    end
    local p = outbox.processor({
      store = store,
      batch_size = 4,
      on_error = function() end,
      publisher = function(messages)
        for _, message in ipairs(messages) do
          counts[message.id] = (counts[message.id] or 0) + 1
        end
      end,
    })
    faults.arm(kind, n, for_ever)
    local failed
    local idle = 0
    while idle < 2 do -- looks once more when it seems to be done
      local pause = p:step()
      clock.advance(pause)
      patience = patience - 1
      if patience == 0 then
        failed = faults.disarm()
      end
      idle = patience < 0 and pause > 1 and idle + 1 or 0
    end
    local where = ("%s %d%s"):format(faults.kinds[kind], n, for_ever and " and on" or "")
    for i = 1, 10 do
      assert.equal(1, counts[tostring(i)], where)
    end
    assert.outbox(store).is_empty()
    assert.equal("ok", support.sql(store, "PRAGMA integrity_check")[1].integrity_check, where)
    return failed
  end

  local tried = 0

  for kind, name in ipairs(faults.kinds) do
    it("delivers each entry once: " .. name, function()
      for _, for_ever in ipairs(name == "shm lock" and { false } or { false, true }) do
        local n = 1
        while work(kind, n, for_ever) do
          n, tried = n + 1, tried + 1
        end
        support.remove()
      end
    end)
  end

  it("was tried", function()
    print(("TALLY\tI/O fault in a processor\t%d\t0\t0"):format(tried))
    assert.is_true(tried > 100)
  end)
end)
