-- Calls a publisher, and reads what it answers.

local errors = require("outbox.error")
local MAX_RETRY_AFTER = require("outbox.retry").MAX_RETRY_AFTER

local text = errors.text

local M = {}

--- Makes the error that a publisher returned something that it must not. `cause` is that value.
function M.new_error(what, cause)
  return errors.new("publisher", "the publisher returned " .. what, cause)
end

--- Calls the publisher. Returns the failures by index in `messages`, nil for none; or nil and an
-- error. `nil, reason` and false are how Lua's own libraries fail, so they do not count as success.
function M.ask(publish, messages, namespace)
  local count = #messages
  local ok, result, reason = pcall(publish, messages, namespace)
  local wrong
  if not ok then
    return nil, errors.new("publisher", text(result), result)
  elseif result == true or (result == nil and reason == nil) then
    return nil
  elseif result == nil or result == false then
    return nil, errors.new("publisher", text(reason), reason)
  elseif type(result) ~= "table" then
    wrong = ("a %s, not true, nothing or a table of failures"):format(type(result))
  else
    for j in pairs(result) do
      if math.type(j) ~= "integer" or j < 1 or j > count then
        wrong = ("a failure of message %s, of %d"):format(text(j), count)
      end
    end
  end
  if wrong then
    return nil, M.new_error(wrong)
  end
  return result
end

local function read_fields(failure)
  local reason, permanent, delay = failure.reason, failure.permanent, failure.retry_after
  local uncharged = failure.uncharged
  if reason == nil and permanent == nil and delay == nil and uncharged == nil then
    return text(failure)
  end
  local seconds, fault = tonumber(delay), nil
  if delay and not (seconds and seconds >= 0) then -- NaN is not >= 0 either
    seconds = nil
    fault = ("a failure with retry_after = %s, not a number of seconds from 0"):format(text(delay))
  end
  return text(reason), permanent, seconds and math.min(seconds, MAX_RETRY_AFTER),
    uncharged and not permanent, fault
end

--- Reads one failure, which may be any value. Returns the text of the reason; whether the failure
-- is permanent; how many seconds to wait, nil where it does not say; whether the message is not
-- charged for it; and what is wrong with the failure, nil where nothing is.
function M.understand(failure)
  if type(failure) == "table" then
    local ok, reason, permanent, delay, uncharged, fault = pcall(read_fields, failure)
    if ok then
      return reason, permanent, delay, uncharged, fault
    end
  end
  return text(failure)
end

return M
