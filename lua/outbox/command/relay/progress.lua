-- The progress of a worker: on a terminal a status line, else an event in the log. Also says when a
-- destination goes down and comes back, and which namespaces nobody serves.

local format = require("outbox.command.common.format")
local namespaces = require("outbox.command.common.namespaces")

-- Seconds between two reports.
local ON_TERMINAL, IN_LOG = 1, 10
-- The share of the time that counting may take. Meanwhile nothing is delivered, and beside a large
-- backlog that is long. It is CPU time, unless a server counts: on a busy machine a short count
-- would seem to be long.
local COUNTING = 1 / 1000
-- Seconds after which a destination counts as down, or a namespace as not served: an outage may be
-- over at once, and processors may be about to start.
local AFTER_DOWN, AFTER_UNSERVED = 5, 10

local Progress = {}
Progress.__index = Progress

-- How many entries of the share are ready, and delayed; nil where it was not counted.
local function count(self, stats)
  if not stats then
    return nil
  end
  local names = self.share.namespaces
  local ready, delayed = 0, 0
  for _, each in ipairs(stats.namespaces) do
    if namespaces.is_among(names, each.namespace) then
      ready, delayed = ready + each.ready, delayed + each.delayed
    end
  end
  return ready, delayed
end

local function status(self, stats, done, rate)
  local ready, delayed = count(self, stats)
  local line = ("%d delivered, %.1f/s, %d retried, %d dead"):format(done.delivered, rate,
    done.retried, done.dead)
  if ready then
    line = ("%s; %d ready, %d delayed"):format(line, ready, delayed)
  end
  local first, now = done.down[1], self.now()
  if first then
    line = ("%s; %s down for %s, next try %s"):format(line, format.cell(first.namespace),
      format.span(now - first.down_since), format.from_now(math.max(now, first.probe_at), now))
  end
  return line
end

local function note_down(self, down, now)
  local seen = {}
  for _, outage in ipairs(down) do
    local name = outage.namespace
    seen[name] = true
    if not self.down[name] and now - outage.down_since >= AFTER_DOWN then
      self.down[name] = outage.down_since
      self.log:write("down", "namespace", name, "seconds", now - outage.down_since, "next",
        math.max(0, outage.probe_at - now), "reason", outage.error)
    end
  end
  for name, since in pairs(self.down) do
    if not seen[name] then
      self.down[name] = nil
      self.log:write("up", "namespace", name, "seconds", now - since)
    end
  end
end

local function note_unserved(self, stats, now)
  namespaces.judge(stats, now)
  local seen = {}
  for _, each in ipairs(stats.namespaces) do
    local name = each.namespace
    if each.unserved then
      seen[name] = self.unserved[name] or now
      if now - seen[name] >= AFTER_UNSERVED then
        self.log:write("unserved", "namespace", name, "ready", each.ready, "delayed", each.delayed)
        seen[name] = math.huge -- said once
      end
    end
  end
  self.unserved = seen
end

local function report(self, now)
  local done = self.processor:stats()
  if not (self.log.terminal or self.share.first or done.batches > self.batches) then
    return -- nobody would see the numbers, and they take long
  end
  local stats
  if now >= self.count_at then
    local before = self.spent()
    stats = self.store:stats({ by_namespace = true })
    self.count_at = now + (self.spent() - before) / COUNTING
  end
  local rate = (done.delivered - self.delivered) / (now - self.since)
  if self.log.terminal then
    self.log:show_status(status(self, stats, done, rate))
  elseif done.batches > self.batches then
    local ready, delayed = count(self, stats)
    self.log:write("progress", "delivered", done.delivered, "rate", rate, "retried", done.retried,
      "deferred", done.deferred, "dead", done.dead, "ready", ready, "delayed", delayed)
  end
  if self.share.first and stats then
    note_unserved(self, stats, now)
  end
  self.delivered, self.batches = done.delivered, done.batches
end

--- Reports the progress, if it is time for that.
function Progress:tick()
  local now = self.now()
  if now < self.since then -- the clock was set back
    self.since, self.looked, self.count_at = now, now, now
  end
  if now >= self.looked + ON_TERMINAL then
    note_down(self, self.processor:stats().down, now)
    self.looked = now
  end
  if now >= self.since + self.every then
    pcall(report, self, now) -- the processor reports an error of the database itself
    self.since = now
  end
end

--- Makes a progress; its field `every` is the number of seconds between two reports.
return function(store, processor, log, share)
  local clock = store:clock()
  local now = clock.now()
  local spent = store:dialect() == "sqlite" and os.clock or clock.now
  return setmetatable({ now = clock.now, spent = spent, store = store, processor = processor,
    log = log, share = share, every = log.terminal and ON_TERMINAL or IN_LOG, since = now,
    looked = now, count_at = now, delivered = 0, batches = 0, down = {}, unserved = {} }, Progress)
end
