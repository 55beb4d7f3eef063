-- The jury: which namespaces are down, which messages are suspects, and which call comes next. It
-- keeps a destination that is down, a message that makes the publisher raise and one that is never
-- answered apart. It calls nobody and writes nothing: what is to be written are verdicts.
--
-- A call that raised tells nothing of any message. So its messages are tried alone, and after a
-- failure the next call is of another message than the oldest. A message that fails alone steps
-- aside, uncharged, for at most 30 s. It is charged only if it had failed alone before, the call
-- just before got something through, and the next two calls do too. Three failures in a row rest
-- the namespace. A failing call that took d seconds owes the next d seconds to others.
--
-- A namespace of which there is nothing to remember is not here. One that is here may be parked:
-- then the store leaves its entries behind, but where they are asked for.

local new_docket = require("outbox.processor.docket")
local new_roster = require("outbox.processor.roster")

local huge, max, min = math.huge, math.max, math.min

local CAP = 30 -- seconds: the longest rest, and the longest that a message stands aside
local WITNESSES = 2 -- calls in a row that must get through after a message to convict it
local LONGEST = 3600 -- seconds that a destination may ask to wait
local NOBODY = {}

local Jury = {}
Jury.__index = Jury

-- Full jitter. The numbers are the same whatever `retry` is.
local function jitter(n)
  return math.random() * min(CAP, 2 ^ min(n - 1, 40))
end

--- Namespaces ---------------------------------------------------------------------------------

local function space_of(self, name)
  local s = self.roster.by_name[name]
  if not s then
    s = new_docket(name, self.size, self.timer)
    self.roster:add(s)
  end
  return s
end

local function park(self, s)
  if not s.parked and not self.strict then
    self.store:park(s.name)
    s.parked, self.recovered[s.name] = true, nil
  end
end

local function unpark(self, s)
  if s.parked then
    self.recovered[s.name] = true
    s.parked, self.idle = false, false
  end
end

-- A namespace of which all is well flows again; one with nothing to remember is forgotten.
local function settle_down(self, s)
  if s:is_well() then
    unpark(self, s)
    if s.count == 0 and s.top >= self.size then
      self.roster:remove(s)
    end
  end
end

--- What to call next --------------------------------------------------------------------------

-- In strict order all wait for the first.
local function choose_strictly(self)
  local want
  for _, s in pairs(self.roster.by_name) do
    if not want or s.w < want.batch_size then
      want = { batch_size = s.w, space = s }
    end
  end
  return want
end

--- What the next call is to be, as `advance` takes it; nil: of anybody's. The namespaces that are
-- here take turns, and all others together have every other turn.
function Jury:choose()
  if self.roster.number == 0 or self.strict then
    return choose_strictly(self)
  end
  self.others = not self.others
  if self.others and not self.idle then
    return nil
  end
  for _ = 1, #self.roster:up() do
    local want = self.roster:next():choose(self.timer:left(self.debt), self.idle)
    if want then
      return want
    end
  end
  return nil
end

--- Seconds until some namespace wants a call of its own; math.huge for none.
function Jury:wait()
  local seconds = huge
  if self.roster.number == 0 then
    return seconds
  elseif self.strict then
    for _, s in pairs(self.roster.by_name) do
      seconds = min(seconds, (s.row > 0 or s.paced) and s.looks == 0 and self:rest() or huge)
    end
    return seconds
  end
  for _, s in ipairs(self.roster:up()) do
    local want, later = s:choose(self.timer:left(self.debt), self.idle)
    if want then
      return 0
    end
    seconds = min(seconds, later)
  end
  return min(seconds, self.roster:asleep())
end

--- For how many seconds nothing may be handed out at all: in strict order all wait for the first.
function Jury:rest()
  local seconds = 0
  for _, s in next, self.strict and self.roster.by_name or NOBODY do
    seconds = max(seconds, self.timer:left(s.rest))
  end
  return seconds
end

--- What the store has found ------------------------------------------------------------------

--- The store has met suspects that are due. They failed alone before this processor knew them.
function Jury:meet(suspects)
  for _, suspect in ipairs(self.strict and {} or suspects) do
    local it = space_of(self, suspect.namespace):know(suspect.seq, suspect.id)
    if it then
      it.n, it.state, it.due = max(it.n or 0, 1), "aside", nil
    end
  end
end

-- What was found may be more for all that do not rest.
local function look_again(self)
  for _, s in ipairs(self.roster.awake) do
    s.looks = 0
  end
end

