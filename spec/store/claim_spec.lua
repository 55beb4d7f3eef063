local outbox = require("outbox")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

describe("a claim", function()
  local store, path, clock

  before_each(function()
    clock = support.clock(1000)
    store, path = support.store({ clock = clock })
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function publish(...)
    local messages = {}
    for i, id in ipairs({ ... }) do
      messages[i] = { id = id }
    end
    store:publish(table.unpack(messages))
  end

  local function got(processor_id, batch_size)
    return support.pluck(store:get_claimed_entries(processor_id, batch_size or 100), "id")
  end

  it("of an empty outbox finds nothing", function()
    assert.is_false(store:claim_entries("p", 1010))
    assert.same({}, got("p"))
  end)

  it("makes published entries readable, any number of times", function()
    store:transaction(function(txn)
      txn:publish({ namespace = "n", key = "k", payload = "p" })
    end)
    assert.same({}, got("p"))
    assert.is_true(store:claim_entries("p", 1010))
    for _ = 1, 2 do
      local entries = store:get_claimed_entries("p", 10)
      assert.equal(1, #entries)
      assert.same({ "n", "k", "p" }, { entries[1].namespace, entries[1].key, entries[1].payload })
    end
  end)

  it("keeps others away until the deadline has passed", function()
    publish("a")
    store:claim_entries("first", 1010)
    for _, time in ipairs({ 1000, 1009.999999, 1010 }) do
      clock.time = time
      assert.is_false(store:claim_entries("second", 1020))
      assert.same({}, got("second"))
      assert.same({ "a" }, got("first"))
    end
    clock.time = 1010.000001
    assert.same({}, got("first"))
    assert.is_true(store:claim_entries("second", 1020))
    assert.same({ "a" }, got("second"))
    assert.is_false(store:claim_entries("first", 1020))
  end)

  it("is renewed by its own processor, even after it lapsed", function()
    publish("a")
    store:claim_entries("p", 1010)
    clock.time = 1005
    assert.is_true(store:claim_entries("p", 1015))
    clock.time = 1012
    assert.is_false(store:claim_entries("q", 1020))
    clock.time = 1016
    assert.same({}, got("p"))
    assert.is_true(store:claim_entries("p", 1030))
    assert.same({ "a" }, got("p"))
  end)

  it("can be shortened, and so released", function()
    publish("a")
    store:claim_entries("p", 1010)
    store:claim_entries("p", 999)
    assert.same({}, got("p"))
    assert.is_true(store:claim_entries("q", 1010))
  end)

  -- On PostgreSQL a claim is of partitions, and these have no end.
  sqlite_it("does not cover what is published later", function()
    publish("a")
    store:claim_entries("p", 1010)
    publish("b")
    assert.same({ "a" }, got("p"))
    store:claim_entries("q", 1010)
    assert.same({ "b" }, got("q"))
  end)

  it("is read in the order of the commits, a batch at a time", function()
    publish("c", "a", "b")
    publish("0")
    store:claim_entries("p", 1010)
    assert.same({ "c", "a" }, got("p", 2))
    store:delete_entries("c", "a")
    assert.same({ "b", "0" }, got("p", 2))
  end)

  it("ends when all its entries are deleted", function()
    publish("a", "b")
    store:claim_entries("p", 1010)
    assert.equal(2, store:delete_entries("a", "b"))
    assert.same({}, got("p"))
    assert.is_false(store:claim_entries("p", 1010))
    assert.same({}, store:stats().leases)
  end)

  it("is visible on other connections", function()
    publish("a")
    store:claim_entries("p", 1010)
    local other <close> = outbox.open(path, { clock = clock })
    assert.is_false(other:claim_entries("q", 1010))
    assert.same({ "a" }, support.pluck(other:get_claimed_entries("p", 10), "id"))
  end)

  it("takes any processor id", function()
    local odd = support.ODD
    publish("a")
    store:claim_entries("p" .. odd, 1010)
    assert.same({}, got("p"))
    assert.same({}, got("p" .. odd .. odd))
    assert.same({ "a" }, got("p" .. odd))
    assert.is_false(store:claim_entries("", 1010))
    assert.is_false(store:claim_entries("' OR 1 = 1 --", 1010))
  end)

  sqlite_it("writes nothing when it finds nothing", function()
    local watcher <close> = outbox.open(path, { clock = clock })
    local function version()
      return support.sql(watcher, "PRAGMA data_version")[1].data_version
    end
    publish("a", "b")
    store:publish({ id = "later", deliver_at = 2000 })
    store:claim_entries("p", 1010)
    local before = version()
    assert.is_false(store:claim_entries("q", 1010))
    assert.is_false(store:claim_entries("q", 1010, { limit = 5 }))
    assert.equal(before, version())
    store:delete_entries("a", "b")
    store:claim_entries("p", 1010)
    before = version()
    for _ = 1, 3 do
      store:claim_entries("p", 1010)
      store:claim_entries("q", 1010)
    end
    assert.equal(before, version())
  end)

  -- On PostgreSQL it takes partitions, not entries.
  support.only("sqlite", describe)("with a limit", function()
    it("takes the oldest", function()
      publish("a", "b", "c")
      assert.is_true(store:claim_entries("p", 1010, { limit = 2 }))
      assert.same({ "a", "b" }, got("p"))
      assert.is_true(store:claim_entries("q", 1010, { limit = 2 }))
      assert.same({ "c" }, got("q"))
      assert.is_false(store:claim_entries("r", 1010, { limit = 2 }))
    end)

    it("renews its own first, then takes the oldest", function()
      publish("a", "b", "c", "d", "e", "f")
      store:claim_entries("p", 1010, { limit = 2 })
      store:claim_entries("q", 1010, { limit = 2 })
      store:claim_entries("p", 1005, { limit = 2 })
      store:delete_entries("a")
      store:claim_entries("q", 1020, { limit = 3 })
      assert.same({ "c", "d", "e" }, got("q"))
      store:claim_entries("p", 1010, { limit = 2 })
      assert.same({ "b", "f" }, got("p"))
      clock.time = 1015
      store:claim_entries("q", 1020, { limit = 4 })
      assert.same({ "b", "c", "d", "e" }, got("q"))
    end)

    it("gives up its entries beyond the limit", function()
      publish("a", "b", "c")
      store:claim_entries("p", 1010)
      store:claim_entries("p", 1010, { limit = 1 })
      assert.same({ "a" }, got("p"))
      store:claim_entries("q", 1010)
      assert.same({ "b", "c" }, got("q"))
    end)
  end)

  sqlite_it("takes an entry that plain SQL has put before the first place", function()
    support.sql(store, "INSERT INTO outbox_entries (seq, id) VALUES (-5, 'early')")
    publish("a")
    assert.is_true(store:claim_entries("p", 1010))
    assert.same({ "early", "a" }, got("p"))
  end)

  it("says when to come again", function()
    assert.same({ false }, { store:claim_entries("p", 1010) })
    store:publish({ id = "later", deliver_at = 1030 })
    assert.same({ false, 1030 }, { store:claim_entries("p", 1010) })
    publish("a")
    assert.same({ true, 1030 }, { store:claim_entries("p", 1010) })
    assert.same({ false, 1010.000001 }, { store:claim_entries("q", 1020) })
    store:retry_entry("a", 1005, "no")
    assert.same({ false, 1005 }, { store:claim_entries("q", 1020) })
  end)

  it("takes nothing while a processor has a share, and keeps it waiting else", function()
    local lane <close> = outbox.open(path, { clock = clock })
    lane:serve({ processor_id = "lane", duration = 2, ordering = "key" })
    publish("a", "b")
    store:claim_entries("p", 1010, { limit = 1 })
    local progress = lane:advance(nil, { batch_size = 10, join = true })
    assert.same({ 0, true, 1010.000001 },
      { progress.count, progress.overlapped, progress.again_at })
    local classes = {}
    for _, lease in ipairs(store:stats().leases) do
      classes[lease.processor_id] = lease.classes
    end
    assert.equal(0, classes.lane)
    assert.is_true(classes.p > 0)
    store:release_claim("p")
    progress = lane:advance(nil, { batch_size = 10 }) -- it has its share
    if progress.count == 0 then
      assert.is_true(progress.more)
      progress = lane:advance(nil, { batch_size = 10 })
    end
    assert.equal(2, progress.count)
    assert.same({ false, 1002.000001 }, { store:claim_entries("p", 1010) })
    lane:advance(true, { batch_size = 0, leave = true })
    publish("c")
    assert.is_true(store:claim_entries("p", 1010))
  end)

  sqlite_it("leaves few leases, however often it is made", function()
    for i = 1, 300 do
      publish("a" .. i, "b" .. i, "c" .. i)
      store:claim_entries("p" .. i % 3, 1010, { limit = 2 + i % 5 })
      if i % 2 == 0 then
        store:delete_entries(table.unpack(got("p" .. i % 3, 2)))
      end
      assert.is_true(#store:stats().leases <= 12)
    end
  end)

  it("brings back at most 1,000 delayed entries, those due first before others", function()
    for i = 1, 15 do
      local messages = {}
      for j = 1, 100 do
        messages[j] = { deliver_at = 1000 + i, payload = tostring(i) }
      end
      store:publish(table.unpack(messages))
    end
    clock.time = 1015
    store:claim_entries("p", 1020)
    assert.equal(1000, store:stats().ready)
    assert.equal("10", store:get_claimed_entries("p", 1000)[1000].payload)
    store:claim_entries("p", 1020)
    assert.equal(1500, store:stats().ready)
  end)

  it("gives a delayed entry another id when plain SQL has scheduled an id that is ready", function()
    store:publish({ id = "twin", payload = "now" })
    support.sql(store, "INSERT INTO outbox_delayed (id, payload, due_at) VALUES (?, ?, ?)", "twin",
      "later", 1001000000)
    local seq = store:delayed_entries()[1].seq
    clock.time = 1002
    store:claim_entries("p", 1010)
    assert.same({ "twin", "twin~" .. seq }, got("p"))
    assert.equal("later", store:get_claimed_entries("p", 3)[2].payload)
    assert.equal(0, store:stats().delayed)
  end)

  -- PostgreSQL refuses that INSERT.
  sqlite_it("gives a delayed entry another id when plain SQL has used its id again", function()
    store:publish({ id = "twin", deliver_at = 1001, payload = "later" })
    store:publish({ id = "other", deliver_at = 1001 })
    support.sql(store, "INSERT INTO outbox_entries (id, payload) VALUES ('twin', 'now')")
    clock.time = 1002
    store:claim_entries("p", 1010)
    assert.same({ "twin", "twin~1", "other" }, got("p"))
    assert.equal("later", store:get_claimed_entries("p", 3)[2].payload)
    assert.equal(0, store:stats().delayed)
  end)

  describe("asks the clock inside the write lock", function()
    -- A store whose clock calls `inside` when the claim asks it for the second time.
    local function open(inside)
      local calls = 0
      return outbox.open(path, { busy_timeout = 0, clock = function()
        calls = calls + 1
        if calls == 2 then
          inside()
        end
        return clock.time
      end })
    end

    local function claim(inside, ...)
      local own <close> = open(inside)
      return own:claim_entries("p", 2000, ...)
    end

    it("so that it takes no live claim after it was stopped on the way there", function()
      for _, options in ipairs({ {}, { limit = 1 } }) do
        publish("a")
        local calls, time = 0, clock.time
        local own <close> = outbox.open(path, { clock = function()
          calls = calls + 1
          if calls == 1 then -- it is stopped for a minute after this answer
            time, clock.time = clock.time, clock.time + 60
            assert.is_true(store:claim_entries("alive", clock.time + 30))
            return time
          end
          return clock.time
        end })
        assert.is_false((own:claim_entries("p", clock.time + 90, options)))
        assert.same({ "a" }, got("alive"))
        store:delete_entries("a")
        store:release_claim("alive")
      end
    end)

    sqlite_it("while nobody else can write", function()
      publish("a")
      local other <close> = outbox.open(path, { busy_timeout = 0 })
      local problem
      assert.is_true(claim(function()
        problem = support.raised(other.publish, other, {})
      end))
      assert.equal("busy", problem.code)
    end)

    it("which must not use the store", function()
      publish("a")
      local own
      local tries = {}
      local function try(name, ...)
        tries[#tries + 1] = { name, support.raised(own[name], own, ...).code }
      end
      own = open(function()
        try("publish", {})
        try("claim_entries", "q", 2000)
        try("release_claim", "p")
        try("stats")
        try("transaction", function() end)
        try("close")
      end)
      assert.is_true(own:claim_entries("p", 2000))
      assert.equal(6, #tries)
      for _, each in ipairs(tries) do
        assert.equal("misuse", each[2], each[1])
      end
      assert.equal("p", own:stats().leases[1].processor_id)
      own:publish({ id = "b" })
      own:close()
      assert.equal(2, store:stats().ready)
    end)

    it("nor end the transaction that the claim is in", function()
      publish("a")
      local own, problem, open_txn
      own = open(function()
        problem = support.raised(getmetatable(open_txn).__close, open_txn)
      end)
      own:transaction(function(txn)
        open_txn = txn
        assert.is_true(own:claim_entries("p", 2000))
        txn:publish({ id = "b" })
      end)
      assert.equal("misuse", problem.code)
      own:close()
      assert.equal(2, store:stats().ready)
    end)

    for name, inside in pairs({
      raises = function()
        error("no time", 0)
      end,
      ["raises a table"] = function()
        error(setmetatable({}, { __tostring = function()
          return "no time"
        end }))
      end,
    }) do
      it("and is rolled back when that " .. name, function()
        publish("a")
        local own <close> = open(inside)
        local problem = support.raised(own.claim_entries, own, "p", 2000)
        assert.same({ "callback", "the clock failed: no time" }, { problem.code, problem.message })
        publish("b") -- the lock is free
        assert.same({}, store:stats().leases)
        assert.is_true(own:claim_entries("p", 2000))
      end)
    end

    it("and is rolled back when that yields, or gives no time", function()
      publish("a")
      local problem
      coroutine.wrap(function()
        problem = support.raised(claim, coroutine.yield)
      end)()
      assert.equal("callback", problem.code)
      assert.matches("yield", problem.message)
      local calls = 0
      local own <close> = outbox.open(path, { clock = function()
        calls = calls + 1
        return calls ~= 2 and 1000 or nil
      end })
      problem = support.raised(own.claim_entries, own, "p", 2000)
      assert.equal("callback", problem.code)
      assert.matches("must return a time in seconds, not nil", problem.message)
      assert.same({}, store:stats().leases)
    end)

    it("and raises what the clock raises before that, unchanged", function()
      publish("a")
      local reason = {}
      local own <close> = outbox.open(path, { clock = function()
        error(reason)
      end })
      assert.equal(reason, support.raised(own.claim_entries, own, "p", 2000))
    end)
  end)
end)
