-- The target of `outbox move`: PostgreSQL. In its SQL, `@` stands for the prefix.

local errors = require("outbox.error")
local format = require("outbox.command.common.format")

local Target = {}
Target.__index = Target

-- The moves that were begun, and the rows that are on their way, which no processor reads. A row of
-- `@moves` stays, so that the same command says later that all is over.
local TABLES = {
  "CREATE TABLE IF NOT EXISTS @moves (move text PRIMARY KEY, finished_at bigint)",
  [[CREATE TABLE IF NOT EXISTS @moving (move text, batch bigint, state text, seq bigint, id text,
    namespace text, key text, payload text, payload_bytes bytea, headers text, created_at bigint,
    attempts bigint, last_error text, source_id text, due_at bigint, position bigint,
    delayed_at bigint, died_at bigint, PRIMARY KEY (move, batch, state, seq))]],
}

-- The columns that a batch fills, and the types of its arrays.
local COLUMNS = { "state", "seq", "id", "namespace", "key", "payload", "payload_bytes", "headers",
  "created_at", "attempts", "last_error", "source_id", "due_at", "position", "delayed_at",
  "died_at" }
local TYPES = { seq = "bigint", created_at = "bigint", attempts = "bigint", due_at = "bigint",
  position = "bigint", delayed_at = "bigint", died_at = "bigint", payload_bytes = "bytea" }

local ENTRY = "id, namespace, key, payload, payload_bytes, headers, created_at, attempts,"
  .. " last_error, source_id"

-- An id of a batch that is in the outbox already.
local FIND_DUPLICATE = [[SELECT m.id FROM @moving AS m WHERE move = $1 AND batch = $2 AND
  (EXISTS (SELECT FROM @entries AS e WHERE e.id = m.id)
  OR EXISTS (SELECT FROM @delayed AS e WHERE e.id = m.id)
  OR EXISTS (SELECT FROM @dead AS e WHERE e.id = m.id)) LIMIT 1]]

-- Step 3. Nobody can draw a seq while the tables are locked, because all who do write to one of
-- them. The transaction has its number before it changes the sequence: a processor trusts a value
-- of the sequence only when all transactions have ended that were open when it read it.
local LOCK = "LOCK TABLE @entries, @delayed, @dead IN EXCLUSIVE MODE"
local NUMBER = "SELECT pg_current_xact_id()::text AS number"

-- The places of the source, if all come after whatever the target has given out; else all are
-- shifted by the same number. $1 is the move, $2 the last seq of the source.
local PLACES = [[WITH s AS
  (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS last FROM @seq),
  p AS (SELECT min(place) AS lowest, max(place) AS highest FROM (SELECT CASE state
  WHEN 'delayed' THEN position ELSE seq END AS place FROM @moving WHERE move = $1) AS m),
  f AS (SELECT CASE WHEN lowest <= last THEN last - lowest + 1 ELSE 0 END AS shift FROM s, p)
  SELECT last, shift, greatest(last, highest + shift, $2::bigint + shift) AS next FROM s, p, f]]

-- $2 is the shift. A scheduled message gets a place when it is due. It is inserted with one,
-- because the tables make copies for subscriptions of one that has none.
local PUBLISH = {
  ready = [[INSERT INTO @entries (partition, seq, ]] .. ENTRY .. [[)
    SELECT (coalesce(@hash(namespace, key), seq + $2) & 63)::smallint, seq + $2, ]] .. ENTRY .. [[
    FROM @moving WHERE move = $1 AND state = 'ready' ORDER BY seq]],
  delayed = [[INSERT INTO @delayed (seq, partition, due_at, position, delayed_at, ]] .. ENTRY .. [[)
    SELECT position + $2, (coalesce(@hash(namespace, key), position + $2) & 63)::smallint, due_at,
    position + $2, least(delayed_at, @now()), ]] .. ENTRY .. [[
    FROM @moving WHERE move = $1 AND state = 'delayed' AND position IS NOT NULL ORDER BY position]],
  scheduled = [[WITH m AS (SELECT nextval('@seq') AS place, m.* FROM (SELECT * FROM @moving
    WHERE move = $1 AND state = 'delayed' AND position IS NULL ORDER BY batch, seq OFFSET 0) AS m)
    INSERT INTO @delayed (seq, due_at, position, ]] .. ENTRY .. [[)
    SELECT place, due_at, -place, ]] .. ENTRY .. [[ FROM m]],
  unplace = "UPDATE @delayed SET position = NULL WHERE position < 0",
  dead = [[INSERT INTO @dead (seq, died_at, ]] .. ENTRY .. [[)
    SELECT seq + $2, died_at, ]] .. ENTRY .. [[
    FROM @moving WHERE move = $1 AND state = 'dead' ORDER BY seq]],
}

local function execute(self, txn, sql, ...)
  return txn:execute(sql:gsub("@", self.prefix), ...)
end

local function first(self, txn, sql, ...)
  local found
  for row in txn:rows(sql:gsub("@", self.prefix), ...) do
    found = found or row
  end
  return found
