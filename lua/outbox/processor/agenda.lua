-- The agenda of a processor: the times at which it has to look for work, each under a name, and one
-- time before which no commit wakes it.
--
--    look     because the process interval is over
--    due      because a delayed entry falls due, or another's claim lapses
--    renewal  because half of the claim's duration is over
--    join     because a processor that stands by asks for a share
--    outages  because it is to be written which namespaces are down

local new_timer = require("outbox.processor.timer")

local huge, min = math.huge, math.min

local WAKING = { "look", "due", "renewal", "join", "outages" }

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

--- The time `name` comes in so many seconds. It has also come when the clock is set back to before
-- now.
function Agenda:set(name, seconds)
  local now = self.timer.now()
  set(self, name, now, now + seconds)
end

--- The time `name` comes when the clock shows `at`; never, if that is nil.
function Agenda:set_at(name, at)
  if at then
    set(self, name, -huge, at)
  else
    self.times[name] = nil
  end
end

--- The time `name` never comes, unless it is set again.
function Agenda:cancel(name)
  self.times[name] = nil
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
  local left = self.timer:left(self.not_before)
  if left == 0 then
    self.not_before = nil
  end
  return left
end

--- Makes an agenda. The time to look has come.
return function(now)
  local self = setmetatable({ timer = new_timer(now), times = {}, not_before = nil }, Agenda)
  self:set("look", 0)
  return self
end
