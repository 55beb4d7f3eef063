-- Publishes and processes messages with outbox, and with an outbox written by hand: with lsqlite3
-- and its prepared statements, and with LuaSQL and statements made of strings. The one by hand has
-- no ids, a claim by UPDATE, and one consumer. All run in turn, each with a backlog of 100,000. The
-- last column of a row is the median of the ratios to lsqlite3 by hand, round by round.
--
--   make bench-bindings

local lsqlite3 = require("lsqlite3")
local luasql = require("luasql.sqlite3")
local outbox = require("outbox")
local support = require("bench.support")

local BACKLOG, ROUNDS = 100000, 5
local median, shell = support.median, support.shell
local now = outbox.clock.now
local directory = "build/bench"
local database = directory .. "/bench.db"
local payload = ("x"):rep(200)

outbox.install()

-- Calls work() for the first of each `size` messages, in a transaction unless that is 1.
local function in_transactions(count, size, run, work)
  for first = 1, count, size do
    if size > 1 then
      run("BEGIN IMMEDIATE")
    end
    work(first)
    if size > 1 then
      run("COMMIT")
    end
  end
end

local function key_of(i)
  return ("key-%07d"):format(i)
end

--- By hand ------------------------------------------------------------------------------------

local CREATE = [[CREATE TABLE messages (seq INTEGER PRIMARY KEY AUTOINCREMENT,
  namespace TEXT NOT NULL, key TEXT, payload BLOB, headers TEXT, created_at INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0, last_error TEXT, processor_id TEXT, deadline INTEGER)]]
local CLAIM = [[UPDATE messages SET processor_id = 'bench', deadline = %d
  WHERE processor_id IS NULL OR deadline < %d]]
local COLUMNS = "seq, namespace, key, payload, headers, created_at, attempts, last_error"

