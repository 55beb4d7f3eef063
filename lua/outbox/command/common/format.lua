-- The command's output: text that is safe on a terminal, times for people, tables, JSON.

local errors = require("outbox.error")

local M = {}

local EPIPE = 32 -- on every system

local function check(ok, reason, number)
  if not ok then
    error(errors.new(number == EPIPE and "unread" or "output", "cannot write: " .. reason), 0)
  end
end

--- Writes to standard output. Raises if that fails: `unread` if nobody reads it any more, else
-- `output`, as for a full disk.
function M.write(...)
  check(io.stdout:write(...))
end

--- Flushes standard output. Raises as `write` does.
function M.flush()
  check(io.stdout:flush())
end

--- Text ---------------------------------------------------------------------------------------

local function hexadecimal(bytes)
  return (bytes:gsub(".", function(byte)
    return ("\\x%02x"):format(byte:byte())
  end))
end

-- Characters that move the cursor, or change the colours or the direction of the text: the control
-- characters of ASCII and of Unicode, the marks and overrides of direction, the line separators.
local UNSAFE = { "[\0-\8\11-\31\127]", "\xC2[\x80-\x9F]", "\xD8\x9C",
  "\xE2\x80[\x8E\x8F\xA8-\xAE]", "\xE2\x81[\xA6-\xA9]" }

-- The widest cell to which a column is widened, and the longest error in a list, in characters.
local MAX_WIDTH, MAX_ERROR = 64, 100

