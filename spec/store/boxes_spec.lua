-- Claims by hand and the lanes of processors on one outbox, in random schedules: they join, leave,
-- die, and are paused for longer than their claims. Live boxes never overlap, and in the end
-- everything has been delivered, or is dead.

local outbox = require("outbox")
local support = require("spec.support")

local describe = support.only("sqlite", describe)

local SEEDS, STEPS = 10, 1000
local NAMESPACES = { "a", "b", "c" }
local SETS = { {}, {}, { only = { "a" } }, { only = { "a", "b" } }, { only = { "c" } },
  { except = { "a" } }, { except = { "b", "c" } } }
local random = math.random

-- One outbox, with what became of each message.
local World = {}
World.__index = World

function World.new()
  local clock = support.clock(1000)
  local store, path = support.store({ clock = clock, synchronous = "off" })
  return setmetatable({ clock = clock, store = store, path = path, made = 0, names = 0,
    delivered = {}, actors = {}, sharing = 0 }, World)
end

function World:open()
  return outbox.open(self.path, { clock = self.clock, synchronous = "off" })
end

function World:publish()
  local messages = {}
  for i = 1, random(5) do
    self.made = self.made + 1
    messages[i] = { id = tostring(self.made), namespace = NAMESPACES[random(3)],
      key = random(4) > 1 and "k" .. random(3) or nil,
      deliver_at = random(6) == 1 and self.clock.time + random(4) or nil }
  end
  self.store:publish(table.unpack(messages))
end

--- By hand ------------------------------------------------------------------------------------

local Hand = {}
Hand.__index = Hand

function World:hand()
  self.names = self.names + 1
  return setmetatable({ world = self, store = self:open(), id = "hand" .. self.names,
    limit = random(2) == 1 and random(6) or nil }, Hand)
end

-- Settles what it has read, which may be another's by now, and claims and reads again.
function Hand:step()
  local world, store = self.world, self.store
  for _, entry in ipairs(self.entries or {}) do
    local kind = random(10)
    if kind <= 6 then
      world.delivered[entry.id] = true
      store:delete_entries(entry)
    elseif kind <= 8 then
      store:retry_entry(entry, world.clock.time + random(0, 3), "no")
    elseif kind == 9 and store:bury_entry(entry, "enough") then
      world.delivered[entry.id] = true
    end
  end
  self.entries = nil
  local now = world.clock.time
  local held = random(3) > 1
    and store:claim_entries(self.id, now + random(3), { limit = self.limit })
    or random(2) == 1 and store:renew_claim(self.id, now + random(3))
  if held then
    self.entries = store:get_claimed_entries(self.id, random(5), { hold = random(4) > 1 })
  end
end

function Hand:leave()
  self.store:release_claim(self.id)
end

--- Lanes --------------------------------------------------------------------------------------

local Lane = {}
Lane.__index = Lane

function World:lane(set)
  self.names = self.names + 1
  local lane = setmetatable({ world = self, store = self:open(), id = "lane" .. self.names }, Lane)
  lane.store:serve({ processor_id = lane.id, namespaces = set.only or set.except,
    except = set.except ~= nil, ordering = "key", duration = 2 })
  return lane
end

