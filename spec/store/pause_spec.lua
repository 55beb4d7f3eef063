-- Pauses: nothing of a namespace is handed out until it is resumed.

local outbox = require("outbox")
local support = require("spec.support")

describe("a pause", function()
  local store, path, clock

  before_each(function()
    clock = support.clock()
    store, path = support.store({ clock = clock })
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  -- A processor on a store of its own, that notes what it delivers.
  local function processor(options)
    options = options or {}
    local delivered = {}
    local own = outbox.open(path, { clock = clock })
    options.store = own
    options.on_error = options.on_error or error
    local publish = options.publisher
    function options.publisher(messages, namespace)
      for _, message in ipairs(messages) do
        delivered[#delivered + 1] = message.id
      end
      return publish and publish(messages, namespace)
    end
    local p = outbox.processor(options)
    return p, delivered, own
  end

  local function publish(...)
    for _, id in ipairs({ ... }) do
      store:publish({ id = id, namespace = id:match("%a+"), key = "k" })
    end
  end

  it("keeps back what waits and what comes, and nothing else", function()
    publish("a1", "b1", "a2")
    assert.is_true(store:pause("a"))
    assert.is_false(store:pause("a"))
    local p, delivered, own = processor()
    p:pump()
    publish("a3", "b2")
    p:pump()
    assert.same({ "b1", "b2" }, delivered)
    assert.is_true(store:resume("a"))
    assert.is_false(store:resume("a"))
    p:pump()
    assert.same({ "b1", "b2", "a1", "a2", "a3" }, delivered)
    for _, entry in ipairs(store:ready_entries()) do
      assert.equal(0, entry.attempts)
    end
    own:close()
  end)

  it("holds for a processor that has read on meanwhile, and ends for it", function()
    local p, delivered, own = processor({ batch_size = 1 })
    publish("a1", "a2", "b1", "a3")
    p:step()
    p:step()
    assert.same({ "a1", "a2" }, delivered)
    store:pause("a")
    publish("a4")
    p:pump()
    assert.same({ "a1", "a2", "b1" }, delivered)
    store:resume("a")
    p:pump()
    assert.same({ "a1", "a2", "b1", "a3", "a4" }, delivered)
    own:close()
  end)

  it("lets the batch in hand be finished, and no other goes out", function()
    local p, delivered, own
    p, delivered, own = processor({ batch_size = 2, publisher = function()
      store:pause("a")
    end })
    publish("a1", "a2", "a3")
    store:retry_entry("a2", clock.time, "no")
    p:pump()
    assert.same({ "a1" }, delivered) -- what was tried before is not in the same call
    assert.equal(2, store:stats().ready + store:stats().delayed)
    own:close()
  end)

  it("keeps back retries, suspects and what is scheduled", function()
    publish("a1", "a2", "b1")
    store:publish({ id = "a0", namespace = "a", deliver_at = clock.time + 5 })
    store:retry_entry("a1", clock.time + 5, "no")
    support.sql(store, "UPDATE outbox_delayed SET attempts = 0 WHERE id = 'a1'") -- as a suspect
    store:retry_entry("b1", clock.time + 5, "no")
    store:pause("a")
    clock.advance(10)
    local p, delivered, own = processor()
    p:pump()
    assert.same({ "b1" }, delivered)
    store:resume("a")
    for _ = 1, 40 do
      p:pump()
      clock.advance(1)
    end
    table.sort(delivered)
    assert.same({ "a0", "a1", "a2", "b1" }, delivered)
    own:close()
  end)

  it("holds beside an outage, and the outage beside it", function()
    local is_down = true
    local p, delivered, own = processor({ on_error = function() end, publisher = function()
      if is_down then
        error("down", 0)
      end
    end })
    publish("a1", "a2", "a3")
    for _ = 1, 20 do
      p:pump()
      clock.advance(1)
    end
    store:pause("a")
    local tried = #delivered
    is_down = false
    for _ = 1, 60 do
      p:pump()
      clock.advance(1)
    end
    assert.equal(tried, #delivered)
    store:resume("a")
    for _ = 1, 40 do
      p:pump()
      clock.advance(1)
    end
    assert.equal(0, store:stats().ready + store:stats().delayed)
    own:close()
  end)

  it("holds for what was read before and is to be handed out after", function()
    publish("a1", "b1")
    local p, delivered, own = processor({ batch_size = 1, publisher = function()
      store:pause("b")
    end })
    p:pump()
    assert.same({ "a1" }, delivered)
    own:close()
  end)

  it("is kept in the database, for processors that start later", function()
    publish("a1", "b1")
    store:pause("a")
    store:close()
    store = outbox.open(path, { clock = clock })
    local p, delivered, own = processor()
    p:pump()
    assert.same({ "b1" }, delivered)
    assert.same({ { namespace = "a", paused_at = clock.time } }, store:paused())
    own:close()
  end)

  it("holds in strict order, for its namespace alone", function()
    publish("a1", "b1", "a2", "b2")
    store:pause("a")
    local p, delivered, own = processor({ ordering = "strict" })
    p:pump()
    assert.same({ "b1", "b2" }, delivered)
    store:resume("a")
    p:pump()
    assert.same({ "b1", "b2", "a1", "a2" }, delivered)
    own:close()
  end)

  it("holds for claims by hand", function()
    publish("a1", "b1", "a2")
    store:claim_entries("p", clock.time + 10)
    store:pause("a")
    assert.same({ "b1" }, support.pluck(store:get_claimed_entries("p", 10), "id"))
    store:resume("a")
    assert.same({ "a1", "b1", "a2" }, support.pluck(store:get_claimed_entries("p", 10), "id"))
  end)

  it("wakes those who wait when it ends", function()
    local p, delivered, own = processor()
    store:pause("a")
    publish("a1")
    p:pump()
    own:wait(0)
    store:resume("a")
    assert.is_true(own:wait(5))
    p:wake()
    p:step()
    assert.same({ "a1" }, delivered)
    own:close()
  end)

  it("does not make a claim last for ever while nothing waits", function()
    local p, _, own = processor()
    store:pause("a")
    publish("b1")
    p:step()
    for _ = 1, 10 do
      clock.advance(1)
      p:wake()
      p:step()
    end
    assert.same({}, store:stats().leases)
    own:close()
  end)

  it("is not late: the age is that of the others", function()
    publish("a1")
    clock.advance(5)
    publish("b1")
    clock.advance(1)
    assert.equal(6, store:stats().oldest_age)
    store:pause("a")
    assert.equal(1, store:stats().oldest_age)
    store:pause("b")
    assert.is_nil(store:stats().oldest_age)
  end)

  it("is not late, and its destination not down, by namespace and in all", function()
    store:publish({ namespace = "a", deliver_at = clock.time + 1 },
      { namespace = "a" }, { namespace = "b", deliver_at = clock.time + 50 })
    store:serve({ processor_id = "p", ordering = "key", duration = 60 })
    store:advance(nil, { batch_size = 1, join = true })
    store:note_outages({ { namespace = "a", down_since = clock.time, error = "refused" } })
    clock.advance(5)
    local function of_a()
      local stats = store:stats({ by_namespace = true })
      for _, each in ipairs(stats.namespaces) do
        if each.namespace == "a" then
          return { each.oldest_age, each.down_since, stats.due_at - clock.time }
        end
      end
    end
    assert.same({ 5, clock.time - 5, -4 }, of_a())
    store:pause("a")
    assert.same({ nil, nil, 45 }, of_a())
    store:resume("a")
    assert.same({ 5, clock.time - 5, -4 }, of_a())
  end)

  it("is taken back with the transaction", function()
    pcall(store.transaction, store, function()
      store:pause("a")
      error("no")
    end)
    assert.same({}, store:paused())
  end)

  it("may have any name", function()
    for _, name in ipairs({ "", support.ODD, "*" }) do
      store:publish({ id = name .. "!", namespace = name })
      store:pause(name)
    end
    publish("b1")
    local p, delivered, own = processor()
    p:pump()
    assert.same({ "b1" }, delivered)
    for _, name in ipairs({ "", support.ODD, "*" }) do
      store:resume(name)
    end
    p:pump()
    assert.equal(4, #delivered)
    own:close()
  end)
end)
