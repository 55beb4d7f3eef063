-- The claim of a processor: which entries are its own for a while, and how far it has read them.
--
-- The lease lasts for `claim_duration`, unless it is renewed. Reading goes on after the place
-- `after` (a seq; nil: from the first entry of the claim), and `more` says whether there may be
-- entries after it. With ordering "none" a claim takes at most `limit` entries, so that several
-- processors share a backlog; else one processor holds all entries.

local min, random = math.min, math.random

-- The most entries that are claimed at a time when several processors share a backlog.
local MAX_CLAIMED = 100000
-- Errors of the heartbeat that mean no thread could be started.
local NO_THREAD = { error = true, nomem = true }

local Claim = {}
Claim.__index = Claim

-- Notes whether there is a claim, and that it is to be renewed so many seconds after the time
-- `since`, by default after now. It is renewed even if there is nothing to deliver, so that entries
-- that wait, and those behind them, stay with this processor.
local function set_held(self, held, renew_after, since)
  self.held = held
  if held then
    self.agenda:set("renewal", renew_after, since)
  else
    self.agenda:cancel("renewal")
  end
end

--- Whether to claim again, because entries have fallen due or others have given entries back.
function Claim:is_stale()
  return self.agenda:has_come("reclaim") or self.agenda:has_come("due")
end

--- Whether the lease lasts long enough for the heartbeat, which renews it after half of its
-- duration. If not, another processor may have taken the entries over.
function Claim:is_fresh()
  return self.timer:left(self.lease) >= 0.75 * self.settings.claim_duration
end

--- Claims entries. `all_up` is false while a destination is down; then a limit that was raised by
-- `grow` is kept. Returns whether there is a claim now; and, if not, whether it was refused because
-- another processor holds one.
function Claim:acquire(all_up)
  local settings, agenda, shared = self.settings, self.agenda, self.shared
  local kept = self.held and self.timer:left(self.lease) > 0 -- nobody else has had it since
  local sweep = shared or not kept or agenda:has_come("sweep")
  agenda:set("look", settings.process_interval * (0.75 + 0.25 * random()))
  agenda:set("reclaim", settings.claim_duration / 2)
  if shared and all_up then
    self.limit = settings.limit
  end
  local held, due_at, restored_from, refused = self.store:claim_entries(settings.processor_id,
    self.timer.now() + settings.claim_duration, { exclusive = not shared, limit = self.limit })
  set_held(self, held, 0)
  self.more = false
  agenda:resume()
  agenda:set_at("due", due_at)
  if sweep or not held then
    self.after = nil -- somebody may have changed anything before it
    agenda:set("sweep", settings.process_interval)
  elseif restored_from and self.after and restored_from <= self.after then
    self.after = restored_from - 1
  end
  return held, refused
end

--- Renews the lease, and calls `work(held)` in the same transaction; `held` is whether the claim
-- was still there. The deadline is set after the wait for the lock, so that no time is lost.
-- Returns `held`.
function Claim:renew(work)
  local lease, renewed
  self.store:transaction(function()
    lease = self.timer:span(self.settings.claim_duration)
    renewed = self.store:renew_claim(self.settings.processor_id, lease.at)
    work(renewed)
  end)
  self.lease = lease
  set_held(self, renewed, self.settings.claim_duration / 2, lease.since)
  return renewed
end

--- Notes what a reading has found: up to which place it got, and whether it found any entries to
-- deliver. A reading that found none may have ended early, among many entries that are held back.
function Claim:note_read(after, found)
  self.more = found or after ~= (self.after or math.mininteger)
  self.after = after
end

--- Notes that nothing was read.
function Claim:note_unread()
  self.more = false
end

--- Reads again what comes after the place `from`.
function Claim:rewind(from)
  self.after = self.after and from -- if it is nil, reading starts from the first entry anyway
end

--- Reads again from the first entry.
function Claim:rewind_all()
  self.after = nil
end

--- Forgets how far it has read and whether there is more.
function Claim:start_over()
  self.more, self.after = false, nil
end

--- Doubles the limit, and has the claim made again at once. Returns false if the limit cannot grow.
function Claim:grow()
  if self.limit >= MAX_CLAIMED then
    return false
  end
  self.limit = min(2 * self.limit, MAX_CLAIMED)
  self.agenda:set("reclaim", 0)
  return true
end

--- Gives the claim back, so that other processors need not wait for the deadline.
function Claim:release()
  self:start_over()
  if self.held then
    self.store:release_claim(self.settings.processor_id)
    set_held(self, false)
  end
end

--- Gives the claim up without writing to the database: it lapses at its deadline.
function Claim:abandon()
  set_held(self, false)
end

--- Has a thread renew the lease while the publisher is at work, for at most `publish_timeout`.
-- Returns the error if no thread can be started: then the claim must last for as long as the
-- publisher takes.
function Claim:start_heartbeat()
  local store, settings = self.store, self.settings
  local ok, trouble = pcall(store.start_heartbeat, store, settings.processor_id,
    settings.claim_duration / 2, settings.publish_timeout)
  if not ok and (type(trouble) ~= "table" or not NO_THREAD[trouble.code]) then
    error(trouble, 0)
  end
  return not ok and trouble or nil
end

--- Ends the heartbeat.
function Claim:stop_heartbeat()
  self.store:stop_heartbeat()
end

--- Makes the claim of a processor; it holds nothing yet.
return function(settings, agenda)
  return setmetatable({
    store = settings.store, settings = settings, agenda = agenda, timer = agenda.timer,
    shared = settings.ordering == "none",
    held = false,
    lease = agenda.timer:span(0),
    after = nil,
    more = false,
    limit = settings.limit,
  }, Claim)
end
