-- outbox list

local convert = require("outbox.command.common.convert")
local database = require("outbox.command.common.database")
local entries = require("outbox.command.common.entries")
local format = require("outbox.command.common.format")

local M = {
  summary = "List entries.",
  description = "Lists entries in the order of their commits. If there are more, the last line of "
    .. "standard error says how to list the next page.",
}

local TIMES = { delayed = "due_at", dead = "died_at" }

local function header(state)
  local row = { "SEQ", "ID", "NAMESPACE", "KEY", "BYTES", "AGE", "ATTEMPTS", "LAST ERROR" }
  if TIMES[state] then
    table.insert(row, 7, state == "dead" and "DIED" or "DUE")
  end
  return row
end

local function row_of(entry, state, now)
  local row = {
    format.number(entry.seq), format.cell(entry.id), format.cell(entry.namespace),
    format.cell(entry.key), entry.payload and format.number(#entry.payload) or "-",
    format.span(format.age(entry.created_at, now)), format.number(entry.attempts),
    format.error_cell(entry.last_error),
  }
  if TIMES[state] then
    table.insert(row, 7, format.from_now(entry[TIMES[state]], now))
  end
  return row
end

--- Defines the options that select and show entries.
function M.define_options(command)
  command:option("--namespace", "Only entries of this namespace."):argname("NAME")
  command:option("--key", "Only entries with this key. Reads all entries."):argname("KEY")
  command:option("--limit", "At most this many entries."):argname("COUNT"):default("50")
    :convert(convert.count)
  command:option("--after", "Start after the entry with this seq: the next page."):argname("SEQ")
    :convert(convert.integer)
  command:flag("--reverse", "From the last to the first.")
  command:flag("--json", "Each entry as a line of JSON.")
end

function M.define(command)
  database.define(command)
  command:argument("STATE", "ready (the default), delayed or dead."):target("state")
    :choices({ "ready", "delayed", "dead" }):args("?")
  M.define_options(command)
end

--- Lists the entries of `options.state`, default "ready".
function M.run(options)
  options.state = options.state or "ready"
  local store <close> = database.look(options)
  local shown, last, more, now = 0, nil, false, store:clock().now()
  local rows = { header(options.state) }
  for entry in entries.each(store, options) do
    more = shown == options.limit
    if more then
      break
    end
    shown, last = shown + 1, entry.seq
    if options.json then
      format.write(format.json(format.stamp(entry)), "\n")
    else
      rows[#rows + 1] = row_of(entry, options.state, now)
    end
    if #rows > entries.PAGE then
      format.table(rows)
      rows = {}
    end
  end
  if shown > 0 and not options.json then
    format.table(rows)
  end
  format.flush()
  if more then
    io.stderr:write(("more: --after %d\n"):format(last))
  end
end

return M
