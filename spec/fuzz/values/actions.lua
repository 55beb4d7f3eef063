-- The actions that an input is made of: each calls a public function.

local run = ...
local core = require("outbox.core")
local fuzz = require("fuzz")
local outbox = require("outbox")
local has_luasql, luasql = pcall(require, "luasql.sqlite3")
local any, string = run.any, run.string
local callback, spoil, collect = run.callback, run.spoil, run.collect
local call, note, resume, arguments = run.call, run.note, run.resume, run.arguments
local choose, one_of, rarely = run.choose, run.one_of, run.rarely
local recall, remember = run.recall, run.remember
local unpack = table.unpack
local given = run.given
local many, message, id, sql, few = given.many, given.message, given.id, given.sql, given.few
local moment, moments, optional = given.moment, given.moments, given.optional
local page, processor_id = given.page, given.processor_id

local STORE_METHODS = {
  { "publish", many(message) },
  { "publish", many(message) },
  { "claim_entries", processor_id, moment, optional(given.claim_options) },
  { "claim_entries", processor_id, moment, optional(given.claim_options) },
  { "get_claimed_entries", processor_id, few, optional(given.selection) },
  { "get_claimed_entries", processor_id, few, optional(given.selection) },
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
  { "transaction", given.body },
  { "transaction", given.body },
  { "transaction", given.body },
  { "clock" },
  { "migrate" },
  { "start_heartbeat", processor_id, few, few },
  { "stop_heartbeat" },
  { "close" },
}

local function call_store()
  local spec, store = one_of(STORE_METHODS), recall(run.stores)
  local method = store and store[spec[1]]
  if method then
    call(method, rarely(64) and any() or store, arguments({ unpack(spec, 2) }))
  end
end

local function listen()
  local store = recall(run.stores)
  if store and store.wait and rarely(16) then
    call(store.wait, store, moments())
    call(store.pollfd, store)
  end
end

local function call_transaction()
  local transaction, kind = recall(run.transactions), choose(4)
  if not transaction then
    return
  elseif kind == 0 then
    call(transaction.publish, transaction, arguments({ many(message) }))
  elseif kind == 1 then
    local ok, iterator = call(transaction.rows, transaction, arguments({ sql, many(any) }))
    if ok and type(iterator) == "userdata" then
      remember(run.iterators, iterator)
    end
  else
    call(transaction.execute, transaction, arguments({ sql, many(any) }))
  end
end

local function iterate()
  local iterator = recall(run.iterators)
  for _ = 0, iterator and choose(4) or -1 do
    call(iterator)
  end
end

local function close()
  local value = recall(one_of({ run.iterators, run.transactions, run.stores }))
  if type(value) == "userdata" then
    local closing <close> = value -- luacheck: no unused
  end
end

local function open()
  local path, options = ":memory:", given.open_options()
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
    remember(run.stores, store)
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
      given.attach_options }))
  else
    local connection = remember(run.connections, luasql.sqlite3():connect(":memory:"))
    ok, store = call(outbox.attach, connection, given.attach_options())
    if ok and type(store) == "userdata" then
      call(store.migrate, store)
    end
  end
  if ok and (type(store) == "userdata" or type(store) == "table") then
    remember(run.stores, store)
  end
end

local STATEMENTS = { "BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT x", "RELEASE x",
  "DELETE FROM outbox_entries", "INSERT INTO outbox_entries (payload) VALUES ('p')" }

local function use_connection()
  local connection = recall(run.connections)
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
  local processor = recall(run.processors)
  run.calls = run.calls + 1 -- stands for the many that the processor makes
  if processor and choose(4) > 0 then
    call(processor[one_of(PROCESSOR_METHODS)], processor)
    return
  end
  local options = given.processor_options()
  rawset(options, "store", recall(run.stores))
  rawset(options, "publisher", callback(publish))
  local ok, new = call(outbox.processor, options)
  if ok and type(new) == "table" then
    remember(run.processors, new)
  end
end

local MODULE = {
  function() call(outbox.uuid_v7, rarely(2) and any() or given.clock()) end,
  function() call(outbox.uuid_v4, any()) end,
  function() call(outbox.blob, any()) end,
  function() call(outbox.clock.now) end,
  function() call(outbox.clock.sleep, moments()) end,
  function() call(outbox.install) end,
  function() call(outbox.processor, any()) end,
  function() call(outbox.open, ":memory:", any()) end,
  function() call(outbox.attach, any(), any()) end,
  function() call(core.is_attached, any()) end,
  function() call(tostring, any()) end,
}

local function call_module()
  one_of(MODULE)()
end

local function go_on()
  local thread = recall(run.threads)
  if thread and choose(3) == 0 then
    if coroutine.status(thread) ~= "running" and coroutine.status(thread) ~= "normal" then
      note(coroutine.close(thread))
    end
  elseif thread then
    resume(thread, any())
  end
end

local function forget()
  table.remove(one_of(run.lists), 1)
end

local ACTIONS = { call_store, call_store, call_store, call_store, call_store, call_store,
  call_store, call_transaction, call_transaction, call_transaction, iterate, close, open, attach,
  use_connection, process, process, call_module, go_on, forget, spoil, collect, collect, listen }

function run.act()
  local may, scope <close> = run.enter() -- luacheck: no unused
  if may then
    one_of(ACTIONS)()
  end
end
