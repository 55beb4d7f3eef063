-- The progress of `outbox relay`: on a terminal a status line, else an event in the log.

local core = require("outbox.core")

-- Seconds between two reports.
local ON_TERMINAL, IN_LOG = 1, 10
-- Counting entries takes longer the more there are. It may take at most this share of the time.
local MAX_SHARE = 1 / 20

local Progress = {}
Progress.__index = Progress

local function report(self, seconds)
  local stats, done = self.store:stats(), self.processor:stats()
  local rate = (done.delivered - self.delivered) / seconds
  if self.log.terminal then
    self.log:show_status(("%d delivered, %.1f/s, %d retried, %d dead; %d ready, %d delayed"):format(
      done.delivered, rate, done.retried, done.dead, stats.ready, stats.delayed))
  elseif done.batches > self.batches then
    self.log:write("progress", "delivered", done.delivered, "rate", rate, "retried", done.retried,
      "dead", done.dead, "ready", stats.ready, "delayed", stats.delayed)
  end
  self.delivered, self.batches = done.delivered, done.batches
end

--- Reports the progress, if it is time for that.
function Progress:tick()
  local now = core.clock.now()
  if now < self.since then -- the clock was set back
    self.since = now
  elseif now >= self.since + self.every then
    pcall(report, self, now - self.since) -- the processor reports an error of the database itself
    self.since = now
    self.every = math.max(self.least, (core.clock.now() - now) / MAX_SHARE)
  end
end

--- Makes a progress; its field `every` is the number of seconds between two reports.
return function(store, processor, log)
  local least = log.terminal and ON_TERMINAL or IN_LOG
  return setmetatable({ store = store, processor = processor, log = log, least = least,
    every = least, since = core.clock.now(), delivered = 0, batches = 0 }, Progress)
end
