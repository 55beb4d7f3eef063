local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

-- A timeout that is reached only if a wake was missed.
local LONG = 60

describe("store:wait", function()
  local store, path

  -- On PostgreSQL, who begins to wait is told to look again until no commit can have been missed.
  local function settled(deadline)
    local rung, look_again
    repeat
      store:claim_entries("p", deadline or outbox.clock.now() + LONG)
      if support.engine == "postgres" then
        rung, look_again = store:wait(0)
      end
    until not rung and not look_again
  end

  before_each(function()
    store, path = support.store({ synchronous = "off" })
    settled(0)
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  it("returns at the timeout when nobody committed", function()
    assert.is_false((store:wait(0.01)))
    assert.is_false((store:wait(0)))
  end)

  it("returns at once when somebody committed since the last claim", function()
    local other <close> = outbox.open(path)
    other:publish({})
    assert.is_true((store:wait(LONG)))
    assert.is_true((store:wait(0))) -- until it is claimed
    settled()
    assert.is_false((store:wait(0.01)))
  end)

  it("returns at once before the first claim", function()
    local other <close> = outbox.open(path)
    assert.is_true((other:wait(LONG)))
  end)

  it("wakes when the same store publishes, but not when it claims or settles", function()
    store:publish({ id = "a" }, { id = "b" })
    assert.is_true((store:wait(LONG)))
    settled()
    if support.engine == "sqlite" then -- on PostgreSQL, what becomes delayed rings
      store:retry_entry("a", os.time() + 1000, "no")
    end
    store:delete_entries("b")
    store:renew_claim("p", outbox.clock.now() + LONG)
    store:release_claim("p")
    assert.is_false((store:wait(0.01)))
    store:transaction(function(txn)
      txn:execute("INSERT INTO outbox_entries (payload) VALUES ('plain SQL')")
    end)
    assert.is_true((store:wait(LONG)))
  end)

  it("is ended by what another store settles by hand", function()
    local other <close> = outbox.open(path)
    store:publish({ id = "a" })
    for _, seconds in ipairs({ 1000, 500 }) do
      settled()
      assert.is_false((store:wait(0.01)))
      other:retry_entry("a", outbox.clock.now() + seconds, "no")
      assert.is_true((store:wait(LONG)))
    end
    settled()
    other:delete_entries("a")
    assert.is_true((store:wait(LONG)))
  end)

  it("is ended by the commit of another process", function()
    store:close()
    local ready = process.gate()
    local published = process.fork(function()
      ready:wait()
      local other <close> = outbox.open(path)
      other:publish({ id = "a" })
    end)
    store = outbox.open(path)
    settled()
    ready:open()
    assert.is_true((store:wait(LONG)))
    repeat
      settled()
    until store:get_claimed_entries("p", 1)[1] or not store:wait(LONG)
    assert.equal("a", store:get_claimed_entries("p", 1)[1].id)
    process.wait(published)
  end)

  sqlite_it("misses no commit of a burst, whatever else happens to the file", function()
    local ready = process.gate()
    store:close()
    local child = process.fork(function()
      ready:wait()
      for i = 1, 300 do
        local other <close> = outbox.open(path)
        other:publish({ id = tostring(i) })
        if i % 50 == 0 then
          os.execute(("sqlite3 %s 'PRAGMA busy_timeout = 5000; PRAGMA wal_checkpoint(TRUNCATE);"
            .. " VACUUM' >/dev/null"):format(path))
        end
      end
    end)
    store = outbox.open(path)
    ready:open()
    local seen = 0
    repeat
      settled()
      local ids = support.pluck(store:get_claimed_entries("p", 1000), "id")
      store:delete_entries(table.unpack(ids))
      seen = seen + #ids
    until seen == 300 or not store:wait(LONG)
    assert.equal(300, seen)
    assert.equal(0, (process.wait(child)))
  end)

  sqlite_it("misses no commit, however long the commit waits for the disk", function()
    settled()
    local ready = process.gate()
    local child = process.fork(function()
      ready:wait()
      support.run(([[-e 'require("outbox").open("%s"):publish({})']]):format(path),
        'env LD_PRELOAD="$LD_PRELOAD build/slow_disk.so"')
    end)
    ready:open()
    assert.is_true((store:wait(LONG)))
    process.wait(child)
  end)

  sqlite_it("has the same descriptor for as long as the store is open", function()
    local fd = store:pollfd()
    assert.equal("integer", math.type(fd))
    os.execute(("sqlite3 %s 'PRAGMA busy_timeout = 5000; VACUUM' >/dev/null"):format(path))
    store:wait(0)
    assert.equal(fd, store:pollfd())
  end)

  sqlite_it("polls when the file cannot be watched", function()
    store:close()
    local publisher = process.fork(function()
      local other <close> = outbox.open(path)
      while true do -- until it is killed
        other:publish({})
        outbox.clock.sleep(0.05)
      end
    end)
    local output = support.run(([[-e '
      local outbox = require("outbox")
      local store, files = outbox.open("%s"), {}
      store:stats() -- opens the last files that it needs
      repeat
        local file = io.open("/dev/null")
        files[#files + 1] = file
      until not file
      print((store:pollfd()))
      for _ = 1, 3 do
        store:claim_entries("p", outbox.clock.now() + 60)
        print((store:wait(60)))
      end']]):format(path), "prlimit --nofile=64")
    process.kill(publisher)
    process.wait(publisher)
    store = outbox.open(path)
    assert.equal("nil\ntrue\ntrue\ntrue\n", output)
  end)

  it("is refused in a transaction", function()
    store:transaction(function()
      assert.equal("misuse", support.raised(store.wait, store, 0).code)
    end)
  end)

  it("checks its arguments", function()
    assert.matches("must not be negative", support.raised(store.wait, store, -1))
    assert.matches("number expected", support.raised(store.wait, store))
    store:close()
    assert.equal("closed", support.raised(store.wait, store, 0).code)
    assert.equal("closed", support.raised(store.pollfd, store).code)
  end)

  it("works in memory", function()
    local memory <close> = outbox.open(":memory:")
    memory:migrate()
    memory:claim_entries("p", 0)
    assert.is_false((memory:wait(0.01)))
    memory:publish({})
    assert.is_true((memory:wait(LONG)))
  end)
end)
