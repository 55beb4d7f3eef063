-- The arguments that the public functions take.

local run = ...
local any, key, string = run.any, run.key, run.string
local callback, raise, with_metatable = run.callback, run.raise, run.with_metatable
local choose, one_of, rarely, remember = run.choose, run.one_of, run.rarely, run.remember
local NUMBERS, unpack = run.NUMBERS, table.unpack

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
    return remember(run.tables, result)
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
  return rarely(16) and one_of(NUMBERS) or run.time - 2 + choose(16)
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
    run.time = run.time + choose(2)
    return run.time
  end)
  return choose(2) == 1 and now or { now = now, sleep = callback() }
end

local function id_generator()
  local generate_id = callback(function()
    run.made = run.made + 1
    return "made-" .. run.made
  end)
  return choose(2) == 1 and generate_id or { generate_id = generate_id }
end

local message = fields({ id = id, namespace = string, key = string, payload = string,
  headers = headers, deliver_at = moment })
local claim_options = fields({ limit = few })
local selection = fields({ batch_bytes = few, hold = boolean })
local page = fields({ namespace = string, limit = few, after = few })
local attach_options = fields({ clock = clock, id_generator = id_generator,
  prefix = among({ "outbox_", "outbox_", "x_", "1", "a'b", "a\0b" }) })
local open_options = fields({ clock = clock, id_generator = id_generator,
  prefix = among({ "outbox_", "outbox_", "outbox_", "x_", "1", "a'b", "a\0b" }),
  synchronous = among({ "off", "normal", "full", "extra" }) })
local processor_options = fields({ processor_id = processor_id, batch_size = few,
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
  "DELETE FROM outbox_entries", "DELETE FROM outbox_claims", "DROP TABLE outbox_delayed",
  "COMMIT", "ROLLBACK", "BEGIN", "SAVEPOINT outbox", "SAVEPOINT x", "RELEASE x", "ROLLBACK TO x",
  "PRAGMA user_version", "", "-- nothing", "SELECT 1; SELECT 2", "SELECT 1 -- one", "SELECT",
  "SELECT outbox_handshake()", "CREATE TRIGGER IF NOT EXISTS no BEFORE DELETE ON outbox_ready"
    .. " BEGIN SELECT RAISE(ROLLBACK, 'no'); END",
  "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c LIMIT 9) SELECT x FROM c" }

local function sql()
  return rarely(32) and string() or one_of(SQL)
end

-- A transaction's function.
local function body()
  return callback(function(transaction)
    remember(run.transactions, transaction)
    for _ = 1, choose(6) do
      run.act()
    end
    if rarely(4) then
      raise("rolled back")
    end
    return transaction
  end)
end

-- Nothing may block.
local moments = among({ 0, 0, 0, -1, 1e-7, "0", 0 / 0, -math.huge, 1e12, false })

return {
  attach_options = attach_options,
  body = body,
  claim_options = claim_options,
  clock = clock,
  few = few,
  id = id,
  many = many,
  message = message,
  moment = moment,
  moments = moments,
  open_options = open_options,
  optional = optional,
  page = page,
  processor_id = processor_id,
  processor_options = processor_options,
  selection = selection,
  sql = sql,
}
