-- Converters of arguments: each takes a text, and returns its value, or nil and what is wrong.

local option = require("outbox.options")

local M = {}

function M.number(text)
  local number = text:find("^[%d.]+$") and tonumber(text)
  return number, ("'%s' is not a number"):format(text)
end

function M.seconds(text)
  local seconds = M.number(text)
  local ok, wanted = option.seconds(seconds)
  return ok and seconds or nil, ("'%s' is not %s"):format(text, wanted)
end

function M.integer(text)
  local integer = text:find("^%-?%d+$") and math.tointeger(tonumber(text))
  return integer, ("'%s' is not an integer"):format(text)
end

function M.count(text)
  local count = M.integer(text)
  return count and count > 0 and count or nil, ("'%s' is not an integer above 0"):format(text)
end

function M.rate(text)
  local number = M.number(text)
  return number and number > 0 and { per_second = number } or nil,
    ("'%s' is not a number above 0"):format(text)
end

function M.pair(text)
  local name, value = text:match("^([^=]+)=(.*)$")
  return name and { name = name, value = value }, ("'%s' is not NAME=VALUE"):format(text)
end

return M
