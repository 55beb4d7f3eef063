-- The errors of the parts in Lua: tables with a code and a message, as the store's.

local M = {}

local Problem = {
  __name = "outbox.error",
  __tostring = function(self)
    return ("outbox: %s (%s)"):format(self.message, self.code)
  end,
}

--- Makes an error; `cause` is the value that it stems from.
function M.new(code, message, cause)
  return setmetatable({ code = code, message = message, cause = cause }, Problem)
end

--- The text of any value, even of one whose `__tostring` raises.
function M.text(value)
  local ok, string = pcall(tostring, value)
  return ok and string or "an error that cannot be shown"
end

return M
