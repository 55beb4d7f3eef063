-- The source of `outbox move`: an SQLite file. In its SQL, `@` stands for the prefix.

local errors = require("outbox.error")
local format = require("outbox.command.common.format")
local outbox = require("outbox")

local Source = {}
Source.__index = Source

-- How many entries a batch has at most, and how many bytes of payload, unless one has more. The
-- file's publishers wait meanwhile.
local BATCH, BATCH_BYTES = 500, 8 * 1024 * 1024

-- How many entries are checked in one transaction.
local PAGE = 1000

-- The tables, in the order in which they are emptied. A value that plain SQL has given another type
-- is read as the library reads it.
local TEXTS = { "id", "namespace", "key", "headers", "source_id" } -- text in PostgreSQL, too
local TEXT_COLUMNS = [[seq, CAST(id AS TEXT) AS id, CAST(namespace AS TEXT) AS namespace,
  CAST(key AS TEXT) AS key, CAST(headers AS TEXT) AS headers,
  CAST(source_id AS TEXT) AS source_id]]
local COLUMNS = TEXT_COLUMNS .. [[, CAST(payload AS BLOB) AS payload,
  CAST(created_at AS INTEGER) AS created_at, CAST(attempts AS INTEGER) AS attempts,
  CAST(last_error AS TEXT) AS last_error]]
local TABLES = {
  { state = "ready", name = "main.@entries", columns = COLUMNS },
  { state = "delayed", name = "main.@delayed", columns = COLUMNS
    .. ", CAST(due_at AS INTEGER) AS due_at, CAST(position AS INTEGER) AS position,"
    .. " CAST(delayed_at AS INTEGER) AS delayed_at" },
  { state = "dead", name = "main.@dead", columns = COLUMNS
    .. ", CAST(died_at AS INTEGER) AS died_at" },
}

-- One row: the move, how many batches are over, and whether nothing can be published any more.
local CREATE_MOVES = "CREATE TABLE main.@moves"
  .. " (move TEXT PRIMARY KEY, batch INTEGER NOT NULL, sealed INTEGER NOT NULL)"
local NOTE_MOVE = "INSERT INTO main.@moves (move, batch, sealed) VALUES (?, 0, 0)"

-- A trigger that refuses an event on a table.
local REFUSE = [[CREATE TRIGGER main.@moves_refuse_%s BEFORE %s ON @%s BEGIN
  SELECT RAISE(ABORT, '%s'); END]]
local MOVING = "this outbox is being moved to another database: outbox move finishes that"
local MOVED = "this outbox was moved to another database: publish there"

local function execute(self, txn, sql, ...)
  return txn:execute(sql:gsub("@", self.prefix), ...)
end

local function rows(self, txn, sql, ...)
  return txn:rows(sql:gsub("@", self.prefix), ...)
end

local function first(self, txn, sql, ...)
  local found
  for row in rows(self, txn, sql, ...) do
    found = found or row
  end
  return found
end

--- Checks ---------------------------------------------------------------------------------------

local function is_text(bytes)
  return not bytes or utf8.len(bytes) and not bytes:find("\0", 1, true)
end

local function check_text(bytes, what, ...)
  if not is_text(bytes) then
    error(errors.new("encoding", ("the %s is not UTF-8, or has a NUL; PostgreSQL refuses both: %s")
      :format(what:format(...), format.line(bytes))), 0)
  end
end

local function check_row(row, state)
  for _, name in ipairs(TEXTS) do
    check_text(row[name], "%s of the %s entry with the seq %d", name, state, row.seq)
  end
end

local function check_page(self, from, after)
  return self.store:transaction(function(txn)
    local last
    for row in rows(self, txn, ("SELECT %s FROM %s WHERE seq > ? ORDER BY seq LIMIT ?"):format(
      TEXT_COLUMNS, from.name), after, PAGE) do
      check_row(row, from.state)
      last = row.seq
    end
    return last
  end)
end

