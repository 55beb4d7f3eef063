-- A processor on a database whose calls to the operating system fail: each call in turn, once alone
-- and once with all later calls of its kind for a while.

local faults = require("faults")
local outbox = require("outbox")
local support = require("spec.support")
local testing = require("outbox.testing")

local describe = support.only("sqlite", describe)

local PATIENCE = 20 -- for how many steps all calls fail

describe("a processor, when a call fails,", function()
  setup(faults.begin)
  teardown(faults.finish)
  after_each(support.remove)

  -- Makes the n-th call fail, and works until everything is delivered. Returns whether that call
  -- was reached. Another processor has died with the first entry in hand: only that one is charged.
  local function work(kind, n, for_ever)
    local clock, delivered, attempts = testing.clock(1e6), {}, {}
    local path = support.path()
    local store <close> = outbox.open(path, { clock = clock, busy_timeout = 0 })
    store:migrate()
    for i = 1, 10 do
      store:publish({ id = tostring(i), key = tostring(i % 3) })
    end
    store:claim_entries("dead", clock.now() + 1)
    store:get_claimed_entries("dead", 1, { hold = true })
    clock.advance(2)
    local p = outbox.processor({
      store = store,
      batch_size = 4,
      on_error = function() end,
      publisher = function(messages)
        for _, message in ipairs(messages) do
          delivered[message.key] = (delivered[message.key] or "") .. message.id .. " "
          attempts[#attempts + 1] = message.attempts
        end
      end,
    })
    faults.arm(kind, n, for_ever)
    for _ = 1, PATIENCE do
      clock.advance(p:step())
    end
    local failed = faults.disarm()
    repeat
      clock.advance(p:step())
    until store:stats().ready + store:stats().delayed == 0
    p:stop()
    for pause in p.step, p do
      clock.advance(pause)
    end
    local where = ("%s %d%s"):format(faults.kinds[kind], n, for_ever and " and on" or "")
    assert.same({ ["0"] = "3 6 9 ", ["1"] = "1 4 7 10 ", ["2"] = "2 5 8 " }, delivered, where)
    assert.equal("1000000000", table.concat(attempts), where)
    assert.outbox(store).is_empty()
    assert.equal("ok", support.sql(store, "PRAGMA integrity_check")[1].integrity_check, where)
    return failed
  end

  local tried = 0

  for kind, name in ipairs(faults.kinds) do
    it("delivers each entry once, in order: " .. name, function()
      for _, for_ever in ipairs(name == "shm lock" and { false } or { false, true }) do
        local n = 1
        while work(kind, n, for_ever) do
          n, tried = n + 1, tried + 1
        end
        support.remove()
      end
    end)
  end

  it("was tested with more than a hundred faults", function()
    print(("\nTALLY\tI/O fault in a processor\t%d\t0\t0"):format(tried))
    assert.is_true(tried > 100)
  end)
end)
