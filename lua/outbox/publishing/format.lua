-- How destinations write a message: as one line of JSON, times as RFC 3339, bytes that are not
-- UTF-8 as base64. Needs lua-cjson.

local need = require("outbox.need")

-- An instance of our own, so that the application's settings of the shared one do not matter here.
local json = need("cjson", "JSON needs lua-cjson", "lua-cjson", "lua-cjson").new()
json.decode_invalid_numbers(false)
json.encode_invalid_numbers("null") -- 1e999, in headers that plain SQL published, is infinity

local source_of = require("outbox.headers").source

local M = {}

local DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
-- Bytes that are encoded at a time. A table of the pairs of a whole payload would take ten times
-- the payload's memory.
local PIECE = 3072

local PAIRS = {} -- the two digits of each 12 bits
for bits = 0, 4095 do
  local high, low = (bits >> 6) + 1, (bits & 63) + 1
  PAIRS[bits] = DIGITS:sub(high, high) .. DIGITS:sub(low, low)
end

--- Encodes bytes as base64, with padding.
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

local second, second_text -- the last second and its text, because many messages share it

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

--- Returns whether the text is JSON that lua-cjson can decode, and the value.
function M.decode(text)
  if utf8.len(text) then
    return pcall(json.decode, text)
  end
  return false
end

-- Whether a text that lua-cjson decodes is JSON by the standard. lua-cjson also accepts control
-- characters in strings, any bytes after a NUL, and numbers such as `1.` and `-.5`.
local function is_standard(text)
  if not text:find("[%c.]") then
    return true
  end
  local rest = text:gsub("\\.", ""):gsub('"[^"\0-\31]*"', ""):gsub("%d%.%d", "")
  return not rest:find('[".\0]')
end

--- Whether the text is JSON by the standard.
function M.is_json(text)
  return is_standard(text) and M.decode(text)
end

--- Returns the JSON in which a message's headers lie in the database, byte for byte; nil if they do
-- not come from there, were changed since, or are no JSON by the standard.
function M.source(headers)
  local text = source_of(headers)
  return text and is_standard(text) and text or nil
end

--- Returns the headers of a message as JSON. They may also be a text, one that lua-cjson refuses.
function M.headers(headers)
  return type(headers) == "string" and headers or M.source(headers) or json.encode(headers)
end

--- Replaces "{namespace}" and "{key}" in a name. Where one of them is empty, or there is no key, a
-- separator (`:`, `.` or `/`) before it is removed, too: "outbox:{namespace}" becomes "outbox". The
-- result is "outbox" if it would be empty.
function M.expand(name, namespace, key)
  local expanded = name:gsub("([:./]?){(%l+)}", function(separator, field)
    local value = field == "namespace" and namespace or field == "key" and (key or "") or nil
    return value and (value ~= "" and separator .. value or "")
  end)
  return expanded ~= "" and expanded or "outbox"
end

--- Returns a function of a namespace and a key that expands the name; an empty one stays empty. It
-- returns besides what `check`, if there is one, says of the result. It remembers both where the
-- key is not in the name.
function M.expander(name, check)
  local has_key, last, expanded, judged = name:find("{key}", 1, true), nil, nil, nil
  return function(namespace, key)
    if has_key or namespace ~= last then
      last, expanded = namespace, name ~= "" and M.expand(name, namespace, key) or ""
      judged = check and check(expanded)
    end
    return expanded, judged
  end
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

--- Returns a message as one line, without the line feed. A field whose bytes are not UTF-8 is named
-- `<name>_base64`.
function M.line(message)
  local fields = {}
  for _, name in ipairs({ "id", "source_id", "namespace", "key", "payload" }) do
    add(fields, name, message[name], json.encode)
  end
  local headers = message.headers
  if type(headers) == "string" then -- JSON that lua-cjson refuses
    add(fields, "headers", headers, json.encode)
  elseif headers ~= nil then
    -- In JSON a line break can only stand between two tokens.
    add(fields, "headers", (M.headers(headers):gsub("[\r\n]", " ")), as_it_is)
  end
  fields[#fields + 1] = ('"created_at":"%s"'):format(M.time(message.created_at))
  fields[#fields + 1] = '"attempts":' .. message.attempts
  if message.seq then
    fields[#fields + 1] = '"seq":' .. message.seq
  end
  return "{" .. table.concat(fields, ",") .. "}"
end

--- Returns all messages as lines, each with its line feed.
function M.lines(messages)
  local lines = {}
  for i, message in ipairs(messages) do
    lines[i] = M.line(message) .. "\n"
  end
  return table.concat(lines)
end

return M
