-- What the command prints: text that is safe on a terminal, times for people, tables, JSON.

local problem = require("outbox.problem")

local M = {}

local EPIPE = 32 -- everywhere

local function check(ok, reason, number)
  if not ok then
    error(problem.new(number == EPIPE and "unread" or "output", "cannot write: " .. reason), 0)
  end
end

--- Writes to standard output; raises where that fails, as on a full disk, or when nobody reads it.
function M.write(...)
  check(io.stdout:write(...))
end

--- Sees to it that all has been written.
function M.flush()
  check(io.stdout:flush())
end

--- Text ---------------------------------------------------------------------------------------

local function hexadecimal(bytes)
  return (bytes:gsub(".", function(byte)
    return ("\\x%02x"):format(byte:byte())
  end))
end

-- What moves the cursor, changes colours or the direction of the text: controls of ASCII, those of
-- Unicode, and the overrides of direction.
local UNSAFE = { "[\0-\8\11-\31\127]", "\xC2[\x80-\x9F]", "\xE2\x80[\xAA-\xAE]",
  "\xE2\x81[\xA6-\xA9]" }

--- Bytes, of several lines perhaps, as they can be shown: what a terminal would act upon, and what
-- is not UTF-8, in hexadecimal.
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

--- The same, in one line.
function M.line(bytes)
  return (M.lines(bytes):gsub("[\n\t]", { ["\n"] = "\\n", ["\t"] = "\\t" }))
end

--- The same, and seen even if it is empty, or nil.
function M.cell(bytes)
  return bytes == "" and '""' or bytes and M.line(bytes) or "-"
end

--- Lines made of rows of cells, each column as wide as its widest cell but for the last of a row.
function M.columns(rows)
  local widths, lines = {}, {}
  for _, row in ipairs(rows) do
    for i = 1, #row - 1 do
      widths[i] = math.max(widths[i] or 0, utf8.len(row[i]))
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

--- Writes them.
function M.table(rows)
  for _, line in ipairs(M.columns(rows)) do
    M.write(line, "\n")
  end
end

--- Numbers ------------------------------------------------------------------------------------

--- A number in full: an integer, or up to six digits after the point.
function M.number(value)
  if math.type(value) == "integer" then
    return ("%d"):format(value)
  end
  return (("%.6f"):format(value):gsub("%.?0+$", ""))
end

--- A span of time for people.
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

--- When something happens, from now: "in 5.0 s", "2 min ago".
function M.from_now(time, now)
  return time > now and "in " .. M.span(time - now) or M.span(now - time) .. " ago"
end

--- A time of day in UTC, to the second.
function M.time(seconds)
  return os.date("!%Y-%m-%dT%H:%M:%SZ", math.floor(seconds))
end

--- How many leases have not lapsed.
function M.live_leases(stats, now)
  local count = 0
  for _, lease in ipairs(stats.leases) do
    count = count + (lease.deadline >= now and 1 or 0)
  end
  return count
end

--- Rows of a table that tell what waits.
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

-- How destinations write messages down; needs lua-cjson.
local function written()
  return require("outbox.publishers.format")
end

local Array = {}

--- Marks a list, for an empty one to be `[]`.
function M.array(list)
  return setmetatable(list, Array)
end

local json

local function members(object)
  local list = {}
  for name, value in pairs(object) do
    name = M.line(name)
    if type(value) == "string" and not utf8.len(value) then
      name, value = name .. "_base64", written().base64(value)
    end
    list[#list + 1] = json(name) .. ":" .. json(value)
  end
  table.sort(list)
  return list
end

function json(value)
  if type(value) == "string" then
    return written().encode(value)
  elseif type(value) == "number" and math.abs(value) < math.huge then
    return M.number(value)
  elseif type(value) == "boolean" then
    return tostring(value)
  elseif type(value) ~= "table" then
    return "null" -- as in headers that plain SQL has published, or as good as that: 1e999
  elseif getmetatable(value) ~= Array and #value == 0 then
    return "{" .. table.concat(members(value), ",") .. "}"
  end
  local list = {}
  for i, element in ipairs(value) do
    list[i] = json(element)
  end
  return "[" .. table.concat(list, ",") .. "]"
end

--- The object itself, its times as destinations write them.
function M.stamp(object)
  for _, name in ipairs({ "created_at", "due_at", "died_at", "claimed_at", "deadline" }) do
    object[name] = object[name] and written().time(object[name])
  end
  return object
end

--- An object in one line of JSON, its members in the order of their names. JSON is UTF-8: a member
-- that is not becomes one with "_base64" after its name.
M.json = json

return M
