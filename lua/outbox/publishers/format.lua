-- How the destinations write a message down: as one line of JSON, times as RFC 3339, bytes that
-- JSON cannot hold as base64.

local need = require("outbox.need")

-- An instance of our own: whatever the application sets on the shared one stays its own.
local json = need("cjson", "JSON needs lua-cjson", "lua-cjson").new()
json.decode_invalid_numbers(false)
json.encode_invalid_numbers("null") -- 1e999, in headers of plain SQL's, is read as infinite

local M = {}

local DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
local PIECE = 3072 -- bytes: a list of the pairs of all of them would take ten times their memory

local PAIRS = {} -- the two digits of each 12 bits
for bits = 0, 4095 do
  local high, low = (bits >> 6) + 1, (bits & 63) + 1
  PAIRS[bits] = DIGITS:sub(high, high) .. DIGITS:sub(low, low)
end

function M.base64(bytes)
  local pieces, digits = {}, {}
  for first = 1, #bytes, PIECE do
    local count = 0
    for i = first, math.min(first + PIECE - 1, #bytes), 3 do
      local a, b, c = bytes:byte(i, i + 2)
      local number = a << 16 | (b or 0) << 8 | (c or 0)
      digits[count + 1], digits[count + 2] = PAIRS[number >> 12], PAIRS[number & 4095]
      count = count + 2
    end
    pieces[#pieces + 1] = table.concat(digits, "", 1, count)
  end
  local padding = ("="):rep(-#bytes % 3)
  return table.concat(pieces):sub(1, -1 - #padding) .. padding
end

local second, second_text -- the last one: many messages share it

--- Seconds since the epoch as RFC 3339, in UTC.
function M.time(seconds)
  local microseconds = math.floor(seconds * 1e6 + 0.5)
  local whole = microseconds // 1000000
  if whole ~= second then
    second_text = os.date("!%Y-%m-%dT%H:%M:%S", whole)
    second = whole
  end
  return ("%s.%06dZ"):format(second_text, microseconds % 1000000)
end

M.encode = json.encode

--- Whether lua-cjson can read it, and what it says.
function M.decode(text)
  if utf8.len(text) then
    return pcall(json.decode, text)
  end
  return false
end

--- Whether it is JSON for everybody: lua-cjson also takes control characters in strings, anything
-- after a NUL, and numbers such as `1.` and `-.5`.
function M.is_json(text)
  local rest = text:gsub("\\.", ""):gsub('"[^"\0-\31]*"', ""):gsub("%d%.%d", "")
  return not rest:find('[".\0]') and M.decode(text)
end

--- Puts the namespace in where a name has "{namespace}"; where it is empty, what parts it from the
-- rest goes too: "outbox" is left of "outbox:{namespace}". A name is never empty.
function M.expand(name, namespace)
  local pattern = namespace == "" and "[:./]?{namespace}" or "{namespace}"
  local expanded = name:gsub(pattern, function()
    return namespace
  end)
  return expanded ~= "" and expanded or "outbox"
end

local function add(fields, name, value, encode)
  if value and utf8.len(value) then
    fields[#fields + 1] = ('"%s":'):format(name) .. encode(value)
  elseif value then
    fields[#fields + 1] = ('"%s_base64":"%s"'):format(name, M.base64(value))
  end
end

local function as_it_is(value)
  return value
end

--- One line, without its end. A field of bytes that are not UTF-8 is called `<name>_base64`.
function M.line(message)
  local fields = {}
  for _, name in ipairs({ "id", "namespace", "key", "payload" }) do
    add(fields, name, message[name], json.encode)
  end
  local headers = message.headers
  if type(headers) == "string" then -- JSON that lua-cjson refuses
    add(fields, "headers", headers, json.encode)
  elseif headers ~= nil then
    add(fields, "headers", json.encode(headers), as_it_is)
  end
  fields[#fields + 1] = ('"created_at":"%s"'):format(M.time(message.created_at))
  fields[#fields + 1] = '"attempts":' .. message.attempts
  return "{" .. table.concat(fields, ",") .. "}"
end

--- All messages as lines.
function M.lines(messages)
  local lines = {}
  for i, message in ipairs(messages) do
    lines[i] = M.line(message) .. "\n"
  end
  return table.concat(lines)
end

return M
