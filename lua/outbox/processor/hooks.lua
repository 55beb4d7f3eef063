-- Reports the work of a processor: the user's hooks, the counters of `stats`, and errors.

local errors = require("outbox.error")

local M = {}

local Hooks = {}
Hooks.__index = Hooks

--- The default of on_error: it writes to stderr, so that an error is seen even without a hook.
function M.write_to_stderr(trouble)
  io.stderr:write(errors.text(trouble), "\n")
end

--- Counts an error and passes it to on_error. If that raises, both errors go to stderr.
function Hooks:report(trouble)
  self.counters.errors = self.counters.errors + 1
  local ok, again = pcall(self.hooks.on_error, trouble)
  if not ok then
    M.write_to_stderr(trouble)
    M.write_to_stderr(errors.new("hook", "on_error raised: " .. errors.text(again), again))
  end
end

--- Reports that the claim was lost.
function Hooks:report_loss(message)
  self.counters.lost = self.counters.lost + 1
  self:report(errors.new("lost", message))
end

-- Calls a hook, if there is one. What it raises is reported.
local function call(self, name, ...)
  local hook = self.hooks[name]
  if hook then
    local ok, cause = pcall(hook, ...)
    if not ok then
      self:report(errors.new("hook", name .. " raised: " .. errors.text(cause), cause))
    end
  end
end

local function count(self, outcome)
  local counters, latency, now = self.counters, self.counters.latency, self.now()
  local delivered, created = outcome.delivered, outcome.batch.created
  local sum, most = latency.sum, latency.max
  for j = 1, #delivered do
    local seconds = now - created[delivered[j]]
    sum = sum + seconds
    if seconds > most then
      most = seconds
    end
  end
  latency.count, latency.sum, latency.max = latency.count + #delivered, sum, most
  counters.batches = counters.batches + 1
  counters.delivered = counters.delivered + #delivered
  counters.deferred = counters.deferred + outcome.deferred
  if #delivered > 0 then
    counters.last_delivered_at = now
  end
end

local function tell_failures(self, failures, counter, hook)
  for _, failure in ipairs(failures) do
    if failure.found then -- else another processor had the entry by then
      self.counters[counter] = self.counters[counter] + 1
      call(self, hook, failure.entry, failure.reason, failure.delay)
    end
  end
end

--- Counts an outcome that was settled, and tells the hooks.
function Hooks:tell(outcome)
  count(self, outcome)
  for _, raised in ipairs(outcome.raised) do
    self:report(raised)
  end
  if self.hooks.on_delivered then
    for _, i in ipairs(outcome.delivered) do
      call(self, "on_delivered", outcome.batch.entries[i])
    end
  end
  tell_failures(self, outcome.retried, "retried", "on_retry")
  tell_failures(self, outcome.dead, "dead", "on_dead")
  if self.hooks.on_batch then
    call(self, "on_batch", {
      size = outcome.batch.count,
      delivered = #outcome.delivered,
      retried = #outcome.retried,
      dead = #outcome.dead,
      seconds = outcome.seconds,
    })
  end
end

--- Counts a sleep.
function Hooks:count_wait()
  self.counters.waits = self.counters.waits + 1
end

--- A copy of the counters.
function Hooks:stats()
  local stats = {}
  for name, value in pairs(self.counters) do
    stats[name] = value
  end
  local latency = self.counters.latency
  stats.latency = { count = latency.count, sum = latency.sum, max = latency.max }
  return stats
end

--- Makes the hooks of a processor. `hooks` is a table that holds them by their option's name; only
-- on_error must be there. `now` is the clock's function.
function M.new(hooks, now)
  return setmetatable({
    hooks = hooks,
    now = now,
    counters = {
      delivered = 0, retried = 0, deferred = 0, dead = 0, batches = 0, errors = 0, lost = 0,
      waits = 0,
      latency = { count = 0, sum = 0, max = 0 },
    },
  }, Hooks)
end

return M
