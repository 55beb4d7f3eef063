local outbox = require("outbox")
local support = require("spec.support")

local UUID = "^%x%x%x%x%x%x%x%x%-%x%x%x%x%-(%x)%x%x%x%-([89ab])%x%x%x%-%x%x%x%x%x%x%x%x%x%x%x%x$"

describe("outbox.uuid_v7", function()
  it("has the form of RFC 9562, and contains the clock's time", function()
    -- The example of RFC 9562, appendix A.6: 2022-02-22 14:22:22 -05:00.
    local id = outbox.uuid_v7(support.clock(1645557742))
    assert.equal(36, #id)
    assert.equal("7", id:match(UUID))
    assert.equal("017f22e2-79b0-7", id:sub(1, 15))
  end)

  it("rises even when the clock stands still or steps back", function()
    local clock = support.clock(2000000000)
    local last = ""
    for i = 1, 20000 do
      if i == 10000 then
        clock.time = clock.time - 3600
      end
      local id = outbox.uuid_v7(clock)
      assert.is_true(last < id)
      last = id
    end
  end)

  it("refuses a value that is not a clock", function()
    for _, clock in ipairs({ 5, print, {} }) do
      assert.has_error(function()
        outbox.uuid_v7(clock)
      end)
    end
    assert.matches("its now%(%) must return a time in seconds", support.raised(outbox.uuid_v7, {
      now = function() end,
    }))
  end)

  it("uses the system's clock when none is given", function()
    -- The generator never falls below the ids that it has made, so another process is asked.
    local output = support.run(
      [[-e 'local outbox = require("outbox") print(outbox.clock.now(), outbox.uuid_v7())']])
    local now, high, low = output:match("^(%S+)\t(%x+)%-(%x+)")
    assert.is_true(math.abs(tonumber(high .. low, 16) / 1000 - tonumber(now)) < 1)
  end)
end)

describe("a store's own ids", function()
  it("rise in the order of publishing, as long as the clock does not go back", function()
    local clock = support.clock(1000)
    local store <close> = support.store({ clock = clock })
    local last = ""
    for i = 1, 1000 do
      clock.time = 1000 + i // 7
      local id = store:publish({})
      assert.equal("7", id:match(UUID))
      assert.is_true(last < id)
      last = id
    end
    support.remove()
  end)
end)

describe("outbox.uuid_v4", function()
  it("has the form of RFC 9562, and does not repeat", function()
    local seen = {}
    for _ = 1, 1000 do
      local id = outbox.uuid_v4()
      assert.equal("4", id:match(UUID))
      assert.is_nil(seen[id])
      seen[id] = true
    end
  end)
end)

describe("outbox.clock", function()
  it("returns the time of day with a finer resolution than os.time", function()
    local before = os.time()
    local now = outbox.clock.now()
    assert.is_true(before <= now and now < os.time() + 2) -- os.time may be some ms behind
    local fraction = false
    for _ = 1, 1000 do
      fraction = fraction or outbox.clock.now() % 1 ~= 0
    end
    assert.is_true(fraction)
  end)

  it("sleeps at least for the given time, and not at all if that is negative", function()
    local before = outbox.clock.now()
    outbox.clock.sleep(0.01)
    outbox.clock.sleep(-1)
    assert.is_true(outbox.clock.now() - before >= 0.01)
  end)
end)

describe("the module", function()
  it("has a version, and leaves no globals", function()
    assert.matches("^%d+%.%d+%.%d+$", outbox._VERSION)
    local output = support.run([[-e '
      local before = {}
      for name in pairs(_G) do before[name] = true end
      local store = require("outbox").open(":memory:")
      store:migrate()
      store:publish({ headers = { a = "b" } })
      for name in pairs(_G) do if not before[name] then print(name) end end']])
    assert.equal("", output)
  end)
end)