--- Raises `encoding` if something cannot be kept in PostgreSQL. Changes nothing.
function Source:check()
  for _, from in ipairs(TABLES) do
    local last = math.mininteger
    repeat
      last = check_page(self, from, last)
    until not last
  end
  for _, each in ipairs(self.store:subscriptions()) do
    check_text(each.namespace, "namespace of a subscription")
    check_text(each.copy, "namespace of a copy")
  end
  for _, each in ipairs(self.store:paused()) do
    check_text(each.namespace, "namespace of a pause")
  end
end

--- The steps ------------------------------------------------------------------------------------

-- Charges what was in hand of processors that died, as any claim does. Refuses if one is alive.
local function take_over(self)
  local store, id = self.store, "outbox move " .. self.move
  store:claim_entries(id, store:clock().now() + 1)
  for _, lease in ipairs(store:stats().leases) do
    if lease.processor_id ~= id and lease.deadline >= store:clock().now() then
      error(errors.new("busy", ("the processor %s is at work on the source: stop it first"):format(
        format.line(lease.processor_id))), 0)
    end
  end
  store:release_claim(id)
end

local function find_move(self, txn)
  local there = first(self, txn, "SELECT 1 FROM main.sqlite_master"
    .. " WHERE name = '@moves' COLLATE NOCASE")
  return there and first(self, txn, "SELECT move, batch, sealed FROM main.@moves")
end

--- Step 1. Returns the name of the move, which may have begun before, and how many batches are
-- over.
function Source:begin()
  return self.store:transaction(function(txn)
    local known = find_move(self, txn)
    if known then
      return known.move, known.batch
    end
    self.move = outbox.uuid_v4()
    take_over(self)
    execute(self, txn, CREATE_MOVES)
    execute(self, txn, NOTE_MOVE, self.move)
    for _, event in ipairs({ "INSERT", "UPDATE" }) do
      execute(self, txn, REFUSE:format("claim_" .. event:lower(), event, "claims", MOVING))
    end
    return self.move, 0
  end)
end

--- How many entries there are.
function Source:count()
  local stats = self.store:stats()
  return stats.ready + stats.delayed + stats.dead
end

-- Reads the first entries, of one table.
local function read(self, txn)
  for _, from in ipairs(TABLES) do
    local batch, bytes = { state = from.state, from = from.name }, 0
    for row in rows(self, txn, ("SELECT %s FROM %s ORDER BY seq LIMIT ?"):format(from.columns,
      from.name), BATCH) do
      bytes = bytes + #(row.payload or "")
      if bytes > BATCH_BYTES and batch[1] then
        break
      end
      check_row(row, from.state)
      row.state = from.state
      batch[#batch + 1] = row
    end
    if batch[1] then
      return batch
    end
  end
end

--- Step 2. Calls `write(rows, number)`, which must have written them for good when it returns.
-- Returns how many they were; nil if nothing is left, and the source is sealed.
function Source:next_batch(write)
  return self.store:transaction(function(txn)
    local move = find_move(self, txn)
    if move.sealed == 1 then
      return nil
    end
    local batch = read(self, txn)
    if batch then
      write(batch, move.batch + 1)
      execute(self, txn, "DELETE FROM " .. batch.from .. " WHERE seq <= ?", batch[#batch].seq)
      execute(self, txn, "UPDATE main.@moves SET batch = batch + 1")
      return #batch
    end
    write({}, move.batch + 1) -- what a crash has left of one
    for _, name in ipairs({ "ready", "delayed" }) do
      execute(self, txn, REFUSE:format(name, "INSERT", name, MOVED))
    end
    execute(self, txn, "UPDATE main.@moves SET sealed = 1")
    return nil
  end)
end

--- What else the target needs: `last_seq`, pauses and subscriptions.
function Source:settings()
  local store = self.store
  return { last_seq = store:stats().last_seq, paused = store:paused(),
    subscriptions = store:subscriptions() }
end

--- Makes a source of a store.
return function(store)
  return setmetatable({ store = store, prefix = store:prefix() }, Source)
end
