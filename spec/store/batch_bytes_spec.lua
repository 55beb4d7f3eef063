-- A batch has a bound in bytes.

local outbox = require("outbox")
local support = require("spec.support")

describe("a batch with a bound in bytes", function()
  local store

  before_each(function()
    store = support.store({ clock = support.clock(1000), synchronous = "off" })
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  -- Publishes entries of so many bytes each, an id of one byte included.
  local function publish(...)
    for i, size in ipairs({ ... }) do
      store:publish({ id = tostring(i), payload = ("x"):rep(size - 1) })
    end
    store:claim_entries("p", 1010)
  end

  local function get(options)
    return table.concat(support.pluck(store:get_claimed_entries("p", 100, options), "id"), " ")
  end

  it("ends before the entry that exceeds it, and the next one begins there", function()
    publish(10, 10, 10, 10, 10)
    assert.equal("1 2", get({ batch_bytes = 20 }))
    store:delete_entries("1", "2")
    assert.equal("3 4", get({ batch_bytes = 29 }))
    store:delete_entries("3", "4")
    assert.equal("5", get({ batch_bytes = 20 }))
  end)

  it("has at least one entry", function()
    publish(100, 1, 100)
    for i = 1, 3 do
      assert.equal(tostring(i), get({ batch_bytes = 1 }))
      store:delete_entries(tostring(i))
    end
    assert.equal("", get({ batch_bytes = 1 }))
  end)

  it("counts the id, the namespace, the key, the payload and the headers", function()
    local message = { namespace = "12", key = "123", payload = "1234", headers = { a = "b" } }
    for id = 1, 3 do
      message.id = tostring(id)
      store:publish(message)
    end
    store:claim_entries("p", 1010)
    local size = 1 + 2 + 3 + 4 + #'{"a":"b"}'
    assert.equal("1", (get({ batch_bytes = 2 * size - 1 })))
    assert.equal("1 2", (get({ batch_bytes = 2 * size })))
  end)

  it("counts retries that are due, too", function()
    publish(10, 10, 10)
    store:retry_entry("2", 1000)
    assert.equal("1 2", get({ batch_bytes = 29 }))
  end)

  it("names in the claim what is in hand, and no more", function()
    publish(10, 10, 10)
    get({ batch_bytes = 20, hold = true })
    assert.equal("1+1", store:stats().leases[1].held)
  end)

  it("takes a number above 0", function()
    publish(1)
    for _, wrong in ipairs({ 0, -1, 1.5, "8" }) do
      assert.error_matches(function()
        get({ batch_bytes = wrong })
      end, "batch_bytes must be an integer, at least 1")
    end
  end)

  describe("of a processor", function()
    local function batches(options)
      local sizes = {}
      options.store = store
      function options.publisher(messages)
        sizes[#sizes + 1] = #messages
      end
      outbox.processor(options):pump()
      return table.concat(sizes, " ")
    end

    it("is 8 MiB by default", function()
      local payload = ("x"):rep(3 * 1024 * 1024)
      for _ = 1, 5 do
        store:publish({ payload = payload })
      end
      assert.equal("2 2 1", batches({}))
    end)

    it("is an option", function()
      publish(10, 10, 10, 10, 10)
      store:release_claim("p")
      assert.equal("3 2", batches({ batch_bytes = 35 }))
    end)

    it("is a positive integer", function()
      for _, wrong in ipairs({ 0, 1.5, "8" }) do
        assert.error_matches(function()
          batches({ batch_bytes = wrong })
        end, "batch_bytes must be an integer from 1")
      end
    end)
  end)
end)
