-- The batch that a processor has in hand. How a claim is renewed, released and kept alive.

local outbox = require("outbox")
local support = require("spec.support")

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
    local entries, after = store:get_claimed_entries(processor, size, options)
    return table.concat(support.pluck(entries, "id"), " "), after
  end

  local function attempts()
    local list = {}
    for i, entry in ipairs(store:ready_entries()) do
      list[i] = entry.id .. entry.attempts
    end
    return table.concat(list, " ")
  end

  it("is stored in its claim as ranges of seq", function()
    publish("a", "b", "c", "d")
    store:delete_entries("b")
    store:claim_entries("p", 1010)
    get("p", 3, { hold = true })
    assert.equal("1-1,3-4", store:stats().leases[1].batch)
    assert.is_true(store:renew_claim("p", 1020))
    assert.is_nil(store:stats().leases[1].batch)
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

    it("is not charged when the stored batch is malformed", function()
      publish("a")
      for _, nonsense in ipairs({ "", "x", "1", "1-", "9-1", "-", "2-x,1-1" }) do
        store:claim_entries("p", clock.time + 1)
        support.sql(store, "UPDATE outbox_leases SET batch = ?", nonsense)
        clock.advance(2)
        store:claim_entries("q", clock.time)
        assert.equal("a0", attempts(), nonsense)
        store:release_claim("q")
      end
    end)
  end)

  describe("may be read", function()
    before_each(function()
      publish("a", "b", "a2", "c")
      store:claim_entries("p", 1010, { exclusive = true })
    end)

    it("from the place where another reading ended", function()
      local ids, after = get("p", 2, {})
      assert.equal("a b", ids)
      ids, after = get("p", 5, { after = after })
      assert.equal("a2 c", ids)
      assert.same({ "", after }, { get("p", 5, { after = after }) })
    end)

    it("without some namespaces", function()
      assert.same({ "b c", 4 }, { get("p", 5, { except = { "a" } }) })
      assert.same({ "", 4 }, { get("p", 5, { except = { "a", "b", "c" } }) })
    end)

    it("without some namespaces, even if the clock changes their list", function()
      local except, now = { ("x"):rep(1000) }, clock.now
      store:publish({ id = "d", namespace = except[1] })
      clock.now = function()
        except[1] = nil
        collectgarbage()
        for i = 2, 100 do -- reuse its memory
          except[i] = ("y"):rep(1000)
        end
        return now()
      end
      assert.same({ "a b a2 c", 5 }, { get("p", 9, { except = except }) })
    end)

    it("but not without an impossible number of namespaces", function()
      -- Its length is that of the last power of two, because of all the holes.
      local powers = {}
      for i = 0, 60 do
        powers[#powers + 1] = ("[1 << %d] = 'a'"):format(i)
      end
      local vast = load("return {" .. table.concat(powers, ", ") .. "}")()
      assert.equal(1 << 60, #vast)
      assert.matches("an array of strings", support.raised(get, "p", 1, { except = vast }), 1, true)
    end)

    it("in the order that `ordering` asks for while a retry waits", function()
      store:retry_entry("a", 1005, "no")
      publish("a3")
      assert.equal("b a2 c a3", (get("p", 9, { ordering = "none" })))
      assert.equal("b c", (get("p", 9, { ordering = "key" })))
      assert.equal("", (get("p", 9, { ordering = "strict" })))
      store:retry_entry("c", 1003, "no")
      clock.time = 1005
      store:claim_entries("p", 1010, { exclusive = true })
      assert.equal("a b a2 c a3", (get("p", 9, { ordering = "strict" })))
    end)

    it("with options, which are checked", function()
      for message, options in pairs({
        ['ordering must be one of "none", "key", "strict"'] = { ordering = "keys" },
        ["after must be an integer"] = { after = 1.5 },
        ["except must be an array"] = { except = "a" },
        ["an array of strings"] = { except = { 1 } },
        ["hold must be a boolean"] = { hold = 1 },
        ["unknown option 'holds'"] = { holds = true },
      }) do
        assert.matches(message, support.raised(get, "p", 1, options), 1, true)
      end
    end)
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
