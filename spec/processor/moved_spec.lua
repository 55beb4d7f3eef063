local command = require("spec.support.command")
local outbox = require("outbox")
local support = require("spec.support")

local describe = support.only("sqlite", describe)

describe("a processor whose database file", function()
  local directory, path, store

  before_each(function()
    directory = support.path()
    os.remove(directory)
    path = directory .. "/app.db"
    assert(os.execute("mkdir " .. directory))
    store = outbox.open(path)
    store:migrate()
  end)

  after_each(function()
    store:close()
    os.execute(("rm -rf '%s' '%s.new'"):format(directory, directory))
    support.remove()
  end)

  -- Runs a processor that is idle once the change has happened. Returns what `run` raises.
  local function run(change)
    local processor
    processor = outbox.processor({ store = store, process_interval = 0.05,
      publisher = function(messages)
        if messages[1].id == "last" then
          processor:stop()
        else
          change()
        end
      end })
    store:publish({ id = "first" })
    local ok, problem = pcall(processor.run, processor)
    return not ok and problem or nil
  end

  local function shell(text)
    return function()
      assert(os.execute("cd " .. directory .. " && " .. text))
    end
  end

  for what, change in pairs({
    ["is deleted"] = "rm app.db",
    ["is deleted with its log"] = "rm app.db app.db-wal app.db-shm",
    ["is moved away"] = "mv app.db old.db",
    ["is replaced by another one"] = "cp app.db new.db && mv new.db app.db",
    ["is deleted and created again"] =
      "rm app.db* && sqlite3 app.db 'PRAGMA journal_mode = WAL; CREATE TABLE t (x)' >/dev/null",
    ["is in a directory that is renamed"] = 'mv "$PWD" "$PWD.new"',
    ["loses its log"] = "rm app.db-wal",
    ["has another log in place of its own"] = "cp app.db-wal x && mv x app.db-wal",
  }) do
    it(what .. " raises moved", function()
      local problem = run(shell(change))
      assert.equal("moved", problem.code)
      assert.matches("app%.db.* was deleted, moved or replaced while it was open", problem.message)
      local ok, again = pcall(store.claim_entries, store, "p", outbox.clock.now() + 1)
      assert.same({ false, "moved" }, { ok, again.code })
      ok, again = pcall(store.stats, store)
      assert.same({ false, "moved" }, { ok, again.code })
    end)
  end

  it("is replaced leaves the new one as it is", function()
    local input = support.path()
    command.write(input, "PRAGMA journal_mode = WAL; CREATE TABLE t (x); INSERT INTO t VALUES (7);"
      .. "\n.shell kill -9 $PPID\n") -- so that its log is not written back
    run(shell(("rm app.db*; sqlite3 app.db <%s >/dev/null 2>&1 || true"):format(input)))
    store:close()
    assert.equal("7\n", (command.shell(("sqlite3 %s 'SELECT x FROM t'"):format(path))))
  end)

  it("stays is not disturbed by checkpoints, other connections, or a touched log", function()
    assert.is_nil(run(function()
      for _ = 1, 3 do
        shell("sqlite3 app.db 'PRAGMA wal_checkpoint(TRUNCATE)' >/dev/null && touch app.db-wal "
          .. "&& chmod 600 app.db app.db-wal && sqlite3 app.db 'VACUUM'")()
        store:wait(0) -- the bell says that the log may have gone
      end
      command.succeed("migrate " .. path)
      assert(os.execute(("sqlite3 %s \"INSERT INTO outbox_entries (id) VALUES ('last')\"")
        :format(path)))
    end))
  end)

  it("does not exist is left alone", function()
    for _, name in ipairs({ ":memory:", "file::memory:?cache=shared" }) do
      local memory <close> = outbox.open(name)
      memory:migrate()
      memory:publish({})
      assert.is_true(memory:claim_entries("p", outbox.clock.now() + 1))
      assert.equal(1, memory:stats().ready)
      memory:wait(0)
    end
  end)

  it("is replaced ends the relay, and top, with a status of their own", function()
    for _, arguments in ipairs({
      "relay " .. path .. " --to file:/dev/null --process-interval 0.05",
      "top " .. path .. " --interval 0.05",
    }) do
      store:close()
      local pid, pipe = command.start(arguments .. " 2>&1")
      assert.is_number(pid)
      pipe:read("l") -- it has the database open
      shell("cp app.db new.db && mv new.db app.db")()
      local rest, ended = command.finish(pipe)
      assert.equal("exit 5", ended)
      assert.matches("\noutbox: [^\n]*was deleted, moved or replaced[^\n]* %(moved%)\n$",
        "\n" .. rest)
      assert(os.execute("rm -f " .. path .. "-wal " .. path .. "-shm"))
    end
  end)
end)
