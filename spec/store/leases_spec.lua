-- Claims by hand are intervals of places. The rule is simple for single rows: a claim takes what
-- lies between the live intervals of others, from the first row to the last, if any of it is ready,
-- or due; with a limit, at most so many of these. This spec takes a store and a model of single
-- rows through the same random steps, and compares them after each.

local outbox = require("outbox")
local support = require("spec.support")

local describe = support.only("sqlite", describe)

local STEPS = 10000
local PROCESSORS = { "one", "two", "three" }

-- The model: rows in the order of their places, each with its owner if an interval covers it, and
-- `due_at` if it waits for a retry; the scheduled messages; and the deadline of each processor.
local Model = {}
Model.__index = Model

function Model.new()
  return setmetatable({ rows = {}, scheduled = {}, deadlines = {}, last_seq = 0, order = 0 }, Model)
end

function Model:add(id)
  self.last_seq = self.last_seq + 1
  self.rows[#self.rows + 1] = { place = self.last_seq, id = id }
end

function Model:schedule(id, due_at)
  self.order = self.order + 1
  table.insert(self.scheduled, { id = id, due_at = due_at, order = self.order })
end

function Model:promote(now)
  table.sort(self.scheduled, function(a, b)
    return a.due_at < b.due_at or a.due_at == b.due_at and a.order < b.order
  end)
  while self.scheduled[1] and self.scheduled[1].due_at <= now do
    self:add(table.remove(self.scheduled, 1).id)
  end
end

function Model:is_alive(processor, now)
  return (self.deadlines[processor] or -math.huge) >= now
end

-- Claims for a processor, where these leases were before. Returns whether anything was claimed.
function Model:claim(processor, deadline, limit, now, leases)
  local remaining, any = limit or math.huge, false
  self:promote(now)
  for _, row in ipairs(self.rows) do
    if row.owner == processor or row.owner and not self:is_alive(row.owner, now) then
      row.owner = nil
    end
  end

  -- Takes the rows of an interval. Returns the place of the last, or nil.
  local function take(first, last)
    local inside, readable, ends = {}, 0, nil
    for _, row in ipairs(self.rows) do
      if first <= row.place and row.place <= last then
        inside[#inside + 1] = row
        if readable < remaining and (row.due_at or now) <= now then
          readable, ends = readable + 1, row.place
        end
      end
    end
    if readable == 0 then
      return
    end
    ends = limit and ends or last
    for _, row in ipairs(inside) do
      row.owner = row.place <= ends and processor or nil
    end
    remaining, any = remaining - readable, true
    return ends
  end

  local kept = {}
  for _, lease in ipairs(leases) do
    if lease.processor_id ~= processor then
      kept[#kept + 1] = lease.deadline >= now and lease or nil
    elseif limit then
      lease.last_seq = take(lease.first_seq, lease.last_seq)
      kept[#kept + 1] = lease.last_seq and lease or nil
    end
  end
  local from = math.mininteger
  for _, lease in ipairs(kept) do
    take(from, lease.first_seq - 1)
    from = lease.last_seq + 1
  end
  take(from, math.maxinteger)
  self.deadlines[processor] = deadline
  return any
end

function Model:claimed(processor, now)
  local ids = {}
  for _, row in ipairs(self:is_alive(processor, now) and self.rows or {}) do
    if row.owner == processor and (row.due_at or now) <= now then
      ids[#ids + 1] = row.id
    end
  end
  return ids
end

describe("leases by hand", function()
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
          model:schedule(message.id, due_at)
        end
      end,
      claim = function()
        local processor = PROCESSORS[random(#PROCESSORS)]
        local deadline = clock.time + random(-1, 8)
        local limit = random(10) > 3 and random(8) or nil
        local expected = model:claim(processor, deadline, limit, clock.time, store:stats().leases)
        assert.equal(expected, (store:claim_entries(processor, deadline, { limit = limit })))
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
            table.remove(model.rows, i)
          end
        end
      end,
      retry = function()
        if #model.rows > 0 then
          local row = model.rows[random(#model.rows)]
          row.due_at = clock.time + random(6)
          assert.is_true(operator:retry_entry(row.id, row.due_at))
        end
      end,
      bury = function()
        if #model.rows > 0 then
          local row = table.remove(model.rows, random(#model.rows))
          assert.is_true(operator:bury_entry(row.id))
        end
      end,
      bury_scheduled = function()
        if #model.scheduled > 0 then
          local message = table.remove(model.scheduled, random(#model.scheduled))
          assert.is_true(operator:bury_entry(message.id))
          model.last_seq = model.last_seq + 1
        end
      end,
      pass = function()
        clock.time = clock.time + random(3)
      end,
    }
    local deck = { "publish", "publish", "schedule", "claim", "claim", "claim", "claim", "delete",
      "delete", "retry", "bury", "bury_scheduled", "pass", "pass" }

    for step = 1, STEPS do
      local action = deck[random(#deck)]
      local where = ("seed %d, step %d, %s"):format(seed, step, action)
      actions[action]()
      for _, processor in ipairs(PROCESSORS) do
        assert.same(model:claimed(processor, clock.time),
          support.pluck(store:get_claimed_entries(processor, 1000000), "id"), where)
      end
      local stats = store:stats()
      local leases, delayed = stats.leases, #model.scheduled
      for i = 2, #leases do
        assert.is_true(leases[i - 1].last_seq < leases[i].first_seq, where)
      end
      most = math.max(most, #leases)
      for _, row in ipairs(model.rows) do
        delayed = delayed + (row.due_at and 1 or 0)
      end
      assert.same({ #model.rows + #model.scheduled - delayed, delayed },
        { stats.ready, stats.delayed }, where)
    end
    assert.is_true(most < 50, ("%d leases"):format(most))
    support.remove()
  end)
end)
