-- Publishes on the application's LuaSQL connection, and processes the messages. The baseline is an
-- outbox written by hand in LuaSQL: the same columns, an id made in Lua, a claim by UPDATE, and
-- statements made of strings. Both run in turn, each with a backlog of 100,000.
--
--   make bench-bindings

local outbox = require("outbox")
local luasql = require("luasql.sqlite3")
local support = require("bench.support")

local BACKLOG, ROUNDS = 100000, 5
local median, shell = support.median, support.shell
local now, random = outbox.clock.now, math.random
local directory = "build/bench"
local database = directory .. "/bench.db"
local payload = ("x"):rep(200)

outbox.install()

local function connect()
  local connection = assert(luasql.sqlite3():connect(database))
  assert(connection:execute("PRAGMA synchronous = NORMAL"))
  return connection
end

--- By hand ------------------------------------------------------------------------------------

local hand = {}

local function uuid_v4()
  return (("xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx"):gsub("[xy]", function(letter)
    return ("%x"):format(letter == "x" and random(0, 15) or random(8, 11))
  end))
end

local function insert(connection, key)
  assert(connection:execute(("INSERT INTO messages (id, namespace, key, payload, created_at) "
    .. "VALUES ('%s', '%s', '%s', '%s', %d)"):format(uuid_v4(), "bench", connection:escape(key),
    connection:escape(payload), now() * 1e6 // 1)))
end

function hand.create(connection)
  assert(connection:execute("PRAGMA journal_mode = WAL")):close()
  assert(connection:execute([[CREATE TABLE messages (seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, namespace TEXT NOT NULL, key TEXT, payload BLOB, headers TEXT,
    created_at INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, last_error TEXT,
    processor_id TEXT, deadline INTEGER)]]))
end

function hand.publish(connection, count, per_transaction)
  for first = 1, count, per_transaction do
    assert(connection:execute("BEGIN IMMEDIATE"))
    for i = first, first + per_transaction - 1 do
      insert(connection, "key-" .. i)
    end
    assert(connection:execute("COMMIT"))
  end
end

function hand.process(connection, count, batch_size)
  assert(connection:execute(("UPDATE messages SET processor_id = 'bench', deadline = %d "
    .. "WHERE processor_id IS NULL OR deadline < %d"):format((now() + 3600) * 1e6 // 1,
    now() * 1e6 // 1)))
  for _ = 1, count, batch_size do
    local cursor = assert(connection:execute(("SELECT id, namespace, key, payload, headers, "
      .. "created_at, attempts, last_error FROM messages WHERE processor_id = 'bench' "
      .. "ORDER BY seq LIMIT %d"):format(batch_size)))
    local entries, ids = {}, {}
    local entry = cursor:fetch({}, "a")
    while entry do
      entries[#entries + 1] = entry
      ids[#ids + 1] = "'" .. entry.id .. "'"
      entry = cursor:fetch({}, "a")
    end
    cursor:close()
    assert(connection:execute(("DELETE FROM messages WHERE id IN (%s)"):format(
      table.concat(ids, ","))) == #entries)
  end
end

--- With outbox --------------------------------------------------------------------------------

local ours = {}

function ours.create(connection)
  local own <close> = outbox.open(database)
  own:migrate()
  assert(connection)
end

function ours.publish(connection, count, per_transaction)
  local store <close> = outbox.attach(connection)
  for first = 1, count, per_transaction do
    assert(connection:execute("BEGIN IMMEDIATE"))
    local messages = {}
    for i = 1, per_transaction do
      messages[i] = { namespace = "bench", key = "key-" .. (first + i - 1), payload = payload }
    end
    store:publish(table.unpack(messages))
    assert(connection:execute("COMMIT"))
  end
end

-- One call per message, as in a program where each message belongs to a change of its own.
function ours.publish_each(connection, count, per_transaction)
  local store <close> = outbox.attach(connection)
  for first = 1, count, per_transaction do
    assert(connection:execute("BEGIN IMMEDIATE"))
    for i = first, first + per_transaction - 1 do
      store:publish({ namespace = "bench", key = "key-" .. i, payload = payload })
    end
    assert(connection:execute("COMMIT"))
  end
end

function ours.process(_, count, batch_size)
  local store <close> = outbox.open(database, { synchronous = "normal" })
  store:claim_entries("bench", now() + 3600)
  for _ = 1, count, batch_size do
    local ids = {}
    for i, entry in ipairs(store:get_claimed_entries("bench", batch_size)) do
      ids[i] = entry.id
    end
    assert(store:delete_entries(table.unpack(ids)) == #ids)
  end
end

--- Comparing ----------------------------------------------------------------------------------

local function fill(implementation)
  shell("mkdir -p %s; rm -f %s*", directory, database)
  local connection = connect()
  implementation.create(connection)
  implementation.publish(connection, BACKLOG, 1000)
  connection:close()
end

local function measure(implementation, operation, ...)
  fill(implementation)
  local connection = connect()
  collectgarbage()
  local start = now()
  implementation[operation](connection, ...)
  local seconds = now() - start
  connection:close()
  return seconds
end

local function compare(label, operation, theirs, count, size)
  local by_hand, with_outbox, ratios = {}, {}, {}
  for round = 1, ROUNDS do
    by_hand[round] = measure(hand, theirs, count, size)
    with_outbox[round] = measure(ours, operation, count, size)
    ratios[round] = by_hand[round] / with_outbox[round]
  end
  print(("%-46s %10.0f/s %10.0f/s %7.2f"):format(label, count / median(by_hand),
    count / median(with_outbox), median(ratios)))
end

print(("%-46s %12s %12s %7s"):format("backlog 100,000", "by hand", "outbox", "ratio"))
compare("publish, 1 a transaction", "publish", "publish", 20000, 1)
compare("publish, 1,000 a transaction, one call", "publish", "publish", 100000, 1000)
compare("publish, 1,000 a transaction, a call each", "publish_each", "publish", 100000, 1000)
compare("claim, read, delete, 1 a transaction", "process", "process", 10000, 1)
compare("claim, read, delete, 1,000 a transaction", "process", "process", 100000, 1000)
shell("rm -rf %s", directory)
