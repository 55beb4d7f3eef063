-- Publishers and processors work on a PostgreSQL server of their own while processes are killed or
-- stopped, connections are ended, and the server itself is killed. Messages are delivered if and
-- only if they were committed, and for the first time in the order of the commits of their key.

local outbox = require("outbox")
local postgres = require("spec.support.postgres")
local process = require("process")
local support = require("spec.support")
local torture = require("spec.support.torture")

local describe = support.only("postgres", describe)

local TROUBLES = torture.long and 1000 or 10
local PUBLISHERS, PROCESSORS = 3, 3
local CUSTOMERS = 20
local BATCH_SIZE = 10
local CLAIM = 0.4
local PATIENCE = 60
-- A processor's deletions are not synced at once. A crash of the server undoes those of the last
-- moments, which are longer on a busy machine.
local ASYNC = 3
local UNDONE = {}
local PLAIN = "INSERT INTO outbox_entries (key, payload) VALUES ($1, $2)"
local COUNT = "INSERT INTO counters VALUES ($1, 1) ON CONFLICT (customer)"
  .. " DO UPDATE SET number = counters.number + 1"
local ORDER = "INSERT INTO orders SELECT customer, number, $2 FROM counters WHERE customer = $1"
-- What the server may answer at such times. A deadlock of two publishers is "busy".
local EXPECTED = { disconnected = true, cantopen = true, busy = true, lost = true }

local random, note = math.random, torture.note
local now, sleep = outbox.clock.now, outbox.clock.sleep

local function die()
  process.kill(process.pid())
end

local function note_problem(log, incarnation, problem)
  local code = type(problem) == "table" and problem.code or "raised"
  note(log, EXPECTED[code] and code or "error", incarnation, tostring(problem))
end

-- The server may be down.
local function open(url, log, incarnation)
  while true do
    local ok, store = pcall(outbox.open, url, { busy_timeout = PATIENCE })
    if ok then
      return store
    end
    note_problem(log, incarnation, store)
    sleep(0.02)
  end
end

-- Some transactions commit long after others that have begun later.
local function dawdle()
  sleep(random(40) == 1 and 0.2 * random() or 0.002 * random())
end

-- Takes orders for ever, up to three in a transaction. A message is published first. Only then the
-- transaction takes the row of the customer, which numbers the orders: so the numbers are in the
-- order of the commits, and the outbox does not have that order from them.
local function take_orders(url, log, incarnation)
  local store <close> = open(url, log, incarnation)
  local taken = 0
  while true do
    local undone, dies_at = random(6) == 1, random(60) == 1 and random(6)
    local names = {}
    for i = 1, random(3) do
      taken = taken + 1
      names[i] = ("%s%d.%d"):format((undone or dies_at) and "undone-" or "", incarnation, taken)
    end
    local ok, problem = pcall(store.transaction, store, function(txn)
      for i, name in ipairs(names) do
        local customer = "customer-" .. random(CUSTOMERS)
        if random(2) == 1 then
          txn:publish({ key = customer, payload = name })
        else
          txn:execute(PLAIN, customer, name)
        end
        if dies_at == 2 * i - 1 then
          die()
        end
        dawdle()
        txn:execute(COUNT, customer)
        txn:execute(ORDER, customer, name)
        if dies_at == 2 * i then
          die()
        end
      end
      if dies_at then
        die()
      elseif undone then
        error(UNDONE)
      end
    end)
    if ok then
      note(log, "committed", table.unpack(names))
    elseif problem == UNDONE then
      note(log, "undone", table.unpack(names))
    else
      note_problem(log, incarnation, problem)
      if tostring(problem):find("is rolled back", 1, true) then
        note(log, "denied", table.unpack(names))
      end
      sleep(0.01)
    end
    sleep(0.004 * random())
  end
end

