local outbox = require("outbox")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

describe("an entry", function()
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
      messages[i] = { id = id, key = "key of " .. id, headers = { id = id } }
    end
    store:publish(table.unpack(messages))
  end

  local function ready()
    store:claim_entries("p", clock.time + 10)
    return store:get_claimed_entries("p", 1000)
  end

  local function ids(entries)
    return support.pluck(entries, "id")
  end

  describe("that is deleted", function()
    it("is counted; an unknown one is not", function()
      publish("a", "b", "c")
      assert.equal(2, store:delete_entries("c", "x", "a", "a"))
      assert.same({ "b" }, ids(ready()))
      assert.equal(0, store:delete_entries())
    end)

    it("may be delayed, but not dead; dead letters stay", function()
      publish("a", "b")
      store:publish({ id = "later", deliver_at = 2000 })
      store:retry_entry("a", 1005)
      store:bury_entry("b")
      assert.equal(2, store:delete_entries("later", "a", "b"))
      local stats = store:stats()
      assert.same({ 0, 0, 1 }, { stats.ready, stats.delayed, stats.dead })
    end)

    it("may be one of 100,000", function()
      local all = {}
      for i = 1, 100 do
        local messages = {}
        for j = 1, 1000 do
          messages[j] = {}
        end
        local made = { store:publish(table.unpack(messages)) }
        table.move(made, 1, 1000, (i - 1) * 1000 + 1, all)
      end
      publish("left")
      all[#all + 1] = "unknown"
      assert.equal(100000, store:delete_entries(table.unpack(all)))
      assert.same({ "left" }, ids(ready()))
    end)

    it("is counted, and found wherever it is, beside others that are gone", function()
      local function delete(...)
        return store:delete_entries(...)
      end
      local function in_transaction(...)
        local given = table.pack(...)
        return store:transaction(function()
          return store:delete_entries(table.unpack(given, 1, given.n))
        end)
      end
      for _, how in ipairs({ delete, in_transaction }) do
        publish("a", "b", "c", "d", "e", "f", "g", "h")
        local batch = ids(ready())
        local other <close> = outbox.open(path, { clock = clock })
        other:retry_entry("c", 1005, "no")
        other:bury_entry("e", "no")
        support.sql(other, "DELETE FROM outbox_entries WHERE id = 'f'")
        assert.equal(6, how(table.unpack(batch)))
        assert.same({}, store:ready_entries())
        assert.same({}, store:delayed_entries())
        assert.same({ "e" }, ids(store:dead_entries()))
        store:purge_entries("e")
      end
    end)

    it("takes no other with it, whatever happened since the batch was read", function()
      -- A whole batch is deleted as ranges of the table. Only entries of the batch may go.
      publish("a", "b", "c", "d")
      local batch = ids(ready())
      store:retry_entry("b", 1005, "no")
      publish("e")
      assert.equal(4, store:delete_entries(table.unpack(batch)))
      assert.same({ "e" }, ids(ready()))
      clock.time = 1005
      assert.same({ "e" }, ids(ready()))

      publish("f", "g", "h")
      batch = ids(ready())
      assert.same({ "e", "f", "g", "h" }, batch)
      assert.equal(3, store:delete_entries("e", "f", "h"))
      assert.same({ "g" }, ids(ready()))
    end)

    it("does not take an entry that got the place of one that was rolled back", function()
      local batch
      pcall(store.transaction, store, function()
        publish("a", "b")
        batch = ids(ready())
        error()
      end)
      assert.same({ "a", "b" }, batch)
      publish("c", "d")
      assert.equal(0, store:delete_entries("a", "b"))
      assert.same({ "c", "d" }, ids(ready()))
    end)
  end)

  sqlite_it("does not take an entry that got its place by a reset of the tables", function()
    publish("old")
    assert.same({ "old" }, ids(ready()))
    local other <close> = outbox.open(path)
    other:transaction(function(txn)
      txn:execute("DELETE FROM outbox_entries")
      txn:execute("UPDATE outbox_schema SET mark = 0")
      txn:publish({ id = "new" })
    end)
    assert.equal(0, store:delete_entries("old"))
    assert.same({ "new" }, ids(ready()))
  end)

  describe("that is retried", function()
    it("is delayed until it is due, and comes back to its place", function()
      publish("a", "b", "c")
      ready()
      assert.is_true(store:retry_entry("b", 1005, "connection refused"))
      publish("d")
      assert.same({ "a", "c", "d" }, ids(ready()))
      assert.equal(1005, store:stats().due_at)
      clock.time = 1004.999999
      assert.same({ "a", "c", "d" }, ids(ready()))
      clock.time = 1005
      local entries = ready()
      assert.same({ "a", "b", "c", "d" }, ids(entries))
      assert.same({
        id = "b",
        namespace = "",
        key = "key of b",
        headers = { id = "b" },
        created_at = 1000,
        attempts = 1,
        last_error = "connection refused",
        seq = 2,
      }, entries[2])
      store:retry_entry("b", 1006, "a\0b") -- PostgreSQL has no NUL in texts
      clock.time = 1006
      assert.same({ 2, support.engine == "sqlite" and "a\0b" or "a?b" },
        { ready()[2].attempts, ready()[2].last_error })
    end)

    it("is due at once if the clock was ahead and is set right", function()
      publish("a", "b", "c", "d")
      store:publish({ id = "scheduled", deliver_at = 1e9 + 500 })
      clock.time = 1e9
      store:retry_entry("b", 1e9 + 60, "no")
      store:retry_entry("c", 1e9 + 60)
      store:retry_entry("d", 2000, "no")
      store:retry_entry("d", 1e9 + 90)
      assert.is_true(store:retry_entry("scheduled", 1e9 + 700))
      clock.time = 1e9 - 9
      assert.same({ "a" }, ids(ready()))
      clock.time = 2000
      assert.same({ "a", "b", "c", "d" }, ids(ready()))
      assert.same(support.engine == "sqlite" and { "scheduled", "b", "c", "d" }
        or { "b", "c", "d", "scheduled" }, ids(store:delayed_entries()))
      local _, again_at = store:claim_entries("p", clock.time + 10)
      assert.equal(1e9 + 700, again_at)
    end)

    it("is retried and buried where it lies", function()
      publish("a")
      store:retry_entry("a", 1005, "no")
      assert.is_true(store:retry_entry("a", 1001, "again"))
      assert.same({ 1001, 2, "again" }, { store:stats().due_at,
        store:delayed_entries()[1].attempts, store:delayed_entries()[1].last_error })
      assert.is_true(store:bury_entry("a"))
      assert.same({ "a", 1, 2 }, { store:dead_entries()[1].id, store:dead_entries()[1].seq,
        store:dead_entries()[1].attempts })
      assert.is_false(store:retry_entry("unknown", 1005))
    end)
  end)

  describe("that is buried", function()
    it("is a dead letter", function()
      publish("a", "b")
      clock.time = 1003
      assert.is_true(store:bury_entry("a", "gone"))
      assert.is_false(store:bury_entry("a", "gone"))
      assert.same({ "b" }, ids(ready()))
      assert.same({
        {
          id = "a",
          namespace = "",
          key = "key of a",
          headers = { id = "a" },
          created_at = 1000,
          attempts = 1,
          last_error = "gone",
          died_at = 1003,
          seq = 1,
        },
      }, store:dead_entries())
    end)

    it("has a place and a time even if the time is 0", function()
      publish("a")
      clock.time = 0
      store:bury_entry("a")
      local entry = store:dead_entries()[1]
      assert.same({ 1, 0 }, { entry.seq, entry.died_at })
    end)

    it("gets a new seq when it is requeued, after all that was published since", function()
      publish("a")
      store:bury_entry("a")
      publish("b")
      assert.equal(1, store:requeue_entries("a"))
      for _, entries in ipairs({ store:ready_entries(), ready() }) do
        assert.same({ "b", "a" }, ids(entries))
        assert.same({ 2, 3 }, { entries[1].seq, entries[2].seq })
      end
    end)

    it("is read page by page", function()
      for i = 1, 250 do
        local id = tostring(i)
        store:publish({ id = id, namespace = i % 2 == 0 and "even" or "odd" })
        store:bury_entry(id)
      end
      assert.equal(100, #store:dead_entries())
      local function pages(options)
        local all = {}
        repeat
          local page = store:dead_entries(options)
          for _, entry in ipairs(page) do
            all[#all + 1] = entry.id
            options.after = entry.seq
          end
        until #page == 0
        return all
      end
      local all = pages({ limit = 33 })
      assert.equal(250, #all)
      assert.same({ "1", "250" }, { all[1], all[250] })
      local even = pages({ limit = 50, namespace = "even" })
      assert.equal(125, #even)
      assert.same({ "2", "250" }, { even[1], even[125] })
      assert.same({}, store:dead_entries({ namespace = "none" }))
    end)

    it("can be read from the last to the first", function()
      publish("a", "b", "c", "d")
      for id in ("abd"):gmatch(".") do
        store:bury_entry(id)
      end
      local page = store:dead_entries({ reverse = true, limit = 2 })
      assert.same({ "d", "b" }, ids(page))
      page = store:dead_entries({ reverse = true, limit = 2, after = page[2].seq })
      assert.same({ "a" }, ids(page))
      assert.same({ "c" }, ids(store:ready_entries({ reverse = true, namespace = "" })))
      assert.same({}, store:delayed_entries({ reverse = true }))
    end)

    it("is put back at the end with its id and last error, and no attempts", function()
      publish("a", "b", "c")
      store:bury_entry("b", "no")
      store:bury_entry("a", "no")
      assert.equal(2, store:requeue_entries("a", "x", "b", "c"))
      local entries = ready()
      assert.same({ "c", "a", "b" }, ids(entries))
      assert.same({ 0, "no", 1000 },
        { entries[2].attempts, entries[2].last_error, entries[2].created_at })
      assert.same({}, store:dead_entries())
      assert.equal(0, store:requeue_entries("a"))
      assert.equal(3, #ready())
    end)

    it("can be purged", function()
      publish("a", "b")
      store:bury_entry("a")
      assert.equal(1, store:purge_entries("a", "b", "x"))
      assert.equal(0, store:stats().dead)
      assert.same({ "b" }, ids(ready()))
    end)

    it("keeps its place in the order even if it dies twice", function()
      publish("a")
      store:bury_entry("a")
      store:requeue_entries("a")
      publish("b")
      store:bury_entry("b")
      store:bury_entry("a")
      assert.same({ "a", "b" }, ids(store:dead_entries()))
    end)
  end)

  it("is found by its id in every state", function()
    clock.time = 0
    publish("ready", "delayed", "dead")
    store:retry_entry("delayed", 0, "later")
    store:bury_entry("dead", "never")
    local found = store:find_entries("ready")
    assert.same({ "ready", 1 }, { found[1].id, found[1].seq })
    assert.same({}, { found[2], found[1].due_at, found[1].died_at })
    found = store:find_entries("delayed")[1]
    assert.same({ "later", 1, 0 }, { found.last_error, found.attempts, found.due_at })
    assert.is_nil(found.died_at)
    found = store:find_entries("dead")[1]
    assert.same({ "never", { id = "dead" }, 0 }, { found.last_error, found.headers, found.died_at })
    assert.is_nil(found.due_at)
    assert.same({}, store:find_entries("unknown"))
    support.sql(store, "INSERT INTO outbox_entries (id) VALUES ('dead')")
    assert.equal(2, #store:find_entries("dead"))
  end)

  it("is settled or not with its transaction", function()
    publish("a", "b", "c")
    pcall(store.transaction, store, function()
      store:delete_entries("a")
      store:retry_entry("b", 1005)
      store:bury_entry("c")
      error()
    end)
    assert.same({ "a", "b", "c" }, ids(ready()))
    local other <close> = outbox.open(path)
    assert.same({ 3, 0, 0 }, { other:stats().ready, other:stats().delayed, other:stats().dead })
  end)
end)

describe("store:stats", function()
  sqlite_it("shows what each lease covers", function()
    local clock = support.clock(1000)
    local store <close>, path = support.store({ clock = clock })
    store:publish({ namespace = "a" }, { namespace = "b,c" }, { namespace = "d" })
    local sets = { { "a", "a" }, { "b,c", "" }, { except = { "b,c", "a", "" } } }
    for i, namespaces in ipairs(sets) do
      local lane <close> = outbox.open(path, { clock = clock })
      lane:serve({ processor_id = "lane" .. i, namespaces = namespaces.except or namespaces,
        except = namespaces.except ~= nil, duration = 2, ordering = "key" })
      assert.equal(1, lane:advance(nil, { batch_size = 1 }).count)
    end
    local leases = store:stats().leases
    assert.same({ { "a" }, { "", "b,c" }, { except = { "", "a", "b,c" } } },
      { leases[1].namespaces, leases[2].namespaces, leases[3].namespaces })
    for i, lease in ipairs(leases) do
      assert.same({ i, "lane" .. i, 64, math.mininteger, math.maxinteger, tostring(i) }, {
        lease.lease, lease.processor_id, lease.classes, lease.first_seq, lease.last_seq,
        lease.held })
    end
    support.remove()
  end)

  it("counts the entries, and measures how long the first has waited", function()
    local clock = support.clock(1000)
    local store <close> = support.store({ clock = clock })
    assert.same({ ready = 0, delayed = 0, dead = 0, retries = 0, last_seq = 0, leases = {} },
      store:stats())
    store:publish({ id = "dead" }, { id = "later", deliver_at = 1100 })
    store:bury_entry("dead")
    clock.time = 1010
    local sqlite = support.engine == "sqlite" -- on PostgreSQL, what is scheduled draws a seq, too
    assert.same({ ready = 0, delayed = 1, dead = 1, retries = 0, last_seq = sqlite and 1 or 2,
      due_at = 1100, leases = {} }, store:stats())
    store:publish({}, {}, { id = "retried" })
    store:retry_entry("retried", 1200)
    store:claim_entries("p", 1020, { limit = 1 })
    store:claim_entries("q", 1030.5)
    clock.time = 1015.5
    local all, first, last = { 64, 64 }, { 2, 3 }, { 2, 4 }
    if not sqlite then
      all, first, last = { 1, 63 }, { math.mininteger, math.mininteger },
        { math.maxinteger, math.maxinteger }
    end
    assert.same({
      ready = 2,
      delayed = 2,
      dead = 1,
      retries = 1,
      last_seq = sqlite and 4 or 5,
      due_at = 1100,
      oldest_age = 5.5,
      leases = {
        { lease = 1, processor_id = "p", classes = all[1], claimed_at = 1010, deadline = 1020,
          first_seq = first[1], last_seq = last[1] },
        { lease = 2, processor_id = "q", classes = all[2], claimed_at = 1010, deadline = 1030.5,
          first_seq = first[2], last_seq = last[2] },
      },
    }, store:stats())
    support.remove()
  end)
end)
