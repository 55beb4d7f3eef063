-- The pace of namespaces whose destinations take only so many messages a second. Messages that are
-- too many wait where they are, uncharged.
--
-- A namespace has a bucket of tokens, one for each message, and at most those of one second. At
-- first it has one token, not all: others may have sent as many just before. Processors that share
-- a namespace share its rate as they share its keys. So all of them together keep it; but a key
-- gets no more than the part of the processor that has it.

local huge, max, min = math.huge, math.max, math.min

local APART = 0.1 -- seconds: calls may be so far apart, rather than have one message each

local Pace = {}
Pace.__index = Pace

-- The bucket of a namespace, as it is now, and how many tokens come in a second.
local function bucket_of(self, namespace)
  local now, bucket = self.timer.now(), self.buckets[namespace]
  if not bucket then
    local per_second = self.rate_of(namespace) or huge
    bucket = { per_second = per_second, at = now,
      tokens = per_second < huge and self.share or huge }
    self.buckets[namespace] = bucket
  end
  local rate = bucket.per_second * self.share
  local passed = max(0, now - bucket.at) -- the clock may be set back
  bucket.at = now
  if rate > 0 and rate < huge then -- without a share, others send meanwhile
    bucket.tokens = min(bucket.tokens + passed * rate, max(1, rate))
  end
  return bucket, rate
end

-- How many messages of a namespace may be handed out now.
local function allowed(self, namespace)
  local bucket = bucket_of(self, namespace)
  return bucket.tokens < huge and max(0, (bucket.tokens + 1e-6) // 1) or huge
end

-- Keeps a namespace back until some messages may be handed out.
local function hold(self, namespace)
  local bucket, rate = bucket_of(self, namespace)
  if bucket.tokens + 1e-6 < 1 then
    local wanted = max(1, min(self.size, rate * APART))
    self.jury:hold(namespace, rate > 0 and (wanted - bucket.tokens) / rate or 1)
  end
end

--- The processor has this share of the keys, at most 1.
function Pace:set_share(share)
  if share ~= self.share then
    for namespace in pairs(self.buckets) do
      bucket_of(self, namespace) -- what has come until now came at the former share
    end
    self.share = share
  end
end

--- In how many seconds the first namespace that waits for its rate may go on; nil if none waits.
function Pace:wait()
  local seconds
  for _, s in pairs(self.jury.roster.by_name) do
    if s.paced and s.row == 0 and s.looks < 2 then
      seconds = min(seconds or huge, self.timer:left(s.rest))
    end
  end
  return seconds
end

--- Makes a jury keep the rates. `rate_of` returns how many messages of a namespace may be handed
-- out in a second, nil for any number.
return function(jury, rate_of)
  local pace = setmetatable({ jury = jury, timer = jury.timer, size = jury.size, rate_of = rate_of,
    buckets = {}, share = 1 }, Pace)
  local limit, choose, judge = jury.limit, jury.choose, jury.judge

  function jury:limit(namespace)
    local most = limit(self, namespace)
    if most > 0 then
      most = min(most, allowed(pace, namespace))
      hold(pace, namespace)
    end
    return most
  end

  function jury:choose()
    local want = choose(self)
    if want and want.namespace then
      want.batch_size = max(1, min(want.batch_size, allowed(pace, want.namespace)))
    end
    return want
  end

  function jury:judge(answer, outcome)
    local bucket = bucket_of(pace, answer.namespace)
    bucket.tokens = bucket.tokens - answer.size
    judge(self, answer, outcome)
    hold(pace, answer.namespace)
  end

  function jury.is_calm() -- the messages of every batch are counted
    return false
  end

  return pace
end
