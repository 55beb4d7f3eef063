-- outbox show

local database = require("outbox.command.common.database")
local entries = require("outbox.command.common.entries")
local errors = require("outbox.error")
local format = require("outbox.command.common.format")

local M = {
  summary = "Show everything about an entry.",
  description = "Shows everything about an entry, whatever its state. Bytes of the payload that "
    .. "would control a terminal are shown in hexadecimal.",
}

function M.define(command)
  database.define(command)
  command:argument("ID", "The id of the entry."):target("id"):argname("ID")
  command:mutex(
    command:flag("--json", "As a line of JSON."),
    command:flag("--raw", "Only the payload, byte for byte."))
end

local function serves(lease, namespace)
  local names = lease.namespaces
  local found = false
  for _, name in ipairs(names and (names.except or names) or {}) do
    found = found or name == namespace
  end
  return not names or found == not names.except
end

-- Says who has claimed a ready entry, or may have: of a processor only its share is known.
local function add_claims(add, store, entry, now)
  for _, lease in ipairs(store:stats().leases) do
    if lease.first_seq <= entry.seq and entry.seq <= lease.last_seq and lease.deadline >= now
      and lease.classes > 0 and serves(lease, entry.namespace) then
      add("claimed", ("%sby %s, until %s"):format(lease.classes < 64 and "perhaps " or "",
        format.line(lease.processor_id), format.time(lease.deadline)))
    end
  end
end

local function add_headers(add, headers)
  if type(headers) == "string" then
    add("headers", format.line(headers))
    return
  end
  local names = {}
  for name in pairs(headers or {}) do
    names[#names + 1] = name
  end
  table.sort(names)
  for _, name in ipairs(names) do
    local value = headers[name] -- not always a string, because plain SQL may have published it
    add("header", format.line(name) .. ": "
      .. (type(value) == "string" and format.line(value) or format.json(value)))
  end
end

local function show_text(store, entry)
  local now, state, rows = store:clock().now(), entries.state_of(entry), {}
  local function add(name, text)
    rows[#rows + 1] = { name, text }
  end
  local function add_time(name, time)
    if time then
      add(name, ("%s, %s"):format(format.time(time), format.from_now(time, now)))
    end
  end
  add("id", format.cell(entry.id))
  add("state", state)
  add("seq", format.number(entry.seq))
  add("namespace", format.cell(entry.namespace))
  if entry.source_id then
    add("copy of", format.cell(entry.source_id))
  end
  add("key", format.cell(entry.key))
  add_time("created", entry.created_at)
  add_time("due", entry.due_at)
  add_time("died", entry.died_at)
  if state == "ready" then
    add_claims(add, store, entry, now)
  end
  add("attempts", format.number(entry.attempts))
  add("last error", format.cell(entry.last_error))
  add_headers(add, entry.headers)
  add("payload", entry.payload and ("%d bytes"):format(#entry.payload) or "-")
  format.table(rows)
  if entry.payload and entry.payload ~= "" then
    format.write("\n", format.lines(entry.payload), entry.payload:sub(-1) == "\n" and "" or "\n")
  end
end

function M.run(options)
  local store <close> = database.look(options)
  local found = store:find_entries(options.id)
  if not found[1] then
    error(errors.new("missing", "no entry has the id " .. format.line(options.id)), 0)
  elseif options.raw then
    format.write(found[1].payload or "")
    return
  end
  for i, entry in ipairs(found) do
    if options.json then
      entry.state = entries.state_of(entry)
      format.write(format.json(format.stamp(entry)), "\n")
    else
      format.write(i > 1 and "\n" or "")
      show_text(store, entry)
    end
  end
end

return M
