-- Claims are intervals of seq. The rule is simple for single rows: a claim takes every row that is
-- unclaimed, that the processor has claimed itself, or whose claim has lapsed. This spec takes a
-- store and a model of single rows through the same random steps, and compares them after each.

local outbox = require("outbox")
local support = require("spec.support")

local STEPS = 10000
local PROCESSORS = { "one", "two", "three" }

-- The model: rows in the order of seq, each with its owner and deadline if it is claimed.
local Model = {}
Model.__index = Model

function Model.new()
  return setmetatable({ rows = {}, delayed = {}, last_seq = 0, last_delayed = 0 }, Model)
end

function Model:add(id)
  self.last_seq = self.last_seq + 1
  local row = { seq = self.last_seq, id = id }
  if self.open then -- an exclusive claim also covers later entries
    row.owner, row.deadline = self.open.owner, self.open.deadline
  end
  self.rows[#self.rows + 1] = row
end

function Model:delay(id, due_at, position)
  self.last_delayed = self.last_delayed + 1
  self.delayed[#self.delayed + 1] =
    { id = id, due_at = due_at, position = position, order = self.last_delayed }
end

function Model:remove(index)
  return table.remove(self.rows, index)
end

function Model:restore_due(now, leases)
  table.sort(self.delayed, function(a, b)
    return a.due_at < b.due_at or a.due_at == b.due_at and a.order < b.order
  end)
  while self.delayed[1] and self.delayed[1].due_at <= now do
    local entry = table.remove(self.delayed, 1)
    if entry.position then
      local row = { seq = entry.position, id = entry.id }
      for _, lease in ipairs(leases) do -- the lease that now covers its place gets it
        if lease.first_seq <= row.seq and row.seq <= lease.last_seq then
          row.owner, row.deadline = lease.processor_id, lease.deadline
        end
      end
      self.rows[#self.rows + 1] = row
      table.sort(self.rows, function(a, b)
        return a.seq < b.seq
      end)
    else
      self:add(entry.id)
    end
  end
end

local function lapsed(claim, now)
  return claim.deadline < now
end

-- Whether the live claim of another processor, which covers a row or a retry that is due back,
-- prevents an exclusive claim.
function Model:refuses(processor, now, leases)
  for _, entry in ipairs(self.delayed) do
    for _, lease in ipairs(leases) do
      if entry.position and entry.due_at <= now and lease.processor_id ~= processor
        and not lapsed(lease, now) and lease.first_seq <= entry.position
        and entry.position <= lease.last_seq then
        return true
      end
    end
  end
  if self.open and self.open.owner ~= processor and not lapsed(self.open, now) then
    return true
  end
  for _, row in ipairs(self.rows) do
    if row.owner and row.owner ~= processor and not lapsed(row, now) then
      return true
    end
  end
  return false
end

function Model:claim(processor, deadline, options, now)
  local remaining = options.limit or math.huge
  local takes = {}
  local function take(row)
    if remaining > 0 then
      takes[row] = true
      remaining = remaining - 1
    end
  end
  for _, row in ipairs(self.rows) do
    if row.owner == processor then
      take(row)
    end
  end
  for _, row in ipairs(self.rows) do
    if not takes[row] and (not row.owner or row.owner ~= processor and lapsed(row, now)) then
      take(row)
    end
  end
  if self.open and (self.open.owner == processor or lapsed(self.open, now)) then
    self.open = nil
  end
  for _, row in ipairs(self.rows) do
    if takes[row] then
      row.owner, row.deadline = processor, deadline
    elseif row.owner == processor or row.owner and lapsed(row, now) then
      row.owner, row.deadline = nil, nil
    end
  end
  if options.exclusive and #self.rows > 0 then
    self.open = { owner = processor, deadline = deadline }
  end
  return next(takes) ~= nil
end

function Model:claimed(processor, now)
  local ids = {}
  for _, row in ipairs(self.rows) do
    if row.owner == processor and not lapsed(row, now) then
      ids[#ids + 1] = row.id
    end
  end
  return ids
end

describe("leases", function()
  it("never overlap, and cover what the rule for single rows says", function()
    local seed = tonumber(os.getenv("OUTBOX_SEED")) or os.time()
    math.randomseed(seed)
    local clock = support.clock(1000)
    local store <close>, path = support.store({ clock = clock, synchronous = "off" })
    -- Without a claim of its own, it settles what it has not read.
    local operator <close> = outbox.open(path, { clock = clock, synchronous = "off" })
    local model = Model.new()
    local random = math.random
    local made, most = 0, 0

    local function messages(count, deliver_at)
      local list = {}
      for i = 1, count do
        made = made + 1
        list[i] = { id = tostring(made), deliver_at = deliver_at }
      end
      return list
    end

    local actions = {
      publish = function()
        local list = messages(random(4))
        store:publish(table.unpack(list))
        for _, message in ipairs(list) do
          model:add(message.id)
        end
      end,
      schedule = function()
        local due_at = clock.time + random(8)
        local list = messages(random(2), due_at)
        store:publish(table.unpack(list))
        for _, message in ipairs(list) do
          model:delay(message.id, due_at)
        end
      end,
      claim = function()
        local processor = PROCESSORS[random(#PROCESSORS)]
        local deadline = clock.time + random(-1, 8)
        local options = {}
        local kind = random(10)
        if kind == 1 then
          options.exclusive = true
        elseif kind > 3 then
          options.limit = random(8)
        end
        local expected = false
        -- A refused exclusive claim changes nothing: it is a standby.
        local leases = store:stats().leases
        if not (options.exclusive and model:refuses(processor, clock.time, leases)) then
          model:restore_due(clock.time, leases)
          expected = model:claim(processor, deadline, options, clock.time)
        end
        assert.equal(expected, store:claim_entries(processor, deadline, options))
      end,
      delete = function()
        local processor = PROCESSORS[random(#PROCESSORS)]
        local ids = support.pluck(store:get_claimed_entries(processor, random(6)), "id")
        assert.equal(#ids, store:delete_entries(table.unpack(ids)))
        local gone = {}
        for _, id in ipairs(ids) do
          gone[id] = true
        end
        for i = #model.rows, 1, -1 do
          if gone[model.rows[i].id] then
            model:remove(i)
          end
        end
      end,
      retry = function()
        if #model.rows > 0 then
          local row = model:remove(random(#model.rows))
          local due_at = clock.time + random(6)
          assert.is_true(operator:retry_entry(row.id, due_at))
          model:delay(row.id, due_at, row.seq)
        end
      end,
      bury = function()
        if #model.rows > 0 then
          assert.is_true(operator:bury_entry(model:remove(random(#model.rows)).id))
        end
      end,
      pass = function()
        clock.time = clock.time + random(3)
      end,
    }
    local deck = { "publish", "publish", "schedule", "claim", "claim", "claim", "claim", "delete",
      "delete", "retry", "bury", "pass", "pass" }

    for step = 1, STEPS do
      local action = deck[random(#deck)]
      local where = ("seed %d, step %d, %s"):format(seed, step, action)
      actions[action]()
      for _, processor in ipairs(PROCESSORS) do
        assert.same(model:claimed(processor, clock.time),
          support.pluck(store:get_claimed_entries(processor, 1000000), "id"), where)
      end
      local leases = store:stats().leases
      for i = 2, #leases do
        assert.is_true(leases[i - 1].last_seq < leases[i].first_seq, where)
      end
      most = math.max(most, #leases)
      assert.equal(#model.rows, store:stats().ready, where)
    end
    assert.is_true(most < 50, ("%d leases"):format(most))
    support.remove()
  end)
end)
