-- Wherever the connection to the server is lost: nothing is lost, nothing that was rolled back is
-- delivered, nothing is half done, and the store goes on.

local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")
local torture = require("spec.support.torture")

local describe = support.only("postgres", describe)
local UNDONE = {}

describe("wherever a connection to PostgreSQL is lost,", function()
  local cuts, count, persist, try_all, direct

  setup(function()
    cuts = require("spec.support.cuts")
    count, persist, try_all = cuts.count, cuts.persist, cuts.try_all
    cuts.start()
    direct = cuts.direct
  end)
  after_each(torture.kill_all)
  teardown(function()
    cuts.stop()
    torture.tally("PostgreSQL: cut", cuts.cases, 0, 0)
  end)

  it("a transaction is committed with its messages, or not at all", function()
    -- The server tells the store what became of it, unless the connection is lost again meanwhile.
    local function is_done(problem)
      local n, where = count("orders") + count("outbox_entries"), cuts.where .. tostring(problem)
      local is_unknown = problem.message:find("nobody knows") ~= nil
      assert.is_true(is_unknown and cuts.again or not is_unknown and n == 0, where)
      return n > 0
    end
    try_all("order 1\nready 1 0\nready inner 0", function(store)
      persist(is_done, store.transaction, store, function(txn)
        txn:execute("INSERT INTO orders VALUES ('1')")
        pcall(store.transaction, store, function(inner)
          inner:publish({ payload = "undone" })
          error(UNDONE)
        end)
        txn:publish({ id = "1", key = "k", payload = "1" })
        store:transaction(function(inner)
          inner:publish({ key = "k", payload = "inner" })
        end)
      end)
      persist(nil, function()
        local _, problem = pcall(store.transaction, store, function(txn)
          txn:publish({ payload = "undone" })
          txn:execute("INSERT INTO orders VALUES ('undone')")
          error(UNDONE)
        end)
        return problem == UNDONE or error(problem)
      end)
    end)
    for _, way in ipairs(cuts.ways) do
      cuts.try("order 1\nready 1 0", function(store)
        persist(is_done, store.transaction, store, function(txn)
          txn:execute("INSERT INTO orders VALUES ('1')")
          txn:publish({ id = "1", payload = "1" })
          cuts.arm(way, 1) -- the commit
        end)
      end, cuts.url, "pass", 0)
    end
  end)

  it("messages are published together, with their copies, or not at all", function()
    local function is_done()
      local n = count("outbox_entries") + count("outbox_delayed")
      assert.is_true(n == 0 or n == 3, cuts.where)
    end
    try_all("delayed log 2 0\nready log 1 0\nready mail 1 0\nsubscription events log",
      function(store, clock)
        persist(nil, store.subscribe, store, "events", "mail")
        persist(nil, store.subscribe, store, "events", "log")
        persist(is_done, store.publish, store, { id = "1", namespace = "events", key = "k",
          payload = "1" }, { namespace = "log", payload = "2", deliver_at = clock.now() + 1 })
        persist(nil, store.unsubscribe, store, "events", "mail")
        persist(nil, store.pause, store, "mail")
        persist(nil, store.resume, store, "mail")
      end)
  end)

  it("all tables are there, or none, and the migration may be run again", function()
    try_all("", function(store)
      persist(function()
        local n = count("pg_tables WHERE schemaname = 'fresh'")
        assert.is_true(n == 0 or n == 9, cuts.where)
      end, store.migrate, store)
      persist(function()
        return count("fresh.outbox_entries") == 1
      end, store.publish, store, { id = "1" })
    end, cuts.url .. "?options=-csearch_path%3Dfresh")
  end)

  it("a processor delivers each message once, in order, and charges what fails once", function()
    try_all("a: a1 (1) a2 (0)\nb: b2 (0)\nc: c (0) late (0)\nd: d1 (1) d2 (0)\ndead b1 2 no",
      function(store, clock)
        direct:publish({ key = "a", payload = "a1" }, { key = "b", payload = "b1" },
          { key = "a", payload = "a2" }, { key = "b", payload = "b2" },
          { key = "c", payload = "c" }, { key = "d", payload = "d1" },
          { key = "d", payload = "d2" },
          { key = "c", payload = "late", deliver_at = clock.now() + 0.1 })
        local log = { a = "", b = "", c = "", d = "" }
        local p = outbox.processor({ store = store, batch_size = 2, processor_id = "p",
          on_error = function() end, -- that the claim is lost, which was given back unheard
          retry = function(_, attempts)
            return attempts < 2 and 1 or nil
          end,
          publisher = function(messages)
            local failures = {}
            clock.advance(0.1) -- so that something falls due meanwhile
            for i, message in ipairs(messages) do
              local payload, attempts = message.payload, message.attempts
              if payload == "b1" or payload:find("^[ad]1") and attempts == 0 then
                failures[i] = "no"
              else
                log[message.key] = ("%s %s (%d)"):format(log[message.key], payload, attempts)
              end
            end
            return failures
          end })
        for _ = 1, 4 do
          persist(nil, p.pump, p)
          clock.advance(1)
        end
        return ("a:%s\nb:%s\nc:%s\nd:%s\n"):format(log.a, log.b, log.c, log.d)
      end)
  end)

  -- A processor loses its connection after `prepare`, and has its claim still when it finishes.
  local function charge(prepare, finish)
    cuts.try("delayed 1 1 no", function(store)
      direct:publish({ payload = "1" })
      local p = outbox.processor({ store = store, processor_id = "p", retry = { base = 1 },
        on_retry = finish, publisher = function()
          prepare(store)
          return { "no" }
        end })
      persist(nil, p.pump, p)
    end, cuts.url, "pass", 0)
  end

  it("a failure is charged once, whatever became of the answer", function()
    for _, way in ipairs(cuts.ways) do
      charge(function()
        cuts.arm(way, -1)
      end)
    end
  end)

  it("a failure is charged once, though the server is busy when its client comes again", function()
    local holder
    charge(function()
      holder = cuts.hold_entries()
      cuts.arm("leave", -1)
    end, function()
      holder = torture.wait(holder)
    end)
    assert.equal(0, holder)
  end)

  it("a failure is charged once, though the server begins when its client is done", function()
    local stopped
    charge(function(store)
      stopped = support.sql(store, "SELECT pg_backend_pid() AS pid")[1].pid
      process.kill(stopped, 19) -- SIGSTOP
      cuts.arm("leave", -1)
    end, function()
      process.kill(stopped, 18) -- SIGCONT
      stopped = cuts.calm_down()
    end)
    assert.is_true(stopped)
  end)

  it("a processor that dies soon is charged for what it had in hand, and no more", function()
    try_all("", function(store, clock)
      local messages, hand, charged = {}, {}, {}
      for i = 1, 40 do
        messages[i] = { payload = tostring(i) }
      end
      direct:publish(table.unpack(messages))
      local p = outbox.processor({ store = store, batch_size = 8, processor_id = "p",
        publisher = coroutine.yield })
      persist(nil, function()
        for _, message in ipairs(coroutine.wrap(p.pump)(p)) do
          hand[message.payload] = 1
        end
      end)
      store:close()
      clock.advance(10)
      local heir = outbox.processor({ store = direct, processor_id = "heir",
        publisher = function(batch)
          for _, message in ipairs(batch) do
            charged[message.payload] = message.attempts > 0 and message.attempts or nil
          end
        end })
      assert.equal(40, heir:pump(), cuts.where)
      assert.same(hand, charged, cuts.where)
    end)
  end)

  it("entries that are claimed by hand are settled once", function()
    try_all("ready 3 0 bad", function(store, clock)
      local function claim()
        local claims = persist(nil, store.claim_entries, store, "hand", clock.now() + 60)
        assert.is_true(claims, cuts.where)
        return persist(nil, store.get_claimed_entries, store, "hand", 10, { hold = true })
      end
      -- What was settled cannot be read any more.
      local function settle(id, fn, ...)
        persist(function()
          local is_there
          for _, entry in ipairs(persist(nil, store.get_claimed_entries, store, "hand", 10)) do
            is_there = is_there or entry.id == id
          end
          return not is_there
        end, fn, ...)
      end
      direct:publish({ id = "1" }, { id = "2" }, { id = "3", payload = "3" }, { id = "4" })
      claim()
      settle("1", store.delete_entries, store, "1")
      settle("2", store.retry_entry, store, "2", clock.now() + 1, "no")
      settle("3", store.bury_entry, store, "3", "bad")
      settle("4", store.retry_entry, store, "4", clock.now() + 1)
      clock.advance(1)
      assert.is_true(persist(nil, store.renew_claim, store, "hand", clock.now() + 60), cuts.where)
      local entries = claim()
      assert.same({ 1, 0 }, support.pluck(entries, "attempts"), cuts.where)
      settle("2", store.transaction, store, function()
        store:delete_entries(entries[1])
        store:bury_entry(entries[2], "late")
      end)
      persist(nil, store.release_claim, store, "hand")
      persist(nil, store.requeue_entries, store, "3")
      persist(nil, store.purge_entries, store, "4")
    end)
  end)

  it("a store that waits hears of a commit", function()
    try_all("ready 1 0", function(store, clock)
      repeat -- until it has seen all that was committed before
        persist(nil, store.claim_entries, store, "hand", clock.now() + 60)
      until not persist(nil, store.wait, store, 0.01)
      direct:publish({ payload = "1" })
      assert.is_true(persist(nil, store.wait, store, 60), cuts.where)
    end)
  end)
end)