function Lane:step(want)
  local world, verdicts, entries = self.world, {}, self.store:batch()
  for i, entry in ipairs(entries) do
    local kind = want and 1 or random(10)
    if kind <= 6 then
      verdicts[i] = true
    elseif kind == 7 then
      verdicts[i] = false
    else
      verdicts[i] = { outcome = kind == 8 and "bury" or kind == 9 and "put off" or "retry",
        at = world.clock.time + random(0, 3), error = "no" }
    end
    if verdicts[i] == true then
      world.delivered[entry.id] = true
    end
  end
  local suspect = self.suspect
  local progress = self.store:advance(verdicts, want or { batch_size = random(0, 5),
    join = random(2) == 1, where = suspect and "place" or nil, place = suspect })
  local suspects = progress.suspects
  self.suspect = suspects and suspects[random(#suspects)].seq -- one may wait for another
  for i, verdict in ipairs(verdicts) do
    if verdict ~= true and verdict and verdict.outcome == "bury" and verdict.found then
      world.delivered[entries[i].id] = true
    end
  end
  return progress
end

function Lane:leave()
  self:step({ batch_size = 0, leave = true })
end

--- The check ----------------------------------------------------------------------------------

local function serves(lease, namespace)
  local names, found = lease.namespaces, false
  for _, name in ipairs(names and (names.except or names) or {}) do
    found = found or name == namespace
  end
  return not names or found == not names.except
end

-- Whether two boxes have an entry in common. "d" is a namespace that no set names.
local function overlap(one, other)
  if one.last_seq < other.first_seq or other.last_seq < one.first_seq
    or one.mask & other.mask == 0 then
    return false
  end
  for _, namespace in ipairs({ "a", "b", "c", "d" }) do
    if serves(one, namespace) and serves(other, namespace) then
      return true
    end
  end
  return false
end

function World:check()
  local live, masks = {}, {}
  for _, row in ipairs(support.sql(self.store, "SELECT lease, classes FROM outbox_claims")) do
    masks[row.lease] = row.classes
  end
  for _, lease in ipairs(self.store:stats().leases) do
    lease.mask = masks[lease.lease]
    if lease.deadline >= self.clock.time then
      for _, other in ipairs(live) do
        if overlap(lease, other) then
          error(("the boxes of %s and %s overlap"):format(lease.processor_id, other.processor_id))
        end
      end
      live[#live + 1] = lease
    end
  end
  self.sharing = self.sharing + (#live > 1 and 1 or 0)
end

-- Everybody has gone. One processor, or a claim by hand, delivers what is left.
function World:drain(by_hand)
  local lane = self:lane({})
  for _ = 1, 1000 do
    if by_hand then
      self.store:claim_entries("last", self.clock.time + 1)
      for _, entry in ipairs(self.store:get_claimed_entries("last", 100)) do
        self.delivered[entry.id] = true
        self.store:delete_entries(entry)
      end
    else
      local place = lane.suspect
      lane:step({ batch_size = 100, where = place and "place" or nil, place = place })
    end
    local stats = self.store:stats()
    if stats.ready + stats.delayed == 0 then
      return
    end
    self.clock.time = self.clock.time + 0.5
  end
  error("something is left: " .. support.sql(self.store, "SELECT group_concat(id) AS ids FROM"
    .. " (SELECT id FROM outbox_entries UNION ALL SELECT id FROM outbox_delayed)")[1].ids)
end

function World:step()
  local kind = random(20)
  if kind <= 6 then
    self:publish()
  elseif kind <= 9 then
    self.clock.time = self.clock.time + random() * 1.5
  elseif kind == 10 and #self.actors < 5 then
    self.actors[#self.actors + 1] = random(2) == 1 and self:hand() or self:lane(SETS[random(#SETS)])
  elseif #self.actors > 0 then
    local i = random(#self.actors)
    local actor = self.actors[i]
    if kind == 11 then -- it leaves, or dies
      if random(2) == 1 then
        actor:leave()
      end
      actor.store:close()
      table.remove(self.actors, i)
    elseif kind == 12 then
      actor.paused = self.clock.time + random(5)
    elseif (actor.paused or 0) <= self.clock.time then
      actor:step()
    end
  end
end

describe("claims by hand and by processors", function()
  it("never overlap, and together deliver everything", function()
    local first = tonumber(os.getenv("OUTBOX_SEED")) or os.time()
    local shared = 0
    for seed = first, first + SEEDS - 1 do
      math.randomseed(seed)
      local world = World.new()
      for step = 1, STEPS do
        local ok, problem = xpcall(function()
          world:step()
          world:check()
        end, debug.traceback)
        assert(ok, ("seed %d, step %d: %s"):format(seed, step, problem))
      end
      for _, actor in ipairs(world.actors) do
        actor.store:close()
      end
      local ok, problem = pcall(world.drain, world, seed % 2 == 0)
      assert(ok, ("seed %d: %s"):format(seed, problem))
      for id = 1, world.made do
        assert(world.delivered[tostring(id)], ("seed %d: message %d is lost"):format(seed, id))
      end
      shared = shared + world.sharing
      world.store:close()
      support.remove()
    end
    assert.is_true(shared > SEEDS * STEPS / 10)
  end)
end)
