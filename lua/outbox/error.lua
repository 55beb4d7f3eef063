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

--- Returns the text of any value, even of one whose `__tostring` raises.
---@param value any
---@return string
function M.text(value)
  local ok, string = pcall(tostring, value)
  return ok and string or "an error that cannot be shown"
end

return M