--- Makes bytes safe to show. Characters that would control a terminal, and bytes that are not
-- UTF-8, become hexadecimal. Line feeds and tabs stay.
function M.lines(bytes)
  local parts, from = {}, 1
  repeat
    local _, wrong = utf8.len(bytes, from)
    local part = bytes:sub(from, wrong and wrong - 1)
    for _, pattern in ipairs(UNSAFE) do
      part = part:gsub(pattern, hexadecimal)
    end
    parts[#parts + 1] = part
    if wrong then
      parts[#parts + 1] = hexadecimal(bytes:sub(wrong, wrong))
      from = wrong + 1
    end
  until not wrong or from > #bytes
  return table.concat(parts)
end

--- Makes bytes safe to show in one line: line feeds and tabs become `\n` and `\t`.
function M.line(bytes)
  return (M.lines(bytes):gsub("[\n\t]", { ["\n"] = "\\n", ["\t"] = "\\t" }))
end

--- The same for a cell of a table: empty bytes become `""`, and nil becomes `-`.
function M.cell(bytes)
  return bytes == "" and '""' or bytes and M.line(bytes) or "-"
end

--- The same for an error, which may be long: a list shows its beginning.
function M.error_cell(bytes)
  local text = M.cell(bytes and bytes:sub(1, 4 * MAX_ERROR + 4)) -- at most 4 bytes for each
  local cut = utf8.offset(text, MAX_ERROR + 1)
  return cut and cut <= #text and text:sub(1, cut - 1) .. "..." or text
end

--- Makes lines from rows of cells. A column is as wide as its widest cell, but no wider than
-- MAX_WIDTH: one long key would fill all other lines with spaces. The last cell of a row does not
-- count.
function M.columns(rows)
  local widths, lines = {}, {}
  for _, row in ipairs(rows) do
    for i = 1, #row - 1 do
      widths[i] = math.min(math.max(widths[i] or 0, utf8.len(row[i])), MAX_WIDTH)
    end
  end
  for j, row in ipairs(rows) do
    local cells = {}
    for i, cell in ipairs(row) do
      cells[i] = cell .. (" "):rep(i < #row and widths[i] - utf8.len(cell) or 0)
    end
    lines[j] = table.concat(cells, "  "):gsub(" +$", "")
  end
  return lines
end

--- Writes rows of cells as such lines.
function M.table(rows)
  for _, line in ipairs(M.columns(rows)) do
    M.write(line, "\n")
  end
end

--- Numbers ------------------------------------------------------------------------------------

--- Formats a number without an exponent; a float has up to six digits after the point.
function M.number(value)
  if math.type(value) == "integer" then
    return ("%d"):format(value)
  end
  return (("%.6f"):format(value):gsub("%.?0+$", ""))
end

--- Formats a span of seconds for people.
function M.span(seconds)
  local size = math.abs(seconds)
  if size < 10 then
    return ("%.1f s"):format(seconds)
  elseif size < 120 then
    return ("%.0f s"):format(seconds)
  elseif size < 7200 then
    return ("%.0f min"):format(seconds / 60)
  elseif size < 172800 then
    return ("%.0f h"):format(seconds / 3600)
  end
  return ("%.0f d"):format(seconds / 86400)
end

--- Formats a time relative to now: "in 5.0 s", "2 min ago".
function M.from_now(time, now)
  return time > now and "in " .. M.span(time - now) or M.span(now - time) .. " ago"
end

--- Formats a time in UTC, to the second.
function M.time(seconds)
  return os.date("!%Y-%m-%dT%H:%M:%SZ", math.floor(seconds))
end

--- Returns the age of something, in seconds. It is not negative, not even if a clock was set back.
function M.age(created_at, now)
  return math.max(0, now - created_at)
end

--- Returns how many leases have not lapsed.
function M.live_leases(stats, now)
  local count = 0
  for _, lease in ipairs(stats.leases) do
    count = count + (lease.deadline >= now and 1 or 0)
  end
  return count
end

--- Whether a lease is that of a processor, which is not bound to an interval of seq.
function M.is_lane(lease)
  return lease.first_seq == math.mininteger and lease.last_seq == math.maxinteger
end

--- Formats what a lease covers: the share of a processor, "32/64", or an interval, "1-20".
function M.share(lease)
  return M.is_lane(lease) and lease.classes .. "/64"
    or M.number(lease.first_seq) .. "-" .. M.number(lease.last_seq)
end

--- Formats the namespaces of a lease.
function M.namespaces(lease)
  local function list(names)
    local cells = {}
    for i, name in ipairs(names) do
      cells[i] = M.cell(name)
    end
    return table.concat(cells, ",")
  end
  local names = lease.namespaces
  return not names and "all" or names.except and "all but " .. list(names.except) or list(names)
end

--- Formats the places in hand: "17+3,2" as "17-20,22".
function M.places(held)
  local last, ranges = 0, {}
  for step, more in (held or ""):gmatch("(-?%d+)%+?(%d*)") do
    local first = last + tonumber(step)
    last = first + (tonumber(more) or 0)
    ranges[#ranges + 1] = last > first and first .. "-" .. last or M.number(first)
  end
  local overtime = held and held:sub(1, 1) == "!" and " (overtime)" or ""
  return ranges[1] and table.concat(ranges, ",") .. overtime or "-"
end

--- Returns rows of a table with the numbers of entries.
function M.counts(stats, now)
  local function row(name, note)
    return { name, ("%10d"):format(stats[name]), note or "" }
  end
  return {
    row("ready", stats.oldest_age and "oldest " .. M.span(stats.oldest_age)),
    row("delayed", stats.due_at and ("%d retries, next due %s"):format(stats.retries,
      M.from_now(stats.due_at, now))),
    row("dead"),
  }
end

--- JSON ---------------------------------------------------------------------------------------

-- How destinations write messages. Loaded when it is first used, because it needs lua-cjson.
local function destination_format()
  return require("outbox.publishing.format")
end

local Array = {}

--- Marks a list, so that an empty one is encoded as `[]`.
function M.array(list)
  return setmetatable(list, Array)
end

local json

local function members(object)
  local list = {}
  for name, value in pairs(object) do
    local shown, content = utf8.len(name) and name or M.line(name), value
    if type(value) == "string" and not utf8.len(value) then
      shown, content = shown .. "_base64", destination_format().base64(value)
    end
    list[#list + 1] = json(shown) .. ":" .. json(content)
  end
  table.sort(list)
  return list
end

function json(value)
  if type(value) == "string" then
    return destination_format().encode(value)
  elseif type(value) == "number" and math.abs(value) < math.huge then
    return M.number(value)
  elseif type(value) == "boolean" then
    return tostring(value)
  elseif type(value) ~= "table" then
    return "null" -- headers that plain SQL published may have null, or 1e999, which is infinity
  end
  local source = destination_format().source(value) -- headers, as they lie in the database
  if source and utf8.len(source) then
    return (source:gsub("[\r\n]", " "))
  elseif getmetatable(value) ~= Array and #value == 0 then
    return "{" .. table.concat(members(value), ",") .. "}"
  end
  local list = {}
  for i, element in ipairs(value) do
    list[i] = json(element)
  end
  return "[" .. table.concat(list, ",") .. "]"
end

--- Replaces the times of an object by the text that destinations write. Returns the object.
function M.stamp(object)
  for _, name in ipairs({ "created_at", "due_at", "died_at", "claimed_at", "deadline",
    "paused_at", "down_since" }) do
    object[name] = object[name] and destination_format().time(object[name])
  end
  return object
end

--- The same for a lease; its namespaces become a list or, in an object, `except`.
function M.stamp_lease(lease)
  local names = lease.namespaces
  if names then
    M.array(names.except or names)
  end
  return M.stamp(lease)
end

local function escape(character)
  return ("\\u%04x"):format(utf8.codepoint(character))
end

--- Encodes an object as one line of JSON, its members in the order of their names. A member whose
-- bytes are not UTF-8 is encoded as base64, with "_base64" added to its name. Characters that would
-- control a terminal are escaped, which does not change the values: they only stand in strings.
function M.json(object)
  local line = json(object)
  for i = 1, #UNSAFE do
    line = line:gsub(UNSAFE[i], escape)
  end
  return line
end

return M
