-- Publishing on a connection to PostgreSQL, whatever its binding: one statement, with all values in
-- its text. So no style of parameters matters, and no binding cuts a value at a NUL.
--
-- The statement is an INSERT of what the function `outbox_admit` returns (src/postgres/schema.c).
-- That one refuses ids that are there, takes the locks of the keys, and finds the places and the
-- copies. It is an INSERT, because it needs no right but that of the application to insert; because
-- it returns no rows, with which bindings differ; and because some take only one statement at once.

local core = require("outbox.core")
local errors = require("outbox.error")
local rules = require("outbox.attach.rules")

local SAVEPOINT = "SAVEPOINT outbox"
local ROLLBACK = "ROLLBACK TO SAVEPOINT outbox"
local RELEASE = "RELEASE SAVEPOINT outbox"

local M = {}

--- Bindings -----------------------------------------------------------------------------------

-- For each binding, makes a function that runs SQL on a connection. The function raises, or returns
-- nil or false and a reason, when that fails.
local RUNNERS = {
  luasql = function(connection)
    return function(sql)
      local result, reason = connection:execute(sql)
      return result ~= nil or nil, reason
    end
  end,

  -- LuaDBI cannot close a statement that has failed: the server keeps it as long as the connection
  -- lives. The one that fails each time that no transaction is open is used again.
  luadbi = function(connection)
    local failed
    return function(sql)
      local statement, reason, ok = sql == SAVEPOINT and failed or nil, nil, nil
      if not statement then
        statement, reason = connection:prepare(sql)
      end
      if statement then
        ok, reason = statement:execute()
        if sql == SAVEPOINT then
          failed = not ok and statement or nil
        end
        if ok then
          statement:close()
        end
      end
      return ok or nil, reason
    end
  end,

  -- pgmoon's `simple_query` is what its `query` calls when there are no parameters.
  pgmoon = function(connection)
    return function(sql)
      local result, reason = connection:query(sql)
      return result ~= nil and result ~= false or nil, reason
    end
  end,
}

-- Whether the connection runs several statements in one text, and thus in one round trip. An object
-- that is only like pgmoon's may not.
local function takes_scripts(binding, connection)
  return binding == "luasql" or binding == "pgmoon" and type(connection.simple_query) == "function"
end

--- Values -------------------------------------------------------------------------------------

-- There is neither a quote in a literal nor a backslash before its end. LuaDBI looks for its
-- placeholders `?` outside of quotes, and would not see that '\\' ends there. E'' means the same
-- whatever standard_conforming_strings is.
local ESCAPES = { ["\\"] = "\\x5c", ["'"] = "\\x27" }

local function is_text(value)
  return utf8.len(value) and not value:find("\0", 1, true)
end

local function quote(value)
  return value and ("E'%s'"):format(value:gsub("[\\']", ESCAPES)) or "NULL"
end

local HEX = {}
for byte = 0, 255 do
  HEX[string.char(byte)] = ("%02x"):format(byte)
end

local function quote_bytes(value)
  return ("E'\\\\x%s'"):format((value:gsub(".", HEX)))
end

-- Quotes what must be text.
local function quote_text(value, place, field)
  if value and not is_text(value) then
    error(errors.new("encoding", ("the %s of message %d is not UTF-8 or has a NUL, which "
      .. "PostgreSQL does not take"):format(field, place)), 0)
  end
  return quote(value)
end

--- The statement ------------------------------------------------------------------------------

-- `@` stands for the schema and the prefix. Each payload has a line of its own, because errors show
-- the line where SQL is wrong, and no error must show a payload.
local PLACED = [[
@admit(ARRAY[%s]::text[],
%s, ARRAY[%s]::text[],
ARRAY[%s]::text[],
ARRAY[%s]::bigint[], %s::bigint, %s)
JOIN (VALUES
%s
) AS m (message, payload, payload_bytes, headers) USING (message)]]

local READY = [[
INSERT INTO @entries (partition, seq, id, namespace, key, payload, payload_bytes, headers,
created_at, source_id) SELECT new_partition, new_seq, new_id, new_namespace, new_key, payload,
payload_bytes, headers, new_created_at, of_id
FROM ]]

local BOTH = "WITH placed AS MATERIALIZED (SELECT * FROM " .. PLACED .. [[),
late AS (INSERT INTO @delayed (seq, id, namespace, key, payload, payload_bytes, headers,
created_at, source_id, due_at) SELECT new_seq, new_id, new_namespace, new_key, payload,
payload_bytes, headers, new_created_at, of_id, late_until FROM placed WHERE late_until IS NOT NULL)
]] .. READY .. "placed WHERE late_until IS NULL"

local function make_row(place, message)
  local payload = message.payload
  local as_text = payload == nil or is_text(payload)
  return ("(%d, %s, %s::bytea, %s)"):format(place, as_text and quote(payload) or "NULL",
    as_text and "NULL" or quote_bytes(payload),
    quote_text(rules.headers(message), place, "headers"))
end

