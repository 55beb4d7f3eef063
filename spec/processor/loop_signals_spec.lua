-- `outbox.signals`: a processor in an event loop stops gracefully, at real signals.

local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")

local SIGHUP, SIGINT, SIGTERM = 1, 2, 15

-- What the loops share. The publisher says that it has begun, waits for a line, and fails.
local PROGRAM = [[
local outbox = require("outbox")
local store <close> = outbox.open(arg[1], { synchronous = "off" })
local signals <close> = outbox.signals()
local processor = outbox.processor({ store = store, on_error = function() end,
  retry = { base = 0.001, cap = 0.001 }, publisher = function(messages)
    io.write("begun\n") io.flush()
    io.read()
    local failures = {}
    for i in ipairs(messages) do
      failures[i] = { reason = "closing", uncharged = true }
    end
    return failures
  end })
]]

local LOOPS = {
  cqueues = [[
    local cqueues = require("cqueues")
    local loop = cqueues.new()
    loop:wrap(function()
      while processor:step() do
        cqueues.poll(processor, signals)
        if signals:caught() then
          processor:stop()
        end
      end
    end)
    assert(loop:loop())]],
  luv = [[
    local uv = require("luv")
    local bell, alarm = uv.new_poll(processor:pollfd()), uv.new_poll(signals:pollfd())
    local timer = uv.new_timer()
    local function step()
      if signals:caught() then
        processor:stop()
      end
      local seconds = processor:step()
      if seconds then
        timer:start(math.ceil(seconds * 1000), 0, step)
      else
        uv.stop()
      end
    end
    bell:start("r", step)
    alarm:start("r", function()
      alarm:stop()
      step()
    end)
    step()
    uv.run()]],
  copas = [[
    local copas = require("copas")
    local seconds = processor:step()
    while seconds do
      copas.step(math.min(seconds, 0.01))
      if signals:caught() then
        processor:stop()
      end
      seconds = processor:step()
    end]],
  ["no library"] = [[
    local seconds = processor:step()
    while seconds do
      store:wait(seconds)
      if signals:caught() then
        processor:stop()
      end
      seconds = processor:step()
    end]],
}

describe("outbox.signals", function()
  local store, path, fifo, script

  before_each(function()
    store, path = support.store({ synchronous = "off" })
    fifo, script = support.path(), support.path()
    assert(os.execute("rm -f " .. fifo .. " && mkfifo " .. fifo))
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  -- Starts a loop; returns its process and its output.
  local function start(loop)
    local file <close> = assert(io.open(script, "w"))
    assert(file:write(PROGRAM, LOOPS[loop], '\nio.write(signals:caught(), "\\n")'))
    file:close()
    local pipe = assert(io.popen(("%s <>%s & echo $!; wait $!; echo $?"):format(
      "exec " .. support.command(("%s %s"):format(script, path)), fifo)))
    return pipe:read("n", "l"), pipe
  end

  local function go_on()
    local file <close> = assert(io.open(fifo, "w"))
    assert(file:write("\n"))
  end

  for loop in pairs(LOOPS) do
    it("charges no attempt in ten deploys, with a loop of " .. loop, function()
      store:publish({ id = "a" }, { id = "b", key = "k" }, { id = "c", key = "k" })
      for deploy = 1, 10 do
        local signal = deploy % 2 == 0 and SIGINT or SIGTERM
        local pid, pipe = start(loop)
        assert.equal("begun", pipe:read("l"))
        process.kill(pid, signal)
        go_on()
        assert.equal(signal == SIGINT and "SIGINT" or "SIGTERM", pipe:read("l"))
        assert.equal("0", pipe:read("l"))
        pipe:close()
        assert.same({}, store:stats().leases)
      end
      for _, id in ipairs({ "a", "b", "c" }) do
        assert.outbox(store).has_entry({ id = id, attempts = 0 })
      end
      assert.outbox(store).has_entries(3)
    end)
  end

  it("knows the first signal, has a descriptor for it, and gives the signals back", function()
    local pid = process.fork(function()
      local signals = outbox.signals("SIGHUP", "SIGTERM")
      assert(signals:caught() == nil and signals:events() == "r" and signals:timeout() == nil)
      local fd = signals:pollfd()
      local bell = {
        getfd = function()
          return fd
        end,
        dirty = function() end,
      }
      local select = require("socket").select
      assert(#select({ bell }, nil, 0) == 0)
      process.kill(process.pid(), SIGTERM)
      process.kill(process.pid(), SIGHUP)
      assert(#select({ bell }, nil, 0) == 1)
      local another <close> = outbox.signals()
      assert(signals:caught() == "SIGTERM" and another:caught() == "SIGTERM")
      assert(signals:pollfd() == nil)
      another:close()
      signals:close()
      signals:close()
      assert(signals:caught() == "SIGTERM")
      local fresh <close> = outbox.signals()
      assert(fresh:caught() == nil and fresh:pollfd() == fd)
      fresh:close()
      assert(fresh:pollfd() == nil)
      process.kill(process.pid(), SIGTERM)
    end)
    assert.equal(-SIGTERM, (process.wait(pid)))
  end)

  it("refuses other names", function()
    assert.matches('bad argument #2 to \'signals\'.*got "SIGKILL"',
      support.raised(outbox.signals, "SIGTERM", "SIGKILL"))
    assert.matches("bad argument #1 to 'signals'.*got number", support.raised(outbox.signals, 15))
    assert.matches("bad argument #1 to 'signals'.*got nil", support.raised(outbox.signals, nil))
  end)
end)
