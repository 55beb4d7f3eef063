-- The agenda of a processor: the times at which it has to look for work, each under a name, and one
-- time before which no commit wakes it.
--
--    look     claim again, because the process interval is over
--    due      claim again, because an entry of outbox_delayed falls due
--    renewal  claim again, because half of the claim's duration is over
--    reclaim  claim again before the next batch is read, even if the claim holds more entries
--    sweep    let the next claim read again from the first entry
--
-- The first three end a sleep. The last two are asked for when there is work.

local new_timer = require("outbox.processor.timer")

local huge, min = math.huge, math.min

local WAKING = { "look", "due", "renewal" }

local Agenda = {}
Agenda.__index = Agenda

local function set(self, name, since, at)
  local span = self.times[name]
  if span then -- the same table again, because the claim is renewed with every batch
    span.since, span.at = since, at
  else
    self.times[name] = { since = since, at = at }
  end
end

--- The time `name` comes `seconds` after the time `since`, by default after now. It has also come
-- when the clock is set back to before `since`.
function Agenda:set(name, seconds, since)
  since = since or self.timer.now()
  set(self, name, since, since + seconds)
end

--- The time `name` comes when the clock shows `at`; never, if that is nil.
function Agenda:set_at(name, at)
  if at then
    set(self, name, -huge, at)
  else
    self.times[name] = nil
  end
end

--- Lets the time `name` come in at most `seconds`. Returns the time in so many seconds.
function Agenda:set_sooner(name, seconds)
  local at, known = self.timer.now() + seconds, self.times[name]
  if not known or at < known.at then
    self:set_at(name, at)
  end
  return at
end

--- The time `name` never comes, unless it is set again.
function Agenda:cancel(name)
  self.times[name] = nil
end

--- Whether the time `name` has come.
function Agenda:has_come(name)
  local span = self.times[name]
  return span ~= nil and self.timer:left(span) == 0
end

--- Seconds until the first time that ends a sleep.
function Agenda:next()
  local seconds = huge
  for _, name in ipairs(WAKING) do
    local span = self.times[name]
    if span then
      seconds = min(seconds, self.timer:left(span))
    end
  end
  return seconds
end

--- For so many seconds from now no commit wakes the processor. This replaces an earlier pause.
function Agenda:pause(seconds)
  self.not_before = self.timer:span(seconds)
end

--- Ends the pause.
function Agenda:resume()
  self.not_before = nil
end

--- How many seconds of the pause are left; 0 if there is none.
function Agenda:paused_for()
  local left = self.not_before and self.timer:left(self.not_before) or 0
  if left == 0 then
    self.not_before = nil
  end
  return left
end

--- Makes an agenda. The times to look, to reclaim and to sweep have come.
return function(now)
  local self = setmetatable({ timer = new_timer(now), times = {}, not_before = nil }, Agenda)
  for _, name in ipairs({ "look", "reclaim", "sweep" }) do
    self:set(name, 0)
  end
  return self
end
