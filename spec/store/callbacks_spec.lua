local outbox = require("outbox")
local support = require("spec.support")

describe("the ID generator", function()
  after_each(support.remove)

  it("is a function that is called with the clock and the message", function()
    local clock = support.clock()
    local seen
    local store <close> = support.store({
      clock = clock,
      id_generator = function(...)
        seen = table.pack(...)
        return "id-" .. seen[2].payload
      end,
    })
    assert.equal("id-x", store:publish({ payload = "x" }))
    assert.equal(2, seen.n)
    assert.equal(clock, seen[1])
    assert.same({ payload = "x" }, seen[2])
    assert.equal("own", store:publish({ id = "own", payload = "y" }))
    assert.equal("x", seen[2].payload)
  end)

  it("is a table whose function is looked up for each call", function()
    local generator = {
      generate_id = function()
        return "first"
      end,
    }
    local store <close> = support.store({ id_generator = generator })
    assert.equal("first", store:publish({}))
    generator.generate_id = function()
      return "second"
    end
    assert.equal("second", store:publish({}))
  end)

  it("is called with a clock even when the store uses the system's", function()
    local given
    local store <close> = support.store({
      id_generator = function(clock)
        given = clock
        return "id"
      end,
    })
    store:publish({})
    assert.equal(store:clock(), given)
    assert.equal(support.engine == "sqlite", given == outbox.clock)
  end)

  it("can be one of the UUID generators", function()
    local v4 <close> = support.store({ id_generator = outbox.uuid_v4 })
    assert.matches("^%x+%-%x+%-4", v4:publish({}))
    local v7 <close> = support.store({ id_generator = outbox.uuid_v7, clock = support.clock(0) })
    assert.matches("^00000000%-0000%-7", v7:publish({}))
  end)

  it("must return a string", function()
    local store <close> = support.store({ id_generator = function() end })
    assert.matches("the ID generator must return a string, not a nil",
      support.raised(store.publish, store, {}))
    assert.equal(0, store:stats().ready)
  end)

  it("is called before the database is locked", function()
    local store, path
    local other
    store, path = support.store({
      id_generator = function()
        other:publish({ payload = "from inside" }) -- would wait if the store held the lock
        return "outer"
      end,
    })
    other = outbox.open(path, { busy_timeout = 0 })
    store:publish({})
    assert.equal(2, store:stats().ready)
    store:close()
    other:close()
  end)
end)

describe("a callback", function()
  after_each(support.remove)

  -- A store for each kind of callback.
  local function with(callback)
    return { (support.store({ id_generator = callback })), (support.store({ clock = callback })) }
  end

  it("that raises fails the publish, and its error is raised unchanged", function()
    local thrown = setmetatable({}, { __tostring = error })
    for _, store in ipairs(with(function()
      error(thrown)
    end)) do
      assert.equal(thrown, support.raised(store.publish, store, {}, {}))
      assert.equal(0, support.sql(store, "SELECT count(*) AS n FROM outbox_entries")[1].n)
      store:close()
    end
  end)

  it("that raises in a transaction rolls the whole transaction back", function()
    local fail = false
    local store <close> = support.store({
      id_generator = function(clock)
        return fail and error("no id") or outbox.uuid_v7(clock)
      end,
    })
    local problem = support.raised(store.transaction, store, function(txn)
      txn:publish({})
      fail = true
      txn:publish({})
    end)
    assert.matches("no id", problem)
    assert.equal(0, store:stats().ready)
  end)

  it("that yields is an error, and nothing is published", function()
    for _, store in ipairs(with(coroutine.yield)) do
      local co = coroutine.create(function()
        store:publish({})
      end)
      local ok, problem = coroutine.resume(co)
      assert.is_false(ok)
      assert.matches("attempt to yield across a C%-call boundary", problem)
      assert.equal(0, support.sql(store, "SELECT count(*) AS n FROM outbox_entries")[1].n)
      store:close()
    end
  end)

  it("may itself publish", function()
    local store
    local depth = 0
    store = support.store({
      id_generator = function(clock)
        depth = depth + 1
        if depth < 5 then
          store:publish({})
        end
        return outbox.uuid_v7(clock)
      end,
    })
    store:publish({})
    assert.equal(5, store:stats().ready)
    store:close()
  end)

  it("that closes the store makes the call fail", function()
    local store, path
    store, path = support.store({
      id_generator = function()
        store:close()
        return "id"
      end,
    })
    assert.equal("closed", support.raised(store.publish, store, {}).code)
    local again <close> = outbox.open(path)
    assert.equal(0, again:stats().ready)
  end)

  it("may change the message", function()
    local store <close> = support.store({
      id_generator = function(_, message)
        message.payload = nil
        message.key = "changed"
        collectgarbage()
        return "id"
      end,
    })
    store:publish({ payload = ("x"):rep(100), key = ("y"):rep(100) })
    store:claim_entries("p", outbox.clock.now() + 60)
    local entry = store:get_claimed_entries("p", 1)[1]
    assert.same({ nil, "changed" }, { entry.payload, entry.key })
  end)

  it("that is the clock may also change the message", function()
    local message
    local store <close> = support.store({
      clock = function()
        message.payload = nil
        collectgarbage()
        collectgarbage()
        return 1000
      end,
    })
    message = { payload = ("x"):rep(100000), key = "k" }
    store:publish(message)
    store:claim_entries("p", 2000)
    local entry = store:get_claimed_entries("p", 1)[1]
    assert.same({ nil, "k" }, { entry.payload, entry.key })
  end)

  it("that is the clock must return a time to every method", function()
    for _, value in ipairs({ "now", 0 / 0, math.huge, false }) do
      local now = 1000
      local store <close> = support.store({
        clock = function()
          return now
        end,
      })
      store:publish({ id = "a" })
      now = value
      for method, arguments in pairs({
        publish = { {} },
        claim_entries = { "p", 0 },
        get_claimed_entries = { "p", 1 },
        bury_entry = { "a" },
        stats = {},
      }) do
        assert.matches("the clock's now%(%) must return a time in seconds, not ",
          support.raised(store[method], store, table.unpack(arguments)))
      end
      now = 1000
      assert.equal(1, store:stats().ready)
    end
  end)
end)
