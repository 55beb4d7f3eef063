-- Every operation of a store in Lua. `starved` runs them while allocations fail. An operation
-- either succeeds, or fails, changes nothing and can then be repeated.

local outbox = require("outbox")
local testing = require("outbox.testing")
require("outbox.headers") -- loaded first, as in a program that has run for a while

local function rows(store, sql)
  local list = {}
  store:transaction(function(txn)
    for row in txn:rows(sql) do
      list[#list + 1] = row.line
    end
  end)
  return table.concat(list, "\n")
end

local function dump(store)
  return rows(store, [[
    SELECT 'ready ' || seq || id || key || ifnull(payload, '-') || attempts AS line
    FROM outbox_entries UNION ALL
    SELECT 'delayed ' || id || due_at || attempts FROM outbox_delayed UNION ALL
    SELECT 'dead ' || id || attempts FROM outbox_dead UNION ALL
    SELECT 'lease ' || first_seq || processor_id || deadline || ifnull(held, '-')
    FROM outbox_claims UNION ALL
    SELECT 'subscription ' || namespace || copy FROM outbox_subscriptions UNION ALL
    SELECT 'pause ' || namespace FROM outbox_pauses UNION ALL
    SELECT 'outage ' || namespace || down_since FROM outbox_outages UNION ALL
    SELECT 'order ' || number FROM orders]])
end

local LONG = ("long "):rep(20)

-- A store with entries in every state, and Lua functions for all callbacks. No entry has headers,
-- because lua-cjson leaks memory when it runs out of memory while it decodes.
local function prepare_few()
  local clock = testing.clock(1000)
  local store = outbox.open(":memory:", {
    clock = function()
      return clock.now()
    end,
    id_generator = function(_, it)
      return "id-" .. it.headers.number
    end,
  })
  store:migrate()
  store:transaction(function(txn)
    txn:execute("CREATE TABLE orders (number INTEGER PRIMARY KEY)")
  end)
  for i = 1, 6 do
    store:publish({ id = "old-" .. i, key = "k", payload = ("x"):rep(i) })
  end
  store:publish({ id = "late", key = "k", deliver_at = 2000 })
  store:bury_entry("old-6", "no")
  store:claim_entries("p", 1010, { limit = 4 })
  return store
end

-- Many of its entries are in hand of a processor with a long ID.
local function prepare_batch()
  local store = prepare_few()
  for i = 1, 20 do
    store:publish({ id = "new-" .. i })
  end
  store:claim_entries(LONG, 1010)
  assert(#store:get_claimed_entries(LONG, 100) == 21)
  return store
end

local function nothing() end

-- The contents of the store after an operation that nothing disturbs.
local function effect(prepare, run)
  local store <close> = prepare()
  run(store)
  return dump(store)
end

local function is_out_of_memory(problem)
  return problem == "not enough memory" or type(problem) == "table" and problem.code == "nomem"
end

local function operation(name, run, prepare)
  prepare = prepare or prepare_few
  return {
    name = name,
    prepare = prepare,
    run = run,
    check = function(store, ok, problem)
      assert(ok or is_out_of_memory(problem), tostring(problem))
      collectgarbage()
      store:wait(0) -- fails if a transaction was left open
      local now, after = dump(store), effect(prepare, run)
      assert(now == (ok and after or effect(prepare, nothing)), now)
      if not ok then
        run(store)
        now = dump(store)
        assert(now == after, now)
      end
      store:close()
    end,
  }
end

local function message(i)
  return { key = "k", payload = "new", headers = { number = tostring(i) } }
end

return {
  {
    name = "open",
    many = true, -- as it makes the tables
    prepare = function()
      return {}
    end,
    run = function(it)
      it.store = outbox.open(":memory:", { clock = testing.clock(1), id_generator = testing.ids() })
      it.store:migrate()
    end,
    check = function(it, ok, problem)
      assert(ok or is_out_of_memory(problem), tostring(problem))
      if it.store then
        it.store:migrate()
        it.store:publish({})
        it.store:close()
      end
    end,
  },
  operation("migrate", function(store)
    store:migrate()
  end),
  operation("publish", function(store)
    store:publish(message(1), message(2), { id = "mine", key = "k", deliver_at = 3000 })
  end),
  operation("transaction", function(store)
    store:transaction(function(txn)
      txn:execute("INSERT INTO orders VALUES (?), (?)", 1, 2)
      for row in txn:rows("SELECT number, 'a' || ? AS a FROM orders", "b") do
        txn:publish({ id = tostring(row.number) .. row.a, key = "k" })
      end
      store:transaction(function(inner)
        inner:publish(message(3))
      end)
    end)
  end),
  operation("transaction that fails", function(store)
    local problem = {}
    local ok, raised = pcall(store.transaction, store, function(txn)
      txn:publish(message(4))
      error(problem)
    end)
    assert(not ok)
    if raised ~= problem then
      error(raised, 0)
    end
  end),
  operation("transaction in a coroutine that is closed", function(store)
    local thread = coroutine.create(function()
      store:transaction(function(txn)
        txn:publish(message(5))
        coroutine.yield()
      end)
    end)
    local ok, problem = coroutine.resume(thread)
    coroutine.close(thread)
    if not ok then
      error(problem, 0)
    end
  end),
  operation("claim_entries", function(store)
    store:claim_entries("q", 1020, { limit = 100 })
  end),
  operation("get_claimed_entries", function(store)
    local entries = store:get_claimed_entries("p", 3, { batch_bytes = 100 })
    assert(#entries == 3)
  end),
  operation("hold", function(store)
    store:get_claimed_entries("p", 2, { hold = true })
  end),
  operation("renew_claim and release_claim", function(store)
    store:transaction(function()
      assert(store:renew_claim("p", 1030))
      store:release_claim("p")
    end)
  end),
  operation("release_claim of a processor with a long ID", function(store)
    store:release_claim(LONG)
  end, prepare_batch),
  operation("delete_entries", function(store)
    store:delete_entries("old-1", "late", "nobody")
  end),
  operation("delete_entries of a whole batch", function(store)
    local ids = { "old-5" }
    for i = 1, 20 do
      ids[i + 1] = "new-" .. i
    end
    store:delete_entries(table.unpack(ids))
  end, prepare_batch),
  operation("retry_entry", function(store)
    store:retry_entry("old-1", 1040, "no")
  end),
  operation("bury_entry", function(store)
    store:bury_entry("old-1", "no")
  end),
  operation("requeue_entries", function(store)
    store:requeue_entries("old-6", "nobody")
  end),
  operation("purge_entries", function(store)
    store:purge_entries("old-6", "nobody")
  end),
  operation("lists", function(store)
    assert(#store:ready_entries({ namespace = "", limit = 10 }) == 5)
    assert(#store:delayed_entries() == 1 and #store:dead_entries() == 1)
    assert(#store:stats({ by_namespace = true }).leases == 1)
  end),
  operation("attach to a function", function()
    local attached = outbox.attach(nothing, {
      clock = testing.clock(1),
      id_generator = testing.ids(),
    })
    attached:publish(message(6))
  end),
  {
    name = "attach to a connection",
    once = true, -- LuaSQL loses its statement when it has no memory for a cursor
    prepare = function()
      outbox.install()
      local connection = require("luasql.sqlite3").sqlite3():connect(":memory:")
      local store = outbox.attach(connection)
      store:migrate()
      return { connection = connection, store = store }
    end,
    run = function(it)
      outbox.attach(it.connection):publish(message(7))
    end,
    check = function(it, ok, problem) -- LuaSQL reports it only by a text
      assert(ok or is_out_of_memory(problem) or problem.code == "misuse", tostring(problem))
      collectgarbage()
      assert(it.store:stats().ready == (ok and 1 or 0))
      it.store:publish(message(8))
      assert(it.connection:close())
    end,
  },
  operation("subscribe, and publish copies", function(store)
    store:transaction(function()
      store:subscribe("", "mail")
      store:subscribe("", "audit")
      store:publish(message(9))
      assert(#store:subscriptions() == 2)
    end)
  end),
  operation("pause and resume", function(store)
    store:transaction(function()
      store:pause("mail")
      store:pause("audit")
      assert(#store:paused() == 2)
      store:resume("audit")
    end)
  end),
  operation("note_outages", function(store)
    store:note_outages({ { namespace = "mail", down_since = 900, error = "no" },
      { namespace = "", down_since = 901 } })
  end, function()
    local store = prepare_few()
    store:release_claim("p")
    store:serve({ processor_id = "lane", namespaces = {}, except = true, ordering = "key",
      duration = 10 })
    store:advance(nil, { batch_size = 1 })
    return store
  end),
  {
    name = "processor",
    prepare = function()
      local store, delivered = prepare_few(), {}
      store:release_claim("p")
      return {
        store = store,
        delivered = delivered,
        processor = outbox.processor({
          store = store,
          batch_size = 2,
          on_error = nothing,
          publisher = function(messages)
            for _, entry in ipairs(messages) do
              delivered[entry.id] = true
            end
            return { [2] = "no" }
          end,
        }),
      }
    end,
    run = function(it)
      it.processor:pump()
    end,
    check = function(it, ok, problem)
      assert(ok or is_out_of_memory(problem), tostring(problem))
      collectgarbage()
      it.store:wait(0)
      for i = 1, 5 do -- each was delivered, or is still there
        local id = "old-" .. i
        local there = #rows(it.store, ([[SELECT id AS line FROM outbox_entries WHERE id = '%s'
          UNION SELECT id FROM outbox_delayed WHERE id = '%s']]):format(id, id)) > 0
        assert(there or it.delivered[id], id)
      end
      it.store:close()
    end,
  },
}
