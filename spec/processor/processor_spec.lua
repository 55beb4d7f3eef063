local outbox = require("outbox")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("a processor", function()
  local store, path, clock, publisher

  before_each(function()
    clock = testing.clock()
    store, path = support.store({ clock = clock, id_generator = testing.ids() })
    publisher = testing.publisher()
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  -- A processor whose errors are kept, with as few options as the spec needs.
  local errors
  local function processor(options)
    errors = {}
    options = options or {}
    options.store = options.store or store
    options.publisher = options.publisher or publisher
    options.on_error = options.on_error or function(problem)
      errors[#errors + 1] = problem
    end
    return outbox.processor(options)
  end

  local function publish(...)
    for _, id in ipairs({ ... }) do
      store:publish({ id = id, key = "key of " .. id })
    end
  end

  local function fill(count, message)
    local messages = {}
    for i = 1, count do
      messages[i] = message and message(i) or { id = tostring(i), key = tostring(i) }
    end
    for first = 1, count, 100 do
      store:publish(table.unpack(messages, first, math.min(first + 99, count)))
    end
  end

  local function delivered()
    return support.pluck(publisher.messages, "id")
  end

  describe("that pumps", function()
    it("delivers all there is, in order and in batches, and returns", function()
      fill(45)
      assert.equal(45, processor():pump())
      assert.same({ 20, 20, 5 },
        { #publisher.calls[1].messages, #publisher.calls[2].messages,
          #publisher.calls[3].messages })
      for i, id in ipairs(delivered()) do
        assert.equal(tostring(i), id)
      end
      assert.outbox(store).is_empty()
      assert.same({}, store:stats().leases)
    end)

    it("leaves what is not due, and what was published for later", function()
      publish("a")
      store:publish({ id = "later", deliver_at = 1010 })
      local p = processor()
      assert.equal(1, p:pump())
      clock.advance(10)
      assert.equal(1, p:pump())
      assert.same({ "a", "later" }, delivered())
    end)

    it("brings back more than a claim does at a time", function()
      fill(2500, function(i)
        return { id = tostring(i), deliver_at = 1001 }
      end)
      clock.advance(1)
      assert.equal(2500, processor({ batch_size = 500 }):pump())
    end)

    it("raises what the database raises", function()
      publish("a")
      local other <close> = outbox.open(path, { busy_timeout = 0, clock = clock })
      local p = processor({ store = other })
      store:transaction(function()
        assert.equal("busy", support.raised(p.pump, p).code)
      end)
      assert.equal(1, p:pump())
    end)
  end)

  describe("calls its publisher", function()
    it("once for each namespace of a batch, in order", function()
      store:publish({ namespace = "a" }, { namespace = "b" }, { namespace = "a" })
      processor():pump()
      assert.same({ "a", "b" }, support.pluck(publisher.calls, "namespace"))
      assert.same({ "id-1", "id-3", "id-2" }, delivered())
    end)

    it("as a function or as a method", function()
      publish("a")
      local given
      processor({ publisher = function(messages, namespace)
        given = { messages[1].id, messages[1].key, namespace }
      end }):pump()
      assert.same({ "a", "key of a", "" }, given)
    end)

    it("without holding a lock", function()
      publish("a")
      local other <close> = outbox.open(path, { busy_timeout = 0 })
      processor({ publisher = function(messages)
        if messages[1].id == "a" then
          other:publish({ id = "meanwhile" })
        end
      end }):pump()
      assert.same({}, errors)
    end)

    it("which may return true, or an empty table", function()
      publish("a", "b")
      local answers = { true, {} }
      processor({ batch_size = 1, publisher = function()
        return table.remove(answers, 1)
      end }):pump()
      assert.outbox(store).is_empty()
    end)

    for name, answer in pairs({
      ["false"] = { false },
      ["nil and a reason, as Lua's libraries do"] = { nil, "closed" },
      ["a number"] = { 17 },
      ["a failure of a message that is not there"] = { { [9] = "no" } },
      ["failures by id"] = { { a = "no" } },
    }) do
      it("and takes " .. name .. " for no delivery", function()
        publish("a")
        processor({ publisher = function()
          return table.unpack(answer, 1, 2)
        end }):pump()
        assert.outbox(store).has_entry({ id = "a", attempts = 0 })
        assert.equal("publisher", errors[1].code)
      end)
    end

    it("which may spoil what it is given", function()
      publish("a", "b", "c")
      local seen = 0
      processor({ publisher = function(messages)
        messages[1].id, messages[1].created_at = "c", "yesterday"
        messages[2], messages[3] = nil, nil
        return { [3] = "no" }
      end, on_batch = function()
        seen = seen + 1
      end }):pump()
      assert.outbox(store).has_entries(1)
      assert.outbox(store).has_entry({ id = "c", attempts = 1 })
      assert.same({ 1, {} }, { seen, errors })

      store:publish({ id = "k1", key = "k" }, { id = "k2", key = "k" })
      processor({ publisher = function(messages)
        for _, message in ipairs(messages) do
          message.id, message.key, message.attempts = nil, nil, nil
        end
        return { "no" }
      end }):pump()
      assert.outbox(store).has_entry({ id = "k1", attempts = 1 })
      assert.outbox(store).has_entry({ id = "k2", attempts = 0 }) -- waits for k1
    end)

    it("which may publish to the same outbox", function()
      publish("a")
      local p
      p = processor({ publisher = function(messages)
        if messages[1].id == "a" then
          store:publish({ id = "b" })
        end
        publisher:publish(messages, "")
      end })
      assert.equal(2, p:pump())
      assert.same({ "a", "b" }, delivered())
    end)

    it("which may yield", function()
      publish("a", "b")
      local p = processor({ batch_size = 1, publisher = function(messages)
        coroutine.yield("waiting")
        publisher:publish(messages, "")
      end })
      local pump = coroutine.wrap(function()
        return p:pump()
      end)
      assert.equal("waiting", pump())
      assert.equal(10, p:step()) -- at work already: nothing happens
      assert.equal(10, p:timeout())
      assert.matches("at work", support.raised(p.pump, p))
      assert.equal("waiting", pump())
      assert.equal(2, pump())
      assert.same({ "a", "b" }, delivered())
    end)

    it("and charges what it was cut off at", function()
      publish("a")
      local is_first, seen = true, nil
      local p = processor({ publisher = function()
        if is_first then
          is_first = false
          coroutine.yield()
        end
      end, on_delivered = function(entry)
        seen = entry
      end })
      local cut = coroutine.create(p.pump)
      coroutine.resume(cut, p)
      coroutine.close(cut)
      assert.equal(1, p:pump())
      assert.same({ 1, outbox.LAPSED }, { seen.attempts, seen.last_error })
    end)
  end)

  describe("that some messages fail", function()
    it("keeps only the failed one of two namespaces, whichever it is", function()
      for failing = 1, 4 do
        local messages = {}
        for i = 1, 4 do
          messages[i] = { id = failing .. "-" .. i, namespace = i % 2 == 0 and "even" or "odd" }
        end
        store:publish(table.unpack(messages))
        publisher:fail(failing .. "-" .. failing, "no")
        processor():pump()
        assert.outbox(store).has_entries(failing)
        assert.outbox(store).has_entry({ id = failing .. "-" .. failing, attempts = 1,
          last_error = "no" })
      end
    end)

    it("never deletes what failed nor keeps what was delivered, whatever fails", function()
      local seed = tonumber(os.getenv("OUTBOX_SEED")) or os.time()
      math.randomseed(seed)
      local accepted, left = {}, 0
      fill(500, function(i)
        return { id = tostring(i), namespace = "n" .. math.random(4) }
      end)
      local p = processor({ publisher = function(messages)
        local failures = {}
        if math.random(10) == 1 then
          error("raised")
        end
        for i, message in ipairs(messages) do
          if math.random(3) == 1 then
            failures[i] = "no"
          else
            accepted[message.id] = true
          end
        end
        return failures
      end })
      p:pump()
      for i = 1, 500 do
        local there = #support.sql(store, "SELECT 1 FROM outbox_entries WHERE id = ?1 UNION ALL"
          .. " SELECT 1 FROM outbox_delayed WHERE id = ?1", tostring(i))
        assert.equal(accepted[tostring(i)] and 0 or 1, there, "seed " .. seed)
        left = left + there
      end
      assert.is_true(left > 0)
    end)

    it("deletes what the first namespace had delivered when the second raises", function()
      store:publish({ namespace = "first" }, { namespace = "second" }, { namespace = "second" })
      processor({ publisher = function(_, namespace)
        if namespace == "second" then
          error("down")
        end
      end }):pump()
      assert.outbox(store).has_no_entry({ namespace = "first" })
      assert.outbox(store).has_entries(2)
    end)
  end)

  describe("that runs", function()
    it("processes what waits before it sleeps", function()
      publish("a")
      local p
      p = processor({ on_delivered = function()
        p:stop()
      end })
      p:run()
      assert.equal(1000, clock.now())
      assert.same({ "a" }, delivered())
    end)

    it("stops in the publisher after the batch in hand, and gives the claim back", function()
      fill(60)
      local p
      p = processor({ publisher = function(messages)
        publisher:publish(messages, "")
        p:stop()
      end })
      p:run()
      assert.equal(20, #publisher.messages)
      assert.outbox(store).has_entries(40)
      assert.same({}, store:stats().leases)
      assert.outbox(store).has_no_entry({ attempts = 1 })
      local second = processor()
      assert.equal(40, second:pump())
      publish("again")
      p:run() -- until the publisher stops it again
      assert.outbox(store).is_empty()
    end)

    it("stops when another coroutine says so", function()
      local p
      clock.sleep = function(seconds)
        clock.advance(seconds)
        coroutine.yield()
      end
      p = processor()
      local run = coroutine.create(p.run)
      for _ = 1, 3 do
        assert.is_true(coroutine.resume(run, p))
      end
      p:stop()
      assert.is_true(coroutine.resume(run, p))
      assert.equal("dead", coroutine.status(run))
    end)

    it("sleeps until the next entry falls due, and no longer than the interval", function()
      local naps = {}
      store:publish({ id = "soon", deliver_at = 1003 })
      local p
      clock.sleep = function(seconds)
        naps[#naps + 1] = seconds
        clock.advance(seconds)
        if #naps == 3 then
          p:stop()
        end
      end
      p = processor({ publisher = publisher })
      p:run()
      assert.is_true(math.abs(naps[1] - 3) < 0.001)
      assert.is_true(naps[2] > 7 and naps[2] <= 10)
      assert.is_true(naps[3] > 7 and naps[3] <= 10 and naps[2] ~= naps[3]) -- not in step
      assert.same({ "soon" }, delivered())
    end)

    it("survives a database that is busy, reports it and backs off", function()
      publish("a")
      local other <close> = outbox.open(path, { busy_timeout = 0, clock = clock })
      local p, naps = nil, 0
      p = processor({ store = other, on_delivered = function()
        p:stop()
      end })
      local txn = coroutine.wrap(function()
        store:transaction(coroutine.yield)
      end)
      txn()
      clock.sleep = function(seconds)
        clock.advance(seconds)
        naps = naps + 1
        if naps == 5 then
          txn()
        end
      end
      p.sleep = clock.sleep
      p:run()
      assert.equal("busy", errors[1].code)
      assert.equal(5, naps)
      assert.same({ "a" }, delivered())
    end)

    it("tries a deletion that fails again, before it delivers anything else", function()
      publish("a", "b")
      local other <close> = outbox.open(path, { busy_timeout = 0, clock = clock })
      local p
      local txn
      p = processor({ store = other, batch_size = 1, publisher = function(messages)
        publisher:publish(messages, "")
        if messages[1].id == "a" then
          txn = coroutine.wrap(function()
            store:transaction(coroutine.yield)
          end)
          txn()
        else
          p:stop()
        end
      end })
      p.sleep = function(seconds)
        clock.advance(seconds)
        if txn and #errors == 3 then
          txn()
          txn = nil
        end
      end
      p:run()
      assert.same({ "a", "b" }, delivered())
      assert.outbox(store).is_empty()
    end)

    it("gives a deletion up that fails while it stops, and says so", function()
      publish("a")
      local other <close> = outbox.open(path, { busy_timeout = 0, clock = clock })
      local p, txn
      p = processor({ store = other, publisher = function()
        txn = coroutine.wrap(function()
          store:transaction(coroutine.yield)
        end)
        txn()
        p:stop()
      end })
      p:run()
      txn()
      assert.equal("lost", errors[#errors].code)
      assert.outbox(store).has_entry({ id = "a" })
    end)

    it("raises what is no failure of the database, as Ctrl-C does", function()
      local p = processor()
      clock.sleep = function()
        error("interrupted!")
      end
      p.sleep = clock.sleep
      assert.matches("interrupted!", support.raised(p.run, p))
      p.sleep = clock.advance
      clock.now = function()
        error("no time")
      end
      assert.matches("no time", support.raised(p.run, p))
    end)

    it("raises when its store is closed", function()
      local p = processor({ publisher = function()
        store:close()
      end })
      publish("a")
      assert.equal("closed", support.raised(p.run, p).code)
    end)
  end)

  it("delivers what falls due while there is always something else", function()
    store:publish({ id = "scheduled", deliver_at = 1001 }, { id = "retried", key = "k" })
    publisher:fail("retried", "no", 1)
    local p = processor({ publisher = function(messages)
      clock.advance(0.1)
      store:publish({})
      return publisher:publish(messages)
    end })
    repeat
      p:step()
      assert.is_true(clock.now() < 1010, "it starves")
      local ids = " " .. table.concat(delivered(), " ") .. " "
    until ids:find(" scheduled ", 1, true) and ids:find(" retried ", 1, true)
  end)

  it("does not deliver what lay in hand for longer than the claim", function()
    fill(4)
    local other <close> = outbox.open(path, { clock = clock })
    local p, theirs = processor({ batch_size = 2 }), testing.publisher()
    p:step() -- delivers two, and takes two more
    clock.advance(3600)
    processor({ store = other, publisher = theirs }):pump()
    p:step()
    assert.same({ "1", "2" }, delivered())
    assert.same({ "3", "4" }, support.pluck(theirs.messages, "id"))
    assert.equal(1, p:stats().lost)
  end)

  it("goes on with what lay in hand for long if nobody took over, and charges nothing", function()
    fill(4)
    local p = processor({ batch_size = 2, retry = { max_attempts = 1 } })
    p:step()
    clock.advance(3600)
    p:step()
    assert.same({ "1", "2", "3", "4" }, delivered())
    assert.same({}, errors)
  end)

  it("keeps its claim while entries only wait for others", function()
    store:publish({ id = "a1", key = "a" }, { id = "a2", key = "a" })
    publisher:fail("a1", { reason = "no", retry_after = 3600 })
    local other <close> = outbox.open(path, { clock = clock })
    local p = processor()
    for _ = 1, 20 do
      p:step()
      clock.advance(0.5)
      assert.is_false((other:claim_entries("other", clock.now() + 2, { exclusive = true })))
    end
  end)

  it("charges nothing that it could not hand out", function()
    fill(4)
    local p = processor({ batch_size = 2, retry = { max_attempts = 1 } })
    p:step()
    local txn = coroutine.wrap(function()
      store:transaction(coroutine.yield)
    end)
    txn()
    p:step() -- the store is not to be used just now
    txn()
    clock.advance(10)
    p:step()
    assert.equal("busy", errors[1].code)
    assert.same({ "1", "2", "3", "4" }, delivered())
    assert.equal(0, store:stats().dead)
  end)

  it("does nothing, and writes nothing, when there is nothing", function()
    local watcher <close> = outbox.open(path)
    local function version()
      return support.sql(watcher, "PRAGMA data_version")[1].data_version
    end
    publish("a")
    local p = processor()
    p:pump()
    local before = version()
    for _ = 1, 5 do
      clock.advance(10)
      p:step()
    end
    assert.equal(before, version())
  end)

  it("that steps does at most a batch, and says when it wants to be called again", function()
    fill(30)
    local p = processor()
    assert.equal(0, p:step())
    assert.equal(20, #publisher.messages)
    assert.equal(0, p:step())
    assert.equal(30, #publisher.messages)
    repeat -- it looks a few times more, for what its own writing may have hidden
      local seconds = p:step()
    until seconds > 7
    assert.is_true(p:timeout() > 7)
    assert.equal("r", p:events())
    assert.equal(store:pollfd(), p:pollfd())
    p:wake()
    assert.equal(0, p:timeout())
    p:step()
    p:stop()
    assert.is_nil(p:step())
  end)

  it("that steps misses nothing that comes after its very first step", function()
    local p = processor()
    local seconds = p:step()
    local other <close> = outbox.open(path, { clock = clock })
    other:publish({ key = "a" })
    local descriptor = { pollfd = p:pollfd(), events = "r" }
    assert.equal(descriptor, require("cqueues").poll(descriptor, math.min(seconds, 10)))
    p:step()
    assert.equal("a", publisher.messages[1].key)
  end)

  describe("that loses its claim in mid-batch", function()
    local function lose(answer)
      publish("a", "b", "c")
      local other <close> = outbox.open(path, { clock = clock })
      local p
      p = processor({ batch_size = 2, publisher = function(messages)
        publisher:publish(messages, "")
        if #publisher.calls == 1 then
          clock.advance(3)
          assert.is_true(other:claim_entries("other", clock.now() + 10, { exclusive = true }))
          return answer
        end
      end })
      p:pump()
      return p
    end

    it("deletes what it delivered, delivers no more, and says so", function()
      local p = lose()
      assert.same({ "a", "b" }, delivered())
      assert.outbox(store).has_entries(1)
      assert.equal("lost", errors[1].code)
      assert.equal(1, p:stats().lost)
    end)

    it("ignores a failure: somebody else is at it", function()
      lose({ [2] = "no" })
      -- The attempt that was charged is the other's doing, for what was in hand.
      assert.outbox(store).has_entry({ id = "b", attempts = 1, last_error = outbox.LAPSED })
      assert.equal(2, store:stats().ready)
    end)
  end)

  describe("has a claim that lasts at the beginning of each call", function()
    local left
    local function note_left(_, _)
      left[#left + 1] = store:stats().leases[1].deadline - clock.now()
    end

    before_each(function()
      left = {}
      publish("a", "b")
    end)

    it("though a hook took its time before", function()
      processor({ batch_size = 1, publisher = note_left, on_delivered = function()
        clock.advance(1.7)
      end }):pump()
      assert.same({ 2, 2 }, left)
    end)

    it("though it had to wait for the lock before", function()
      local other <close> = outbox.open(path, { clock = clock })
      local has_waited = false
      local slow <close> = outbox.open(path, { clock = { now = function()
        if not has_waited and other:stats().leases[1] then -- the first time after it has claimed
          has_waited = true
          clock.advance(1.9)
        end
        return clock.now()
      end } })
      processor({ store = slow, publisher = note_left }):pump()
      assert.same({ 2 }, left)
    end)
  end)

  it("that is late is not refused when nobody took over", function()
    publish("a", "b")
    local p = processor({ batch_size = 1, publisher = function(messages)
      publisher:publish(messages, "")
      clock.advance(100)
    end })
    assert.equal(2, p:pump())
    assert.same({}, errors)
    assert.same({ "a", "b" }, delivered())
  end)

  describe("has hooks", function()
    it("for everything that happens", function()
      local seen = {}
      local function note(name)
        return function(first, ...)
          seen[#seen + 1] = { name, type(first) == "table" and first.id or nil, (...) }
        end
      end
      publish("good", "bad", "hopeless")
      publisher:fail("bad", "not now")
      publisher:fail("hopeless", { reason = "never", permanent = true })
      local batch
      local p = processor({ on_delivered = note("delivered"), on_retry = note("retry"),
        on_dead = note("dead"), on_batch = function(b)
          batch = b
        end })
      p:pump()
      assert.same({ { "delivered", "good" }, { "retry", "bad", "not now" },
        { "dead", "hopeless", "never" } }, seen)
      assert.same({ size = 3, delivered = 1, retried = 1, dead = 1, seconds = 0 }, batch)
    end)

    it("which harm nothing when they raise, but are reported", function()
      publish("good", "bad", "hopeless")
      publisher:fail("bad", "not now")
      publisher:fail("hopeless", { permanent = true })
      local p = processor({ on_delivered = error, on_retry = error, on_dead = error,
        on_batch = error })
      assert.equal(1, p:pump())
      assert.equal(4, #errors)
      assert.equal("hook", errors[1].code)
      local stats = store:stats()
      assert.same({ 0, 1, 1 }, { stats.ready, stats.delayed, stats.dead })
    end)

    it("among them on_error, by default the standard error, which sees its errors too", function()
      local output, ok = support.run([[-e '
        local outbox = require("outbox")
        local store = outbox.open(":memory:")
        store:migrate()
        local function try(name, on_error)
          store:publish({})
          outbox.processor({ store = store, on_error = on_error, publisher = function() end,
            on_delivered = function() error(name, 0) end }):pump()
        end
        try("default")
        try("raising", function() error("again", 0) end)']])
      assert.is_true(ok, output)
      assert.equal("outbox: on_delivered raised: default (hook)\n"
        .. "outbox: on_delivered raised: raising (hook)\n"
        .. "outbox: on_error raised: again (hook)\n", output)
    end)
  end)

  it("delivers all the same when no thread can be had to keep its claim, and says so", function()
    publish("a")
    -- A thread's stack is as large as the main one may grow: here larger than all memory.
    local output = support.run(([[-e '
      local outbox = require("outbox")
      outbox.processor({ store = outbox.open("%s"), publisher = function() end }):pump()
      ']]):format(path), "prlimit --stack=$((1 << 60)):")
    assert.equal("outbox: no thread can be started to keep the claim (error)\n", output)
    assert.outbox(store).is_empty()
  end)

  it("counts, and measures from created to delivered", function()
    publish("a")
    clock.advance(2)
    publish("b", "bad")
    publisher:fail("bad", "no")
    clock.advance(1)
    local p = processor()
    p:pump()
    assert.same({ delivered = 2, retried = 1, deferred = 0, dead = 0, batches = 1, errors = 0,
      lost = 0, waits = 0, last_delivered_at = 1003,
      latency = { count = 2, sum = 4, max = 3 } }, p:stats())
  end)

  it("takes batches of the size that suits the publisher, unless told otherwise", function()
    local function sizes(to, batch_size)
      local list = {}
      for i = 1, 30 do
        store:publish({ payload = tostring(i) })
      end
      processor({ publisher = to, batch_size = batch_size, on_batch = function(batch)
        list[#list + 1] = batch.size
      end }):pump()
      return list
    end
    local function deliver() end
    assert.same({ 20, 10 }, sizes(deliver))
    assert.same({ 20, 10 }, sizes({ publish = deliver }))
    assert.same({ 25, 5 }, sizes({ publish = deliver, batch_size = 25 }))
    assert.same({ 15, 15 }, sizes({ publish = deliver, batch_size = 25 }, 15))
  end)

  it("is refused with all that is wrong in one error", function()
    local message = support.raised(outbox.processor, { publisher = 1, batch_size = 0,
      orderin = "key", retry = { base = -1, cup = 1 }, limit = 5, on_error = "x" })
    for _, part in ipairs({ "store is missing", "publisher must be a function or a table",
      "batch_size must be an integer", "unknown option 'orderin'", "retry.base must be",
      "unknown option 'retry.cup'", 'limit needs ordering = "none"', "on_error must be" }) do
      assert.matches(part, message, 1, true)
    end
    for _, size in ipairs({ 0, 1.5, 100001, "20" }) do
      assert.matches("no batch_size but a positive integer", support.raised(outbox.processor,
        { store = store, publisher = { publish = print, batch_size = size } }), 1, true)
    end
    assert.matches("table expected, got nil", support.raised(outbox.processor))
  end)

  it("takes spans of 1e10 seconds, and refuses longer ones", function()
    local function options(longest)
      return { store = store, publisher = publisher, claim_duration = longest,
        publish_timeout = longest, process_interval = longest,
        retry = { base = longest, cap = longest } }
    end
    for _, longer in ipairs({ 1.1e10, 1e11, 1e12, math.huge }) do
      local message = support.raised(outbox.processor, options(longer))
      for _, name in ipairs({ "claim_duration", "publish_timeout", "process_interval",
        "retry.base", "retry.cap" }) do
        assert.matches(name .. " must be a number of seconds, at most 1e10", message, 1, true)
      end
    end
    publish("a", "b")
    publisher:fail("a", "no")
    local p = processor(options(1e10))
    p:pump()
    assert.same({}, errors)
    assert.same({ "b" }, delivered())
    assert.equal(1, store:stats().delayed)
    assert.is_true(p:step() > 0)
  end)

  it("has an id of its own when it is given none", function()
    local a, b = processor().options.processor_id, processor().options.processor_id
    assert.not_equal(a, b)
    assert.is_true(#a > 8)
  end)
end)
