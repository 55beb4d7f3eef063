-- What the answers of a webhook mean for a message.

local patterns = require("lpeg_patterns.http")
local phrases = require("http.h1_reason_phrases")
local MAX_RETRY_AFTER = require("outbox.retry").MAX_RETRY_AFTER

local M = {}

-- Status codes of the class 4xx that are the fault of the options or of the destination, not of a
-- message. So are all codes of other classes: a redirect, for instance, is one of every message.
local DOWN = { ["401"] = true, ["402"] = true, ["403"] = true, ["404"] = true, ["405"] = true,
  ["407"] = true, ["410"] = true, ["421"] = true, ["426"] = true, ["429"] = true }
-- Status codes of messages that may be accepted later.
local LATER = { ["408"] = true, ["425"] = true, ["429"] = true }

-- Seconds since an epoch. The time zone does not matter, because dates are only subtracted.
local function seconds_of(date)
  date.isdst = false
  return os.time(date)
end

-- The seconds that `Retry-After` asks to wait, at most an hour, or nil. It may be a date, which is
-- compared with the server's own clock if the answer has a `Date`.
local function retry_after(answer)
  local after = (patterns.Retry_After * -1):match(answer:get("retry-after") or "")
  if type(after) == "table" then
    local now = (patterns.Date * -1):match(answer:get("date") or "") or os.date("!*t")
    after = seconds_of(after) - seconds_of(now)
  end
  return after and after >= 0 and math.min(after, MAX_RETRY_AFTER) or nil -- not a date in the past
end

--- Returns nil if the answer accepts the message, else a failure. `down` marks a failure that may
-- affect every message.
function M.judge(answer, excerpt)
  local status = answer:get(":status")
  if status:sub(1, 1) == "2" then
    return nil
  end
  return {
    reason = ("%s %s %s"):format(status, phrases[status], excerpt):gsub("%s+$", ""),
    retry_after = retry_after(answer),
    permanent = status:sub(1, 1) == "4" and not LATER[status],
    uncharged = status == "429" or status == "503",
    limited = status == "429",
    down = DOWN[status] or status:sub(1, 1) ~= "4",
  }
end

return M
