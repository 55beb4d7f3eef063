-- The work of a processor, one batch at a time: deliver what is in hand, then settle it and take
-- the next. It neither sleeps nor loops; what the database raises is raised.
--
-- A batch is either in hand (`batch`), or delivered and still to be settled (`outcome` too). Two
-- fields are set from outside: `woken`, when there may be something new to find; and `stopping`,
-- when no further batch is to be read.

local core = require("outbox.core")
local errors = require("outbox.error")
local new_batch = require("outbox.processor.batch")
local new_delivery = require("outbox.processor.delivery")
local new_jury = require("outbox.processor.jury")
local new_outages = require("outbox.processor.outages")
local new_pace = require("outbox.processor.pace")

-- A standby ignores wakes for this long, in seconds, and then asks for a share; otherwise every
-- commit of the active processor would wake it.
local STANDBY = 0.01

-- Whose lane each store has: processors may follow one another on a store.
local serving = setmetatable({}, { __mode = "k" })

local Work = {}
Work.__index = Work

local function serve(self)
  if serving[self.store] == self then
    return
  end
  local settings = self.settings
  self.store:serve({ processor_id = settings.processor_id, namespaces = settings.names,
    except = settings.except, ordering = settings.ordering, duration = settings.claim_duration })
  serving[self.store] = self
  self.batch, self.unread = nil, nil
  self.outages:forget()
  self.jury:park_again()
end

-- What the next batch is to be: of what a namespace wants, or of anybody's.
local function choose(self)
  local settings = self.settings
  local rests = self.jury:rest() > 0
  local want = not rests and self.jury:choose()
    or { batch_size = rests and 0 or settings.batch_size }
  want.batch_bytes = settings.batch_bytes
  want.join = self.joins
  return want
end

-- Others hold all that there is: it stands by, and after a moment asks for a share.
local function stand_by(self, progress)
  if progress.overlapped and not self.overlapped then
    self.hooks:report(errors.new("overlapped", "another processor serves some of these namespaces, "
      .. "but not the same ones; this one stands by"))
  end
  self.overlapped = progress.overlapped
  self.joins = progress.refused or nil
  if progress.refused then
    self.agenda:pause(STANDBY)
  end
  if self.joins and not progress.deadline then
    self.agenda:set("join", STANDBY)
  else -- the others give it a share with one of their commits
    self.agenda:cancel("join")
  end
end

-- Reads what is in hand, where it was not read yet.
local function read_hand(self)
  if self.unread and serving[self.store] == self then
    self.batch = new_batch(self.store, self.unread, self.settings.ordering == "strict", self.jury)
    self.unread = nil
  end
end

-- Tells the jury what came of a choice; namespaces that recover flow again.
local function note_found(self, want, progress)
  if progress.suspects then
    self.jury:meet(progress.suspects)
  end
  if not want.leave then
    self.jury:found(want, progress.count, progress.more)
  end
  for name in pairs(self.jury:take_recovered()) do
    self.store:recover(name)
    self.more = true
  end
end

-- What became of what is in hand. A delivery that was cut off counts as a crash.
local function verdicts(self)
  if self.outcome then
    return self.outcome:list()
  elseif not self.cut_off then
    return false
  end
  local list, now = {}, self.timer.now()
  for i = 1, self.batch.count do
    list[i] = { outcome = "retry", at = now, error = core.LAPSED }
  end
  return list
end

-- Settles the outcome, if there is one, and takes the next batch.
local function advance(self, want)
  serve(self)
  self.woken = false
  local progress = self.store:advance(verdicts(self), want)
  self.unread, self.batch, self.outcome = progress.count > 0 and progress or nil, nil, nil
  self.cut_off = false
  self.deadline, self.more = progress.deadline, progress.more
  if self.pace then
    self.pace:set_share(self.store:share())
  end
  self.agenda:set("look", self.settings.process_interval * (0.75 + 0.25 * math.random()))
  self.agenda:set_at("due", progress.again_at)
  if progress.deadline then
    self.agenda:set("renewal", self.settings.claim_duration / 2)
  else
    self.agenda:cancel("renewal")
  end
  if progress.lost then
    self.outages:forget()
  end
  stand_by(self, progress)
  note_found(self, want, progress)
  read_hand(self)
  return progress.lost
end

-- Closes when the delivery ends, in whatever way. If it was cut off, as in a coroutine that is
-- closed, the batch stays in hand in the database, and is charged.
local Delivering = {
  __close = function(delivering)
    local self = delivering.work
    self.store:stop_heartbeat()
    if not self.outcome then
      self.cut_off = true
    end
  end,
}

