-- Which namespaces a processor serves, and how processors share the work.

local outbox = require("outbox")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("a processor", function()
  local store, path, clock, stores

  before_each(function()
    clock = testing.clock()
    store, path = support.store({ clock = clock, synchronous = "off" })
    stores = {}
  end)

  after_each(function()
    for _, each in ipairs(stores) do
      each:close()
    end
    store:close()
    support.remove()
  end)

  -- A processor on a store of its own, with the ids that it has delivered and its errors.
  local function worker(options)
    local own = outbox.open(path, { clock = clock, synchronous = "off" })
    stores[#stores + 1] = own
    local it = { ids = {}, errors = {} }
    options.store = own
    options.publisher = options.publisher or function(messages)
      for _, message in ipairs(messages) do
        it.ids[#it.ids + 1] = message.id
      end
    end
    function options.on_error(problem)
      it.errors[#it.errors + 1] = problem.code
    end
    it.processor = outbox.processor(options)
    return it
  end

  -- Steps processors in turn for so many seconds of the clock.
  local function run(seconds, ...)
    local last = clock.now() + seconds
    repeat
      for _, each in ipairs({ ... }) do
        each.processor:step()
      end
      clock.advance(0.005)
    until clock.now() >= last
  end

  local function publish(count, message)
    for i = 1, count do
      store:publish({ id = message.id and message.id .. i, namespace = message.namespace,
        key = message.keys and "k" .. i % message.keys or nil })
    end
  end

  local function in_order(...)
    local last = {}
    for _, each in ipairs({ ... }) do
      for _, id in ipairs(each.ids) do
        local key = tonumber(id:match("%d+"))
        last[#last + 1] = key
      end
    end
    return last
  end

  describe("that serves some namespaces", function()
    it("leaves the others alone", function()
      publish(2, { id = "a", namespace = "a" })
      publish(2, { id = "b", namespace = "b" })
      publish(2, { id = "c", namespace = "c" })
      local named, rest = worker({ namespaces = { "b", "a" } }),
        worker({ namespaces = { except = { "a", "b" } } })
      named.processor:pump()
      assert.same({ "a1", "a2", "b1", "b2" }, named.ids)
      rest.processor:pump()
      assert.same({ "c1", "c2" }, rest.ids)
    end)

    it("works beside one that serves the others, though that one's publisher is at work", function()
      publish(3, { id = "a", namespace = "a" })
      publish(3, { id = "b", namespace = "b" })
      local inner = worker({ namespaces = { "b" } })
      local outer = worker({ namespaces = { "a" }, publisher = function()
        assert.equal(inner.ids[1] and 0 or 3, inner.processor:pump())
      end })
      assert.equal(3, outer.processor:pump())
      assert.same({ "b1", "b2", "b3" }, inner.ids)
    end)

    it("may have names of any bytes", function()
      local names = { "", "a:b", "1:x", support.ODD, ("n"):rep(300), "ünï" }
      for i, name in ipairs(names) do
        store:publish({ id = tostring(i), namespace = name },
          { id = "-" .. i, namespace = name .. "x" })
      end
      local it = worker({ namespaces = names })
      it.processor:pump()
      assert.same({ "1", "2", "3", "4", "5", "6" }, it.ids)
      assert.outbox(store).has_entries(6)
    end)

    it("is refused if its publisher does not serve them", function()
      assert.error_matches(function()
        outbox.processor({ store = store, namespaces = { "a", "b" },
          publisher = outbox.publisher({ a = "stdout:" }) })
      end, "the publisher does not serve the namespace 'b'", 1, true)
    end)

    it("is refused if they are no names", function()
      for _, bad in ipairs({ {}, { 1 }, "a", { except = {} }, { except = { "a" }, "b" },
        { "a", except = { "b" } }, { a = "b" }, { "a", nil, "c" }, { [2] = "a" } }) do
        assert.error_matches(function()
          worker({ namespaces = bad })
        end, "namespaces must be an array of names, or { except = an array of names }", 1, true)
      end
    end)
  end)

  describe("beside one whose namespaces overlap with its own", function()
    it("stands by, says so once, and goes on when the other has gone", function()
      publish(30, { id = "b", namespace = "b", keys = 5 })
      local first = worker({ namespaces = { "a", "b" }, batch_size = 5 })
      local second = worker({ namespaces = { "b" } })
      first.processor:step()
      run(0.02, second)
      assert.same({}, second.ids)
      assert.same({ "overlapped" }, second.errors)
      assert.same({ 64, 0 }, support.pluck(store:stats().leases, "classes")) -- seen to stand by
      first.processor:stop()
      first.processor:step()
      run(0.1, second)
      assert.equal(30, #first.ids + #second.ids)
      assert.same({ "overlapped" }, second.errors)
      local all = in_order(first, second)
      if support.engine == "postgres" then -- the order of each key alone
        table.sort(all)
      end
      for i = 1, 30 do
        assert.equal(i, all[i])
      end
    end)

    it("takes over from it within one claim duration when it dies", function()
      publish(10, { id = "b", namespace = "b" })
      local dead = worker({ namespaces = { except = { "x" } }, batch_size = 1 })
      local second = worker({})
      dead.processor:step()
      run(2.2, second)
      assert.equal(9, #second.ids)
    end)
  end)

  describe("beside others of the same namespaces", function()
    it("has its share within a claim duration", function()
      publish(2000, { id = "m", keys = 500 })
      local first, second, third = worker({ batch_size = 5 }), worker({ batch_size = 5 }),
        worker({ batch_size = 5 })
      run(0.1, first)
      local before = #first.ids
      run(0.5, first, second, third)
      local one, two, three = #first.ids - before, #second.ids, #third.ids
      assert.is_true(two > 0 and three > 0)
      local least, most = math.min(one, two, three), math.max(one, two, three)
      assert.is_true(most <= 2 * least, ("%d %d %d"):format(one, two, three))
    end)

    it("takes a dead one's share within a claim duration", function()
      publish(400, { id = "m", keys = 400 })
      local first, second = worker({ batch_size = 5 }), worker({ batch_size = 5 })
      run(0.1, first, second)
      assert.is_true(#second.ids > 0)
      run(3.5, first) -- the second is not heard of any more
      local stats = store:stats()
      assert.equal(0, stats.ready + stats.delayed)
    end)

    it("keeps the order of each key, whoever joins and leaves", function()
      publish(600, { id = "m", keys = 7 })
      local seen, workers = {}, {}
      for i = 1, 3 do
        workers[i] = worker({ batch_size = 4, publisher = function(messages)
          for _, message in ipairs(messages) do
            local number = tonumber(message.id:match("%d+"))
            assert.is_true(number > (seen[message.key] or 0))
            seen[message.key] = number
          end
        end })
      end
      math.randomseed(7)
      for round = 1, 400 do
        local it = workers[math.random(3)]
        it.processor:step()
        if round % 23 == 0 then
          it.processor:stop()
          it.processor:step()
        end
        clock.advance(0.002 * math.random(5))
      end
      run(10, table.unpack(workers))
      local stats = store:stats()
      assert.equal(0, stats.ready + stats.delayed + stats.dead)
    end)

    it("stands by in strict order, and takes over when the first dies", function()
      publish(20, { id = "m" })
      local first = worker({ ordering = "strict", batch_size = 2 })
      local second = worker({ ordering = "strict", batch_size = 2 })
      first.processor:step()
      run(0.5, second)
      assert.same({}, second.ids)
      run(4, second)
      assert.equal(18, #second.ids)
    end)
  end)
end)