-- A processor that delivers to the log. While `is_mortal()`, it may die in the middle of a batch,
-- or fail some messages.
local function processor(store, log, incarnation, is_mortal, id)
  local options = { store = store, processor_id = id, batch_size = BATCH_SIZE,
    claim_duration = CLAIM, process_interval = 1,
    -- A kill charges the entries in hand an attempt each. None may become a dead letter.
    retry = { max_attempts = 100000, base = 0.01 } }
  function options.on_error(problem)
    note_problem(log, incarnation, problem)
  end
  local is_settled = true
  function options.on_batch()
    is_settled = true
  end
  function options.publisher(messages)
    if is_settled then -- else it is another call of the same batch
      note(log, "batch", incarnation, #messages)
      is_settled = false
    end
    local mortal = is_mortal()
    local dies_after = mortal and random(40) == 1 and random(0, #messages)
    local failures, failed = {}, {}
    for i = 0, #messages do
      local message = messages[i]
      if message and failed[message.key] then
        failures[i] = { uncharged = true, reason = "one before it failed" }
      elseif message and mortal and random(20) == 1 then
        failures[i], failed[message.key] = "no", true
      elseif message then
        note(log, "delivered", incarnation, message.payload, ("%.6f"):format(now()))
      end
      if i == dies_after then
        die()
      end
    end
    return failures
  end
  return outbox.processor(options)
end

-- The names of the troubles, so that each part of them has its share of each.
local function shuffled_troubles()
  local list = { "crash" }
  for name, count in pairs({ kill = torture.long and 15 or 3, stop = torture.long and 9 or 3,
    terminate = torture.long and 8 or 3 }) do
    for _ = 1, count do
      list[#list + 1] = name
    end
  end
  table.sort(list) -- because the order of `pairs` is not that of the seed
  for i = #list, 2, -1 do
    local j = random(i)
    list[i], list[j] = list[j], list[i]
  end
  return list
end

describe("whatever is killed, an outbox on PostgreSQL", function()
  local server, log_path, calm_path

  before_each(function()
    server = postgres.server({ fsync = "on", deadlock_timeout = "20ms" })
    local store <close> = outbox.open(server.url) -- closed before the forks
    store:migrate()
    store:transaction(function(txn)
      txn:execute("CREATE TABLE counters (customer text PRIMARY KEY, number bigint NOT NULL)")
      txn:execute("CREATE TABLE orders (customer text NOT NULL, number bigint NOT NULL,"
        .. " name text PRIMARY KEY)")
    end)
    log_path, calm_path = support.path(), support.path()
    os.remove(calm_path)
  end)

  after_each(function()
    torture.kill_all()
    postgres.stop()
    support.remove()
  end)

  local function is_mortal()
    local file = io.open(calm_path)
    if file then
      file:close()
    end
    return file == nil
  end

  local function start(slot, incarnation)
    return torture.fork(function()
      local log <close> = torture.log(log_path)
      if slot <= PUBLISHERS then
        take_orders(server.url, log, incarnation)
      end
      local store <close> = open(server.url, log, incarnation)
      -- With the same id as before, it need not wait until the old claim has lapsed.
      local id = random(2) == 1 and "processor " .. slot or nil
      processor(store, log, incarnation, is_mortal, id):run()
    end)
  end

  -- The processes, by their slots: publishers first.
  local Company = {}
  Company.__index = Company

  function Company:bury(slot)
    assert.equal(-9, torture.wait(self.pids[slot]), "ended by itself, seed " .. torture.seed)
    self.pids[slot], self.resumes[slot] = nil, nil
    self:count(slot <= PUBLISHERS and "publishers killed" or "processors killed")
  end

  function Company:count(name)
    self.counts[name] = (self.counts[name] or 0) + 1
    self.troubles = self.troubles + 1
  end

  -- Continues what was stopped for long enough, and starts anew what has died.
  function Company:restore(first)
    for slot = first, PUBLISHERS + PROCESSORS do
      local pid = self.pids[slot]
      if pid and self.resumes[slot] and self.resumes[slot] <= now() then
        process.kill(pid, 18) -- SIGCONT
        self.resumes[slot] = nil
      elseif pid and process.ended(pid) then
        self:bury(slot)
      end
      if not self.pids[slot] then
        self.incarnation = self.incarnation + 1
        self.pids[slot] = start(slot, self.incarnation)
      end
    end
  end

  function Company:kill(slot)
    process.kill(self.pids[slot])
    self:bury(slot)
  end

  -- Longer than a claim, mostly.
  function Company:stop(slot)
    if not self.resumes[slot] then
      process.kill(self.pids[slot], 19) -- SIGSTOP
      self.resumes[slot] = now() + CLAIM * (0.5 + 1.5 * random())
      self:count("stops")
    end
  end

  function Company:terminate()
    postgres.sql(server.url, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
      .. " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
      .. " ORDER BY random() LIMIT 1")
    self:count("connections ended")
  end

  function Company:crash(_, log)
    local before = now()
    server:crash()
    server:start()
    note(log, "crash", before, now())
    self:count("crashes of the server")
  end

  local function make_trouble(log)
    local company = setmetatable({ pids = {}, resumes = {}, counts = {}, troubles = 0,
      incarnation = 0 }, Company)
    local list = {}
    while company.troubles < TROUBLES do
      company:restore(1)
      torture.wait_for_a_moment(log)
      if #list == 0 then
        list = shuffled_troubles()
      end
      company[table.remove(list)](company, random(PUBLISHERS + PROCESSORS), log)
    end
    return company
  end

  -- Ends the publishers. The processors, of which nothing is killed any more, must deliver
  -- everything without being started anew. Returns how many entries they leave.
  local function let_finish(company)
    io.open(calm_path, "w"):close()
    company:restore(1)
    for slot = 1, PUBLISHERS do
      company:kill(slot)
    end
    for slot = PUBLISHERS + 1, PUBLISHERS + PROCESSORS do
      if company.resumes[slot] then
        company.resumes[slot] = 0
      end
    end
    company:restore(PUBLISHERS + 1)
    local store <close> = outbox.open(server.url)
    local stats, latest = store:stats(), now() + 20
    while stats.ready + stats.delayed > 0 and now() < latest do
      sleep(0.01)
      stats = store:stats()
    end
    torture.kill_all()
    return stats.ready + stats.delayed
  end

  -- Delivers with one more processor what was left. Returns the orders.
  local function drain(log)
    local store <close> = outbox.open(server.url)
    local last = processor(store, log, 0, function() end)
    local stats, latest = store:stats(), now() + 60
    while stats.ready + stats.delayed > 0 and now() < latest do
      sleep(math.min(last:step(), 0.1))
      stats = store:stats()
    end
    assert.outbox(store).is_empty()
    return support.sql(store, "SELECT number, name, customer FROM orders")
  end

  -- A second delivery is allowed if one of the two was in the last batch of a processor, which was
  -- in hand when it died, or in a batch whose claim was lost; or if the server has crashed soon
  -- after the first.
  local function is_accounted(again, log)
    local before, after = again.before.batch, again.batch
    if before == after then
      return false
    elseif before.lost or after.lost or before == log.latest[before.incarnation] then
      return true
    end
    for _, crash in ipairs(log.crashes) do
      if again.before.time > crash[1] - ASYNC and again.before.time < crash[2] + ASYNC then
        return true
      end
    end
    return false
  end

  local function read_log()
    local log = { committed = {}, denied = {}, undone = 0, first = {}, again = {}, crashes = {},
      latest = {}, errors = {}, codes = {} }
    local by_name = {}
    for words in torture.records(log_path) do
      local kind, incarnation = words[1], words[2]
      local batch = log.latest[incarnation]
      if kind == "batch" then
        log.latest[incarnation] = { incarnation = incarnation, size = tonumber(words[3]) }
      elseif kind == "delivered" then
        local name = words[3]
        local delivery = { batch = batch, time = tonumber(words[4]), before = by_name[name] }
        local list = by_name[name] and log.again or log.first
        list[#list + 1] = by_name[name] and delivery or name
        by_name[name] = delivery
      elseif kind == "committed" or kind == "denied" then
        table.move(words, 2, #words, #log[kind] + 1, log[kind])
      elseif kind == "undone" then
        log.undone = log.undone + 1
      elseif kind == "crash" then
        log.crashes[#log.crashes + 1] = { tonumber(words[2]), tonumber(words[3]) }
      elseif EXPECTED[kind] then
        log.codes[kind] = (log.codes[kind] or 0) + 1
        if kind == "lost" and batch then
          batch.lost = true
        end
      else
        log.errors[#log.errors + 1] = table.concat(words, " ")
      end
    end
    log.unaccounted = 0
    for _, again in ipairs(log.again) do
      log.unaccounted = log.unaccounted + (is_accounted(again, log) and 0 or 1)
    end
    return log
  end

  -- Compares the deliveries with the orders. Returns the names that were lost (committed, but not
  -- delivered or not even in the table), phantom (delivered, or said to be rolled back, against the
  -- table) and overtaken (delivered after a later one of the same customer).
  local function compare(log, orders)
    local by_name, delivered, last = {}, {}, {}
    local lost, phantom, overtaken = {}, {}, {}
    for _, order in ipairs(orders) do
      by_name[order.name] = order
    end
    for _, name in ipairs(log.first) do
      local order = by_name[name]
      delivered[name] = true
      if not order or name:find("^undone") then
        phantom[#phantom + 1] = name
      elseif order.number < (last[order.customer] or 0) then
        overtaken[#overtaken + 1] = name
      else
        last[order.customer] = order.number
      end
    end
    for name in pairs(by_name) do
      if not delivered[name] then
        lost[#lost + 1] = name .. (by_name[name] and "" or " is not in the table")
      end
    end
    for _, name in ipairs(log.committed) do
      if not by_name[name] then
        lost[#lost + 1] = name .. (by_name[name] and "" or " is not in the table")
      end
    end
    for _, name in ipairs(log.denied) do
      if by_name[name] then
        phantom[#phantom + 1] = name
      end
    end
    return lost, phantom, overtaken
  end

  local function show(counts)
    local words = {}
    for name, count in pairs(counts) do
      words[#words + 1] = ("%d %s"):format(count, name)
    end
    table.sort(words)
    return table.concat(words, ", ")
  end

  it("loses nothing, delivers nothing else, and keeps the order of every key", function()
    math.randomseed(torture.seed)
    local company, left
    do
      local log <close> = torture.log(log_path)
      company = make_trouble(log)
      left = let_finish(company)
    end
    local last_log <close> = torture.log(log_path)
    local orders, log = drain(last_log), read_log()
    local lost, phantom, overtaken = compare(log, orders)
    local summary = ("seed %d: %s; of %d orders %d were delivered again; %d transactions undone;"
      .. " codes: %s"):format(torture.seed, show(company.counts), #orders, #log.again, log.undone,
      show(log.codes))
    torture.say(summary)
    torture.tally("PostgreSQL: kill", company.troubles, #lost, #phantom)
    assert.same({}, log.errors, summary)
    assert.same({}, lost, summary)
    assert.same({}, phantom, summary)
    assert.same({}, overtaken, summary)
    assert.equal(0, left, "entries that living processors do not deliver; " .. summary)
    assert.equal(0, log.unaccounted, summary)
  end)
end)
