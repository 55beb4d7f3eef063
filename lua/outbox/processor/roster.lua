-- The namespaces that the jury remembers: by name, in a list of those that are awake, and in a heap
-- of those that rest, by the end of their rests. So what a call costs does not grow with what
-- rests.

local Roster = {}
Roster.__index = Roster

--- The heap of rests --------------------------------------------------------------------------

local function push(heap, rest)
  local i = #heap + 1
  while i > 1 and heap[i // 2].span.at > rest.span.at do
    heap[i], i = heap[i // 2], i // 2
  end
  heap[i] = rest
end

local function pop(heap)
  local last = table.remove(heap)
  local i, count = 1, #heap
  while 2 * i <= count do
    local child = 2 * i
    if child < count and heap[child + 1].span.at < heap[child].span.at then
      child = child + 1
    end
    if last.span.at <= heap[child].span.at then
      break
    end
    heap[i], i = heap[child], child
  end
  heap[i] = count > 0 and last or nil
end

--- Namespaces ---------------------------------------------------------------------------------

local function list(self, s)
  if not s.slot then
    s.slot = #self.awake + 1
    self.awake[s.slot] = s
  end
end

-- The last of the list takes its slot, and its turn.
local function unlist(self, s)
  local slot = s.slot
  if slot then
    local last = table.remove(self.awake)
    if last ~= s then
      self.awake[slot], last.slot = last, slot
    end
    s.slot = nil
    self.last = slot == self.last and slot - 1 or self.last
  end
end

--- Adds a namespace, which is awake.
function Roster:add(s)
  self.by_name[s.name], self.number = s, self.number + 1
  list(self, s)
end

--- Removes one. The last gives the memory back.
function Roster:remove(s)
  unlist(self, s)
  self.by_name[s.name], self.number = nil, self.number - 1
  s.rest = nil
  if self.number == 0 then
    self.by_name, self.awake, self.heap, self.last = {}, {}, {}, 0
  end
end

--- A namespace rests for so many seconds.
function Roster:lay(s, seconds)
  s.rest = self.timer:span(seconds)
  unlist(self, s)
  push(self.heap, { span = s.rest, space = s })
end

--- It rests no more.
function Roster:rouse(s)
  s.rest = nil
  list(self, s)
end

-- The end of a rest. One that was broken off is still in the heap.
local function end_rest(self, s)
  s.looks = 0
  self:rouse(s)
end

--- Ends the rests whose time has come. Returns the list of those that are awake.
function Roster:up()
  local heap, now = self.heap, self.timer.now()
  if now < self.time then -- the clock was set back
    for _, s in pairs(self.by_name) do
      if s.rest and self.timer:left(s.rest) == 0 then
        end_rest(self, s)
      end
    end
  end
  self.time = now
  while heap[1] and (heap[1].space.rest ~= heap[1].span or self.timer:left(heap[1].span) == 0) do
    local first = heap[1]
    pop(heap)
    if first.space.rest == first.span then
      end_rest(self, first.space)
    end
  end
  return self.awake
end

--- Those that are awake take turns.
function Roster:next()
  self.last = self.last % #self.awake + 1
  return self.awake[self.last]
end

--- Seconds until the next rest ends; math.huge if nobody rests.
function Roster:asleep()
  self:up()
  return self.heap[1] and self.timer:left(self.heap[1].span) or math.huge
end

--- Returns the namespaces that are down, in the order of their names. Each has `down_since`,
-- `error` and `probe_at`, the time of the next try.
function Roster:down()
  local found = {}
  for name, s in pairs(self.by_name) do
    if s.row >= s.FEW then
      found[#found + 1] = { namespace = name, down_since = s.down_since, error = s.reason,
        probe_at = self.timer.now() + self.timer:left(s.rest) }
    end
  end
  table.sort(found, function(a, b)
    return a.namespace < b.namespace
  end)
  return found
end

--- Makes an empty roster.
return function(timer)
  return setmetatable({ timer = timer, time = -math.huge, number = 0, last = 0,
    by_name = {}, awake = {}, heap = {} }, Roster)
end
