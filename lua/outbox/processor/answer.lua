-- Calls a publisher, and reads what it answers.

local errors = require("outbox.error")
local MAX_RETRY_AFTER = require("outbox.retry").MAX_RETRY_AFTER

local text = errors.text

local M = {}

--- Makes the error that a publisher returned something that it must not. `cause` is that value.
function M.new_error(what, cause)
  return errors.new("publisher", "the publisher returned " .. what, cause)
end

-- The fields of a failure.
local FIELDS = { reason = true, permanent = true, retry_after = true, uncharged = true }

-- Returns the name of an unknown field of a failure, nil without one. An object that has a text of
-- its own is a reason as it is, whatever its fields.
local function find_unknown(failure)
  if type(failure) ~= "table" then
    return nil
  end
  local metatable = getmetatable(failure)
  if metatable and (type(metatable) ~= "table" or metatable.__tostring) then
    return nil
  end
  for name in pairs(failure) do
    if not FIELDS[name] then
      return text(name)
    end
  end
end

-- Returns a copy of the failures, which calls no metamethods; what is wrong with the whole; and
-- what is wrong with one of them.
local function read_failures(result, count)
  local failures, fault = {}, nil
  for j in pairs(result) do
    if math.type(j) ~= "integer" or j < 1 or j > count then
      return nil, ("a failure of message %s, of %d"):format(text(j), count)
    end
  end
  for j = 1, count do
    local failure = result[j]
    failures[j] = failure
    local ok, unknown = pcall(find_unknown, failure)
    if ok and unknown and not fault then
      fault = ("the failure of message %d has an unknown field '%s'"):format(j, unknown)
    end
  end
  return failures, nil, fault
end

local function new_error(message, cause)
  return errors.new("publisher", message, cause)
end

-- The error of a call that raised, or that returned nothing but a reason.
local function refusal(ok, result, reason)
  if not ok then
    return new_error(result == nil and "the publisher raised nil" or text(result), result)
  elseif reason == nil then
    return new_error("the publisher returned false", false)
  end
  return new_error(text(reason), reason)
end

--- Calls the publisher. Returns the failures by index in `messages`, nil for none; or nil and an
-- error. `nil, reason` and false are how Lua's own libraries fail, so they do not count as success.
-- The third result is an error that is only to be reported: one of the failures has a fault, but it
-- is a failure all the same.
function M.ask(publish, messages, namespace)
  local count = #messages
  local ok, result, reason = pcall(publish, messages, namespace)
  if ok and (result == true or (result == nil and reason == nil)) then
    return nil
  elseif not ok or not result then
    return nil, refusal(ok, result, reason)
  elseif type(result) ~= "table" then
    return nil, M.new_error(("a %s, not true, nothing or a table of failures"):format(type(result)),
      result)
  end
  local is_read, failures, wrong, fault = pcall(read_failures, result, count)
  if not is_read then
    return nil, new_error("the failures that the publisher returned raised: " .. text(failures),
      failures)
  elseif wrong then
    return nil, M.new_error(wrong, result)
  end
  return failures, nil, fault and new_error(fault, result)
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

--- Reads one failure, which may be any value but nil and false. Returns the text of the reason;
-- whether the failure is permanent; how many seconds to wait, nil where it does not say; whether
-- the message is not charged for it; and what is wrong with the failure, nil where nothing is.
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
