-- Order between several processors.

local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("ordering between processors", function()
  local store, path, clock, publisher

  before_each(function()
    clock = testing.clock()
    store, path = support.store({ clock = clock, synchronous = "off" })
    publisher = testing.publisher()
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function processor(options)
    options.store, options.publisher = options.store or store, options.publisher or publisher
    options.on_error = options.on_error or function() end
    return outbox.processor(options)
  end

  local function delivered()
    return table.concat(support.pluck(publisher.messages, "id"), " ")
  end

  local function publish(ids)
    for id in ids:gmatch("%S+") do
      store:publish({ id = id, key = id:match("^%a") ~= "-" and id:match("^%a") or nil })
    end
  end

  it("makes the second stand by until the first gives its claim back", function()
    publish("a1 a2")
    local second <close> = outbox.open(path, { clock = clock })
    local standby = processor({ store = second, publisher = testing.publisher() })
    local p = processor({ batch_size = 1, publisher = function(messages)
      publisher:publish(messages)
      assert.equal(0, standby:pump())
    end })
    p:pump()
    assert.equal("a1 a2", delivered())
    publish("a3")
    assert.equal(1, standby:pump())
  end)

  it("lets the second take over when the claim lapses", function()
    publish("a1 a2")
    store:claim_entries("dead", 1002)
    local p = processor({})
    assert.equal(0, p:pump())
    clock.advance(2.1)
    assert.equal(2, p:pump())
  end)

  it("starts from the first entry after it has slept for longer than its claim lasts", function()
    publish("a1 a2")
    publisher:fail("a1", { reason = "no", retry_after = 2.5 }, 1)
    local sleeper = processor({ batch_size = 1 })
    for _ = 1, 3 do
      clock.advance(sleeper:step())
    end
    local second <close> = outbox.open(path, { clock = clock })
    clock.advance(2.5)
    local other
    other = processor({ store = second, batch_size = 1, on_delivered = function()
      other:stop()
    end })
    other:pump()
    assert.equal("a1", delivered())
    publish("a3")
    sleeper:step()
    assert.equal("a1 a2", delivered())
    sleeper:step()
    assert.equal("a1 a2 a3", delivered())
  end)

  -- Three processors, failures and kills. For each key, the first deliveries of its messages are
  -- in order.
  it("never delivers a key out of order, whichever processor dies", function()
    local seed = tonumber(os.getenv("OUTBOX_SEED")) or os.time()
    math.randomseed(seed)
    local KEYS, MESSAGES = 5, 400
    store:close()
    local log = support.path()
    local function work(number)
      math.randomseed(seed + number)
      local own <close> = outbox.open(path, { synchronous = "off" })
      local p
      local file <close> = assert(io.open(log, "a"))
      file:setvbuf("no")
      p = outbox.processor({ store = own, claim_duration = 0.2, batch_size = 7,
        retry = { base = 0.001, cap = 0.01, max_attempts = 1000 }, on_error = function() end,
        publisher = function(messages)
          local failures, failed = {}, {}
          for i, message in ipairs(messages) do
            if math.random(400) == 1 then
              process.kill(process.pid())
            elseif math.random(300) == 1 then
              error("raised")
            elseif failed[message.key] or math.random(10) == 1 then
              failures[i], failed[message.key] = "no", true
            else
              file:write(message.key .. " " .. message.payload .. "\n") -- at once: three write
            end
          end
          return failures
        end, on_batch = function()
          local published = pcall(support.sql, own, "SELECT 1 FROM published")
          local stats = own:stats() -- after `published`, because messages may come in between
          if published and stats.ready + stats.delayed == 0 then
            p:stop()
          end
        end })
      p:run()
    end
    local children, last = {}, 0
    local function start()
      last = last + 1
      local number = last
      children[process.fork(function()
        work(number)
      end)] = true
    end
    for _ = 1, 3 do
      start()
    end
    local publishing = process.fork(function()
      local own <close> = outbox.open(path, { synchronous = "off" })
      for i = 1, MESSAGES do
        own:publish({ key = "k" .. i % KEYS, payload = tostring(i) })
      end
      own:transaction(function(txn)
        txn:execute("CREATE TABLE published (at INTEGER)")
        txn:publish({ key = "last", payload = tostring(MESSAGES + 1) })
      end)
    end)
    assert.equal(0, process.wait(publishing))
    local status, pid
    repeat -- a killed processor is replaced, until one finds that all is delivered
      status, pid = process.wait()
      local ours = children[pid] -- not a child that another spec has left
      children[pid] = nil
      if ours and status == -9 then
        start()
      end
    until ours and status ~= -9
    assert.equal(0, status, "seed " .. seed)
    for child in pairs(children) do
      process.kill(child)
      process.wait(child)
    end
    store = outbox.open(path)
    local most, seen, count = {}, {}, 0
    for key, payload in assert(io.open(log)):read("a"):gmatch("(%S+) (%d+)\n") do
      local number = tonumber(payload)
      if not seen[number] then
        assert.is_true(number > (most[key] or 0), ("seed %d: %s %d"):format(seed, key, number))
        most[key], seen[number], count = number, true, count + 1
      end
    end
    assert.equal(MESSAGES + 1, count, "seed " .. seed)
  end)
end)