-- The errors that mean that no thread can be started: then the claim must last for as long as the
-- publisher takes.
local NO_THREAD = { error = true, nomem = true }

local function deliver(self)
  local settings = self.settings
  local ok, trouble = pcall(self.store.start_heartbeat, self.store, settings.processor_id,
    settings.claim_duration / 2, settings.publish_timeout)
  if not ok and (type(trouble) ~= "table" or not NO_THREAD[trouble.code]) then
    error(trouble, 0)
  elseif not ok then
    self.hooks:report(trouble)
  end
  local delivering <close> = self.delivering -- luacheck: no unused
  self.outcome = self.delivery:deliver(self.batch)
  if not settings.on_delivered then
    self.batch.entries = nil -- so that the collector never sees those of two batches
  end
end

-- Whether most of the claim is left. If more is left than it was made for, the clock was set back,
-- and the claim counts for nothing.
local function is_fresh(self)
  local duration = self.settings.claim_duration
  local left = self.deadline and self.deadline - self.timer.now() or 0
  return left >= 0.75 * duration and left <= duration + 1e-6
end

local function report_takeover(self)
  self.hooks:report_loss("another processor took over while a batch was in hand")
end

--- Settles a batch that was delivered, and takes the next.
function Work:settle()
  local outcome = self.outcome
  local is_lost = advance(self, self.stopping and { leave = true } or choose(self))
  self.hooks:tell(outcome)
  if is_lost then
    report_takeover(self)
  end
end

-- Takes a batch where none is in hand. One that lay in hand for too long may be another's by now:
-- it is put back, and read again with the next call. So it is where the claim was lost.
local function take(self)
  local is_lost = false
  for _ = 1, 3 do
    is_lost = advance(self, choose(self)) or is_lost
    if self.batch and is_fresh(self) or not (self.batch or self.more) then
      break
    end
  end
  if is_lost then
    report_takeover(self)
  end
end

--- Does the next thing that there is to do: at most one batch.
function Work:cycle()
  self.outages:tell()
  read_hand(self)
  if not (self.outcome or self.batch and not self.cut_off and is_fresh(self)) then
    take(self)
  end
  if self.batch and not self.outcome then
    deliver(self)
  end
  if self.outcome then
    self:settle()
  end
end

--- There may be something new to find.
function Work:wake()
  self.woken = true
  self.jury:wake()
end

--- Whether there is something to do at once.
function Work:is_pending()
  if self.batch or self.outcome or self.unread or self.woken or self.more then
    return true
  end
  return self.jury:wait() == 0
end

--- Seconds until a namespace wants a call of its own; math.huge for none.
function Work:until_probe()
  return self.jury:wait()
end

--- Seconds until a rate lets more through; nil if nothing waits for its rate.
function Work:until_paced()
  return self.pace and self.pace:wait()
end

--- Gives the claim back, with what is in hand if it was never delivered.
function Work:release()
  if serving[self.store] == self and (self.deadline or self.batch or self.unread) then
    self.store:advance(verdicts(self), { leave = true })
  end
  self.batch, self.unread, self.deadline, self.more, self.cut_off = nil, nil, nil, false, false
  self.outages:forget()
  self.agenda:cancel("renewal")
end

--- Gives up settling: the outcome is forgotten, and the claim is left to lapse.
function Work:abandon()
  self.hooks:report_loss("stopped before it could delete what it has delivered")
  self.outcome, self.batch, self.deadline = nil, nil, nil
end

--- Makes the work of a processor: from its settings, its agenda, its hooks and the retry policy.
return function(settings, agenda, hooks, retry)
  local store = settings.store
  local timer = agenda.timer
  local self = setmetatable({
    settings = settings, store = store, agenda = agenda, hooks = hooks, timer = timer,
    jury = new_jury(store, timer, settings.batch_size, settings.ordering == "strict"),
    batch = nil, outcome = nil, unread = nil,
    deadline = nil, joins = nil, overlapped = nil,
    more = false, woken = true, stopping = false, cut_off = false,
  }, Work)
  self.delivering = setmetatable({ work = self }, Delivering)
  self.pace = settings.rate_of and new_pace(self.jury, settings.rate_of)
  self.outages = new_outages(store, self.jury, agenda)
  self.delivery = new_delivery(settings, retry, self.jury, timer.now, function()
    return not self.stopping and is_fresh(self)
  end)
  return self
end
