-- Several processors in one event loop, each with a store of its own. One publisher never answers.

local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")

local MESSAGES = 50

-- For each loop: runs functions as coroutines until `is_over` says so. Each gets a function that
-- waits for a processor's descriptor or its time, and one that waits for ever.
local LOOPS = {
  cqueues = function(functions, is_over)
    local cqueues = require("cqueues")
    local loop = cqueues.new()
    for _, fn in ipairs(functions) do
      loop:wrap(fn, cqueues.poll, function()
        cqueues.sleep(3600)
      end)
    end
    repeat
      assert(loop:step(1))
    until is_over()
  end,

  luv = function(functions, is_over)
    local uv = require("luv")
    local handles = {} -- the loop has others as well, which are not ours to close
    for _, fn in ipairs(functions) do
      local bell
      local timer, thread = uv.new_timer(), coroutine.create(fn)
      handles[#handles + 1] = timer
      local function resume(...)
        timer:stop()
        if bell then
          bell:stop()
        end
        assert(coroutine.resume(thread, ...))
        if is_over() then
          uv.stop()
        end
      end
      local function wait(processor, seconds)
        if not bell then
          bell = uv.new_poll(processor:pollfd())
          handles[#handles + 1] = bell
        end
        bell:start("r", function()
          resume()
        end)
        timer:start(math.ceil(seconds * 1000), 0, function()
          resume()
        end)
        coroutine.yield()
      end
      resume(function(processor)
        wait(processor, processor:timeout())
      end, coroutine.yield)
    end
    uv.run()
    for _, handle in ipairs(handles) do
      handle:close()
    end
  end,

  -- This one is old and has no timers: the second function is resumed between its steps.
  copas = function(functions, is_over)
    local copas, socket = require("copas"), require("socket")
    local silent = assert(socket.bind("127.0.0.1", 0))
    local host, port = silent:getsockname()
    local client = assert(socket.connect(host, port))
    client:settimeout(0)
    copas.addthread(function()
      functions[1](nil, function()
        copas.receive(client)
      end)
    end)
    local thread = coroutine.create(functions[2])
    repeat
      assert(coroutine.resume(thread, coroutine.yield))
      copas.step(0.01)
    until is_over()
    client:close()
    silent:close()
  end,
}

-- In a process of its own, because two specs of one process must not load luv.
local function test(run, path)
  local store <close> = outbox.open(path, { synchronous = "off" })
  store:migrate()
  for i = 1, MESSAGES do
    store:publish({ namespace = "hangs" },
      { namespace = "up", payload = tostring(i), key = "k" })
  end
  local hangs, delivered = 0, {}
  local function serve(namespaces, publisher)
    return function(wait, forever)
      local own <close> = outbox.open(path, { synchronous = "off" })
      local processor = outbox.processor({ store = own, namespaces = namespaces,
        on_error = error, publisher = function(messages)
          return publisher(messages, forever)
        end })
      while processor:step() do
        wait(processor)
      end
    end
  end
  run({
    serve({ "hangs" }, function(_, forever)
      hangs = hangs + 1
      forever()
    end),
    serve({ except = { "hangs" } }, function(messages)
      for _, message in ipairs(messages) do
        delivered[#delivered + 1] = tonumber(message.payload)
      end
      if #delivered == 20 then -- something new comes meanwhile
        store:publish({ namespace = "up", payload = tostring(MESSAGES + 1), key = "k" })
      end
    end),
  }, function()
    return #delivered > MESSAGES
  end)
  assert.equal(1, hangs)
  for i = 1, MESSAGES + 1 do
    assert.equal(i, delivered[i])
  end
  assert.equal(MESSAGES, store:stats().ready)
end

for name, run in pairs(LOOPS) do
  describe("in one loop of " .. name, function()
    after_each(support.remove)

    it("a processor whose publisher hangs keeps no other waiting", function()
      local path = support.database()
      assert.equal(0, (process.wait(process.fork(function()
        test(run, path)
      end))))
    end)
  end)
end
