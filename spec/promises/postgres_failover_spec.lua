-- A primary and its standby. The primary dies and the standby takes its place; or it is started
-- again, or its name leads elsewhere. The stores that are open go on by themselves. Nothing that
-- was committed is lost, and nothing is said to be committed unless it was.

local outbox = require("outbox")
local postgres = require("spec.support.postgres")
local process = require("process")
local support = require("spec.support")
local torture = require("spec.support.torture")

local describe = support.only("postgres", describe)

-- What nobody waits for is written to the log late, so that a crash undoes it. A standby must not
-- wait for seconds until it looks for its primary again.
local SETTINGS = { autovacuum = "off", wal_writer_delay = "10s",
  wal_retrieve_retry_interval = "20ms" }

local FAILOVERS = torture.long and 40 or 1
local PUBLISHERS, PROCESSORS = 2, 2
local CUSTOMERS = 10
local UNDONE = {}
local COUNT = "INSERT INTO counters VALUES ($1, 1) ON CONFLICT (customer)"
  .. " DO UPDATE SET number = counters.number + 1"
local ORDER = "INSERT INTO orders SELECT customer, number, $2 FROM counters WHERE customer = $1"

-- Those of applications; the one that asks is none.
local SESSIONS = "FROM pg_stat_activity WHERE backend_type = 'client backend'"
  .. " AND pid <> pg_backend_pid()"
local END_SESSIONS = "SELECT pg_terminate_backend(pid) " .. SESSIONS
-- A processor that waits has a lock by which publishers know that, on its connection that LISTENs.
local LISTENER = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'"
-- The connection on which a processor keeps its claim alive while it delivers something.
local HEART = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'UPDATE %SET deadline = deadline%'"
local WAITS_FOR_STANDBY = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"

local random, note = math.random, torture.note
local now, sleep = outbox.clock.now, outbox.clock.sleep

