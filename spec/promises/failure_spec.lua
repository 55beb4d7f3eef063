-- Failures of the database and of the process. Each one has a code and changes nothing.

local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")

support.only("sqlite", describe)("a full disk", function()
  after_each(support.remove)

  it("fails calls that need space, changes nothing, and ends when there is space", function()
    local store <close> = support.store()
    store:publish({ id = "a" }, { id = "b" }, { id = "c" })
    local payload = ("x"):rep(100000)
    local function limit(pages)
      support.sql(store, ("PRAGMA max_page_count = %d"):format(pages))
    end
    limit(1)
    for method, arguments in pairs({
      publish = { {}, { payload = payload } },
      retry_entry = { "a", 1e9, payload },
      bury_entry = { "b", payload },
    }) do
      local before = store:stats()
      assert.equal("full", support.raised(store[method], store, table.unpack(arguments)).code)
      assert.same(before.ready, store:stats().ready)
    end
    local problem = support.raised(store.transaction, store, function(txn)
      txn:publish({})
      txn:publish({ payload = payload })
    end)
    assert.equal("full", problem.code)
    local stats = store:stats()
    assert.same({ 3, 0, 0 }, { stats.ready, stats.delayed, stats.dead })
    limit(100000)
    store:publish({ payload = payload })
    assert.is_true(store:bury_entry("b", payload))
    assert.equal("ok", support.sql(store, "PRAGMA integrity_check")[1].integrity_check)
  end)
end)

support.only("sqlite", describe)("a locked database", function()
  after_each(support.remove)

  local function locked(options, fn)
    local store <close>, path = support.store(options)
    local other <close> = outbox.open(path)
    other:transaction(function()
      fn(store)
    end)
    return store:stats()
  end

  it("fails every write after busy_timeout, and no read", function()
    locked({ busy_timeout = 0.01 }, function(store)
      for method, arguments in pairs({
        publish = { {} },
        transaction = { function() end },
        delete_entries = { "a" },
        retry_entry = { "a", 1 },
        bury_entry = { "a" },
        requeue_entries = { "a" },
        purge_entries = { "a" },
      }) do
        local start = outbox.clock.now()
        assert.equal("busy", support.raised(store[method], store, table.unpack(arguments)).code)
        assert.is_true(outbox.clock.now() - start >= 0.01, method)
      end
      assert.equal(0, store:stats().ready)
      assert.same({}, store:get_claimed_entries("p", 1))
      assert.same({}, store:dead_entries())
      assert.is_false(store:claim_entries("p", 1)) -- there is nothing to claim: no lock needed
    end)
  end)

  it("makes writers queue, because they wait for the lock", function()
    local store, path = support.store()
    store:close()
    local gate = process.gate()
    local children = {}
    for i = 1, 4 do
      children[i] = process.fork(function()
        gate:wait()
        local own <close> = outbox.open(path)
        for n = 1, 50 do
          own:transaction(function(txn)
            txn:rows("SELECT count(*) FROM outbox_entries")()
            txn:publish({ id = i .. "-" .. n })
          end)
        end
      end)
    end
    gate:open()
    for _, child in ipairs(children) do
      assert.equal(0, process.wait(child))
    end
    store = outbox.open(path)
    assert.equal(200, store:stats().ready)
    store:close()
  end)

  it("is available to every writer in the end, even if one holds it almost always", function()
    local store, path = support.store()
    store:close()
    local locked_once = process.gate()
    local hog = process.fork(function()
      local own <close> = outbox.open(path)
      own:transaction(function()
        locked_once:open()
      end)
      while true do
        own:transaction(function()
          outbox.clock.sleep(0.05)
        end)
        outbox.clock.sleep(0.001)
      end
    end)
    locked_once:wait()
    store = outbox.open(path, { busy_timeout = 2 })
    local ok, problem
    for _ = 1, 50 do
      ok, problem = pcall(store.publish, store, {})
      if not ok then
        break
      end
    end
    process.kill(hog)
    process.wait(hog)
    store:close()
    assert.is_true(ok, problem)
  end)
end)

support.only("sqlite", describe)("a damaged database", function()
  after_each(support.remove)

  it("is reported with its code", function()
    local store, path = support.store()
    local messages = {}
    for i = 1, 500 do
      messages[i] = { payload = ("x"):rep(100) }
    end
    store:publish(table.unpack(messages))
    store:close()
    local file = assert(io.open(path, "r+b"))
    local size = file:seek("end")
    for offset = 4096, size - 1, 4096 do
      file:seek("set", offset)
      file:write(("\xff"):rep(200))
    end
    file:close()
    assert.equal("corrupt", support.raised(function()
      local again <close> = outbox.open(path)
      again:publish({})
    end).code)
  end)
end)

