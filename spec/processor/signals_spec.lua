-- `run({ signals = true })`: real signals, in processes of their own.

local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")

local SIGNALS = { SIGHUP = 1, SIGINT = 2, SIGTERM = 15 }
local NAMES = { "SIGINT", "SIGTERM" }

describe("a processor that runs with signals", function()
  local store, path

  before_each(function()
    store, path = support.store()
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  -- Starts a processor in a process of its own. `work(messages, gate)` is its publisher; `after` is
  -- called with what `run` returned.
  local function start(work, after, options)
    local begun, go_on = process.gate(), process.gate()
    store:close() -- because a child of a process with an open store can open none
    local pid = process.fork(function()
      local own <close> = outbox.open(path)
      options = options or {}
      options.store, options.publisher = own, function(messages)
        return work(messages, begun, go_on)
      end
      options.process_interval = 3600
      local processor = outbox.processor(options)
      local name = processor:run({ signals = true })
      if after then
        after(name, processor, own)
      end
    end)
    store = outbox.open(path)
    return pid, begun, go_on
  end

  for _, name in ipairs(NAMES) do
    it("finishes the batch in hand at " .. name .. ", gives the rest back, returns", function()
      store:publish({ id = "a" }, { id = "b" }, { id = "c" })
      local pid, begun, go_on = start(function(_, begun, go_on)
        begun:open()
        go_on:wait()
      end, function(caught, processor)
        assert(caught == name and processor:stats().delivered == 1)
      end, { batch_size = 1 })
      begun:wait()
      process.kill(pid, SIGNALS[name])
      go_on:open()
      assert.equal(0, (process.wait(pid)))
      assert.same({}, store:stats().leases)
      local left = store:ready_entries()
      assert.same({ "b", "c" }, support.pluck(left, "id"))
      assert.same({ 0, 0 }, support.pluck(left, "attempts"))
      assert.equal(0, store:stats().delayed)
    end)

    it("ends its sleep at " .. name, function()
      store:publish({})
      local pid, begun = start(function(_, begun)
        begun:open()
      end, function(caught)
        assert(caught == name)
      end)
      begun:wait()
      repeat
        os.execute("sleep 0.01")
      until store:stats().ready == 0
      local before = outbox.clock.now()
      process.kill(pid, SIGNALS[name])
      assert.equal(0, (process.wait(pid)))
      assert.is_true(outbox.clock.now() - before < 60)
      assert.same({}, store:stats().leases)
    end)
  end

  it("charges no attempt however often it is restarted in mid-batch", function()
    store:publish({ id = "a" }, { id = "b" })
    for deploy = 1, 12 do
      local pid, begun, go_on = start(function(messages, begun, go_on)
        begun:open()
        go_on:wait()
        local failures = {}
        for i in ipairs(messages) do
          failures[i] = { reason = "closing", uncharged = true }
        end
        return failures
      end, nil, { on_error = function() end, retry = { base = 0.001, cap = 0.001 } })
      begun:wait()
      process.kill(pid, SIGNALS.SIGTERM)
      go_on:open()
      assert.equal(0, (process.wait(pid)), deploy)
      assert.same({}, store:stats().leases)
      os.execute("sleep 0.01")
    end
    assert.equal(0, store:stats().dead)
    for _, id in ipairs({ "a", "b" }) do
      assert.outbox(store).has_entry({ id = id, attempts = 0 })
    end
  end)

  it("wakes at a commit as it does without", function()
    local pid, begun = start(function(messages, begun)
      if messages[1].id == "second" then
        begun:open()
      end
    end)
    store:publish({ id = "first" })
    repeat
      os.execute("sleep 0.01")
    until store:stats().ready == 0
    store:publish({ id = "second" })
    begun:wait()
    process.kill(pid, SIGNALS.SIGTERM)
    assert.equal(0, (process.wait(pid)))
  end)

  it("gives the signals back when it returns", function()
    store:publish({})
    local pid, begun = start(function(_, begun)
      begun:open()
    end, function(_, processor, own)
      own:publish({ id = "returned" })
      processor:pump()
      outbox.clock.sleep(60)
    end)
    begun:wait()
    process.kill(pid, SIGNALS.SIGTERM)
    repeat
      os.execute("sleep 0.01")
    until store:stats().last_seq == 2
    process.kill(pid, SIGNALS.SIGTERM)
    assert.equal(-SIGNALS.SIGTERM, (process.wait(pid)))
  end)

  it("gives what it has in hand back as soon as the database is unlocked", function()
    local name = NAMES[2]
    store:publish({ id = "a" }, { id = "b" })
    store:close()
    local begun, go_on = process.gate(), process.gate()
    local pid = process.fork(function()
      local own <close> = outbox.open(path, { busy_timeout = 1 })
      local processor
      processor = outbox.processor({ store = own, batch_size = 1, publisher = function() end,
        on_error = function() end, on_batch = function()
          begun:open() -- the next batch is noted as in hand
          go_on:wait()
        end })
      processor:run({ signals = true })
    end)
    store = outbox.open(path)
    begun:wait()
    local tries = 0
    store:transaction(function()
      process.kill(pid, SIGNALS[name])
      go_on:open()
      repeat
        tries = tries + 1
        os.execute("sleep 0.01")
      until tries == 20
    end)
    assert.equal(0, (process.wait(pid)))
    assert.same({}, store:stats().leases)
    assert.outbox(store).has_entry({ id = "b", attempts = 0 })
    assert.equal(0, store:stats().delayed)
  end)

  it("takes a second signal for one only two seconds after the first", function()
    local pid = process.fork(function()
      local core = require("outbox.core")
      core.catch_signals("SIGTERM")
      process.kill(process.pid(), SIGNALS.SIGTERM)
      outbox.clock.sleep(1.5) -- two seconds may begin within it
      process.kill(process.pid(), SIGNALS.SIGTERM)
      assert(core.release_signals() == "SIGTERM")
    end)
    assert.equal(0, (process.wait(pid)))
  end)

  it("calls none of its code for a signal after its module was unloaded", function()
    local script = [[
      local libraries = debug.getregistry()._CLIBS
      local unload = getmetatable(libraries).__gc
      require("outbox.core").catch_signals()
      unload({ libraries[package.searchpath("outbox.core", package.cpath)] })
      os.execute("kill -TERM $PPID")]]
    local pipe = io.popen(("exec %s"):format(support.command(("-e '%s'"):format(script))))
    assert.same({ nil, "signal", SIGNALS.SIGTERM }, { pipe:close() })
  end)

  it("wakes at a commit though more than a thousand files are open", function()
    local limit = io.popen("ulimit -n"):read("n")
    if not limit or limit < 1200 then
      pending("no more than " .. tostring(limit) .. " files may be open")
      return
    end
    store:close()
    local begun = process.gate()
    local pid = process.fork(function()
      local files = {}
      for i = 1, 1100 do
        files[i] = assert(io.open("/dev/null"))
      end
      local own <close> = outbox.open(path)
      local processor
      processor = outbox.processor({ store = own, process_interval = 3600,
        publisher = function(messages)
          begun:open()
          if messages[1].id == "second" then
            processor:stop()
          end
        end })
      assert(own:pollfd() > 1024)
      processor:run({ signals = true })
      assert(#files == 1100)
    end)
    store = outbox.open(path)
    store:publish({ id = "first" })
    begun:wait()
    repeat
      os.execute("sleep 0.01")
    until store:stats().ready == 0
    store:publish({ id = "second" })
    assert.equal(0, (process.wait(pid)))
  end)

  it("leaves SIGHUP alone", function()
    store:publish({})
    local pid, begun = start(function(_, begun)
      begun:open()
    end)
    begun:wait()
    process.kill(pid, SIGNALS.SIGHUP)
    assert.equal(-SIGNALS.SIGHUP, (process.wait(pid)))
  end)

  it("returns nothing when `stop` ended it, and refuses other options", function()
    local processor
    processor = outbox.processor({ store = store, publisher = function()
      processor:stop()
    end })
    store:publish({})
    assert.is_nil(processor:run({ signals = true }))
    assert.outbox(store).is_empty()
    assert.matches("unknown option 'signal'", support.raised(processor.run, processor,
      { signal = true }))
    assert.matches("signals must be true or false", support.raised(processor.run, processor,
      { signals = 1 }))
    assert.matches("table expected, got boolean", support.raised(processor.run, processor, true))
  end)
end)

describe("examples/service.lua", function()
  it("delivers until it is told to stop, and ends well", function()
    local store <close>, path = support.store()
    local log = support.path()
    finally(support.remove)
    for _, name in ipairs(NAMES) do
      local pipe = assert(io.popen(("%s >%s 2>&1 & echo $!; wait $!; echo $?"):format(
        "exec " .. support.command("examples/service.lua " .. path), log)))
      local pid = tonumber(pipe:read("l"))
      store:publish({ namespace = "greetings", payload = "hello " .. name })
      repeat
        os.execute("sleep 0.01")
        local file <close> = assert(io.open(log))
      until file:read("a"):find("hello " .. name, 1, true)
      process.kill(pid, SIGNALS[name])
      assert.equal("0", pipe:read("l"))
      pipe:close()
      local file <close> = assert(io.open(log))
      assert.equal(("greetings\thello %s\nstopped by %s\n"):format(name, name), file:read("a"))
      assert.same({}, store:stats().leases)
      assert.outbox(store).is_empty()
    end
  end)
end)
