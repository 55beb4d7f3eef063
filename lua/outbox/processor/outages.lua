-- Writes for operators which namespaces have been down for some seconds, at most once a second.
-- Each row counts as long as the processor's lease lives.

local AFTER = 5 -- seconds
local EVERY = 1 -- seconds

local Outages = {}
Outages.__index = Outages

-- Those that are down for long enough; and in how many seconds the next one is.
local function ripe(self, now)
  local list, later = {}, math.huge
  for _, outage in ipairs(self.jury:down()) do
    local left = outage.down_since + AFTER - now
    if left <= 0 then
      list[#list + 1] = outage
    else
      later = math.min(later, left)
    end
  end
  return list, later
end

-- A text that is the same for the same outages.
local function sign(list)
  local parts = {}
  for i, outage in ipairs(list) do
    parts[i] = ("%s\0%.17g\0%s"):format(outage.namespace, outage.down_since, outage.error)
  end
  return table.concat(parts, "\0")
end

--- Writes what has changed, if it is time for that.
function Outages:tell()
  if self.written == "" and self.jury:is_calm() then
    self.agenda:cancel("outages")
    return
  elseif self.timer:left(self.next) > 0 then
    self.agenda:set("outages", self.timer:left(self.next))
    return
  end
  local list, later = ripe(self, self.timer.now())
  local signature = sign(list)
  self.next = self.timer:span(EVERY)
  self.agenda:set("outages", later)
  if signature ~= self.written and self.store:note_outages(list) then
    self.written = signature
  end
end

--- The processor has lost its lease, so its rows count no more.
function Outages:forget()
  self.written = ""
end

--- Makes it for a processor.
return function(store, jury, agenda)
  return setmetatable({ store = store, jury = jury, agenda = agenda, timer = agenda.timer,
    next = agenda.timer:span(0), written = "" }, Outages)
end
