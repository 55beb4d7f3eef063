-- Eight processes publish and four share the backlog, at once, on one database. Each message is
-- delivered once, no entry is ever claimed by two processors, and no call fails with "busy".

local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")
local torture = require("spec.support.torture")

local PUBLISHERS, PROCESSORS = 8, 4
local SHARE = torture.long and 25000 or 500 -- messages of each publisher
local SIZES = { 1, 1, 1, 1, 1, 1, 10, 10, 100 } -- messages in a transaction, chosen at random

local note = torture.note

-- Publishes its share of messages. Logs the number so far and the duration of each transaction.
local function publish(path, log, name)
  local store <close> = outbox.open(path)
  local published = 0
  while published < SHARE do
    local size = math.min(SIZES[math.random(#SIZES)], SHARE - published)
    local start = outbox.clock.now()
    store:transaction(function(txn)
      for i = published + 1, published + size do
        txn:publish({ payload = name .. "." .. i })
      end
    end)
    published = published + size
    note(log, "published", name, published, outbox.clock.now() - start)
  end
end

local function process_messages(path, log)
  local store <close> = outbox.open(path, { synchronous = "normal" })
  local processor = outbox.processor({
    store = store,
    ordering = "none",
    claim_duration = 30, -- a busy machine may stall for some seconds
    publisher = function(messages)
      note(log, "delivered", table.unpack(support.pluck(messages, "payload")))
    end,
    on_error = function(problem)
      note(log, "error", problem.code, problem.message)
    end,
  })
  process.on_term(function()
    processor:stop()
  end)
  processor:run()
end

-- How many processors have live shares, and whether these are more than there is to share.
local function look(leases, now)
  local count, classes = 0, 0
  for _, lease in ipairs(leases) do
    if lease.deadline >= now and lease.classes > 0 then
      count, classes = count + 1, classes + lease.classes
    end
  end
  return count, classes > 64
end

-- Looks at the leases repeatedly. Logs how often it looked, how often several processors had
-- shares, and how often these overlapped.
local function watch(path, log)
  local store <close> = outbox.open(path)
  local looks, shared, overlaps, watching = 0, 0, 0, true
  process.on_term(function()
    watching = false
  end)
  while watching do
    local now = outbox.clock.now()
    local count, overlap = look(store:stats().leases, now)
    looks = looks + 1
    shared = shared + (count > 1 and 1 or 0)
    overlaps = overlaps + (overlap and 1 or 0)
  end
  note(log, "watched", looks, shared, overlaps)
end

describe("publishers and processors at once", function()
  local path, log_path

  before_each(function()
    path = support.database() -- because a disk that stalls prolongs each lock
    local store = outbox.open(path)
    store:migrate()
    store:close() -- before the forks
    log_path = support.path()
  end)

  after_each(function()
    torture.kill_all()
    support.remove()
  end)

  -- Starts all processes at once. Ends them when everything is published and nothing waits. Returns
  -- how many failed.
  local function run()
    local go, publishers, others, failed = process.gate(), {}, {}, 0
    local function start(list, fn, name)
      list[#list + 1] = torture.fork(function()
        local log <close> = torture.log(log_path)
        go:wait()
        fn(path, log, name)
      end)
    end
    for _ = 1, PROCESSORS do
      start(others, process_messages)
    end
    start(others, watch)
    for name = 1, PUBLISHERS do
      start(publishers, publish, name)
    end
    go:open()
    local function bury(pid)
      failed = failed + (torture.wait(pid) == 0 and 0 or 1)
    end
    for _, pid in ipairs(publishers) do
      bury(pid)
    end
    local store <close> = outbox.open(path)
    local latest = outbox.clock.now() + 120
    repeat
      outbox.clock.sleep(0.01)
      local stats = store:stats()
    until stats.ready + stats.delayed == 0 or outbox.clock.now() > latest
    for _, pid in ipairs(others) do
      repeat -- a signal just before the processor falls asleep does not wake it
        process.kill(pid, 15)
        outbox.clock.sleep(0.01)
      until process.ended(pid)
      bury(pid)
    end
    return failed
  end

  local function read_log()
    local log = { published = {}, transactions = 0, longest = 0, errors = {}, counts = {},
      again = 0, looks = 0, shared = 0, overlaps = 0 }
    for words in torture.records(log_path) do
      if words[1] == "published" then
        log.published[words[2]] = tonumber(words[3])
        log.transactions = log.transactions + 1
        log.longest = math.max(log.longest, tonumber(words[4]))
      elseif words[1] == "delivered" then
        for i = 2, #words do
          local count = (log.counts[words[i]] or 0) + 1
          log.counts[words[i]] = count
          log.again = log.again + (count > 1 and 1 or 0)
        end
      elseif words[1] == "watched" then
        log.looks, log.shared = tonumber(words[2]), tonumber(words[3])
        log.overlaps = tonumber(words[4])
      else
        log.errors[#log.errors + 1] = table.concat(words, " ")
      end
    end
    return log
  end

  it("deliver each message once, share no entry, and never fail with busy", function()
    math.randomseed(torture.seed)
    local failed, log = run(), read_log()
    local cases, lost, phantom = 0, 0, 0
    for name, published in pairs(log.published) do
      cases = cases + published
      for i = 1, published do
        local payload = name .. "." .. i
        lost = lost + (log.counts[payload] and 0 or 1)
        log.counts[payload] = nil
      end
    end
    for _ in pairs(log.counts) do
      phantom = phantom + 1
    end
    local summary = ("seed %d: %d messages in %d transactions, the longest %.2f s;"
      .. " %d delivered again; of %d looks %d saw several processors,"
      .. " %d shares that overlap"):format(torture.seed, cases, log.transactions, log.longest,
      log.again, log.looks, log.shared, log.overlaps)
    torture.say(summary)
    torture.tally("contention", cases, lost, phantom)
    assert.same({}, log.errors, summary)
    assert.equal(0, failed, summary)
    assert.equal(PUBLISHERS * SHARE, cases, summary)
    assert.same({ 0, 0, 0 }, { lost, phantom, log.again }, summary)
    assert.equal(0, log.overlaps, summary)
    assert.is_true(log.shared > 0, summary)
  end)
end)