--- Notes how many entries the store has found. If there is `more`, it has not looked everywhere.
function Jury:found(want, count, more)
  local s = want.space
  if not s then
    self.idle = count == 0 and not more
    if more then
      look_again(self)
    end
    return
  elseif want.where == "place" then
    if s.row > 0 then
      s.turn = s.turn + 1
    end
    if count == 0 and not more then
      s:clear(want.place) -- it is gone, or another processor has it, or it must wait
      s.looks = 0
      settle_down(self, s)
    end
    return
  elseif not more then
    s:note_look(self.strict and "oldest" or want.where, count)
  else
    self.idle = false -- a long look keeps nobody waiting
  end
  if s.looks < 2 then
    return
  elseif s.count == 0 then
    unpark(self, s)
    self.roster:remove(s)
  else
    s.w = s.top
    settle_down(self, s)
  end
end

--- There may be something new to find. What is of a parked namespace must be passed first.
function Jury:wake()
  self.idle, self.others = false, false
  look_again(self)
end

--- Whether there is nothing to remember of any namespace.
function Jury:is_calm()
  return self.roster.number == 0
end

--- Returns the namespaces that are down, as Roster:down does.
function Jury:down()
  return self.roster:down()
end

--- How many messages of a namespace a call may have; 0 while it rests.
function Jury:limit(namespace)
  local s = self.roster.by_name[namespace]
  return not s and self.size or self.timer:left(s.rest) > 0 and 0 or s.w
end

--- Whether a message, of so many that were handed out together, must be left out of their calls.
function Jury:must_wait(namespace, place, count)
  local s = self.roster.by_name[namespace]
  local it = s and s.known[place]
  return it ~= nil and it.n ~= nil
    and (count > 1 or self.timer:left(self.debt) > 0 or it.n > 0 and s.accused ~= nil)
end

--- A message was left out of the calls. One that failed alone steps aside.
function Jury:leave_out(namespace, failure, outcome)
  local s = self.roster.by_name[namespace]
  local it = s and s.known[failure.seq]
  if it and it.n > 0 then
    it.state, it.due = "aside", nil
    outcome:put_off(failure, CAP)
  end
end

--- The store has forgotten what is parked.
function Jury:park_again()
  for name, s in pairs(self.roster.by_name) do
    if s.parked then
      self.store:park(name)
    end
  end
end

--- Takes the names of the namespaces that flow again, since the last time: a set.
function Jury:take_recovered()
  local names = self.recovered
  self.recovered = next(names) and {} or names
  return names
end

--- The verdict --------------------------------------------------------------------------------

-- It failed between others that got through.
local function convict(self, s, outcome)
  local accused = s.accused
  local it, delay = s.known[accused.seq], outcome:convict(accused)
  s.accused = nil
  if not delay then
    s:clear(accused.seq)
  elseif it then
    it.state, it.due = "waits", self.timer:span(delay)
  end
end

-- Something was delivered.
local function got_through(self, s, size, outcome)
  s.witnesses = s.witnesses + 1
  if s.accused and s.witnesses >= WITNESSES then
    convict(self, s, outcome)
  end
  for place, it in pairs(s.known) do
    if it.state ~= "aside" or s.accused and s.accused.seq == place then -- luacheck: ignore
    elseif (it.n or 0) > 0 then
      it.due = nil
    else
      outcome:call_back(it)
      it.state = nil
      if not it.n then
        s:clear(place)
      end
    end
  end
  if s.f >= s.FEW then
    s.top = self.size -- it was down
  end
  s.f, s.row, s.ok = 0, 0, self.timer.now()
  self.roster:rouse(s)
  if size >= s.top then
    s.top = min(s.top + 1, self.size)
  end
  s.w = min(2 * s.w, s.top)
end

local function lay(self, s, seconds)
  if self.strict then
    s.rest = self.timer:span(seconds) -- it is asked for in any case
  else
    self.roster:lay(s, seconds)
  end
end

local function take_rest(self, s, told)
  if s.row >= s.FEW or told then
    lay(self, s, told and told > 0 and min(told, LONGEST) or jitter(max(1, s.f - s.FEW + 1)))
  end
end

--- Hands out nothing of a namespace for so many seconds, though nothing has failed.
function Jury:hold(namespace, seconds)
  local s = space_of(self, namespace)
  s.paced = true
  park(self, s)
  if self.timer:left(s.rest) < seconds then
    lay(self, s, seconds)
  end
end

-- A message failed alone, and nobody knows why.
local function failed_alone(self, s, failure, accusable, outcome)
  local known = s.known[failure.seq]
  local n = known and known.n or 0
  s.witnesses, s.ok, s.accused = 0, nil, nil
  s.row = s.row + 1
  if n == 0 then
    s.f = s.f + 1
  end
  if self.strict then
    return -- nothing may be tried in its place
  end
  park(self, s)
  local delay = accusable and CAP or jitter(max(n + 1, s.f))
  local it = s:know(failure.seq, failure.id)
  if it then
    it.n = s.f < s.FEW and n + 1 or it.n
    it.state, it.due = "aside", self.timer:span(delay)
  end
  if accusable then
    s.accused, s.until_then = failure, self.timer:span(CAP)
  end
  outcome:put_off(failure, delay, s.f < s.FEW or n > 0)
