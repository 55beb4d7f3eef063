-- What the target `values` does with an input: it calls the public functions with values of every
-- kind, functions and finalizers among them that call them again. The input's bytes, which values.c
-- gives, decide everything, in the order in which they are taken.

local fuzz = require("fuzz")
local core = require("outbox.core")
local outbox = require("outbox")
local has_luasql, luasql = pcall(require, "luasql.sqlite3")
local take, unpack = fuzz.take, table.unpack

local DEPTH = 5
local steps = 80 -- actions and callbacks to come: every input ends
local depth = 0 -- of actions in callbacks in actions

local function choose(count)
  return take() % count
end

local function one_of(list)
  return list[1 + choose(#list)]
end

-- Never at the end of the input, where only zeros come.
local function rarely(times)
  return take() % times == 1
end

--- What has come up so far --------------------------------------------------------------------

local stores, transactions, iterators, processors, connections, threads = {}, {}, {}, {}, {}, {}
local tables = {} -- arguments: to be changed while they are in use
local lists = { stores, transactions, iterators, processors, connections, threads, tables }
local raised = setmetatable({}, { __mode = "k" }) -- by callbacks
local started = setmetatable({}, { __mode = "k" }) -- all coroutines that are not collected yet
local calls, failed = 0, false -- how many there were, and whether the last one failed
local time, made, tuned = 1000, 0, false

local function recall(list)
  return list[1 + choose(16) % math.max(#list, 1)]
end

-- What falls out is left to the collector.
local function remember(list, value)
  if #list > 3 then
    table.remove(list, 1 + choose(#list))
  end
  list[#list + 1] = value
  return value
end

--- Values -------------------------------------------------------------------------------------

local NUMBERS = { 0, 1, -1, 2, 3, 7, 100, 1000, 1001, 1002, math.maxinteger, math.mininteger,
  1 << 31, 1 << 32, 1 << 60, 0.0, -0.0, 0.5, 1000.5, 1e11, 1e11 + 1, -1e11, 1e15, 1e308, 2.0 ^ 53,
  2.0 ^ 63, 1e-7, math.huge, -math.huge, 0 / 0 }
local STRINGS = { "", "a", "b", "c", "p", "q", "n", "k", "key", "none", "strict", "off", "full",
  "limit", "exclusive", "hold", "after", "except", "ordering", "namespace", "id", "payload",
  "headers", "deliver_at", "clock", "prefix", "outbox_", "x_", "12", "0x10", "1e3", "\0", "a\0b",
  "'", '"', "\xff\xfe", "\u{20ac}", "%s", "1-9223372036854775807", "SELECT 1", ":memory:" }
local METAMETHODS = { "__index", "__newindex", "__pairs", "__tostring", "__len", "__eq", "__call",
  "__close", "__gc", "__name", "__lt", "__concat", "__mode", "__metatable" }

local callback, act, any

local function key()
  local value = any()
  return rawequal(value, value) and value or 1
end

local function with_metatable(value)
  local metatable = {}
  for _ = 0, choose(3) do
    metatable[one_of(METAMETHODS)] = rarely(8) and any() or callback()
  end
  return setmetatable(value, metatable)
end

local function array(of, count)
  local list = {}
  for i = 1, count do
    list[i] = of()
  end
  return remember(tables, list)
end

-- An array that seems to be endless, to those who ask for its length: it has its powers of two.
local function vast_array()
  local list = {}
  for i = 0, choose(63) do
    list[#list + 1] = ("[1 << %d] = 'a'"):format(i)
  end
  return load("return {" .. table.concat(list, ", ") .. "}")()
end

local function string()
  local kind = choose(64)
  if kind == 63 then
    return ("x"):rep(100000)
  elseif kind > 60 then
    return ("y"):rep(300 * choose(256))
  elseif kind > 56 then
    return fuzz.bytes(choose(32))
  end
  return one_of(STRINGS)
end

local KINDS = {
  function() return nil end,
  function() return choose(2) == 1 end,
  function() return one_of(NUMBERS) end,
  function() return choose(256) end,
  string,
  function() return remember(tables, {}) end,
  function() return array(any, choose(4)) end,
  function() return { [key()] = any() } end,
  function() return with_metatable({}) end,
  vast_array,
  function() return callback() end,
  function() return next end,
  function() return coroutine.create(callback()) end,
  function() return recall(stores) end,
  function() return recall(transactions) end,
  function() return recall(iterators) end,
  function() return recall(processors) end,
  function() return recall(connections) end,
  function() return outbox.blob(string()) end,
  function() return fuzz.userdata() end,
  function() return fuzz.pointer(choose(2)) end,
  function() return core.clock end,
}

function any()
  if depth > DEPTH then
    return nil
  end
  depth = depth + 1
  local value = one_of(KINDS)()
  depth = depth - 1
  return value
end

--- Callbacks ----------------------------------------------------------------------------------

local Scope = { __close = function(self) depth = self.depth end }

-- Whether there may be one more action, or callback; `scope` is to be closed at its end.
local function enter()
  if steps > 0 and depth <= DEPTH then
    local scope = setmetatable({ depth = depth }, Scope)
    steps, depth = steps - 1, depth + 1
    return true, scope
  end
  return false
end

local function raise(value)
  if value ~= nil and rawequal(value, value) then
    raised[value] = true
  end
  error(value, 0)
end

-- Changes a table that is perhaps being read.
local function spoil()
  local victim = recall(tables)
  if victim then
    local field = choose(2) == 0 and next(victim) or one_of(STRINGS)
    rawset(victim, field, rarely(2) and any() or nil)
  end
end

-- Does something in a finalizer, after some more cycles of the collector.
local function leave(delay, finalize)
  setmetatable({}, { __gc = function()
    if steps > 0 and delay > 0 then
      leave(delay - 1, finalize)
    else
      finalize()
    end
  end })
end

local function tune(choice)
  tuned = true
  if choice == 0 then
    collectgarbage("generational", 1, 1)
  else
    collectgarbage("incremental", 1, 1000, 1)
  end
end

local GARBAGE = {
  function() collectgarbage() end,
  function() collectgarbage("step", 1 + choose(16)) end,
  function() leave(choose(8), act) end,
  function() leave(choose(8), act) end,
  function() leave(choose(8), spoil) end,
  function()
    local value = recall(one_of(lists))
    leave(choose(8), function()
      local closing <close> = value -- luacheck: no unused
    end)
  end,
  function()
    local thread = recall(threads)
    leave(choose(8), function()
      coroutine.close(thread)
    end)
  end,
  function() tune(choose(2)) end,
}

local function collect()
  one_of(GARBAGE)()
end

local function close_store()
  local store = recall(stores)
  if store and store.close then
    store:close()
  end
end

local REACTIONS = {
  any,
  function() raise(any()) end,
  function() raise(one_of({ "oops", { code = "oops", message = "no" } })) end,
  function() return coroutine.yield(any()) end,
  function() act() end,
  function() act() act() end,
  spoil,
  function() spoil() collectgarbage() end,
  collect,
  close_store,
}

-- A function that does what the input says when it is called or, most often, what it ought to.
function callback(proper)
  return function(...)
    local may, scope <close> = enter() -- luacheck: no unused
    if may then
      local reaction = REACTIONS[choose(proper and 32 or 12)]
      local value = reaction and reaction()
      if value ~= nil or reaction and rarely(4) then
        return value
      end
    end
    if proper then
      return proper(...)
    end
  end
end

--- Calls --------------------------------------------------------------------------------------

-- An error is a string, a table with a code and a message, or what a callback has raised.
local function check_error(problem)
  if type(problem) == "string" then
    if problem == "error in error handling" then
      fuzz.fail("error: " .. problem)
    end
  elseif problem ~= nil and rawequal(problem, problem) and not raised[problem] then
    if type(problem) ~= "table" or type(rawget(problem, "code")) ~= "string"
      or type(rawget(problem, "message")) ~= "string" then
      fuzz.fail("error: a " .. type(problem))
    end
  end
end

local function note(ok, ...)
  failed = not ok
  if failed then
    check_error((...))
  end
  return ok, ...
end

local function resume(thread, ...)
  local before = depth
  local results = table.pack(coroutine.resume(thread, ...))
  depth = before
  return note(unpack(results, 1, results.n))
end

-- Calls now and then in a coroutine, which may yield and be resumed later.
local function call(fn, ...)
  calls = calls + 1
  if rarely(8) then
    local thread = remember(threads, coroutine.create(fn))
    started[thread] = true
    return resume(thread, ...)
  end
  return note(pcall(fn, ...))
end

-- The arguments that a function takes, but now and then others, more or fewer. The last of the
-- generators may give many.
local function arguments(generators)
  local list, count = {}, #generators
  for i = 1, count do
    if rarely(24) then
      list[i] = any()
    elseif i < #generators then
      list[i] = generators[i]()
    else
      local last = table.pack(generators[i]())
      table.move(last, 1, last.n, i, list)
      count = i - 1 + last.n
    end
  end
  if rarely(32) then
    count = choose(count + 2)
    list[count] = any()
  end
  return unpack(list, 1, count)
end

--- Arguments ----------------------------------------------------------------------------------

local function fields(generators)
  local names = {}
  for name in pairs(generators) do
    names[#names + 1] = name
  end
  table.sort(names)
  return function()
    local result = {}
    for _, name in ipairs(names) do
      if choose(3) == 1 then
        result[name] = generators[name]()
      end
    end
    if rarely(16) then
      result[key()] = any()
    end
    if rarely(16) then
      with_metatable(result)
    end
    return remember(tables, result)
  end
end

local function optional(of)
  return function()
    if choose(2) == 1 then
      return of()
    end
  end
end

local function many(of)
  return function()
    local list = {}
    for i = 1, rarely(16) and choose(256) or 1 + choose(3) do
      list[i] = of()
    end
    return unpack(list)
  end
end

local function among(list)
  return function()
    return one_of(list)
  end
end

local ids, names = among({ "a", "b", "c", "d", "e", "f" }), among({ "p", "q", "r" })
local orderings = among({ "none", "key", "strict" })

local function id()
  return rarely(8) and string() or ids()
end

local function processor_id()
  return rarely(16) and string() or names()
end

local function moment()
  return rarely(16) and one_of(NUMBERS) or time - 2 + choose(16)
end

local function few()
  return rarely(16) and one_of(NUMBERS) or 1 + choose(8)
end

local function boolean()
  return choose(2) == 1
end

local function headers()
  local list = {}
  for _ = 1, choose(3) do
    list[string()] = string()
  end
  return rarely(8) and with_metatable(list) or list
end

local function clock()
  local now = callback(function()
    time = time + choose(2)
    return time
  end)
  return choose(2) == 1 and now or { now = now, sleep = callback() }
end

local function id_generator()
  local generate_id = callback(function()
    made = made + 1
    return "made-" .. made
  end)
  return choose(2) == 1 and generate_id or { generate_id = generate_id }
end

local message = fields({ id = id, namespace = string, key = string, payload = string,
  headers = headers, deliver_at = moment })
local claim_options = fields({ limit = few, exclusive = boolean })
local selection = fields({ ordering = orderings, after = few, hold = boolean,
  except = function() return array(string, choose(4)) end })
local page = fields({ namespace = string, limit = few, after = few })
local attach_options = fields({ clock = clock, id_generator = id_generator,
  prefix = among({ "outbox_", "outbox_", "x_", "1", "a'b", "a\0b" }) })
local open_options = fields({ clock = clock, id_generator = id_generator,
  prefix = among({ "outbox_", "outbox_", "outbox_", "x_", "1", "a'b", "a\0b" }),
  synchronous = among({ "off", "normal", "full", "extra" }) })
local processor_options = fields({ processor_id = processor_id, batch_size = few, limit = few,
  ordering = orderings, claim_duration = few, publish_timeout = few, process_interval = few,
  retry = fields({ base = few, factor = few, cap = few, max_attempts = few }),
  on_delivered = callback, on_retry = callback, on_dead = callback, on_batch = callback })

local SQL = { "SELECT 1", "SELECT ?1 AS a, ?2 AS b", "SELECT * FROM outbox_entries",
  "CREATE TABLE IF NOT EXISTS t (x UNIQUE)", "INSERT INTO t VALUES (?)",
  "INSERT OR ROLLBACK INTO t VALUES (1)", "SELECT x FROM t ORDER BY x", "DELETE FROM t",
  "INSERT INTO outbox_entries (namespace, key, payload) VALUES ('n', 'k', ?)",
  "INSERT INTO outbox_entries (id, headers) VALUES (?, '{]}')",
  "INSERT INTO outbox_entries (seq, created_at) VALUES (?, ?)",
  "INSERT INTO outbox_delayed (due_at, position) VALUES (?, ?)",
  "INSERT INTO outbox_dead (seq, died_at) VALUES (?, ?)", "UPDATE outbox_entries SET payload = ?",
  "DELETE FROM outbox_entries", "DELETE FROM outbox_leases", "DROP TABLE outbox_delayed",
  "COMMIT", "ROLLBACK", "BEGIN", "SAVEPOINT outbox", "SAVEPOINT x", "RELEASE x", "ROLLBACK TO x",
  "PRAGMA user_version", "", "-- nothing", "SELECT 1; SELECT 2", "SELECT 1 -- one", "SELECT",
  "SELECT outbox_handshake()", "CREATE TRIGGER IF NOT EXISTS no BEFORE DELETE ON outbox_entries"
    .. " BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
  "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 9) SELECT x FROM c" }

local function sql()
  return rarely(32) and string() or one_of(SQL)
end

-- A transaction's function.
local function body()
  return callback(function(transaction)
    remember(transactions, transaction)
    for _ = 1, choose(6) do
      act()
    end
    if rarely(4) then
      raise("rolled back")
    end
    return transaction
  end)
end

-- Nothing may block.
local moments = among({ 0, 0, 0, -1, 1e-7, "0", 0 / 0, -math.huge, 1e12, false })

--- Actions ------------------------------------------------------------------------------------

local STORE_METHODS = {
  { "publish", many(message) },
  { "publish", many(message) },
  { "claim_entries", processor_id, moment, optional(claim_options) },
  { "claim_entries", processor_id, moment, optional(claim_options) },
  { "get_claimed_entries", processor_id, few, optional(selection) },
  { "get_claimed_entries", processor_id, few, optional(selection) },
  { "renew_claim", processor_id, moment },
  { "release_claim", processor_id },
  { "delete_entries", many(id) },
  { "retry_entry", id, moment, optional(string) },
  { "bury_entry", id, optional(string) },
  { "ready_entries", optional(page) },
  { "delayed_entries", optional(page) },
  { "dead_entries", optional(page) },
  { "requeue_entries", many(id) },
  { "purge_entries", many(id) },
  { "stats" },
  { "transaction", body },
  { "transaction", body },
  { "transaction", body },
  { "clock" },
  { "migrate" },
  { "keep_claim", processor_id, few, few },
  { "stop_keeping" },
  { "close" },
}

local function call_store()
  local spec, store = one_of(STORE_METHODS), recall(stores)
  local method = store and store[spec[1]]
  if method then
    call(method, rarely(64) and any() or store, arguments({ unpack(spec, 2) }))
  end
end

local function listen()
  local store = recall(stores)
  if store and store.wait and rarely(16) then
    call(store.wait, store, moments())
    call(store.pollfd, store)
  end
end

local function call_transaction()
  local transaction, kind = recall(transactions), choose(4)
  if not transaction then
    return
  elseif kind == 0 then
    call(transaction.publish, transaction, arguments({ many(message) }))
  elseif kind == 1 then
    local ok, iterator = call(transaction.rows, transaction, arguments({ sql, many(any) }))
    if ok and type(iterator) == "userdata" then
      remember(iterators, iterator)
    end
  else
    call(transaction.execute, transaction, arguments({ sql, many(any) }))
  end
end

local function iterate()
  local iterator = recall(iterators)
  for _ = 0, iterator and choose(4) or -1 do
    call(iterator)
  end
end

local function close()
  local value = recall(one_of({ iterators, transactions, stores }))
  if type(value) == "userdata" then
    local closing <close> = value -- luacheck: no unused
  end
end

local function open()
  local path, options = ":memory:", open_options()
  if rarely(4) then
    path = fuzz.path
    rawset(options, "busy_timeout", 0)
  end
  local ok, store = call(outbox.open, path, options)
  if ok and type(store) == "userdata" then
    if path == fuzz.path or rarely(4) then
      call(store.migrate, store)
    else
      fuzz.fill(store)
    end
    remember(stores, store)
  end
end

local function execute()
  if rarely(8) then
    return any(), any()
  end
end

local function attach()
  local ok, store
  if not has_luasql or choose(2) == 0 then
    ok, store = call(outbox.attach, arguments({ function() return callback(execute) end,
      attach_options }))
  else
    local connection = remember(connections, luasql.sqlite3():connect(":memory:"))
    ok, store = call(outbox.attach, connection, attach_options())
    if ok and type(store) == "userdata" then
      call(store.migrate, store)
    end
  end
  if ok and (type(store) == "userdata" or type(store) == "table") then
    remember(stores, store)
  end
end

local STATEMENTS = { "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT x", "RELEASE x",
  "DELETE FROM outbox_entries", "INSERT INTO outbox_entries (payload) VALUES ('p')" }

local function use_connection()
  local connection = recall(connections)
  if connection and choose(4) == 0 then
    call(connection.close, connection)
  elseif connection then
    call(connection.execute, connection, one_of(STATEMENTS))
  end
end

local function publish(messages)
  local kind = choose(8)
  if kind == 1 then
    return { [1 + choose(3)] = "refused" }
  elseif kind == 2 then
    return { [#messages] = { reason = any(), permanent = any(), retry_after = any() } }
  elseif kind == 3 then
    return any(), any()
  end
end

local PROCESSOR_METHODS = { "step", "step", "pump", "pump", "stop", "wake", "stats", "timeout",
  "events" }

local function process()
  local processor = recall(processors)
  calls = calls + 1 -- for it makes many
  if processor and choose(4) > 0 then
    call(processor[one_of(PROCESSOR_METHODS)], processor)
    return
  end
  local options = processor_options()
  rawset(options, "store", recall(stores))
  rawset(options, "publisher", callback(publish))
  local ok, new = call(outbox.processor, options)
  if ok and type(new) == "table" then
    remember(processors, new)
  end
end

local MODULE = {
  function() call(outbox.uuid_v7, rarely(2) and any() or clock()) end,
  function() call(outbox.uuid_v4, any()) end,
  function() call(outbox.blob, any()) end,
  function() call(outbox.clock.now) end,
  function() call(outbox.clock.sleep, moments()) end,
  function() call(outbox.install) end,
  function() call(outbox.processor, any()) end,
  function() call(outbox.open, ":memory:", any()) end,
  function() call(outbox.attach, any(), any()) end,
  function() call(core.is_attached, any()) end,
  function() call(core.columns, array(message, choose(4)), arguments({ many(any) })) end,
  function() call(core.columns, any(), "id") end,
  function() call(tostring, any()) end,
}

local function call_module()
  one_of(MODULE)()
end

local function go_on()
  local thread = recall(threads)
  if thread and choose(3) == 0 then
    if coroutine.status(thread) ~= "running" and coroutine.status(thread) ~= "normal" then
      note(coroutine.close(thread))
    end
  elseif thread then
    resume(thread, any())
  end
end

local function forget()
  table.remove(one_of(lists), 1)
end

local ACTIONS = { call_store, call_store, call_store, call_store, call_store, call_store,
  call_store, call_transaction, call_transaction, call_transaction, iterate, close, open, attach,
  use_connection, process, process, call_module, go_on, forget, spoil, collect, collect, listen }

function act()
  local may, scope <close> = enter() -- luacheck: no unused
  if may then
    one_of(ACTIONS)()
  end
end

--- The run ------------------------------------------------------------------------------------

local function is_anything_suspended()
  for thread in pairs(started) do
    if coroutine.status(thread) == "suspended" then
      return true
    end
  end
  return false
end

-- Between two actions no transaction is open, and one call that failed has changed nothing.
local function run(compares)
  local store = stores[1]
  local before, count = compares and fuzz.contents(store), calls
  note(pcall(act))
  if is_anything_suspended() then
    return
  end
  if fuzz.in_transaction(store) then
    fuzz.fail("transaction: left open")
  end
  local after = failed and calls == count + 1 and before and fuzz.contents(store)
  if after and after ~= before then
    fuzz.fail("contents: changed by a call that failed")
  end
end

local function main()
  local compares, checks = rarely(4), rarely(8)
  local gc = choose(4)
  if gc > 1 then
    tune(gc - 2)
  end
  local ok, store = pcall(outbox.open, ":memory:", open_options())
  if not ok then
    store = outbox.open(":memory:")
  end
  fuzz.fill(store)
  stores[1] = store
  while fuzz.left() and steps > 0 do
    run(compares and stores[1])
  end
  steps = 0
  for thread in pairs(started) do
    if coroutine.status(thread) == "suspended" then
      note(coroutine.close(thread))
    end
  end
  for _, open_store in ipairs(stores) do
    if fuzz.in_transaction(open_store) then
      fuzz.fail("transaction: left open at the end")
    end
    if checks then
      fuzz.check(open_store)
    end
  end
  if tuned then
    collectgarbage("generational", 20, 100)
    collectgarbage("incremental", 200, 100, 13)
  end
end

main()
