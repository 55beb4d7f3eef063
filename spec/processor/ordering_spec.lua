-- Which entries are held back while an earlier one waits for its retry.

local outbox = require("outbox")
local support = require("spec.support")
local testing = require("outbox.testing")

local sqlite_it = support.only("sqlite", it)

describe("ordering", function()
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

  describe('by "key"', function()
    it("holds back later entries of the key, and no others", function()
      publish("a1 b1 a2 c1 b2 a3")
      publisher:fail("a1", "no", 1)
      local p = processor({ batch_size = 2 })
      p:pump()
      assert.equal("b1 c1 b2", delivered())
      clock.advance(1)
      p:pump()
      assert.equal("b1 c1 b2 a1 a2 a3", delivered())
    end)

    it("delivers again what an ordered publisher delivered behind a failed one", function()
      publish("a1 a2 b1")
      publisher.ordered = true
      publisher:fail("a1", "no", 1)
      local p = processor({})
      p:pump()
      assert.equal("a2 b1", delivered())
      assert.outbox(store).has_entry({ id = "a2", attempts = 0 })
      clock.advance(1)
      p:pump()
      assert.equal("a2 b1 a1 a2", delivered())
    end)

    it("counts by namespace and key; entries without a key have no order", function()
      store:publish({ id = "1" }, { id = "2" }, { id = "3", key = "k" },
        { id = "4", key = "k", namespace = "n" })
      publisher:fail("1", "no")
      publisher:fail("3", "no")
      processor({ batch_size = 1 }):pump()
      assert.equal("2 4", delivered())
    end)

    it("frees the entries behind a dead letter", function()
      publish("a1 a2")
      publisher:fail("a1", { permanent = true })
      processor({ batch_size = 1 }):pump()
      assert.equal("a2", delivered())
    end)

    it("buries a permanent failure at once, though it is behind a waiting entry", function()
      publish("a1 a2 a3")
      publisher.ordered = true
      publisher:fail("a1", "no", 1)
      publisher:fail("a2", { permanent = true })
      processor({}):pump()
      assert.outbox(store).has_dead_entry({ id = "a2" })
      assert.outbox(store).has_entries(2)
    end)

    it("frees the entries behind one that somebody else deleted, after some seconds", function()
      publish("a1 a2 b1")
      publisher:fail("a1", { reason = "no", retry_after = 86400 })
      local p = processor({ batch_size = 1, process_interval = 10 })
      for _ = 1, 5 do
        p:step()
        clock.advance(0.1)
      end
      local other <close> = outbox.open(path, { clock = clock })
      other:delete_entries("a1")
      for _ = 1, 30 do
        p:step()
        clock.advance(1)
      end
      assert.equal("b1 a2", delivered())
    end)

    it("holds back messages that even another store publishes meanwhile", function()
      publish("a1")
      publisher:fail("a1", "no", 1)
      local p = processor({})
      p:pump()
      local other <close> = outbox.open(path, { clock = clock })
      other:publish({ id = "a2", key = "a" }, { id = "b1", key = "b" })
      p:pump()
      assert.equal("b1", delivered())
      clock.advance(1)
      p:pump()
      assert.equal("b1 a1 a2", delivered())
    end)

    it("is kept by the processor that takes over", function()
      publish("a1 a2 b1")
      publisher:fail("a1", "no", 1)
      processor({ batch_size = 1 }):pump()
      local second <close> = outbox.open(path, { clock = clock })
      local p = processor({ store = second, batch_size = 1 })
      p:pump()
      assert.equal("b1", delivered())
      clock.advance(1)
      p:pump()
      assert.equal("b1 a1 a2", delivered())
    end)
  end)

  describe('"strict"', function()
    it("holds back the whole queue", function()
      publish("a1 b1 c1 d1")
      publisher:fail("b1", "no", 1)
      local p = processor({ ordering = "strict", batch_size = 2 })
      p:pump()
      assert.equal("a1", delivered())
      clock.advance(1)
      p:pump()
      assert.equal("a1 b1 c1 d1", delivered())
    end)

    it("holds back entries whose destination is up while that of the first is down", function()
      store:publish({ id = "1", namespace = "down" }, { id = "2", namespace = "up" })
      local p
      p = processor({ ordering = "strict", publisher = function(messages, namespace)
        if namespace == "down" and clock.now() < 1010 then
          error("down")
        end
        publisher:publish(messages)
        if messages[1].id == "2" then
          p:stop()
        end
      end })
      p:run()
      assert.equal("1 2", delivered())
    end)

    it("lets one processor work while the others stand by", function()
      publish("a1 b1")
      local second <close> = outbox.open(path, { clock = clock })
      local standby = processor({ store = second, ordering = "strict",
        publisher = testing.publisher() })
      local p = processor({ ordering = "strict", batch_size = 1, publisher = function(messages)
        publisher:publish(messages)
        assert.equal(0, standby:pump())
      end })
      assert.equal(2, p:pump())
    end)

    it("holds across namespaces, and ends a batch at the first failure", function()
      for i, namespace in ipairs({ "x", "y", "x" }) do
        store:publish({ id = tostring(i), namespace = namespace })
      end
      publisher:fail("2", "no", 1)
      local p = processor({ ordering = "strict" })
      p:pump()
      assert.equal("1", delivered())
      clock.advance(1)
      p:pump()
      assert.equal("1 2 3", delivered())
    end)
  end)

  describe('"none"', function()
    it("holds back no entry", function()
      publish("a1 a2 b1")
      publisher:fail("a1", "no", 1)
      local p = processor({ ordering = "none" })
      p:pump()
      assert.equal("a2 b1", delivered())
    end)

    it("shares the work between processors, in order or not", function()
      local ids = {}
      for i = 1, 200 do
        ids[i] = "-" .. i
      end
      publish(table.concat(ids, " "))
      local second <close> = outbox.open(path, { clock = clock })
      local theirs = testing.publisher()
      local other = processor({ store = second, ordering = "none", publisher = theirs })
      local p = processor({ ordering = "none" })
      while #publisher.messages + #theirs.messages < 200 do
        p:step()
        other:step()
        clock.advance(0.01)
      end
      assert.is_true(#publisher.messages > 60 and #theirs.messages > 60)
    end)

    sqlite_it("does not let processors wake each other while the destination is down", function()
      publish("a b c d")
      local second <close> = outbox.open(path, { clock = clock })
      publisher:raise("down")
      local one = processor({ ordering = "none" })
      local other = processor({ store = second, ordering = "none" })
      local watcher <close> = outbox.open(path)
      local function version_after(rounds)
        for _ = 1, rounds do
          one:step()
          other:step()
        end
        return support.sql(watcher, "PRAGMA data_version")[1].data_version
      end
      local bell = {
        getfd = function()
          return one:pollfd()
        end,
        dirty = function() end,
      }
      local function is_readable()
        return #require("socket").select({ bell }, nil, 0) == 1
      end
      assert.equal(version_after(100), version_after(100))
      watcher:publish({})
      assert.is_true(is_readable())
      one:step()
      assert.is_false(is_readable())
    end)
  end)

  for _, ordering in ipairs({ "key", "strict" }) do
    local name = 'by "%s" is kept if plain SQL uses the id of a waiting entry again'
    sqlite_it(name:format(ordering),
      function()
        local function insert(id)
          support.sql(store, "INSERT INTO outbox_entries (id, key) VALUES (?, 'a')", id)
        end
        insert("a1")
        publisher:fail("a1", "no", 1)
        local p = processor({ ordering = ordering })
        p:pump()
        insert("a1")
        insert("a2")
        clock.advance(1)
        p:pump()
        assert.equal("a1 a1 a2", delivered())
      end)
  end
end)
