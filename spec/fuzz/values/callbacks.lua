-- Functions and finalizers that the public functions call. They raise, yield, change arguments,
-- call public functions again and run the collector.

local run = ...
local any, choose, one_of, rarely, recall = run.any, run.choose, run.one_of, run.rarely, run.recall
local STRINGS = run.STRINGS

local Scope = { __close = function(self) run.depth = self.depth end }

-- Whether there may be one more action, or callback; `scope` is to be closed at its end.
local function enter()
  if run.steps > 0 and run.depth <= run.DEPTH then
    local scope = setmetatable({ depth = run.depth }, Scope)
    run.steps, run.depth = run.steps - 1, run.depth + 1
    return true, scope
  end
  return false
end

local function raise(value)
  if value ~= nil and rawequal(value, value) then
    run.raised[value] = true
  end
  error(value, 0)
end

-- Changes a table that is perhaps being read.
local function spoil()
  local victim = recall(run.tables)
  if victim then
    local field = choose(2) == 0 and next(victim) or one_of(STRINGS)
    rawset(victim, field, rarely(2) and any() or nil)
  end
end

-- Does something in a finalizer, after some more cycles of the collector.
local function leave(delay, finalize)
  setmetatable({}, { __gc = function()
    if run.steps > 0 and delay > 0 then
      leave(delay - 1, finalize)
    else
      finalize()
    end
  end })
end

local function tune(choice)
  run.tuned = true
  if choice == 0 then
    collectgarbage("generational", 1, 1)
  else
    collectgarbage("incremental", 1, 1000, 1)
  end
end

local GARBAGE = {
  function() collectgarbage() end,
  function() collectgarbage("step", 1 + choose(16)) end,
  function() leave(choose(8), run.act) end,
  function() leave(choose(8), run.act) end,
  function() leave(choose(8), spoil) end,
  function()
    local value = recall(one_of(run.lists))
    leave(choose(8), function()
      local closing <close> = value -- luacheck: no unused
    end)
  end,
  function()
    local thread = recall(run.threads)
    leave(choose(8), function()
      coroutine.close(thread)
    end)
  end,
  function() tune(choose(2)) end,
}

local function collect()
  one_of(GARBAGE)()
end

local function close_store()
  local store = recall(run.stores)
  if store and store.close then
    store:close()
  end
end

local REACTIONS = {
  any,
  function() raise(any()) end,
  function() raise(one_of({ "oops", { code = "oops", message = "no" } })) end,
  function() return coroutine.yield(any()) end,
  function() run.act() end,
  function() run.act() run.act() end,
  spoil,
  function() spoil() collectgarbage() end,
  collect,
  close_store,
}

-- A function that does what the input says when it is called or, most often, what it ought to.
local function callback(proper)
  return function(...)
    local may, scope <close> = enter() -- luacheck: no unused
    if may then
      local reaction = REACTIONS[choose(proper and 32 or 12)]
      local value = reaction and reaction()
      if value ~= nil or reaction and rarely(4) then
        return value
      end
    end
    if proper then
      return proper(...)
    end
  end
end

run.callback, run.enter, run.raise, run.spoil = callback, enter, raise, spoil
run.collect, run.tune = collect, tune
