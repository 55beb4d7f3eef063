-- The retry policy: how long an entry waits after a failed delivery, and when it is given up.
--
-- A policy is a function `(entry, attempts)`. It returns the seconds until the next attempt, or nil
-- when the entry is to become a dead letter. `attempts` counts the failed deliveries of the entry,
-- the last one included.

local errors = require("outbox.error")

local max, min, random = math.max, math.min, math.random

local M = {}

--- The longest delay before a retry, even if more is asked for: a year, in seconds.
M.MAX_DELAY = 365 * 86400

--- The longest delay that a destination or a publisher may ask for, in seconds. One that asks for
-- more, by mistake or in milliseconds, must not park a message for years.
M.MAX_RETRY_AFTER = 3600

--- A random time from 0 to `base * factor ^ (n - 1)` seconds, at most `cap`: exponential backoff
-- with full jitter. `n` is 1 after the first failure.
function M.backoff(backoff, n)
  return random() * min(backoff.cap, backoff.base * backoff.factor ^ (n - 1))
end

local function default_delay(backoff, attempts)
  return min(M.backoff(backoff, attempts), M.MAX_DELAY)
end

-- The policy that a table `{base, factor, cap, max_attempts}` describes.
local function exponential(backoff)
  return function(_, attempts)
    if attempts < backoff.max_attempts then
      return default_delay(backoff, attempts)
    end
  end
end

-- Why a policy's answer cannot be used; nil when it can.
local function find_fault(ok, answer)
  if not ok then
    return "retry raised: " .. errors.text(answer)
  elseif type(answer) == "number" then
    local is_finite = answer == answer and answer ~= math.huge and answer ~= -math.huge
    return not is_finite and "retry returned a number that is not finite" or nil
  elseif answer ~= nil then
    return ("retry returned a %s, not nil or a number"):format(type(answer))
  end
end

-- The policy that a user's function is.
local function guarded(fn, backoff, report)
  return function(entry, attempts)
    local ok, answer = pcall(fn, entry, attempts)
    local fault = find_fault(ok, answer)
    if fault then
      report(errors.new("hook", fault, answer))
      return default_delay(backoff, attempts)
    end
    return answer and max(0, min(answer, M.MAX_DELAY))
  end
end

--- Makes a policy, which never raises, from the option `retry`. `backoff` is a table `{base,
-- factor, cap, max_attempts}`. It is the policy, unless `retry` is a function. An error of that
-- function neither loses nor buries an entry: it is passed to `report`, and the delay is that of
-- `backoff`, whatever its `max_attempts` says. A negative delay is 0, one of more than a year is a
-- year.
function M.policy(retry, backoff, report)
  return type(retry) == "function" and guarded(retry, backoff, report) or exponential(backoff)
end

return M
