-- What a processor remembers from one call of its publisher to the next: which destinations are
-- down, and which entries are suspected of making the publisher raise. It calls nobody and writes
-- nothing.
--
--    up ── a call raised ──> probed one by one ── one raised alone ──> resting until the next probe
--    ^                              │      ^                                    │
--    └────── something got through ─┘      └──────── the rest is over ──────────┘
--
-- All entries of a call that raised are suspects, and are tried alone. A suspect that raises alone
-- is deferred, so that the next probe is of another one. A suspect that raises alone again,
-- although others got through since, is poison: it is charged, because its destination is up.

local backoff = require("outbox.retry").backoff

local huge, max, min = math.huge, math.max, math.min

-- The longest rest between two probes of a destination, in seconds.
local MAX_REST = 30
-- The longest that an entry is deferred, in seconds: the next processor, which does not know why,
-- waits no longer than that.
local MAX_DEFERRED = 60

local Outages = {}
Outages.__index = Outages

--- Whether no destination is down and no entry suspected.
function Outages:is_calm()
  return next(self.suspects) == nil and next(self.down) == nil
end

--- Whether any entry is suspected.
function Outages:has_suspects()
  return next(self.suspects) ~= nil
end

--- Whether an entry must not share a call with others.
function Outages:must_be_alone(seq, namespace)
  return self.suspects[seq] ~= nil or self.down[namespace] ~= nil
end

--- A list of the namespaces whose destination is down and not to be probed yet.
function Outages:resting()
  local list = {}
  for namespace, outage in pairs(self.down) do
    if outage.rest then
      list[#list + 1] = namespace
    end
  end
  return list
end

--- Seconds until the next destination is to be probed, math.huge when none rests. Ends the rests
-- that are over, and also returns whether there were any.
function Outages:next_probe()
  local seconds, over = huge, false
  for _, outage in pairs(self.down) do
    if outage.rest then
      local left = self.timer:left(outage.rest)
      seconds = min(seconds, left)
      if left == 0 then
        outage.rest, over = nil, true
      end
    end
  end
  return seconds, over
end

--- For how many seconds a suspect is still deferred; nil if it is not.
function Outages:deferred_for(seq)
  local suspect = self.suspects[seq]
  local left = suspect and suspect.deferred and self.timer:left(suspect.deferred) or 0
  return left > 0 and min(left, MAX_DEFERRED) or nil
end

--- An entry is no longer suspected.
function Outages:acquit(seq)
  self.suspects[seq] = nil
end

--- A call of the namespace got something through.
function Outages:count_success(namespace)
  self.successes[namespace] = (self.successes[namespace] or 0) + 1
end

--- The destination of a namespace answers. If it was down, returns the entries that need not be
-- deferred any longer, each with `id` and `seq`; otherwise nil.
function Outages:finish(namespace)
  if not self.down[namespace] then
    return nil
  end
  self.down[namespace] = nil
  local entries = {}
  for seq, suspect in pairs(self.suspects) do
    if suspect.deferred and suspect.namespace == namespace then
      suspect.deferred = nil
      entries[#entries + 1] = { id = suspect.id, seq = seq }
    end
  end
  return entries
end

local function find_or_add(self, namespace)
  local outage = self.down[namespace] or { probes = 0 }
  self.down[namespace] = outage
  return outage
end

-- Seconds until the next probe: up to `crowd` times the longest rest, so that many entries that are
-- probed in turn make no busy loop.
local function probe_delay(self, n, crowd)
  local retry = self.backoff
  local cap = min(retry.cap, MAX_REST) * crowd
  return backoff({ base = retry.base, factor = retry.factor, cap = cap }, n)
end

--- The destination has said when to come again, which is no failure of any entry. `seq` is the
-- place of the entry if the call had only one, else nil. The destination may mean this entry only.
-- So if it has said the same about this entry before, another one is probed at once. Returns for
-- how many seconds the entry is deferred.
function Outages:ask_to_wait(namespace, seq, delay)
  local outage = find_or_add(self, namespace)
  outage.probes = outage.probes + 1
  if delay < 0.001 then
    delay = probe_delay(self, outage.probes, 1)
  end
  local asked = outage.asked or {}
  if not seq or not asked[seq] then
    outage.rest = self.timer:span(delay)
  end
  if seq then
    asked[seq], outage.asked = true, asked
    return min(delay, MAX_DEFERRED)
  end
end

-- Whether an entry that has just raised alone is to blame: it did so before, and a call of its
-- namespace got something through since.
local function is_poison(self, seq)
  local suspect = self.suspects[seq]
  return suspect and suspect.successes < (self.successes[suspect.namespace] or 0)
end

-- The entry has raised alone, and others are probed before it comes again.
local function defer(self, suspect, outage)
  if suspect.raises == 0 then -- if it raised before, this says nothing new: another is probed
    outage.probes = outage.probes + 1
    outage.rest = self.timer:span(probe_delay(self, outage.probes, 1))
  end
  suspect.raises = suspect.raises + 1
  local delay = probe_delay(self, suspect.raises, max(1, outage.probes))
  suspect.deferred = self.timer:span(delay)
  return min(delay, MAX_DEFERRED)
end

--- A call with these entries, each with `id` and `seq`, raised. That says nothing about any single
-- one, so all are suspects. If there was one alone, returns true when it is poison; or false and
-- for how many seconds it is deferred.
function Outages:blame(namespace, entries)
  local successes, alone = self.successes[namespace] or 0, #entries == 1
  local first = entries[1].seq
  if alone and is_poison(self, first) then
    self.suspects[first].successes = successes
    return true
  end
  for _, entry in ipairs(entries) do
    local suspect = self.suspects[entry.seq] or { id = entry.id, namespace = namespace, raises = 0 }
    suspect.successes = successes
    self.suspects[entry.seq] = suspect
  end
  local outage = find_or_add(self, namespace)
  return false, alone and defer(self, self.suspects[first], outage) or nil
end

--- Makes the memory. `backoff` holds `base`, `factor` and `cap` of the rests between probes.
return function(timer, backoff_options)
  return setmetatable({
    timer = timer,
    backoff = backoff_options,
    suspects = {}, -- by place: entries of a call that raised
    down = {}, -- by namespace: destinations that may be down
    successes = {}, -- by namespace: the number of calls that got something through
  }, Outages)
end
