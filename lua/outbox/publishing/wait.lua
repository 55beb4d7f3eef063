-- Waits for a descriptor. In a coroutine of cqueues, luv or copas that loop goes on meanwhile;
-- anywhere else this process sleeps. copas before 2.0 does not tell whether it is running.

local core = require("outbox.core")

local PAUSE = 0.001 -- seconds; copas can poll nothing but sockets of LuaSocket's

local function loaded(name)
  local module = package.loaded[name]
  return type(module) == "table" and module or nil
end

local function on_cqueues(client, seconds)
  local cqueues = loaded("cqueues")
  local _, inside = nil, false
  if cqueues then
    _, inside = cqueues.running()
  end
  if inside then
    local descriptor = client:pollfd()
    cqueues.poll({ pollfd = descriptor, events = client:events() }, seconds)
    cqueues.cancel(descriptor) -- the loop would fail if it knew one that is closed
  end
  return inside
end

local function on_luv(client, seconds)
  local uv = loaded("luv")
  if not uv or not uv.loop_mode() or not coroutine.isyieldable() then
    return false
  end
  local waiting, done = coroutine.running(), false
  local poll, timer = uv.new_poll(client:pollfd()), uv.new_timer()
  local function wake()
    if not done then
      done = true
      poll:close()
      timer:close()
      if coroutine.status(waiting) == "suspended" then -- else the coroutine was closed
        assert(coroutine.resume(waiting))
      end
    end
  end
  poll:start(client:events(), wake)
  uv.update_time()
  timer:start(math.ceil(seconds * 1000), 0, wake)
  coroutine.yield()
  return true
end

local function on_copas(seconds)
  local copas = loaded("copas")
  local inside = copas and copas.running and copas.sleep and coroutine.isyieldable()
  if inside then
    copas.sleep(math.min(seconds, PAUSE))
  end
  return inside
end

--- Waits until the descriptor of a client is ready for the `events` that the client waits for, for
-- at most so many seconds; perhaps for less.
return function(client, seconds)
  if not on_cqueues(client, seconds) and not on_luv(client, seconds) and not on_copas(seconds) then
    core.await_descriptor(client:pollfd(), client:events(), seconds)
  end
end
