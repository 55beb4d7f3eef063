-- How the destinations write a message down: as one line of JSON, times as RFC 3339, bytes that
-- JSON cannot hold as base64.

local need = require("outbox.need")

-- An instance of our own: whatever the application sets on the shared one stays its own.
local json = need("cjson", "JSON needs lua-cjson", "lua-cjson").new()
json.decode_invalid_numbers(false)

local M = {}

local DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

function M.base64(bytes)
  local digits = bytes:gsub("..?.?", function(group)
    local a, b, c = group:byte(1, 3)
    local number = a << 16 | (b or 0) << 8 | (c or 0)
    local four = ""
    for shift = 18, 0, -6 do
      local digit = number >> shift & 63
      four = four .. DIGITS:sub(digit + 1, digit + 1)
    end
    return c and four or b and four:sub(1, 3) .. "=" or four:sub(1, 2) .. "=="
  end)
  return digits
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
