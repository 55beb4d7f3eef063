-- The work of a processor, one batch at a time: find one, deliver it, settle it. It neither sleeps
-- nor loops; what the database raises is raised.
--
-- A batch is either in hand (`batch`), or delivered and still to be settled (`outcome` too). Two
-- fields are set from outside: `woken`, when there may be something new to find; and `stopping`,
-- when no further batch is to be read.

local batches = require("outbox.processor.batch")
local new_claim = require("outbox.processor.claim")
local new_delivery = require("outbox.processor.delivery")
local new_outages = require("outbox.processor.outages")
local settlement = require("outbox.processor.settlement")

local min = math.min

-- A standby ignores wakes for this long, in seconds; otherwise every commit of the active processor
-- would wake it.
local STANDBY = 0.01

local Work = {}
Work.__index = Work

-- Writes an outcome to the database. Entries that it has freed, or that are not settled, are read
-- again.
local function write(self, outcome, is_held)
  settlement.write(self.settings.store, self.agenda, outcome, is_held)
  if outcome.rewind_all then
    self.claim:rewind_all()
  elseif outcome.rewind then
    self.claim:rewind(outcome.batch.from)
  end
end

-- Renews the claim, writes an outcome if there is one, and reads the next batch, in one
-- transaction. So the batch that is noted as in hand is the one that will be handed out. Returns
-- whether the claim was still there; if it is lost, the work ends.
local function go_on(self, outcome)
  local claim, had_batch = self.claim, self.batch ~= nil
  local batch, last
  local is_held = claim:renew(function(is_held)
    if outcome then
      write(self, outcome, is_held)
    end
    if is_held and not self.stopping and not (outcome and claim:is_stale()) then
      batch, last = batches.read(self.settings, self.outages, claim.after)
    end
  end)
  self.batch = batch and batch.ids[1] and batch or nil
  if batch then
    claim:note_read(last, self.batch ~= nil)
  else
    claim:note_unread()
  end
  -- Before it sleeps: is there more to claim, or a claim to give back?
  self.woken = self.woken or not is_held or had_batch and not claim.more
  return is_held
end

local function acquire(self)
  local is_held, is_refused = self.claim:acquire(self.outages:resting()[1] == nil)
  if is_held then
    go_on(self)
  elseif is_refused then
    self.agenda:pause(STANDBY)
  end
end

-- Its part of a shared backlog holds nothing to deliver. If that is because a destination is down,
-- a larger part may hold something. Otherwise wakes are ignored for a while: the renewals of its
-- claim wake other processors with nothing to deliver, whose renewals would wake this one again.
local function share(self)
  if self.outages:resting()[1] and self.claim:grow() then
    self.woken = true
  else
    self.agenda:pause(min(1, self.settings.process_interval))
  end
end

local function find(self)
  local claim = self.claim
  self.woken = false
  if not claim.more or not claim.held or claim:is_stale() or not go_on(self) then
    acquire(self)
  end
  if claim.shared and claim.held and not claim.more then
    share(self)
  end
end

local function report_takeover(self)
  self.hooks:report_loss("another processor took over while a batch was in hand")
end

-- A batch that lay in hand for longer than the claim lasts may belong to another processor by now.
local function keep_fresh(self)
  if not self.claim:is_fresh() then
    self.claim:rewind(self.batch.from)
    if not go_on(self) then
      report_takeover(self)
    end
  end
end

local function drop_batch(self)
  self.batch, self.woken = nil, true
  self.claim:start_over()
end

-- Closes when the delivery ends, in whatever way. If it was cut off, as in a coroutine that is
-- closed, the batch stays in hand in the database, and the next claim charges it.
local Delivering = {
  __close = function(delivering)
    local self = delivering.work
    self.claim:stop_heartbeat()
    if not self.outcome then
      drop_batch(self)
    end
  end,
}

local function deliver(self)
  local trouble = self.claim:start_heartbeat()
  if trouble then
    self.hooks:report(trouble)
  end
  local delivering <close> = setmetatable({ work = self }, Delivering) -- luacheck: no unused
  self.outcome = self.delivery:deliver(self.batch)
end

--- Settles a batch that was delivered, and goes on with the next.
function Work:settle()
  local outcome = self.outcome
  local is_held = go_on(self, outcome)
  self.outcome = nil
  if not outcome.idle then
    self.hooks:tell(outcome)
  end
  if not is_held then
    report_takeover(self)
  end
end

--- Does the next thing that there is to do: at most one batch.
function Work:cycle()
  if not self.outcome and not self.batch then
    find(self)
  end
  if self.batch and not self.outcome then
    keep_fresh(self)
  end
  if self.batch and not self.outcome then
    deliver(self)
  end
  if self.outcome then
    self:settle()
  end
end

--- Whether there is something to do at once.
function Work:is_pending()
  return self.batch ~= nil or self.outcome ~= nil or self.claim.more or self.woken
end

--- Seconds until the next destination that is down is to be probed; math.huge for none. From that
-- time on, its entries are read again, from the first.
function Work:until_probe()
  local seconds, is_over = self.outages:next_probe()
  if is_over then
    self.claim:rewind_all()
    self.woken = true
  end
  return seconds
end

--- Gives the claim back, with the batch in hand if it was never delivered.
function Work:release()
  drop_batch(self)
  self.claim:release()
end

--- Gives up settling: the outcome is forgotten, and the claim is left to lapse.
function Work:abandon()
  self.hooks:report_loss("stopped before it could delete what it has delivered")
  self.outcome = nil
  self.claim:abandon()
end

--- Makes the work of a processor: from its settings, its agenda, its hooks and the retry policy.
return function(settings, agenda, hooks, retry)
  local self = setmetatable({
    settings = settings, agenda = agenda, hooks = hooks,
    outages = new_outages(agenda.timer, settings.backoff),
    claim = new_claim(settings, agenda),
    batch = nil,
    outcome = nil,
    woken = true,
    stopping = false,
  }, Work)
  self.delivery = new_delivery(settings, retry, self.outages, agenda.timer.now, function()
    return not self.stopping and self.claim:is_fresh()
  end)
  return self
end
