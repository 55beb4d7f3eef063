-- What the jury remembers of one namespace: how its last calls went, until when it rests, and which
-- of its messages are suspects; and what it wants its next call to be.

local huge, max, min = math.huge, math.max, math.min

local JUST = 1 -- seconds: a success that is older is no evidence that the destination is up
local MOST = 1000 -- messages that are remembered
local OVERDUE = 30 -- seconds after which the store has not found a message that it should find

local Docket = {}
Docket.__index = Docket

--- Three failures in a row rest the namespace.
Docket.FEW = 3

function Docket:left(span)
  return self.timer:left(span)
end

--- Remembers a message; nil where there are too many. Its fields: `n`, how many times it failed
-- alone, 0 if it was in a call that told nothing, nil without a suspicion; `state`, nil while it
-- is where it was, "aside", or "waits" until it may be tried again; the span `due`, until when;
-- and `told`, how many times it was told to wait.
function Docket:know(place, id)
  local it = self.known[place]
  if not it and self.count < MOST then
    it = { seq = place, id = id }
    self.known[place], self.count = it, self.count + 1
  end
  return it
end

--- Notes since when nothing gets through, and why: the last call took so many seconds.
function Docket:note_outage(seconds, reason)
  if self.row == 0 then
    self.down_since = nil
  else
    self.down_since = self.down_since or self.timer.now() - seconds
    self.reason = reason or self.reason
  end
end

--- Forgets a message.
function Docket:clear(place)
  if self.known[place] then
    self.known[place], self.count = nil, self.count - 1
  end
  if self.accused and self.accused.seq == place then
    self.accused = nil
  end
end

--- Whether something had just got through, so many seconds ago.
function Docket:is_warm(ago)
  local since = self.ok and self.timer.now() - ago - self.ok
  return since ~= nil and since <= JUST and since + ago >= 0
end

--- Whether all is well, and no message is to be tried alone as soon as may be.
function Docket:is_well()
  if self.row > 0 or self.accused or self.w < self.top or self.paced and self.looks < 2 then
    return false
  end
  for _, it in pairs(self.known) do
    if it.n and (not it.state or self:left(it.due) == 0) then
      return false
    end
  end
  return true
end

local ELSEWHERE = { "newest", "random", "newest", "oldest" }
local RESTING = { "newest", "random", "newest" }

local function is_overdue(self, it)
  return it.due ~= nil and self.timer.now() - it.due.at > OVERDUE
end

-- Returns the place of the known message to be tried now. A message is *doubted* if it was in a
-- call that told nothing and was not tried since: the newest of these comes first. Of the messages
-- whose time has come, the one that failed alone least often comes next, and of equal ones the
-- oldest. Also returns in how many seconds another one's time comes, and the places of all doubted
-- ones, nil if there are none.
local function next_known(self, in_vain)
  local warm, later, places, doubted, other, least = self:is_warm(0), huge, {}, nil, nil, huge
  for place, it in pairs(self.known) do
    local n, seconds = it.n or 0, it.state and self:left(it.due)
    if not seconds then
      doubted = max(doubted or place, place)
      places[#places + 1] = place
    elseif seconds > 0 then
      later = min(later, seconds)
    elseif in_vain or warm or it.told and is_overdue(self, it) then
      if not (n > 0 and self.accused) and (n < least or n == least and place < other) then
        other, least = place, n
      end
    end
  end
  local first = self.row == 0 or self.row < self.FEW and ELSEWHERE[self.turn % 4 + 1] == "oldest"
  return first and doubted or other or in_vain and doubted, later, doubted and places
end

-- Where to look for messages; nil: nowhere. While time is `owed` to others than those `doubted`,
-- that is not among the oldest, where these lie.
local function look(self, owed, doubted)
  owed = owed and doubted
  if self.looks >= 2 or owed and self.looks > 0 then
    return nil
  elseif self.looks > 0 or self.row == 0 and not owed then
    return "oldest"
  end
  local list = (owed or self.row >= self.FEW) and RESTING or ELSEWHERE
  return list[self.turn % #list + 1]
end

--- What the next call is to be, as `advance` takes it; nil and for how many seconds nothing. For
-- `debt` seconds from now time is owed to others; `idle`: there is nothing of anybody's.
function Docket:choose(debt, idle)
  local rest = self:left(self.rest)
  if rest > 0 then
    return nil, rest
  elseif self.row >= self.FEW and debt > 0 then
    return nil, debt
  elseif self.accused and self:left(self.until_then) == 0 then
    self.accused = nil -- nobody came who could tell
  end
  local in_vain = self.parked and self.looks >= 2 or not self.parked and idle
  local place, later, doubted = next_known(self, in_vain)
  if place and debt == 0 then
    return { where = "place", place = place, batch_size = 1, space = self }
  end
  local where = self.parked and look(self, debt > 0, doubted)
  if where then
    return { where = where, namespace = self.name, avoid = debt > 0 and doubted or nil,
      batch_size = doubted and debt == 0 and 1 or self.w, space = self }
  end
  later = min(later, self.accused and self:left(self.until_then) or huge)
  return nil, debt > 0 and min(later, debt) or later
end

--- The store has found so many entries where it looked for this namespace.
function Docket:note_look(where, count)
  if self.looks == 0 then
    self.turn = self.turn + 1
  end
  if count == 0 then
    self.looks = where == "oldest" and 2 or self.looks + 1
  end
end

--- Makes the docket of a namespace, of which a call may have `size` messages.
return function(name, size, timer)
  return setmetatable({
    name = name, timer = timer,
    parked = false,
    w = size, -- how many messages its next call may have
    top = size, -- up to which that number grows
    row = 0, f = 0, -- failures in a row; those of different messages
    rest = nil, -- a span: until when it is not called
    paced = false, -- whether it rests because of its rate
    down_since = nil, reason = nil, -- when that row began, and why
    ok = nil, -- when something got through last, unless something failed since
    turn = 0, -- where to look next after a failure
    looks = 0, -- how many times in a row nothing was found there; 2: there is nothing
    known = {}, count = 0, -- messages, by place
    accused = nil, -- the failure of the message that stands accused
    until_then = nil, witnesses = 0,
  }, Docket)
end