describe("when a PostgreSQL server", function()
  local primary, standby, log_path

  setup(function()
    primary = postgres.server(SETTINGS)
    standby = postgres.standby(primary)
  end)

  teardown(postgres.stop)

  before_each(function()
    postgres.sql(primary.url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    local store <close> = outbox.open(primary.url)
    store:migrate()
    log_path = support.path()
  end)

  after_each(function()
    torture.kill_all()
    support.remove()
  end)

  local function fail_over()
    primary:crash()
    standby:promote()
    primary, standby = standby, primary
  end

  -- Asks until there is an answer. The server may be down.
  local function await(url, query, except)
    local ok, answer
    repeat
      ok, answer = pcall(postgres.sql, url, query)
    until ok and answer ~= "" and answer ~= except
    return answer
  end

  -- The name of a server, which may come to be that of another, as in the DNS.
  local function name(server)
    local path = support.path()
    local function lead_to(other)
      os.remove(path)
      assert(os.execute(("ln -s '%s' '%s'"):format(other.folder, path)))
    end
    lead_to(server)
    local host = path:gsub("/", "%%2F")
    return server.url:gsub("@.-:", { [server.url:match("@.-:")] = "@" .. host .. ":" }), lead_to
  end

  -- Starts a processor in a process of its own, which sleeps until it is woken. What is "slow" is
  -- delivered with a function. Returns a function that waits until "first" is delivered; and one
  -- that waits for the end of the processor, which comes with "last", and returns what was
  -- delivered, and the codes of the errors, each once.
  local function start_processor(url, process_interval, deliver_slowly)
    local gate = process.gate()
    local pid = torture.fork(function()
      local log <close> = torture.log(log_path)
      local store <close> = outbox.open(url)
      local p
      p = outbox.processor({ store = store, process_interval = process_interval or 3600,
        on_error = function(problem)
          note(log, "error", problem.code)
        end,
        publisher = function(messages)
          for _, message in ipairs(messages) do
            note(log, "delivered", message.payload)
            if message.payload == "first" then
              gate:open()
            elseif message.payload == "last" then
              p:stop()
            elseif message.payload:find("^slow") then
              deliver_slowly(message.payload)
            end
          end
        end })
      p:run()
    end)
    return function()
      gate:wait()
    end, function()
      assert.equal(0, torture.wait(pid))
      local seen, delivered, codes = {}, {}, {}
      for words in torture.records(log_path) do
        local list = words[1] == "error" and codes or delivered
        if not seen[words[2]] then
          list[#list + 1] = words[2]
          seen[words[2]] = true
        end
      end
      return delivered, codes
    end
  end

  -- Waits until the processor has reported it.
  local function await_error(code)
    while true do
      for words in torture.records(log_path) do
        if words[1] == "error" and words[2] == code then
          return
        end
      end
      sleep(0.001)
    end
  end

  local function publish(store, payload)
    store:publish({ key = "key", payload = payload })
  end

  it("is started again, a publisher and a processor go on", function()
    local started, ended = start_processor(primary.url)
    local publisher <close> = outbox.open(primary.url)
    publish(publisher, "first")
    started()
    primary:restart()
    assert.equal("disconnected", support.raised(publish, publisher, "second").code)
    publish(publisher, "second")
    publish(publisher, "last")
    local delivered, codes = ended()
    assert.same({ "first", "second", "last" }, delivered)
    assert.same({ "disconnected" }, codes)
  end)

  -- PostgreSQL ends all sessions then, recovers, and goes on with the same first process. It may
  -- give the numbers of transactions again that it has forgotten.
  it("loses one of its processes, what is forgotten was not committed", function()
    local started, ended = start_processor(primary.url)
    local publisher <close> = outbox.open(primary.url)
    local other <close> = outbox.open(primary.url)
    publish(publisher, "first")
    publish(other, "second")
    started()
    local problem = support.raised(publisher.transaction, publisher, function(txn)
      publish(txn, "forgotten")
      local own = txn:rows("SELECT pg_backend_pid() AS pid,"
        .. " pg_current_xact_id()::text::bigint AS number")()
      process.kill(own.pid)
      local spent
      repeat
        spent = tonumber(await(primary.url, "CREATE TABLE IF NOT EXISTS numbers (number bigint);"
          .. " INSERT INTO numbers VALUES (pg_current_xact_id()::text::bigint) RETURNING number"))
      until spent >= own.number
    end)
    assert.equal("disconnected", problem.code)
    assert.equal("disconnected", support.raised(publish, other, "third").code)
    publish(other, "third")
    publish(publisher, "last")
    local delivered, codes = ended()
    assert.same({ "first", "second", "third", "last" }, delivered)
    assert.same({ "disconnected" }, codes)
  end)

  it("dies, a publisher and a processor go on at the standby that is promoted", function()
    local url = postgres.hosts({ primary, standby }, "target_session_attrs=read-write")
    local started, ended = start_processor(url)
    local publisher <close> = outbox.open(url)
    publish(publisher, "first")
    started()
    fail_over()
    assert.equal("disconnected", support.raised(publish, publisher, "second").code)
    publish(publisher, "second")
    publish(publisher, "last")
    local delivered, codes = ended()
    assert.same({ "first", "second", "last" }, delivered)
    assert.same({ "disconnected" }, codes)
    standby:follow(primary)
  end)

  it("is a standby, a store there can only look", function()
    local writer <close> = outbox.open(primary.url)
    publish(writer, "first")
    local query = "SELECT count(*) FROM outbox_entries"
    while not pcall(postgres.sql, standby.url, query) or postgres.sql(standby.url, query) ~= "1" do
      await(standby.url, "SELECT 1")
    end
    local refused = support.raised(outbox.open, standby.url)
    assert.equal("readonly", refused.code)
    assert.equal("the server is a standby, which cannot be written", refused.message)
    local reader <close> = outbox.open(standby.url, { mode = "read" })
    assert.equal(1, reader:stats().ready)
    assert.same({ "first" }, support.pluck(reader:ready_entries(), "payload"))
    assert.equal("readonly", support.raised(publish, reader, "second").code)
  end)

  it("is a standby, a store that has come there with its name leaves with it", function()
    local url, lead_to = name(primary)
    local started, ended = start_processor(url)
    local publisher <close> = outbox.open(url)
    publish(publisher, "first")
    started()
    lead_to(standby)
    postgres.sql(primary.url, END_SESSIONS)
    assert.equal("disconnected", support.raised(publish, publisher, "second").code)
    for _ = 1, 2 do
      assert.equal("readonly", support.raised(publish, publisher, "second").code)
    end
    await_error("readonly")
    lead_to(primary)
    publish(publisher, "second")
    publish(publisher, "last")
    local delivered, codes = ended()
    assert.same({ "first", "second", "last" }, delivered)
    assert.same({ "disconnected", "readonly" }, codes)
  end)

  it("has vanished, a processor does not wait for what it hears from there", function()
    local started, ended = start_processor(primary.url, 0.1)
    local publisher <close> = outbox.open(primary.url)
    publish(publisher, "first")
    started()
    local listener = await(primary.url, LISTENER)
    process.kill(tonumber(listener), 19) -- SIGSTOP: it says nothing any more, not even goodbye
    local _ <close> = setmetatable({}, { __close = function()
      process.kill(tonumber(listener), 18) -- SIGCONT
    end })
    postgres.sql(primary.url, END_SESSIONS .. " AND pid <> " .. listener)
    assert.equal("disconnected", support.raised(publish, publisher, "last").code)
    await(primary.url, LISTENER .. " AND pid <> " .. listener)
    publish(publisher, "last")
    local delivered, codes = ended()
    assert.same({ "first", "last" }, delivered)
    assert.same({ "disconnected" }, codes)
  end)

  it("has vanished, a claim is kept alive where its processor is", function()
    local slow = { ["1"] = process.gate(), ["2"] = process.gate() }
    local started, ended = start_processor(primary.url, 0.1, function(payload)
      slow[payload:match("%d")]:wait()
    end)
    local publisher <close> = outbox.open(primary.url)
    publish(publisher, "first")
    started()
    publish(publisher, "slow 1")
    local heart = await(primary.url, HEART)
    slow["1"]:open()
    postgres.sql(primary.url, END_SESSIONS .. " AND pid <> " .. heart)
    assert.equal("disconnected", support.raised(publish, publisher, "slow 2").code)
    publish(publisher, "slow 2")
    await(primary.url, HEART .. " AND pid <> " .. heart)
    slow["2"]:open()
    publish(publisher, "last")
    local delivered, codes = ended()
    assert.same({ "first", "slow", "last" }, delivered)
    assert.same({ "disconnected" }, codes)
  end)

  -- From now on each commit waits for the standby. CHECKPOINT is done by the process that tells the
  -- others so.
  local function replicate_synchronously()
    postgres.sql(primary.url, "ALTER SYSTEM SET synchronous_standby_names = '*';"
      .. " SELECT pg_reload_conf()")
    await(primary.url, "SHOW synchronous_standby_names", "")
    postgres.sql(primary.url, "CHECKPOINT; CREATE TABLE IF NOT EXISTS numbers (number bigint)")
  end

  describe("replicates synchronously,", function()
    before_each(function()
      local store <close> = outbox.open(primary.url)
      store:transaction(function(txn)
        txn:execute("CREATE TABLE counters (customer text PRIMARY KEY, number bigint NOT NULL)")
        txn:execute("CREATE TABLE orders (customer text NOT NULL, number bigint NOT NULL,"
          .. " name text PRIMARY KEY)")
      end)
      replicate_synchronously()
    end)

    after_each(function()
      postgres.sql(primary.url, "ALTER SYSTEM RESET synchronous_standby_names;"
        .. " SELECT pg_reload_conf()")
    end)

    -- The server has committed such a transaction, but whoever takes its place need not have it.
    it("what the standby does not have yet was not committed", function()
      standby:crash()
      local pid = torture.fork(function()
        local log <close> = torture.log(log_path)
        local store <close> = outbox.open(primary.url)
        store:transaction(function(txn)
          publish(txn, "payload")
        end)
        note(log, "committed")
      end)
      local waits = await(primary.url, WAITS_FOR_STANDBY)
      postgres.sql(primary.url, ("SELECT pg_terminate_backend(%s)"):format(waits))
      local log <close> = torture.log(log_path)
      while postgres.sql(primary.url, WAITS_FOR_STANDBY .. " AND pid <> " .. waits) == ""
        and not process.ended(pid) do
        note(log, "waiting")
      end
      note(log, "replicated")
      standby:start()
      assert.equal(0, torture.wait(pid))
      local last, before
      for words in torture.records(log_path) do
        last, before = words[1], last
      end
      assert.same({ "replicated", "committed" }, { before, last })
    end)

    -- Takes orders for ever, one in a transaction, which publishes first. Only then it takes the
    -- row of the customer, which numbers the orders: so the numbers are in the order of the
    -- commits.
    local function take_orders(url, log, number)
      local store <close> = outbox.open(url)
      local i = 0
      while true do
        i = i + 1
        local undone = random(6) == 1
        local id = ("%s%d.%d"):format(undone and "undone-" or "", number, i)
        local customer = "customer-" .. random(CUSTOMERS)
        local ok, problem = pcall(store.transaction, store, function(txn)
          txn:publish({ key = customer, payload = id })
          txn:execute(COUNT, customer)
          txn:execute(ORDER, customer, id)
          if undone then
            error(UNDONE)
          end
        end)
        if ok then
          note(log, "committed", id)
        elseif problem ~= UNDONE then
          note(log, problem.code, tostring(problem))
          sleep(0.01)
        end
      end
    end

    local function deliver(url, log)
      local store <close> = outbox.open(url)
      outbox.processor({ store = store, process_interval = 1, batch_size = 10,
        claim_duration = 0.5, retry = { max_attempts = 100000, base = 0.01 },
        on_error = function(problem)
          note(log, problem.code, tostring(problem))
        end,
        publisher = function(messages)
          for _, message in ipairs(messages) do
            note(log, "delivered", message.payload)
          end
        end }):run()
    end

    local function start(work, url, number)
      return torture.fork(function()
        local log <close> = torture.log(log_path)
        work(url, log, number)
      end)
    end

    -- Starts the publishers and the processors, and lets the servers die. Returns how many entries
    -- are left by processors that were not started anew, when all publishers have ended.
    local function make_trouble(url, log)
      local publishers, processors = {}, {}
      for i = 1, PUBLISHERS do
        publishers[i] = start(take_orders, url, i)
      end
      for i = 1, PROCESSORS do
        processors[i] = start(deliver, url)
      end
      for i = 1, FAILOVERS do
        torture.wait_for_a_moment(log)
        fail_over()
        if i < FAILOVERS then
          standby:follow(primary)
          replicate_synchronously()
        end
      end
      torture.wait_for_a_moment(log)
      for _, pid in ipairs(publishers) do
        assert.is_false(process.ended(pid))
        process.kill(pid)
        torture.wait(pid)
      end
      local store <close> = outbox.open(url)
      local stats, latest = store:stats(), now() + 60
      while stats.ready + stats.delayed > 0 and now() < latest do
        sleep(0.01)
        stats = store:stats()
      end
      for _, pid in ipairs(processors) do
        assert.is_false(process.ended(pid))
      end
      torture.kill_all()
      return stats.ready + stats.delayed
    end

    -- Returns what was said to be committed, what was delivered for the first time, how often
    -- something was delivered again, and how often there was which error.
    local function read_log()
      local committed, first, again, codes, seen = {}, {}, 0, {}, {}
      for words in torture.records(log_path) do
        local kind, id = words[1], words[2]
        if kind == "committed" then
          committed[#committed + 1] = id
        elseif kind ~= "delivered" then
          codes[kind] = (codes[kind] or 0) + 1
        elseif seen[id] then
          again = again + 1
        else
          first[#first + 1], seen[id] = id, true
        end
      end
      return committed, first, again, codes
    end

    it("nothing is lost, nothing else is delivered, and every key keeps its order", function()
      math.randomseed(torture.seed)
      local url = postgres.hosts({ primary, standby }, "target_session_attrs=read-write")
      local left
      do
        local log <close> = torture.log(log_path)
        left = make_trouble(url, log)
      end
      local store <close> = outbox.open(url)
      local orders, count = {}, 0
      for _, order in ipairs(support.sql(store, "SELECT number, name, customer FROM orders")) do
        orders[order.name] = order
        count = count + 1
      end
      local committed, first, again, codes = read_log()
      local lost, phantom, overtaken, delivered, last = {}, {}, {}, {}, {}
      for _, id in ipairs(first) do
        local order = orders[id]
        delivered[id] = true
        if not order then
          phantom[#phantom + 1] = id
        elseif order.number < (last[order.customer] or 0) then
          overtaken[#overtaken + 1] = id
        else
          last[order.customer] = order.number
        end
      end
      for _, id in ipairs(committed) do
        if not orders[id] then
          lost[#lost + 1] = id
        end
      end
      for id in pairs(orders) do
        if not delivered[id] then
          lost[#lost + 1] = id
        end
      end
      local words = {}
      for code, number in pairs(codes) do
        words[#words + 1] = ("%d %s"):format(number, code)
      end
      table.sort(words)
      local summary = ("seed %d: %d failovers; of %d orders %d were delivered again; codes: %s")
        :format(torture.seed, FAILOVERS, count, again, table.concat(words, ", "))
      torture.say(summary)
      torture.tally("PostgreSQL: failover", FAILOVERS, #lost, #phantom)
      assert.same({}, lost, summary)
      assert.same({}, phantom, summary)
      assert.same({}, overtaken, summary)
      assert.equal(0, left, "entries that living processors do not deliver; " .. summary)
      for code in pairs(codes) do
        assert.is_true(code == "disconnected" or code == "busy" or code == "lost", summary)
      end
    end)
  end)
end)
