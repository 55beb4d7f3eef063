local support = require("spec.support")

describe("examples/orders.lua", function()
  it("delivers what was committed and nothing else", function()
    local output, ok = support.run("examples/orders.lua")
    assert.is_true(ok, output)
    assert.matches(" 2269 orders committed", output)
    assert.matches("  131 orders rolled back after their message was published", output)
    assert.matches(" 2269 messages delivered by another process", output)
    assert.matches("    0 committed but not delivered\n", output)
    assert.matches("    0 delivered but not committed\n", output)
    assert.matches("    0 left in the outbox\n", output)
    assert.matches("the promise is kept", output)
  end)
end)

for name, loop in pairs({ loop = "its own loop", cqueues = "cqueues", luv = "luv",
  copas = "copas" }) do
  describe("examples/" .. name .. ".lua", function()
    it("delivers all in order with " .. loop .. ", and stops", function()
      local path = support.path()
      local output, ok = support.run(("examples/%s.lua %s"):format(name, path), "timeout 60")
      assert.is_true(ok, output)
      local expected = {}
      for number = 1, 5 do
        expected[number] = "greetings\thello " .. number .. "\n"
      end
      assert.equal(table.concat(expected) .. "greetings\tgood bye\n", output)
      support.remove()
    end)
  end)
end

describe("examples/destinations.lua", function()
  it("delivers to two destinations while a third one hangs", function()
    local output, ok = support.run("examples/destinations.lua", "timeout 60")
    assert.is_true(ok, output)
    for _, namespace in ipairs({ "audit", "broker" }) do
      assert.matches(("%s\tmessage 1\n.*%s\tmessage 2\n.*%s\tmessage 3\n"):gsub("%%s", namespace),
        output)
    end
  end)
end)

describe("examples/workers.lua", function()
  it("shares a backlog between two processes", function()
    local output, ok = support.run("examples/workers.lua")
    assert.is_true(ok, output)
    local first, second = output:match("first worker: (%d+), second: (%d+)")
    assert.equal(5000, first + second)
    assert.matches("delivered twice: 0, left: 0", output)
  end)
end)