end

--- Creates the tables, if there are none.
function Target:prepare()
  local store = self.store
  store:migrate()
  store:transaction(function(txn)
    first(self, txn, "SELECT pg_advisory_xact_lock(hashtextextended('@moves', 0))")
    for _, sql in ipairs(TABLES) do
      execute(self, txn, sql)
    end
  end)
end

--- Notes a move. Returns whether it is not over. Raises if batches of it were written elsewhere.
function Target:open(move, batch)
  return self.store:transaction(function(txn)
    local known = first(self, txn, "SELECT finished_at FROM @moves WHERE move = $1", move)
    if known then
      return not known.finished_at
    elseif batch > 0 then
      error(errors.new("misuse", "the move has begun to another database: finish it there"), 0)
    end
    execute(self, txn, "INSERT INTO @moves (move) VALUES ($1)", move)
    return true
  end)
end

-- A batch is one statement with an array for each column, written as PostgreSQL reads it.
local function make_insertion()
  local arrays = {}
  for i, name in ipairs(COLUMNS) do
    arrays[i] = ("$%d::%s[]"):format(i + 2, TYPES[name] or "text")
  end
  return ("INSERT INTO @moving (move, batch, %s) SELECT $1, $2, * FROM unnest(%s)"):format(
    table.concat(COLUMNS, ", "), table.concat(arrays, ", "))
end

local INSERT = make_insertion()

local function element(value)
  return value and '"' .. tostring(value):gsub('[\\"]', "\\%0") .. '"' or "NULL"
end

local function is_text(bytes)
  return utf8.len(bytes) and not bytes:find("\0", 1, true)
end

local function hexadecimal(bytes)
  return "\\x" .. bytes:gsub(".", function(byte)
    return ("%02x"):format(byte:byte())
  end)
end

-- Puts a row's payload into the column that keeps it. A text of an error is never why a move fails.
local function fit(row)
  if row.payload and not is_text(row.payload) then
    row.payload, row.payload_bytes = nil, hexadecimal(row.payload)
  end
  if row.last_error and not is_text(row.last_error) then
    row.last_error = format.lines(row.last_error)
  end
end

local function make_arrays(rows)
  local arrays = {}
  for i, name in ipairs(COLUMNS) do
    local elements = {}
    for j, row in ipairs(rows) do
      elements[j] = element(row[name])
    end
    arrays[i] = "{" .. table.concat(elements, ",") .. "}"
  end
  return arrays
end

--- Step 2. Writes rows as the batch with this number, for good. Removes what was written before
-- under this number or a higher one.
function Target:write(move, rows, batch)
  self.store:transaction(function(txn)
    execute(self, txn, "DELETE FROM @moving WHERE move = $1 AND batch >= $2", move, batch)
    if not rows[1] then
      return
    end
    for _, row in ipairs(rows) do
      fit(row)
    end
    execute(self, txn, INSERT, move, batch, table.unpack(make_arrays(rows)))
    local twice = first(self, txn, FIND_DUPLICATE, move, batch)
    if twice then
      error(errors.new("duplicate", ("the target has another entry with the id %s"):format(
        format.line(twice.id))), 0)
    end
  end)
end

local function copy_settings(self, txn, settings)
  for _, each in ipairs(settings.paused) do
    execute(self, txn, "INSERT INTO @pauses (namespace, paused_at) VALUES ($1, $2)"
      .. " ON CONFLICT DO NOTHING", each.namespace, math.floor(each.paused_at * 1e6 + 0.5))
  end
  for _, each in ipairs(settings.subscriptions) do
    execute(self, txn, "INSERT INTO @subscriptions (namespace, copy) VALUES ($1, $2)"
      .. " ON CONFLICT DO NOTHING", each.namespace, each.copy)
  end
end

--- Step 3. Returns how many entries there were of each state; nil if another process has done it.
function Target:publish(move, settings)
  return self.store:transaction(function(txn)
    execute(self, txn, LOCK)
    if first(self, txn, "SELECT finished_at FROM @moves WHERE move = $1", move).finished_at then
      return nil
    end
    first(self, txn, NUMBER)
    local places = first(self, txn, PLACES, move, settings.last_seq)
    if places.next > places.last then
      first(self, txn, "SELECT setval('@seq', $1)", places.next)
    end
    copy_settings(self, txn, settings)
    local moved = {
      ready = execute(self, txn, PUBLISH.ready, move, places.shift),
      delayed = execute(self, txn, PUBLISH.delayed, move, places.shift),
      dead = execute(self, txn, PUBLISH.dead, move, places.shift),
    }
    moved.delayed = moved.delayed + execute(self, txn, PUBLISH.scheduled, move)
    execute(self, txn, PUBLISH.unplace)
    execute(self, txn, "DELETE FROM @moving WHERE move = $1", move)
    execute(self, txn, "UPDATE @moves SET finished_at = @now() WHERE move = $1", move)
    return moved
  end)
end

--- Makes a target of a store.
return function(store)
  return setmetatable({ store = store, prefix = store:prefix() }, Target)
end
