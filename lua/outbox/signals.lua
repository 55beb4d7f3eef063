--- Signals for an event loop of one's own: a processor that is stepped there can stop gracefully,
-- so that a deploy charges no attempt. `processor:run({ signals = true })` does the same without a
-- loop. Made by `outbox.signals`.
--
--    local signals <close> = outbox.signals()
--    while processor:step() do
--      cqueues.poll(processor, signals)
--      if signals:caught() then
--        processor:stop()
--      end
--    end
--
-- An object has the methods by which cqueues polls it.
-- @classmod outbox.signals

local core = require("outbox.core")

local NAMES = { SIGHUP = true, SIGINT = true, SIGTERM = true }

local Signals = { __name = "outbox.signals" }
Signals.__index = Signals

--- The name of the first signal that has come, nil if none has.
-- @function signals:caught
-- @treturn ?string
---@return string?
function Signals:caught()
  if not self.closed then
    self.name = core.await_signal(0)
  end
  return self.name
end

--- The descriptor that becomes readable when a signal comes. It stays readable, so poll it no more
-- once `caught` has said which one.
-- @function signals:pollfd
-- @treturn ?integer nil after that, after `close`, and in a process that was forked meanwhile
---@return integer?
function Signals:pollfd()
  return not self.closed and not self.name and core.signal_fd() or nil
end

--- What to poll the descriptor for, as cqueues asks.
-- @function signals:events
-- @treturn string "r"
---@return string
function Signals:events() -- luacheck: no self
  return "r"
end

--- Seconds after which to look even if the descriptor is silent, as cqueues asks: none.
-- @function signals:timeout
-- @treturn nil
function Signals:timeout() end -- luacheck: no self

--- Lets the signals do again what they did before. `caught` still has its answer. Does nothing the
-- second time.
-- @function signals:close
function Signals:close()
  if not self.closed then
    self.name, self.closed = core.release_signals(), true
  end
end

Signals.__close = Signals.close

--- Catches signals until `close`: the first of them ends this process no more, but can be polled
-- for. One that comes two seconds after the first, or later, ends the process all the same. Signals
-- that are ignored stay ignored. Objects that are open at the same time catch the same signal.
-- @function outbox.signals
-- @tparam[opt] string ... "SIGHUP", "SIGINT" or "SIGTERM"; without any, SIGINT and SIGTERM
-- @treturn outbox.signals may be a to-be-closed variable
-- @raise what the system says, when no pipe can be made
---@param ... string
---@return outbox.signals
return function(...)
  for i = 1, select("#", ...) do
    local name = select(i, ...)
    if not NAMES[name] then
      local got = type(name) == "string" and ("%q"):format(name) or type(name)
      error(("bad argument #%d to 'signals' (SIGHUP, SIGINT or SIGTERM expected, got %s)")
        :format(i, got), 2)
    end
  end
  if ... then
    core.catch_signals(...)
  else
    core.catch_signals("SIGINT", "SIGTERM")
  end
  return setmetatable({ closed = false, name = nil }, Signals)
end
