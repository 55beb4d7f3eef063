-- Worlds: processors before destinations, on a clock that only they turn. A call takes the time
-- that the world says; nothing else takes any. Messages come when the world says, whatever goes on.

local outbox = require("outbox")
local support = require("spec.support")

local M = {}

local CALL = 0.005 -- seconds

local function publish(world, figures, store, messages)
  for first = 1, #messages, 100 do
    local part = table.move(messages, first, math.min(first + 99, #messages), 1, {})
    local ids = table.pack(store:publish(table.unpack(part)))
    for i, id in ipairs(ids) do
      figures.published[id] = { at = world.clock.time - world.began, message = part[i] }
    end
  end
end

local function note(figures, at, took, messages, answer)
  local failed = answer == "raise"
  for i, message in ipairs(messages) do
    local it = figures.published[message.id]
    if answer == "raise" or answer and answer[i] then
      failed = true
    else
      it.delivered_at, it.attempts = at + took, message.attempts
      figures.delivered = figures.delivered + 1
      figures.first = figures.first or at + took
      figures.longest = math.max(figures.longest, at + took - it.at)
    end
  end
  figures.calls = figures.calls + 1
  if failed then
    figures.failing[#figures.failing + 1] = at
  end
end

-- A processor: `step` takes its next step, or goes on with it, and returns how long to wait before
-- the next time, nil after the last one; `at` is when.
local function start(world, figures, path)
  local self = { at = 0, calling = false }
  local store = outbox.open(path, { clock = world.clock, synchronous = "off" })
  local options = { store = store, claim_duration = 1e6, process_interval = 3600 }
  for name, value in pairs(world.options or {}) do
    options[name] = value
  end
  function options.on_error(problem)
    figures.errors[#figures.errors + 1] = problem
  end
  function options.on_dead(entry)
    figures.dead[#figures.dead + 1] = entry
  end
  function options.publisher(messages, namespace)
    local at = world.clock.time - world.began
    local answer, took = world.answer(messages, at, namespace)
    took = took or CALL
    self.calling = true
    coroutine.yield(took)
    self.calling = false
    note(figures, at, took, messages, answer)
    if answer == "raise" then
      error("no answer", 0)
    end
    return answer
  end
  local p = outbox.processor(options)
  self.step = coroutine.wrap(function()
    local seconds = p:step()
    while seconds do
      coroutine.yield(seconds)
      seconds = p:step()
    end
    store:close()
  end)
  function self.stop()
    p:stop()
  end
  return self
end

-- What is still there, and how often that was charged.
local function count_rest(world, figures, store)
  for _, it in pairs(figures.published) do
    if not it.delivered_at and it.message.payload ~= "bad" then
      figures.longest = math.max(figures.longest, world.seconds - it.at)
    end
    if it.message.payload ~= "bad" then
      figures.charges = figures.charges + (it.attempts or 0)
    end
  end
  figures.left, figures.left_charges = 0, 0
  for _, name in ipairs({ "entries", "delayed" }) do
    for _, row in ipairs(support.sql(store, "SELECT payload, attempts FROM outbox_" .. name)) do
      figures.left = figures.left + 1
      local charged = row.payload == "bad" and "left_charges" or "charges"
      figures[charged] = figures[charged] + row.attempts
    end
  end
end

--- Runs a world for so many `seconds`: `answer(messages, time, namespace)` returns what the
-- publisher returns, or "raise", and how long that takes. It begins with the `messages`;
-- `arrivals(number)` returns the next one, `rate` times a second. There are as many `processors`,
-- with the `options`; each `restart` seconds they stop, and others take their place.
--
-- Returns figures: `calls`; `failing`, the times of those in which something failed; `delivered`,
-- how many; the `first` time when something was; `dead`, the entries; `errors`; and what is `left`.
-- Of the messages whose payload is not "bad" also the `longest` time that one has waited, and how
-- many times they were charged, `charges`; `left_charges`, those of the others that are left.
function M.run(world)
  local path = support.database()
  world.clock = support.clock(1e6)
  world.began = world.clock.time
  local store <close> = outbox.open(path, { clock = world.clock, synchronous = "off" })
  store:migrate()
  local figures = { published = {}, failing = {}, dead = {}, errors = {}, calls = 0, delivered = 0,
    longest = 0, charges = 0 }
  publish(world, figures, store, world.messages or {})
  local processors, restart = {}, world.restart or math.huge
  for i = 1, world.processors or 1 do
    processors[i] = start(world, figures, path)
  end
  local clock, coming, came = world.clock, world.rate and 1 / world.rate or math.huge, 0
  while clock.time < world.began + world.seconds do
    local time = clock.time - world.began
    if time >= restart then
      restart = restart + world.restart
      for _, p in ipairs(processors) do
        p.stop()
        p.at = p.calling and p.at or 0
      end
    end
    while coming <= time do
      came = came + 1
      publish(world, figures, store, { world.arrivals(came) })
      coming = coming + 1 / world.rate
      for _, p in ipairs(processors) do
        p.at = p.calling and p.at or 0
      end
    end
    local soonest = math.min(coming, restart, world.seconds)
    for i = 1, #processors do
      while processors[i].at <= time do
        local p = processors[i]
        local seconds = p.step()
        if not seconds then
          p, seconds = start(world, figures, path), 0
          processors[i] = p
        end
        -- Having been woken, it looks again after some microseconds, which is nothing new here.
        p.at = time + ((p.calling or seconds == 0) and seconds or math.max(seconds, 0.02))
      end
      soonest = math.min(soonest, processors[i].at)
    end
    clock.time = math.max(world.began + soonest, clock.time + 1e-6)
  end
  count_rest(world, figures, store)
  return figures
end

return M