describe("a forked child", function()
  after_each(support.remove)

  it("can neither use its parent's store nor damage it", function()
    local store <close>, path = support.store()
    store:publish({ id = "a" })
    local child
    store:transaction(function(txn)
      txn:publish({ id = "b" })
      local rows = txn:rows("SELECT 1")
      child = process.fork(function()
        local calls = {
          { store.publish, store, {} },
          { store.migrate, store },
          { store.transaction, store, function() end },
          { store.claim_entries, store, "p", 1 },
          { store.get_claimed_entries, store, "p", 1 },
          { store.delete_entries, store, "a" },
          { store.retry_entry, store, "a", 1 },
          { store.bury_entry, store, "a" },
          { store.dead_entries, store },
          { store.find_entries, store, "a" },
          { store.requeue_entries, store, "a" },
          { store.purge_entries, store, "a" },
          { store.stats, store },
          { txn.publish, txn, {} },
          { txn.execute, txn, "DELETE FROM outbox_entries" },
          { txn.rows, txn, "SELECT 1" },
        }
        if support.engine == "sqlite" then -- rows of PostgreSQL are memory
          calls[#calls + 1] = { rows }
        end
        for _, call in ipairs(calls) do
          local problem = support.raised(table.unpack(call))
          assert(problem.code == "forked", tostring(problem))
        end
        if support.engine == "postgres" then
          outbox.open(path):close()
          store:close()
          return
        end
        -- It cannot open a store of its own either, whether its parent's is closed or not: it would
        -- write without a lock.
        assert(support.raised(outbox.open, path).code == "forked")
        store:close()
        assert(support.raised(outbox.open, path).code == "forked")
      end)
      assert.equal(0, process.wait(child))
      txn:publish({ id = "c" })
    end)
    assert.equal(3, store:stats().ready)
    if support.engine == "sqlite" then
      assert.equal("ok", support.sql(store, "PRAGMA integrity_check")[1].integrity_check)
    end
  end)

  it("that is killed in a transaction leaves neither an entry nor a lock", function()
    local store, path = support.store()
    store:close()
    local child = process.fork(function()
      local own = outbox.open(path)
      own:transaction(function(txn)
        txn:publish({})
        process.kill(process.pid())
      end)
    end)
    assert.equal(-9, process.wait(child))
    store = outbox.open(path, { busy_timeout = 0 })
    store:publish({})
    assert.equal(1, store:stats().ready)
    store:close()
  end)

  it("makes ids that differ from its parent's and siblings'", function()
    local path = support.path()
    os.remove(path)
    outbox.uuid_v7()
    for _ = 1, 4 do
      local child = process.fork(function()
        local file = assert(io.open(path, "a"))
        for _ = 1, 100 do
          file:write(outbox.uuid_v7(support.clock(0)), "\n", outbox.uuid_v4(), "\n")
        end
        file:close()
      end)
      assert.equal(0, process.wait(child))
    end
    local seen, count = {}, 0
    for id in io.lines(path) do
      assert.is_nil(seen[id])
      seen[id] = true
      count = count + 1
    end
    assert.equal(800, count)
  end)
end)

support.only("sqlite", describe)("Lua running out of memory while entries are read", function()
  it("leaves no query open", function()
    -- With an open query, the connection would not see later commits.
    local store, path = support.store()
    for _ = 1, 64 do
      store:publish({ payload = ("x"):rep(1024 * 1024) })
    end
    store:claim_entries("p", outbox.clock.now() + 600)
    store:close()
    if os.getenv("LD_PRELOAD") then
      pending("a sanitizer needs the address space itself")
      return
    end
    local output = support.run(([[-e '
      local outbox = require("outbox")
      local store, other = outbox.open("%s"), outbox.open("%s")
      print(pcall(store.get_claimed_entries, store, "p", 100))
      local entries = store:get_claimed_entries("p", 3)
      print(#entries)
      other:delete_entries(entries[1].id)
      print(store:stats().ready)']]):format(path, path), "ulimit -v 60000;")
    assert.equal("false\tnot enough memory\n3\n63\n", output)
    support.remove()
  end)
end)
