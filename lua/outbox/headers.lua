--- Headers: a table of strings in Lua, a JSON object in the database, so that SQL can read them.
-- The first message or entry that has headers loads this module and lua-cjson.
-- @module outbox.headers

local need = require("outbox.need")

local cjson = need("cjson", "headers need lua-cjson", "lua-cjson", "lua-cjson")
-- An instance of our own, so that the application's settings of the shared one do not matter here.
local json = cjson.new()
json.decode_invalid_numbers(false)

local M = {}

-- A table of Lua does not hold all that JSON does: 64-bit integers, `[]`, the order of names.
-- Therefore decoded headers have a metatable of their own, a list without metamethods: this mark,
-- the JSON, and a copy of the table, which shows whether it was changed since.
local MARK = {}

local function copy(value)
  if type(value) ~= "table" then
    return value
  end
  local result = {}
  for name, field in next, value do
    result[name] = copy(field)
  end
  return result
end

local function are_equal(a, b)
  if type(a) ~= "table" or type(b) ~= "table" then
    return rawequal(a, b)
  end
  for name, field in next, a do
    if not are_equal(field, rawget(b, name)) then
      return false
    end
  end
  for name in next, b do
    if rawget(a, name) == nil then
      return false
    end
  end
  return true
end

--- Encodes headers as JSON. Raises if a name or a value is not a string.
---@param headers table<string, string>
---@return string
function M.encode(headers)
  local object = {} -- a copy made by `pairs`, because the table may have a `__pairs` metamethod
  for name, value in pairs(headers) do
    if type(name) ~= "string" then
      error(("headers must be named by strings, not by a %s"):format(type(name)), 0)
    elseif type(value) ~= "string" then -- the message leaves the value out: it may be a secret
      error(("headers must be strings: '%s' is a %s"):format(name, type(value)), 0)
    end
    object[name] = value
  end
  return json.encode(object)
end

--- Decodes headers from JSON. Plain SQL may have published JSON that lua-cjson refuses, a lone
-- surrogate for instance. Such a text is returned unchanged, so that one entry does not prevent all
-- others from being read.
---@param text string
---@return table<string, string>|string
function M.decode(text)
  local decoded, headers = pcall(json.decode, text)
  if not decoded or type(headers) ~= "table" then
    return text
  end
  return setmetatable(headers, { MARK, text, copy(headers) })
end

--- Returns the text from which `decode` made these headers; nil if they are not of `decode`, or
-- were changed since. The text may be something that lua-cjson reads although it is no JSON.
---@param headers table
---@return string?
function M.source(headers)
  local source = getmetatable(headers)
  if type(source) == "table" and rawequal(source[1], MARK) and are_equal(headers, source[3]) then
    return source[2]
  end
end

return M