-- Returns the SQL that publishes messages, and their ids. The time is the server's unless the store
-- has a clock of its own.
local function make_insert(self, messages)
  local now = self.times and ("%d"):format(rules.microseconds(rules.now(self))) or "NULL"
  local any_known, any_late = false, false
  local ids, quoted, known, namespaces, keys, due, rows = {}, {}, {}, {}, {}, {}, {}
  for i, message in ipairs(messages) do
    local id = rules.id(self, message)
    ids[i] = id
    quoted[i] = quote_text(id, i, "id")
    known[i] = rules.is_known(self, message) and "true" or "false"
    namespaces[i] = quote_text(message.namespace or "", i, "namespace")
    keys[i] = quote_text(message.key and tostring(message.key), i, "key")
    due[i] = message.deliver_at and ("%d"):format(rules.microseconds(message.deliver_at)) or "NULL"
    rows[i] = make_row(i, message)
    any_known = any_known or known[i] == "true"
    any_late = any_late or message.deliver_at ~= nil
  end
  local function join(list, separator)
    return table.concat(list, separator or ", ")
  end
  local form = any_late and BOTH or READY .. PLACED
  return form:gsub("@", self.tables):format(join(quoted),
    any_known and ("ARRAY[%s]"):format(join(known)) or "NULL", join(namespaces), join(keys),
    join(due), now, self.durable and "true" or "false", join(rows, ",\n")), ids
end

--- Errors -------------------------------------------------------------------------------------

-- Returns the code and the text of an error of which only the text is known. It may be in any
-- language, but names, and the messages of outbox_admit, are not translated. Only its first line is
-- looked at and shown, because the next ones may show the values of a row.
local function classify(self, text)
  local line = text:match("[^\r\n]+") or "no reason was given"
  local function has(words)
    return line:find(words, 1, true) ~= nil
  end
  local prefix = self.prefix:lower()
  if has("an entry with this id is") or has(prefix .. "entries_id_key")
    or has(prefix .. "delayed_id_key") then
    return "duplicate", "an entry with this id is already in the outbox"
  elseif has("synchronous_commit is off") then
    return "misuse", "synchronous_commit is off: if the server crashes, a message can be delivered "
      .. "whose transaction is lost. Set it on for this transaction, or attach with "
      .. 'synchronous = "off" where that is meant'
  elseif has("client_encoding is ") then
    return "encoding", "the connection's " .. line:match("client_encoding is [%w_]+")
      .. ", not UTF8: payloads would change on the way"
  elseif has(prefix .. 'entries" does not exist') or has(prefix .. "admit(") then
    return "schema", ("call migrate first, or set the search_path or the option schema (%s)")
      :format(line)
  end
  return "error", line
end

-- Makes an error of what a function has raised, or has given as its reason.
local function make_error(self, reason)
  if getmetatable(reason) == core.Error then
    return reason
  end
  local code, message = classify(self, errors.text(reason))
  return errors.new(code, message, reason)
end

--- Publishing ---------------------------------------------------------------------------------

-- Runs SQL. Returns nil if it has succeeded, else an error; and true if the function has answered
-- as it must not, so that nothing is known.
local function run(self, sql)
  local ok, result, reason = pcall(self.run, sql)
  if not ok then
    return make_error(self, result)
  end
  local refusal = rules.refusal(result, reason)
  if refusal and result then
    return errors.new("error", refusal, reason), true
  end
  return refusal and make_error(self, reason == nil and refusal or reason)
end

-- A statement that fails ends the transaction, unless it is in a savepoint. Without a transaction
-- there is no savepoint, and the statement is a transaction of its own. Returns nil, or an error.
local function run_in_savepoint(self, sql)
  local steps = { SAVEPOINT, sql, RELEASE }
  if self.scripts then
    steps = { table.concat(steps, ";\n") }
  end
  for i, step in ipairs(steps) do
    local problem, unclear = run(self, step)
    if problem then
      local undone = false
      if i > 1 or self.scripts or unclear then -- a script does not tell where it has failed
        undone = not run(self, ROLLBACK)
      end
      if undone then
        run(self, RELEASE)
      elseif i == 1 and not unclear then
        return run(self, sql)
      end
      return problem
    end
  end
end

local Attached = {}
Attached.__index = Attached
Attached.__name = "outbox.attached"

--- Adds messages, as `store:publish` does, in the transaction that is open on the connection.
---@param ... outbox.message
---@return string ... the id of each entry
function Attached:publish(...)
  local messages = table.pack(...)
  rules.check_messages(messages)
  local sql, ids = make_insert(self, messages)
  local problem = run_in_savepoint(self, sql)
  if problem then
    error(problem, 0)
  end
  return table.unpack(ids)
end

--- Stores -------------------------------------------------------------------------------------

local OPTIONS = { prefix = true, clock = true, id_generator = true, schema = true,
  synchronous = true, dialect = true }

local function make_store(runner, scripts, options)
  local store = rules.store(options, OPTIONS)
  options = options or {}
  if options.synchronous ~= nil and options.synchronous ~= "off" then
    error(("bad argument #2 to 'attach' (synchronous must be \"off\" or nil, not %s)")
      :format(errors.text(options.synchronous)), 2)
  end
  store.run, store.scripts = runner, scripts
  store.durable, store.times = options.synchronous == nil, options.clock ~= nil
  store.tables = (options.schema and ('"%s".'):format(options.schema) or "") .. store.prefix
  return setmetatable(store, Attached)
end

--- Makes a store of a connection. `binding` is the binding's name.
function M.connection(connection, binding, _, options)
  return make_store(RUNNERS[binding](connection), takes_scripts(binding, connection), options)
end

--- Makes a store of a function `(sql)` that runs SQL.
function M.callback(run_sql, options)
  return make_store(run_sql, false, options)
end

return M
