-- Publishers and processors on one database are killed at any moment and started again. Messages
-- are delivered if and only if they were committed. Only messages that were in hand at a kill are
-- delivered twice.

local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")
local torture = require("spec.support.torture")

local describe = support.only("sqlite", describe)

local KILLS = torture.long and 1000 or 15 -- for each ordering
local PUBLISHERS, PROCESSORS = 3, 3
local CUSTOMERS = 8
local BATCH_SIZE = 10
local PATIENCE = 60 -- seconds to wait for a lock, because the disk of a busy machine may stall
local UNDONE = {}
local PLAIN = "INSERT INTO outbox_entries (key, payload) VALUES (?, ?)"

local random, note = math.random, torture.note

local function die()
  process.kill(process.pid())
end

-- Takes orders for ever, up to five in a transaction. Some transactions are rolled back, and in
-- some the publisher dies. The orders of both have names that begin with "undone-".
local function take_orders(path, log, incarnation)
  local store <close> = outbox.open(path, { busy_timeout = PATIENCE })
  store:migrate()
  local taken = 0
  while true do
    local undone, dies_at = random(5) == 1, random(60) == 1 and random(10)
    local names = {}
    for i = 1, random(5) do
      taken = taken + 1
      names[i] = ("%s%d.%d"):format((undone or dies_at) and "undone-" or "", incarnation, taken)
    end
    local ok, problem = pcall(store.transaction, store, function(txn)
      for i, name in ipairs(names) do
        local customer = "customer-" .. random(CUSTOMERS)
        txn:execute("INSERT INTO orders (name, customer) VALUES (?, ?)", name, customer)
        if dies_at == 2 * i - 1 then
          die()
        end
        if random(2) == 1 then
          txn:publish({ key = customer, payload = name })
        else
          txn:execute(PLAIN, customer, name)
        end
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
    assert(ok or problem == UNDONE, problem)
    note(log, ok and "committed" or "undone", table.unpack(names))
    outbox.clock.sleep(0.004 * random())
  end
end

-- What a message is called in the log: that of a copy has its namespace, too.
local function name_of(message)
  if message.namespace == "" then
    return message.payload
  end
  assert(message.id == message.source_id .. ":" .. message.namespace)
  return message.payload .. "@" .. message.namespace
end

-- A processor that delivers to the log. If `mortal`, it may die in the middle of a batch, and fails
-- some messages of the namespace "mail".
local function processor(options, log, incarnation, mortal)
  options.batch_size, options.claim_duration = BATCH_SIZE, 0.2
  -- A kill charges the entries in hand an attempt each. None may become a dead letter.
  options.retry = { max_attempts = 100000, base = 0.01 }
  function options.on_error(problem)
    note(log, problem.code == "lost" and "lost" or "error", incarnation, problem.message)
  end
  options.publisher = { ordered = true } -- so a call has all of a namespace
  local is_settled = true
  function options.on_batch()
    is_settled = true
  end
  function options.publisher.publish(_, messages, namespace)
    if is_settled then -- else it is another call of the same batch
      note(log, "batch", incarnation, #messages)
      is_settled = false
    end
    local dies_after = mortal and random(40) == 1 and random(0, #messages)
    local failures, failed = {}, {}
    for i = 0, #messages do
      local message = messages[i]
      if message and failed[message.key] then
        failures[i] = { uncharged = true, reason = "one before it failed" }
      elseif message and mortal and namespace == "mail" and random(20) == 1 then
        failures[i], failed[message.key] = "no", true
      elseif message then
        note(log, "delivered", incarnation, name_of(message))
      end
      if i == dies_after then
        die()
      end
    end
    return failures
  end
  return outbox.processor(options)
end

describe("killed at any moment, an outbox", function()
  local path, log_path
  local total = { kills = 0, lost = 0, phantom = 0 }

  before_each(function()
    local store
    store, path = support.store()
    store:transaction(function(txn)
      -- The numbers follow the order of the commits, because each transaction begins by locking.
      txn:execute("CREATE TABLE orders (number INTEGER PRIMARY KEY AUTOINCREMENT,"
        .. " name TEXT NOT NULL UNIQUE, customer TEXT NOT NULL)")
    end)
    store:close() -- before the forks
    log_path = support.path()
  end)

  after_each(function()
    torture.kill_all()
    support.remove()
  end)

  teardown(function()
    torture.tally("kill", total.kills, total.lost, total.phantom)
  end)

  local function start(slot, incarnation, ordering)
    return torture.fork(function()
      local log <close> = torture.log(log_path)
      if slot <= PUBLISHERS then
        take_orders(path, log, incarnation)
      end
      local store <close> = outbox.open(path, { synchronous = "normal", busy_timeout = PATIENCE })
      processor({
        store = store,
        ordering = ordering,
        -- With the same id as before, it need not wait until the old claim has lapsed.
        processor_id = random(2) == 1 and "processor " .. slot or nil,
      }, log, incarnation, true):run()
    end)
  end

  -- Starts all processes, kills one or all, and starts these again. Returns how many publishers and
  -- how many processors were killed.
  local function kill(ordering)
    local pids, incarnation, publishers, processors = {}, 0, 0, 0
    local log <close> = assert(io.open(log_path))
    local function bury(slot)
      assert.equal(-9, torture.wait(pids[slot]), "ended by itself, seed " .. torture.seed)
      pids[slot] = nil
      if slot <= PUBLISHERS then
        publishers = publishers + 1
      else
        processors = processors + 1
      end
    end
    repeat
      for slot = 1, PUBLISHERS + PROCESSORS do
        if not pids[slot] then
          incarnation = incarnation + 1
          pids[slot] = start(slot, incarnation, ordering)
        end
      end
      torture.wait_for_a_moment(log)
      local enough = publishers + processors + #pids >= KILLS
      local everybody, victim = enough or random(30) == 1, random(#pids)
      for slot = 1, #pids do
        if everybody or slot == victim then
          process.kill(pids[slot])
          bury(slot)
        elseif process.ended(pids[slot]) then
          bury(slot)
        end
      end
    until enough
    return publishers, processors
  end

  -- Delivers with one processor everything that the killed ones have left. Returns the orders.
  local function drain(ordering)
    local store <close> = outbox.open(path)
    local log <close> = torture.log(log_path)
    local last = processor({ store = store, ordering = ordering }, log, 0, false)
    local stats, latest = store:stats(), outbox.clock.now() + 60
    while stats.ready + stats.delayed > 0 and outbox.clock.now() < latest do
      outbox.clock.sleep(last:step())
      stats = store:stats()
    end
    return support.sql(store, "SELECT number, name, customer FROM orders")
  end

  -- Reads which messages were delivered for the first time, and which again. A second delivery is
  -- allowed if the first was in the last batch of a processor, which was in hand at the kill, or in
  -- a batch whose claim was lost.
  local function read_log()
    local log = { committed = {}, undone = 0, first = {}, again = {}, in_hand = 0, lost_claims = 0,
      unaccounted = 0, errors = {} }
    local latest, delivered_in = {}, {}
    for words in torture.records(log_path) do
      local kind, incarnation = words[1], words[2]
      local batch = latest[incarnation]
      if kind == "batch" then
        latest[incarnation] = { incarnation = incarnation, size = tonumber(words[3]) }
      elseif kind == "delivered" then
        local name = words[3]
        if delivered_in[name] then
          log.again[#log.again + 1] = { before = delivered_in[name], now = batch }
        else
          log.first[#log.first + 1] = name
        end
        delivered_in[name] = batch
      elseif kind == "committed" then
        table.move(words, 2, #words, #log.committed + 1, log.committed)
      elseif kind == "undone" then
        log.undone = log.undone + 1
      elseif kind == "lost" then
        log.lost_claims = log.lost_claims + 1
        if batch then
          batch.lost = true
        end
      else
        log.errors[#log.errors + 1] = table.concat(words, " ")
      end
    end
    for _, batch in pairs(latest) do
      log.in_hand = log.in_hand + batch.size
    end
    for _, again in ipairs(log.again) do
      local before = again.before
      if before == again.now or not before.lost and before ~= latest[before.incarnation] then
        log.unaccounted = log.unaccounted + 1
      end
    end
    return log
  end

  -- Compares the deliveries with the orders. Returns how many were lost (committed, but not
  -- delivered or not even in the table), phantom (delivered, but not in the table) and overtaken
  -- (delivered after a later one of the same key). Of each order there are `copies`, in which the
  -- names end as they say.
  local function compare(log, orders, copies)
    local by_name, delivered, last = {}, {}, {}
    local lost, phantom, overtaken = 0, 0, 0
    for _, order in ipairs(orders) do
      for _, copy in ipairs(copies) do
        by_name[order.name .. copy] = { number = order.number, line = order.customer .. copy }
      end
    end
    for _, name in ipairs(log.first) do
      local order = by_name[name]
      delivered[name] = true
      if not order or name:find("^undone") then
        phantom = phantom + 1
      else
        overtaken = overtaken + (order.number < (last[order.line] or 0) and 1 or 0)
        last[order.line] = order.number
      end
    end
    for name in pairs(by_name) do
      lost = lost + (delivered[name] and 0 or 1)
    end
    for _, name in ipairs(log.committed) do
      lost = lost + (by_name[name .. copies[1]] and 0 or 1)
    end
    return lost, phantom, overtaken
  end

  local function test(ordering, copies)
    math.randomseed(torture.seed)
    local publishers, processors = kill(ordering)
    local orders, log = drain(ordering), read_log()
    local lost, phantom, overtaken = compare(log, orders, copies or { "" })
    total.kills = total.kills + publishers + processors
    total.lost, total.phantom = total.lost + lost, total.phantom + phantom
    local summary = ("seed %d, ordering %s: killed %d publishers, %d processors with %d entries in"
      .. " hand; of %d orders %d were delivered again; %d transactions undone,"
      .. " %d claims lost"):format(torture.seed, ordering, publishers, processors, log.in_hand,
      #orders, #log.again, log.undone, log.lost_claims)
    torture.say(summary)
    assert.same({}, log.errors, summary)
    assert.equal(0, lost, summary)
    assert.equal(0, phantom, summary)
    assert.equal(0, log.unaccounted, summary)
    assert.is_true(ordering == "none" or overtaken == 0, summary)
    local store <close> = outbox.open(path)
    assert.outbox(store).is_empty()
    assert.same({ { integrity_check = "ok" } }, support.sql(store, "PRAGMA integrity_check"))
  end

  it("loses nothing, delivers nothing else, and keeps the order of every key", function()
    test("key")
  end)

  it("delivers every copy of what was committed, and keeps the order of a key in each", function()
    local store = outbox.open(path)
    store:migrate()
    store:subscribe("", "mail")
    store:subscribe("", "audit")
    store:close() -- before the forks
    test("key", { "@mail", "@audit" })
  end)

  it("loses nothing and delivers nothing else where no order is kept", function()
    test("none")
  end)
end)
