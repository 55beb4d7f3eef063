-- The batch that a processor has in hand. How a claim is renewed, released and kept alive.

local outbox = require("outbox")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

describe("a batch", function()
  local store, clock, path

  before_each(function()
    clock = support.clock(1000)
    store, path = support.store({ clock = clock })
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function publish(...)
    for _, id in ipairs({ ... }) do
      store:publish({ id = id, namespace = id:sub(1, 1), key = "k" })
    end
  end

  local function get(processor, size, options)
    local entries = store:get_claimed_entries(processor, size, options)
    return table.concat(support.pluck(entries, "id"), " ")
  end

  local function attempts()
    local list = {}
    for i, entry in ipairs(store:ready_entries()) do
      list[i] = entry.id .. entry.attempts
    end
    return table.concat(list, " ")
  end

  it("is stored in its claim by its places", function()
    publish("a", "b", "c", "d")
    store:delete_entries("b")
    store:claim_entries("p", 1010)
    get("p", 3, { hold = true })
    assert.equal("1,2+1", store:stats().leases[1].held)
    assert.is_true(store:renew_claim("p", 1020))
    assert.is_nil(store:stats().leases[1].held)
    assert.equal(1020, store:stats().leases[1].deadline)
  end)

  describe("that was in hand when the claim lapsed", function()
    it("is charged one attempt, once, when another processor takes over", function()
      publish("a", "b", "c")
      store:claim_entries("p", 1010)
      get("p", 2, { hold = true })
      clock.time = 1011
      assert.is_true(store:claim_entries("q", 1020))
      assert.equal("a1 b1 c0", attempts())
      assert.equal(outbox.LAPSED, store:ready_entries()[1].last_error)
      clock.time = 1021
      store:claim_entries("r", 1030)
      assert.equal("a1 b1 c0", attempts())
    end)

    it("is charged even if the next claim has a limit, or the same processor id", function()
      publish("a", "b", "c")
      store:claim_entries("p", 1010)
      get("p", 3, { hold = true })
      store:claim_entries("p", 1010)
      assert.equal("a1 b1 c1", attempts())
      get("p", 3, { hold = true })
      clock.time = 1011
      store:claim_entries("q", 1020, { limit = 1 })
      assert.equal("a2 b2 c2", attempts())
    end)

    it("is not charged after the claim was renewed or released", function()
      publish("a")
      store:claim_entries("p", 1010)
      get("p", 1, { hold = true })
      store:renew_claim("p", 1010)
      clock.time = 1011
      store:claim_entries("q", 1020)
      get("q", 1, { hold = true })
      store:release_claim("q")
      assert.same({}, store:stats().leases)
      store:claim_entries("r", 1030)
      assert.equal("a0", attempts())
    end)

    sqlite_it("is not charged when the stored batch is malformed", function()
      publish("a")
      for _, nonsense in ipairs({ "", "x", "x+1", "9-1", "-", "2-x,1-1", "!", "!x" }) do
        store:claim_entries("p", clock.time + 1)
        support.sql(store, "UPDATE outbox_claims SET held = ?", nonsense)
        clock.advance(2)
        store:claim_entries("q", clock.time)
        assert.equal("a0", attempts(), nonsense)
        store:release_claim("q")
      end
    end)
  end)

  describe("is read", function()
    before_each(function()
      publish("a", "b", "a2", "c")
      store:claim_entries("p", 1010)
    end)

    it("without what waits for a retry of its key, and with the retry when it is due", function()
      store:retry_entry("a", 1005, "no")
      store:publish({ id = "a3", namespace = "a" }) -- it has no key, and waits for nobody
      store:claim_entries("p", 1010)
      assert.equal("b c a3", get("p", 9))
      clock.time = 1005
      assert.equal("a b a2 c a3", get("p", 9))
      assert.equal("a b", get("p", 2))
      local entry = store:get_claimed_entries("p", 1)[1]
      assert.same({ "a", 1, 1, "no" }, { entry.id, entry.seq, entry.attempts, entry.last_error })
      assert.equal(5, store:delete_entries("a", "b", "a2", "c", "a3"))
    end)

    it("and settled where a retry lies", function()
      store:retry_entry("a", 1001, "no")
      clock.time = 1001
      assert.equal("a", get("p", 1, { hold = true }))
      assert.equal("1", store:stats().leases[1].held)
      assert.is_true(store:retry_entry("a", 1002, "again"))
      assert.equal("b c", get("p", 9))
      clock.time = 1002
      assert.equal("a", get("p", 1))
      assert.is_true(store:bury_entry("a", "enough"))
      local dead = store:dead_entries()[1]
      assert.same({ "a", 1, 3, "enough" }, { dead.id, dead.seq, dead.attempts, dead.last_error })
      assert.equal("b a2 c", get("p", 9))
    end)

    it("with options, which are checked", function()
      for message, options in pairs({
        ["batch_bytes must be an integer, at least 1"] = { batch_bytes = 0 },
        ["hold must be a boolean"] = { hold = 1 },
        ["unknown option 'ordering'"] = { ordering = "key" },
      }) do
        assert.matches(message, support.raised(get, "p", 1, options), 1, true)
      end
    end)
  end)

  it("whose call outlives the heartbeat is not charged to the next processor", function()
    publish("a", "b")
    store:claim_entries("p", 1010)
    get("p", 1, { hold = true })
    store:start_heartbeat("p", 0.001, 0.002)
    local deadline = outbox.clock.now() + 60
    repeat
      assert.is_true(outbox.clock.now() < deadline)
    until store:stats().leases[1].held == "!1"
    clock.time = 1020
    assert.is_true(store:claim_entries("q", 1030))
    assert.equal("a b", get("q", 9))
    local suspect = store:delayed_entries()[1]
    assert.same({ "a", 0, outbox.OVERTIME },
      { suspect.id, suspect.attempts, suspect.last_error })
  end)

  it("whose claim is lost cannot be renewed, unless the claim has only expired", function()
    publish("a")
    store:claim_entries("p", 1010)
    clock.time = 1020
    assert.is_true(store:renew_claim("p", 1030))
    clock.time = 1040
    store:claim_entries("q", 1050)
    assert.is_false(store:renew_claim("p", 1060))
    assert.is_false(store:renew_claim("nobody", 1060))
  end)

  it("under a claim made in the future is free, because the clock was put back", function()
    publish("a")
    clock.time = 5000
    store:claim_entries("p", 5010)
    clock.time = 4990 -- a small step back takes no live claim
    assert.is_false(store:claim_entries("q", 5000))
    clock.time = 1400
    assert.is_true(store:claim_entries("q", 1410))
  end)

  it("stays claimed while time passes, for as long as the caller allows", function()
    store:close()
    store = outbox.open(path)
    publish("a")
    local now = outbox.clock.now()
    store:claim_entries("p", now + 0.2)
    store:start_heartbeat("p", 0.02, 0.5)
    local function deadline()
      return store:stats().leases[1].deadline
    end
    repeat
      assert.is_true(outbox.clock.now() < now + 60)
    until deadline() > now + 0.5
    local other <close> = outbox.open(path)
    repeat
      assert.is_true(outbox.clock.now() < now + 60)
    until other:claim_entries("q", outbox.clock.now() + 60)
    store:start_heartbeat("p", 0.001, 60)
    store:stop_heartbeat()
    store:stop_heartbeat()
    assert.matches("number expected", support.raised(store.start_heartbeat, store, "p"))
    store:start_heartbeat("p", 0.001, 60) -- still active when the store is closed
  end)
end)