end

-- The first message of each key: a call to an `ordered` publisher may have several of one.
local function firsts(list)
  local chosen, seen = {}, {}
  for _, failure in ipairs(list) do
    local key = failure.entry.key
    if not key or not seen[key] then
      chosen[#chosen + 1] = failure
      seen[key or chosen] = true
    end
  end
  return chosen
end

-- A call that raised, or an answer as good as that.
local function told_nothing(self, s, list, accusable, outcome)
  if #list == 1 then
    failed_alone(self, s, list[1], accusable, outcome)
  else
    s.accused, s.f, s.row, s.ok = nil, s.f + 1, s.row + 1, nil
    s.top, s.w = max(1, #list // 2), 1
    for _, failure in ipairs(self.strict and {} or firsts(list)) do
      local it = s:know(failure.seq, failure.id)
      if it then
        it.n, it.state = it.n or 0, nil
      end
    end
    park(self, s)
  end
  take_rest(self, s)
end

-- A message was told to wait, which is never charged.
local function told_to_wait(self, s, failure, outcome)
  local delay = min(failure.delay, LONGEST)
  if delay > 0 then
    s:clear(failure.seq)
  else
    local it = s:know(failure.seq, failure.id) or {}
    it.n, it.state, it.told = nil, "waits", (it.told or 0) + 1
    delay = jitter(it.told)
    it.due = self.timer:span(delay)
  end
  outcome:put_off(failure, delay)
end

-- A call that was answered: some were delivered, charged or told to wait.
local function answered(self, s, answer, outcome)
  local passed, told = answer.delivered, answer.told
  if passed > 0 then
    got_through(self, s, answer.size, outcome)
  elseif answer.charged > 0 then
    s.f, s.row = 0, 0
  end
  if passed + answer.charged == 0 then
    local longest = 0
    for _, failure in ipairs(told) do
      longest = max(longest, failure.delay)
    end
    s.f, s.row, s.accused, s.ok, s.w = s.f + 1, s.row + 1, nil, nil, 1
    park(self, s)
    if answer.size > 1 or s.row >= s.FEW then
      take_rest(self, s, longest)
    end
  elseif #told > 1 and passed > 0 then
    s.w = max(1, min(s.w, passed))
  end
  for _, failure in ipairs((passed + answer.charged > 0 or answer.size == 1) and told or {}) do
    told_to_wait(self, s, failure, outcome)
  end
  for _, failure in ipairs(answer.unanswered) do
    failed_alone(self, s, failure, false, outcome)
  end
  if passed > 0 then
    s.f, s.row = 0, 0
  end
end

--- Judges a call. `answer` has the `namespace`, the `size` and the `seconds` of the call. If the
-- call told nothing, `answer.list` has all its messages, each with `id`, `seq`, `entry`, `attempts`
-- and `reason`. Else `answer` has the numbers `delivered` and `charged`, the `places` of these
-- messages, and two lists: the messages that were `told` to wait, each with its `delay`, and the
-- `unanswered` ones. `outcome` takes the verdicts.
function Jury:judge(answer, outcome)
  local s, list = self.roster.by_name[answer.namespace], answer.list
  local well = not list and answer.delivered == answer.size
  if not s and well then
    return
  end
  s = s or space_of(self, answer.namespace)
  local first = (list or answer.unanswered)[1]
  local it = first and s.known[first.seq]
  local known = first and (first.attempts > 0 or it and (it.n or 0) > 0)
  local accusable = known and answer.size == 1 and s:is_warm(answer.seconds)
  for _, place in ipairs(answer.places) do
    s:clear(place)
  end
  if list or answer.delivered + answer.charged + #answer.told == 0 then
    told_nothing(self, s, list or answer.unanswered, accusable, outcome)
  else
    answered(self, s, answer, outcome)
  end
  if not well and (list or answer.delivered == 0 or answer.seconds > 0.1) then
    self.debt = self.timer:span(answer.seconds)
  end
  s:note_outage(answer.seconds, (first or answer.told[1] or {}).reason)
  s.looks, self.idle = 0, false
  settle_down(self, s)
end

--- Makes a jury. `store` parks namespaces, `size` is how many messages a call may have, `strict`
-- whether nothing may be tried before the first.
return function(store, timer, size, strict)
  return setmetatable({ store = store, timer = timer, size = size, strict = strict,
    roster = new_roster(timer), -- of namespaces, each with its docket
    others = false, -- whether it was the turn of all that are not there
    idle = false, -- there was nothing of anybody's
    debt = nil, -- a span: until when time is owed to others
    recovered = {},
  }, Jury)
end
