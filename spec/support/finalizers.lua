-- Programs for finalizer_spec.lua. Each runs in its own process with very little in memory and a
-- collector that never pauses. So a finalizer may run at any moment of a call. Each program prints
-- whether a finalizer was observed in the middle of a call.

local outbox = require("outbox")

local store = outbox.open(":memory:")
store:migrate()

-- Runs `finalize` in a finalizer, after `delay` more cycles of the collector.
local function leave(delay, finalize)
  setmetatable({}, { __gc = function()
    if delay == 0 then
      finalize()
    else
      leave(delay - 1, finalize)
    end
  end })
end

local LONG = ("x"):rep(2000)

local function fill(count)
  for i = 1, count do
    store:publish({ namespace = LONG, payload = LONG .. i, headers = { number = tostring(i) } })
  end
end

local function check_entries(entries, count)
  assert(#entries == count)
  for i, entry in ipairs(entries) do
    assert(entry.namespace == LONG and entry.payload == LONG .. i)
    assert(entry.headers.number == tostring(i))
  end
end

local programs = {}

-- Clears the payloads of the messages while they are published.
function programs.spoils()
  local seen = false
  for delay = 0, 40 do
    local list = {}
    for i = 1, 100 do
      list[i] = { payload = LONG .. i }
    end
    leave(delay, function()
      for i = 1, 100 do
        list[i].payload = nil
      end
    end)
    store:publish(table.unpack(list))
    local entries = store:ready_entries()
    for i, entry in ipairs(entries) do
      assert(entry.payload == nil or entry.payload == LONG .. i)
      seen = seen or entry.payload == nil
      store:delete_entries(entry.id)
    end
    assert(#entries == 100)
  end
  return seen
end

-- Uses the transaction while the store is reading in it.
function programs.uses()
  local seen = false
  fill(10)
  for delay = 0, 40 do
    store:transaction(function(txn)
      local rows = txn:rows("SELECT 1")
      leave(delay, function()
        for _, use in ipairs({ txn.publish, txn.execute, txn.rows, rows }) do
          local ok, problem = pcall(use, txn, "SELECT 1")
          seen = seen or not ok and problem.code == "busy"
        end
      end)
      check_entries(store:ready_entries(), 10)
    end)
  end
  return seen
end

-- Closes an iterator while it makes the table of a row.
function programs.closes_iterator()
  local seen = false
  fill(10)
  for delay = 0, 40 do
    store:transaction(function(txn)
      local rows = txn:rows("SELECT namespace, payload FROM outbox_entries")
      leave(delay, function()
        local closing <close> = rows -- luacheck: no unused
      end)
      for i = 1, 10 do
        local ok, row = pcall(rows)
        seen = seen or not ok and i > 1
        assert(ok and row.namespace == LONG and row.payload == LONG .. i or row.code == "closed")
      end
    end)
  end
  return seen
end

-- Leaves iterators to the collector, which collects them while the store is reading.
function programs.forgets_iterators()
  local seen = false
  fill(10)
  for _ = 0, 40 do
    store:transaction(function(txn)
      local forgotten = setmetatable({}, { __mode = "v" })
      for i = 1, 5 do
        forgotten[i] = txn:rows("SELECT 1")
      end
      local before = next(forgotten)
      check_entries(store:ready_entries(), 10)
      seen = seen or before and not next(forgotten)
    end)
  end
  return seen
end

-- Closes a coroutine that has a transaction open, while another coroutine reads its rows.
function programs.closes_coroutine()
  local seen = false
  fill(10)
  for delay = 0, 40 do
    local thread = coroutine.create(function()
      store:transaction(function(txn)
        txn:publish({})
        coroutine.yield(txn:rows("SELECT namespace, payload FROM outbox_entries"))
      end)
    end)
    local _, rows = coroutine.resume(thread)
    leave(delay, function()
      assert(coroutine.close(thread))
    end)
    for i = 1, 10 do
      local ok, row = pcall(rows)
      seen = seen or not ok and i > 1
      assert(ok and row.namespace == LONG and row.payload == LONG .. i or row.code == "closed")
    end
    coroutine.close(thread)
    check_entries(store:ready_entries(), 10)
  end
  return seen
end

-- Closes the store while the headers of claimed entries are decoded.
function programs.closes_store()
  local seen = false
  for delay = 0, 40 do
    store:close()
    store = outbox.open(":memory:")
    store:migrate()
    fill(10)
    store:claim_entries("p", outbox.clock.now() + 60)
    local victim = store -- because a late finalizer must not close the next one
    leave(delay, function()
      victim:close()
    end)
    local ok, entries = pcall(store.get_claimed_entries, store, "p", 10, { hold = true })
    if ok then
      check_entries(entries, 10)
    else
      assert(entries.code == "closed")
      seen = true
    end
  end
  return seen
end

-- Closes the store while a row is made of a query in it.
function programs.closes_store_in_row()
  local seen = false
  for delay = 0, 40 do
    store:close()
    store = outbox.open(":memory:")
    store:migrate()
    fill(10)
    local victim, in_row = store, false
    local ok, problem = pcall(store.transaction, store, function(txn)
      local rows = txn:rows("SELECT namespace, payload FROM outbox_entries")
      leave(delay, function()
        victim:close()
        seen = seen or in_row
      end)
      for i = 1, 10 do
        in_row = true
        local given, row = pcall(rows)
        in_row = false
        assert(given and row.namespace == LONG and row.payload == LONG .. i or row.code == "closed")
      end
    end)
    assert(ok or problem.code == "closed")
  end
  return seen
end

collectgarbage("incremental", 1, 1000, 1)
print(programs[arg[1]]())
