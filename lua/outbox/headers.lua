--- Headers: a table of strings in Lua, a JSON object in the database, so that SQL can read them.
-- The first message or entry that has headers loads this module and lua-cjson.
-- @module outbox.headers

local need = require("outbox.need")

local cjson = need("cjson", "headers need lua-cjson", "lua-cjson")
-- An instance of our own, so that the application's settings of the shared one do not matter here.
local json = cjson.new()

local M = {}

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
  return decoded and headers or text
end

return M
