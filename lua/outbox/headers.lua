--- Headers: a table of strings in Lua, a JSON object in the database, so that SQL can read them.
-- Loaded, with lua-cjson, when the first message or entry with headers comes by.

local ok, cjson = pcall(require, "cjson")
if not ok then
  error("headers need lua-cjson: luarocks install lua-cjson", 0)
end
-- An instance of our own: whatever the application sets on the shared one stays its own.
local json = cjson.new()

local M = {}

--- Makes JSON of headers.
---@param headers table<string, string>
---@return string
function M.encode(headers)
  for name, value in pairs(headers) do
    if type(name) ~= "string" or type(value) ~= "string" then
      error(("headers must be strings: %s = %s"):format(name, value), 0)
    end
  end
  return json.encode(headers)
end

--- Makes headers of JSON.
---@param text string
---@return table<string, string>
function M.decode(text)
  return json.decode(text)
end

return M