local function claim_sql()
  return CLAIM:format((now() + 3600) * 1e6 // 1, now() * 1e6 // 1)
end

local function step(statement)
  assert(statement:step() == lsqlite3.DONE)
  statement:reset()
end

-- Prepared statements. A store that is opened has the same settings.
local prepared = { name = "lsqlite3 by hand" }

function prepared.open()
  local db = assert(lsqlite3.open(database))
  db:exec("PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL")
  db:exec("PRAGMA wal_autocheckpoint = 4000")
  db:exec(CREATE)
  local statements = {}
  for _, sql in ipairs({ "BEGIN IMMEDIATE", "COMMIT" }) do
    statements[sql] = assert(db:prepare(sql))
  end
  return {
    db = db,
    run = function(sql)
      step(statements[sql])
    end,
    insert = assert(db:prepare(
      "INSERT INTO messages (namespace, key, payload, created_at) VALUES (?, ?, ?, ?)")),
    select = assert(db:prepare("SELECT " .. COLUMNS
      .. " FROM messages WHERE processor_id = 'bench' ORDER BY seq LIMIT ?")),
    delete = assert(db:prepare("DELETE FROM messages WHERE seq = ?")),
  }
end

function prepared.publish(self, count, size)
  local insert = self.insert
  in_transactions(count, size, self.run, function(first)
    for i = first, first + size - 1 do
      insert:bind(1, "bench")
      insert:bind(2, key_of(i))
      insert:bind_blob(3, payload)
      insert:bind(4, now() * 1e6 // 1)
      step(insert)
    end
  end)
end

prepared.publish_each = prepared.publish

function prepared.process(self, count, size)
  local delete = self.delete
  self.db:exec(claim_sql())
  for _ = 1, count, size do
    local entries = {}
    self.select:bind(1, size)
    for entry in self.select:nrows() do
      entries[#entries + 1] = entry
    end
    self.select:reset()
    in_transactions(#entries, size, self.run, function()
      for _, entry in ipairs(entries) do
        delete:bind(1, entry.seq)
        step(delete)
      end
    end)
  end
end

function prepared.close(self)
  self.db:close_vm()
  assert(self.db:close() == lsqlite3.OK)
end

local strings = { name = "LuaSQL by hand" }

local function connect()
  local db = assert(luasql.sqlite3():connect(database))
  assert(db:execute("PRAGMA journal_mode = WAL")):close()
  assert(db:execute("PRAGMA synchronous = NORMAL"))
  assert(db:execute("PRAGMA wal_autocheckpoint = 4000")):close()
  return db
end

function strings.open()
  local db = connect()
  db:execute(CREATE)
  return { db = db }
end

function strings.publish(self, count, size)
  local db = self.db
  for first = 1, count, size do
    assert(db:execute("BEGIN IMMEDIATE"))
    for i = first, first + size - 1 do
      assert(db:execute(("INSERT INTO messages (namespace, key, payload, created_at) "
        .. "VALUES ('%s', '%s', '%s', %d)"):format("bench", db:escape(key_of(i)),
        db:escape(payload), now() * 1e6 // 1)))
    end
    assert(db:execute("COMMIT"))
  end
end

strings.publish_each = strings.publish

function strings.process(self, count, size)
  assert(self.db:execute(claim_sql()))
  for _ = 1, count, size do
    local cursor = assert(self.db:execute(("SELECT %s FROM messages WHERE processor_id = 'bench' "
      .. "ORDER BY seq LIMIT %d"):format(COLUMNS, size)))
    local entries, seqs = {}, {}
    local entry = cursor:fetch({}, "a")
    while entry do
      entries[#entries + 1] = entry
      seqs[#seqs + 1] = ("%d"):format(entry.seq)
      entry = cursor:fetch({}, "a")
    end
    cursor:close()
    assert(self.db:execute(("DELETE FROM messages WHERE seq IN (%s)"):format(
      table.concat(seqs, ","))) == #entries)
  end
end

function strings.close(self)
  assert(self.db:close())
end

--- With outbox --------------------------------------------------------------------------------

local function open_store()
  local store = outbox.open(database, { synchronous = "normal" })
  store:migrate()
  return store
end

local function message(i)
  return { namespace = "bench", key = key_of(i), payload = payload }
end

local function publish_list(store, first, size)
  local messages = {}
  for i = 1, size do
    messages[i] = message(first + i - 1)
  end
  store:publish(table.unpack(messages))
end

local raw = { name = "outbox" }

function raw.open()
  return { store = open_store() }
end

function raw.publish(self, count, size)
  for first = 1, count, size do
    publish_list(self.store, first, size)
  end
end

function raw.publish_each(self, count, size)
  for first = 1, count, size do
    self.store:transaction(function(txn)
      for i = first, first + size - 1 do
        txn:publish(message(i))
      end
    end)
  end
end

function raw.process(self, count, size)
  local store = self.store
  store:claim_entries("bench", now() + 3600)
  for _ = 1, count, size do
    local ids = {}
    for i, entry in ipairs(store:get_claimed_entries("bench", size)) do
      ids[i] = entry.id
    end
    assert(store:delete_entries(table.unpack(ids)) == #ids)
  end
end

function raw.close(self)
  self.store:close()
end

-- A processor, which also keeps the order of each key.
local processor = { name = "its processor", open = raw.open, close = raw.close,
  publish = raw.publish }

function processor.process(self, count, size)
  local left = count
  local worker
  worker = outbox.processor({ store = self.store, batch_size = size, publisher = function(batch)
    left = left - #batch
    if left <= 0 then
      worker:stop()
    end
  end })
  worker:run()
end

-- On a connection of the application's, through one binding or another.
local function attached(name, open_connection, execute)
  local self = { name = name }

  function self.open()
    open_store():close()
    local db = open_connection()
    return { db = db, store = outbox.attach(db) }
  end

  local function in_transaction(work)
    return function(connection, count, size)
      in_transactions(count, size, function(sql)
        execute(connection.db, sql)
      end, function(first)
        work(connection.store, first, size)
      end)
    end
  end

  self.publish = in_transaction(publish_list)
  self.publish_each = in_transaction(function(store, first, size)
    for i = first, first + size - 1 do
      store:publish(message(i))
    end
  end)

  function self.close(connection)
    connection.store:close()
    connection.db:close()
  end

  return self
end

local on_lsqlite3 = attached("attach, lsqlite3", function()
  local db = assert(lsqlite3.open(database))
  db:exec("PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 4000")
  return db
end, function(db, sql)
  assert(db:exec(sql) == lsqlite3.OK)
end)

local on_luasql = attached("attach, LuaSQL", connect, function(db, sql)
  assert(db:execute(sql))
end)

-- A program in C whose table has a rowid and a payload, and nothing else.
local in_c = { name = "rowid in C" }

function in_c.measure(_, count, size)
  shell("mkdir -p %s; rm -f %s*", directory, database)
  local seconds
  for _, rows in ipairs({ BACKLOG, count }) do
    local pipe <close> = assert(io.popen(("build/baseline rowid %s %d %d"):format(database, rows,
      rows == BACKLOG and 1000 or size)))
    seconds = assert(tonumber(pipe:read("a")))
  end
  return seconds
end

--- Comparing ----------------------------------------------------------------------------------

local function measure(implementation, operation, count, size)
  if implementation.measure then
    return implementation.measure(operation, count, size)
  end
  shell("mkdir -p %s; rm -f %s*", directory, database)
  local connection = implementation.open()
  implementation.publish(connection, BACKLOG, 1000)
  collectgarbage()
  local start = now()
  implementation[operation](connection, count, size)
  local seconds = now() - start
  implementation.close(connection)
  return seconds
end

-- The first implementation is the one that the others are compared with.
local function compare(label, operation, count, size, implementations)
  local times = {}
  for round = 1, ROUNDS do
    for i, implementation in ipairs(implementations) do
      times[i] = times[i] or { seconds = {}, ratios = {} }
      times[i].seconds[round] = measure(implementation, operation, count, size)
      times[i].ratios[round] = times[1].seconds[round] / times[i].seconds[round]
    end
  end
  print(label)
  for i, implementation in ipairs(implementations) do
    print(("  %-20s %10.0f/s %7.2f"):format(implementation.name,
      count / median(times[i].seconds), median(times[i].ratios)))
  end
end

local publishers = { prepared, raw, on_lsqlite3, on_luasql, strings, in_c }
compare("publish, 1 a transaction", "publish", 20000, 1, publishers)
compare("publish, 1,000 in one call", "publish", 300000, 1000, publishers)
compare("publish, 1,000 a transaction, a call each", "publish_each", 300000, 1000, publishers)
for _, size in ipairs({ 1, 20, 100, 1000 }) do
  compare(("claim, read, delete, batches of %d"):format(size), "process",
    math.min(BACKLOG, 10000 * size), size, { prepared, raw, processor, strings })
end
shell("rm -rf %s", directory)
