-- The error type: a table with a `code` and a `message`, the same as the store raises.

local core = require("outbox.core")

local M = {}

local Error = core.Error

--- Makes an error.
---@param code string
---@param message string
---@param cause? any the value that caused the error
---@return outbox.error
function M.new(code, message, cause)
  return setmetatable({ code = code, message = message, cause = cause }, Error)
end

-- The most fields of a table that its text shows, and the most bytes of each.
local MAX_FIELDS, MAX_FIELD = 16, 200

local function quote(value)
  local text = tostring(value)
  if #text > MAX_FIELD then
    text = text:sub(1, MAX_FIELD) .. "…"
  end
  return type(value) == "string" and ("%q"):format(text):gsub("\\\n", "\\n") or text
end

local function show_fields(value)
  local fields = {}
  for name, field in pairs(value) do
    fields[#fields + 1] = ("%s = %s"):format(type(name) == "string" and name or quote(name),
      type(field) == "table" and "{...}" or (quote(field)))
    if #fields > MAX_FIELDS then
      fields[#fields] = "..."
      break
    end
  end
  table.sort(fields)
  return fields[1] and ("{ %s }"):format(table.concat(fields, ", ")) or "an empty table"
end

local function show(value)
  local metatable = getmetatable(value)
  if type(value) ~= "table" or metatable and (type(metatable) ~= "table" or metatable.__tostring)
  then
    return tostring(value)
  end
  local message = value.message
  return type(message) == "string" and message or show_fields(value)
end

--- Returns the text of any value, even of one whose `__tostring` raises. The text of a table
-- without a `__tostring` is its field `message`, if that is a string, or else its fields.
---@param value any
---@return string
function M.text(value)
  local ok, text = pcall(show, value)
  return ok and text or "an error that cannot be shown"
end

return M
