-- outbox move: from SQLite to PostgreSQL, and killed on the way. It needs a server, so it runs
-- where OUTBOX_TEST_URL names one.

local command = require("spec.support.command")
local outbox = require("outbox")
local postgres = require("spec.support.postgres")
local process = require("process")
local support = require("spec.support")

local describe = postgres.where_there_is(describe)
local BINARY = "a\0b\xff\\x41'"

describe("outbox move", function()
  local source, path, url

  before_each(function()
    path, url = support.path(), postgres.schema()
    source = outbox.open(path)
    source:migrate()
  end)

  after_each(function()
    source:close()
    support.remove()
    postgres.remove()
  end)

  local function arguments(target)
    return ("move %s '%s'"):format(path, target or url)
  end

  local function open_target()
    return outbox.open(url)
  end

  -- What there is in a store, by id, without what a move may change: the places.
  local function contents(store)
    local all = {}
    for _, state in ipairs({ "ready", "delayed", "dead" }) do
      for _, entry in ipairs(store[state .. "_entries"](store, { limit = 100000 })) do
        entry.state, entry.seq = state, nil
        assert.is_nil(all[entry.id], entry.id)
        all[entry.id] = entry
      end
    end
    return all
  end

  local function count(store)
    local stats = store:stats()
    return stats.ready + stats.delayed + stats.dead
  end

  -- Waits until a function returns something.
  local function await(fn)
    local last = outbox.clock.now() + 60
    repeat
      local result = fn()
      if result then
        return result
      end
      outbox.clock.sleep(0.002)
    until outbox.clock.now() > last
    error("it did not happen within a minute")
  end

  -- Delivers all that is due; returns the payloads.
  local function deliver(store)
    local payloads = {}
    local processor = outbox.processor({ store = store, publisher = function(messages)
      for _, message in ipairs(messages) do
        payloads[#payloads + 1] = message.payload
      end
    end })
    processor:pump()
    return payloads
  end

  it("keeps everything of every entry", function()
    local now = math.floor(outbox.clock.now())
    source:publish({ id = "plain" }, { id = "binary", namespace = "orders", key = "k",
      payload = BINARY, headers = { a = "b", c = 'ä"\\' } },
      { id = "empty", key = "", payload = "" })
    source:publish({ id = "later", payload = "x", deliver_at = now + 5000 })
    source:publish({ id = "failed", key = "k", payload = "y" }, { payload = "of itself" })
    source:retry_entry("failed", now + 3000, "no answer")
    source:publish({ id = "dead", payload = BINARY })
    source:bury_entry("dead", "refused\xff")
    source:subscribe("orders", "mail")
    source:subscribe("orders", "stock")
    source:publish({ namespace = "orders", id = "copied", payload = "z" })
    source:publish({ namespace = "orders", id = "copied-later", deliver_at = now + 4000 })
    source:publish({ namespace = "orders", payload = "of itself" })
    source:pause("mail")
    local before, paused = contents(source), source:paused()
    assert.equal("moved 8 ready, 4 delayed, 1 dead\n", command.succeed(arguments()))
    local target <close> = open_target()
    local after = contents(target)
    assert.equal("refused\\xff", after.dead.last_error)
    before.dead.last_error = after.dead.last_error
    assert.same(before, after)
    assert.equal(0, count(source))
    assert.same(paused, target:paused())
    assert.same(source:subscriptions(), target:subscriptions())
    assert.equal("moved before\n", command.succeed(arguments()))
    assert.same(after, contents(target))
  end)

  it("keeps the places, and the order of a key across it", function()
    local now = outbox.clock.now()
    source:publish({ payload = "gone" }, { id = "1", key = "k", payload = "1" },
      { key = "k", payload = "2" }, { payload = "other" }, { key = "k", payload = "3" })
    source:delete_entries(source:ready_entries()[1])
    source:retry_entry("1", now - 1, "once")
    command.succeed(arguments())
    local target <close> = open_target()
    assert.same({ 3, 4, 5 }, support.pluck(target:ready_entries(), "seq"))
    target:publish({ key = "k", payload = "4" })
    assert.equal(6, target:ready_entries()[4].seq)
    local payloads = deliver(target)
    local of_key = table.concat(payloads, " "):gsub("other ?", "")
    assert.equal("1 2 3 4", of_key)
  end)

  it("puts all behind what the target has given out, and wakes its processor", function()
    local target <close> = open_target()
    target:migrate()
    local finish = support.sleeping_processor(url)
    local last = target:stats().last_seq
    assert.is_true(last > 0)
    source:publish({ id = "1", key = "k", payload = "1" }, { key = "k", payload = "2" })
    source:retry_entry("1", outbox.clock.now() - 1, "once")
    target:pause("") -- so that the places can be seen
    command.succeed(arguments())
    assert.equal(last + 1, support.pluck(target:delayed_entries(), "seq")[1])
    assert.equal(last + 2, support.pluck(target:ready_entries(), "seq")[1])
    target:resume("")
    assert.equal("1", finish())
    assert.same({ "2" }, deliver(target))
  end)

  it("refuses what is no UTF-8, and leaves all as it was", function()
    for name, message in pairs({
      id = { id = "a\xff", key = "k" }, namespace = { id = "b", namespace = "n\xff" },
      key = { id = "c", key = "k\0" },
    }) do
      source:publish({ id = "good" }, message)
      local before = contents(source)
      command.fail(1, "^outbox: the " .. name .. " of the ready entry with the seq %d+ is not "
        .. "UTF%-8, or has a NUL; PostgreSQL refuses both: [^\n]*\\x%x%x %(encoding%)\n$",
        arguments())
      assert.same(before, contents(source))
      assert.is_true(source:claim_entries("worker", outbox.clock.now() + 9))
      source:release_claim("worker")
      source:delete_entries("good", message.id)
    end
    source:subscribe("a", "b\xff")
    command.fail(1, "the namespace of a copy is not UTF%-8", arguments())
  end)

  it("refuses while a processor is at work, and lets none begin", function()
    source:publish({ id = "a" })
    source:claim_entries("worker", outbox.clock.now() + 100)
    command.fail(1, "^outbox: the processor worker is at work on the source: stop it first "
      .. "%(busy%)\n$", arguments())
    assert.equal(1, count(source))
    source:release_claim("worker")
    command.succeed(arguments())
    local ok, problem = pcall(source.publish, source, { id = "b" })
    assert.same({ false, "constraint" }, { ok, problem.code })
    assert.matches("this outbox was moved to another database", problem.message)
    ok, problem = pcall(support.sql, source,
      "INSERT INTO outbox_entries (payload) VALUES ('by SQL')")
    assert.same({ false, "constraint" }, { ok, problem.code })
    command.fail(1, "was moved to another database", "publish " .. path .. " x")
  end)

  it("charges what was in hand of a processor that died", function()
    source:publish({ id = "a" }, { id = "b" })
    local time = outbox.clock.now() - 100
    local past <close> = outbox.open(path, { clock = function()
      return time
    end })
    past:claim_entries("dead", time + 1)
    past:get_claimed_entries("dead", 1, { hold = true })
    command.succeed(arguments())
    local target <close> = open_target()
    assert.same({ 1, 0 }, { contents(target).a.attempts, contents(target).b.attempts })
  end)

  it("refuses other databases, and an id that the target has", function()
    command.fail(2, "SOURCE must be an SQLite file", ("move '%s' %s"):format(url, path))
    command.fail(2, "SOURCE must be an SQLite file", ("move %s %s"):format(path, path .. ".x"))
    command.fail(1, "%(cantopen%)", ("move /nowhere '%s'"):format(url))
    local target <close> = open_target()
    target:migrate()
    target:publish({ id = "a" })
    source:publish({ id = "a" })
    command.fail(1, "the target has another entry with the id a %(duplicate%)", arguments())
    assert.equal(1, count(source))
    target:delete_entries("a")
    command.succeed(arguments())
    assert.equal(1, count(target))
  end)

  describe("killed", function()
    local ALL = 1700 -- four batches

    before_each(function()
      local messages = {}
      for i = 1, ALL do
        messages[i] = { id = ("%05d"):format(i), key = tostring(i % 7), payload = tostring(i) }
      end
      source:publish(table.unpack(messages))
    end)

    -- Starts a move, and kills it as soon as `is_time()`.
    local function kill_when(is_time)
      local pid, pipe = command.start(arguments(), "exec 2>&1;")
      await(is_time)
      process.kill(pid)
      command.finish(pipe)
    end

    local function at_target(sql)
      return postgres.sql(url, sql)
    end

    local function has_batch(number)
      return function()
        return at_target("SELECT to_regclass('outbox_moving') IS NOT NULL") == "t"
          and at_target(("SELECT count(*) > 0 FROM outbox_moving WHERE batch = %d"):format(number))
          == "t"
      end
    end

    local function has_begun()
      return #support.sql(source, "SELECT 1 FROM sqlite_master WHERE name = 'outbox_moves'") == 1
    end

    local function is_sealed()
      return has_begun() and #support.sql(source, "SELECT 1 FROM outbox_moves WHERE sealed") == 1
    end

    local function is_over()
      return is_sealed()
        and at_target("SELECT count(*) > 0 FROM outbox_moves WHERE finished_at > 0") == "t"
    end

    -- Neither delivers anything, whatever was moved.
    local function assert_nobody_delivers()
      local ok, problem = pcall(source.claim_entries, source, "w", outbox.clock.now() + 1)
      assert.is_true(not ok or count(source) == 0)
      assert.is_true(ok or problem.message:find("is being moved", 1, true) ~= nil)
      local target <close> = open_target()
      assert.equal(0, count(target))
    end

    local function assert_moved()
      command.succeed(arguments())
      assert.equal(0, count(source))
      local target <close> = open_target()
      assert.equal(ALL, count(target))
      local last = {}
      for _, entry in ipairs(target:ready_entries({ limit = ALL })) do
        assert.is_true(tonumber(entry.payload) > (last[entry.key] or 0))
        last[entry.key] = tonumber(entry.payload)
      end
      assert.equal("0", at_target("SELECT count(*) FROM outbox_moving"))
      assert.equal(ALL, #deliver(target))
      command.succeed(arguments())
      assert.equal(0, count(target))
    end

    -- Makes the deletion of a row of the source take for ever.
    local function stop_at(seq)
      support.sql(source, ("CREATE TRIGGER stop AFTER DELETE ON outbox_ready WHEN OLD.seq = %d "
        .. "BEGIN SELECT count(*) FROM (WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL "
        .. "SELECT i + 1 FROM n) SELECT i FROM n); END"):format(seq))
    end

    for _, batch in ipairs({ 1, 3 }) do
      it("between the two commits of batch " .. batch .. ", it copies the batch again", function()
        stop_at(batch * 500 - 100)
        kill_when(has_batch(batch))
        assert.equal(ALL - (batch - 1) * 500, count(source))
        assert_nobody_delivers()
        support.sql(source, "DROP TRIGGER stop")
        -- What an application and an operator may do meanwhile.
        source:publish({ id = "99998", key = "1", payload = "99998" },
          { id = "99999", key = "1", payload = "99999" })
        source:delete_entries("01500")
        source:bury_entry("99998")
        source:purge_entries("99998")
        assert_moved()
      end)
    end

    it("before it could publish, it does only that", function()
      local target = open_target()
      target:migrate()
      local blocked, open = process.gate(), process.gate()
      local pid = process.fork(function()
        local blocker <close> = outbox.open(url)
        blocker:transaction(function(txn)
          txn:execute("LOCK TABLE outbox_dead IN SHARE MODE")
          blocked:open()
          open:wait()
        end)
      end)
      blocked:wait()
      target:close()
      kill_when(is_sealed)
      open:open()
      process.wait(pid)
      assert.equal(0, count(source))
      assert_nobody_delivers()
      assert_moved()
    end)

    it("at any moment, again and again, it ends with each message in one place", function()
      for round = 1, 6 do
        local batch = has_batch(round // 2)
        kill_when(function()
          return round == 1 and has_begun() or batch() or is_over()
        end)
      end
      assert_moved()
    end)
  end)

  it("goes on only to the database that it has begun with", function()
    for i = 1, 600 do
      source:publish({ key = tostring(i) })
    end
    support.sql(source, "CREATE TRIGGER stop BEFORE DELETE ON outbox_ready WHEN OLD.seq = 600 "
      .. "BEGIN SELECT RAISE(ABORT, 'no'); END")
    local out, status, err = command.run(arguments())
    assert.same({ "", 1 }, { out, status })
    assert.matches("^outbox: the move is not over: run the same command again", err)
    command.fail(1, "has begun to another database: finish it there", arguments(postgres.schema()))
    support.sql(source, "DROP TRIGGER stop")
    assert.equal("moved 600 ready, 0 delayed, 0 dead\n", command.succeed(arguments()))
  end)
end)
