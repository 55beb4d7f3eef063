-- Spans of time, measured with a clock that may be set back. A span that began in the future has
-- ended, because the clock was set back since.

local Timer = {}
Timer.__index = Timer

--- A span of so many seconds from now on: `since` when, and `at` which time it ends.
function Timer:span(seconds)
  local since = self.now()
  return { since = since, at = since + seconds }
end

--- How many seconds of a span are left, 0 when it has ended, or there is none. Less than a
-- microsecond counts as 0, because the database knows no shorter time.
function Timer:left(span)
  if not span then
    return 0
  end
  local now = self.now()
  local left = span.at - now
  return (now < span.since or left < 0.5e-6) and 0 or left
end

--- Makes a timer of a clock's `now`, which returns seconds since the epoch.
return function(now)
  return setmetatable({ now = now }, Timer)
end
