-- The collector may run a finalizer whenever Lua allocates memory, even in the middle of a call.

local support = require("spec.support")

describe("a finalizer in the middle of a call", function()
  local function run(program)
    local output, ok = support.run("spec/support/finalizers.lua " .. program)
    assert.equal("true\n", output)
    assert.is_true(ok)
  end

  it("that changes the messages changes those that are not read yet", function()
    run("spoils")
  end)

  it("cannot use the transaction in which the store is reading", function()
    run("uses")
  end)

  it("that closes an iterator closes it after the current row", function()
    run("closes_iterator")
  end)

  it("that belongs to an iterator closes it", function()
    run("forgets_iterators")
  end)

  it("that closes the coroutine of a transaction rolls back after the current row", function()
    run("closes_coroutine")
  end)

  it("that closes the store closes it after the reading, headers included", function()
    run("closes_store")
  end)

  it("that closes the store leaves the row that is being made whole", function()
    run("closes_store_in_row")
  end)
end)
