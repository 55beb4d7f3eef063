-- The collector may run a finalizer wherever Lua takes memory, in the middle of a call too.

local support = require("spec.support")

describe("a finalizer in the middle of a call", function()
  local function run(program)
    local output, ok = support.run("spec/support/finalizers.lua " .. program)
    assert.equal("true\n", output)
    assert.is_true(ok)
  end

  it("that changes the messages finds them published or not read yet", function()
    run("spoils")
  end)

  it("cannot use the transaction in which the store reads", function()
    run("uses")
  end)

  it("that closes an iterator does so after the row", function()
    run("closes_iterator")
  end)

  it("that is an iterator's own closes it", function()
    run("forgets_iterators")
  end)

  it("that closes the coroutine of a transaction rolls back after the row", function()
    run("closes_coroutine")
  end)

  it("that closes the store does so after the reading, headers and all", function()
    run("closes_store")
  end)
end)
