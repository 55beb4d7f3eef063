--- Headers: a table of strings in Lua, a JSON object in the database, so that SQL can read them.
-- Loaded, with lua-cjson, when the first message or entry with headers comes by.
-- @module outbox.headers

local need = require("outbox.need")

local cjson = need("cjson", "headers need lua-cjson", "lua-cjson")
-- An instance of our own: whatever the application sets on the shared one stays its own.
local json = cjson.new()

local M = {}

--- Makes JSON of headers.
---@param headers table<string, string>
---@return string
function M.encode(headers)
  local object = {} -- what `pairs` gives, which need not be what the table holds
  for name, value in pairs(headers) do
    if type(name) ~= "string" then
      error(("headers must be named by strings, not by a %s"):format(type(name)), 0)
    elseif type(value) ~= "string" then -- which is not shown: it may be a secret
      error(("headers must be strings: '%s' is a %s"):format(name, type(value)), 0)
    end
    object[name] = value
  end
  return json.encode(object)
end

--- Makes headers of JSON. What plain SQL has published may be JSON that lua-cjson refuses, a lone
-- surrogate for instance: it is given as it is, lest one entry keep all others from being read.
---@param text string
---@return table<string, string>|string
function M.decode(text)
  local decoded, headers = pcall(json.decode, text)
  return decoded and headers or text
end

return M
