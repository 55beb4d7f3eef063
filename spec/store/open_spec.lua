local outbox = require("outbox")
local support = require("spec.support")

local describe = support.only("sqlite", describe)

describe("outbox.open", function()
  after_each(support.remove)

  local function code_of(...)
    return support.raised(outbox.open, ...).code
  end

  it("creates the file in WAL mode, and waits for the disk by default", function()
    local path = support.path()
    os.remove(path)
    local store <close> = outbox.open(path)
    assert.equal("wal", support.sql(store, "PRAGMA journal_mode")[1].journal_mode)
    assert.equal(2, support.sql(store, "PRAGMA synchronous")[1].synchronous)
    assert.equal(0, support.sql(store, "PRAGMA foreign_keys")[1].foreign_keys)
  end)

  it("waits for the disk as the option `synchronous` says", function()
    for value, name in pairs({ [0] = "off", "normal", "full", "extra" }) do
      local store <close> = outbox.open(support.path(), { synchronous = name })
      assert.equal(value, support.sql(store, "PRAGMA synchronous")[1].synchronous)
    end
  end)

  it("keeps outboxes with different prefixes apart in one database", function()
    local path = support.path()
    local red <close> = outbox.open(path, { prefix = "red_" })
    local blue <close> = outbox.open(path, { prefix = "blue_" })
    red:migrate()
    blue:migrate()
    red:publish({ payload = "red" })
    assert.equal(1, red:stats().ready)
    assert.equal(0, blue:stats().ready)
  end)

  it("opens a database in memory", function()
    local store <close> = outbox.open(":memory:")
    store:migrate()
    store:publish({})
    assert.equal(1, store:stats().ready)
  end)

  it("refuses wrong arguments and names them", function()
    local function refused(pattern, ...)
      assert.matches(pattern, support.raised(outbox.open, ...))
    end
    refused("bad argument #1 to '.*open' %(string expected")
    refused("bad argument #1 .* NUL", "a\0b")
    refused("bad argument #2 to '.*open' %(table expected, got number%)", "x", 1)
    refused("unknown option 'sinchronous'", "x", { sinchronous = "full" })
    refused("unknown option '1'", "x", { "full" })
    refused('synchronous must be one of "off", "normal", "full", "extra"', "x",
      { synchronous = "on" })
    refused("busy_timeout must be a number of seconds, at least 0", "x", { busy_timeout = -1 })
    refused("busy_timeout must be a number", "x", { busy_timeout = "5" })
    refused("busy_timeout must be a number", "x", { busy_timeout = 0 / 0 })
    refused("clock must be a function or a table, not a number", "x", { clock = 5 })
    refused("clock must have a function 'now'", "x", { clock = {} })
    refused("id_generator must be a function or a table", "x", { id_generator = "uuid" })
    refused("id_generator must have a function 'generate_id'", "x", { id_generator = {} })
    for _, prefix in ipairs({ "", "a b", "a'", 'a"', "1a", "a;", "a\0", ("a"):rep(65) }) do
      refused("prefix .* plain identifier", "x", { prefix = prefix })
    end
    assert.is_nil(io.open("x"))
  end)

  it("says what is wrong with the path", function()
    local problem = support.raised(outbox.open, "/no/such/directory/outbox.db")
    assert.equal("cantopen", problem.code)
    assert.matches("^/no/such/directory/outbox.db: ", problem.message)
    assert.equal("outbox: " .. problem.message .. " (cantopen)", tostring(problem))
    assert.equal("cantopen", code_of("/tmp"))
  end)

  it("refuses a file that is not a database, and leaves it unchanged", function()
    local path = support.path()
    local text = ("This is no database. "):rep(100)
    local file = assert(io.open(path, "w"))
    file:write(text)
    file:close()
    assert.equal("notadb", code_of(path))
    assert.equal(text, assert(io.open(path)):read("a"))
  end)

  it("refuses a file that is read-only", function()
    local store, path = support.store()
    store:close()
    assert(os.execute("chmod 444 " .. path))
    local program =
      ([[-e 'print(select(2, pcall(require("outbox").open, "%s")).code)']]):format(path)
    -- root can write every file, so the program runs as another user.
    local root = io.popen("id -u"):read("n") == 0
    local output = support.run(program, root and "setpriv --reuid=65534 --clear-groups" or "")
    assert.matches("readonly", output)
  end)

  it("refuses a database whose text is in UTF-16, because bytes would be lost", function()
    local path = support.path()
    os.remove(path)
    local sql = "PRAGMA encoding = 'UTF-16'; CREATE TABLE t (a)"
    assert(os.execute(('sqlite3 %s "%s"'):format(path, sql)))
    assert.equal("encoding", code_of(path))
  end)
end)

describe("the module", function()
  it("loads what only some programs need when they ask for it", function()
    local output = support.run([[-e '
      local outbox = require("outbox")
      for name in pairs(package.loaded) do
        assert(not name:find("^outbox%.") or name == "outbox.core", name)
      end
      for _, name in ipairs({ "attach", "inbox", "processor", "publisher", "signals" }) do
        assert(outbox[name] == require("outbox." .. name), name)
      end
      assert(outbox.nothing == nil)
      print("good")']])
    assert.equal("good\n", output)
  end)
end)

describe("a closed store", function()
  after_each(support.remove)

  it("can be closed twice, or by leaving its scope, and is shown as closed", function()
    local store = support.store()
    assert.matches("^outbox.store %(open%)", tostring(store))
    store:close()
    store:close()
    assert.matches("^outbox.store %(closed%)", tostring(store))
    local scoped
    do
      local inner <close> = support.store()
      scoped = inner
    end
    assert.matches("^outbox.store %(closed%)", tostring(scoped))
  end)

  it("raises from every method", function()
    local store = support.store()
    store:close()
    for method, arguments in pairs({
      migrate = {},
      publish = { {} },
      transaction = { function() end },
      claim_entries = { "p", 0 },
      get_claimed_entries = { "p", 1 },
      delete_entries = { "id" },
      retry_entry = { "id", 0 },
      bury_entry = { "id" },
      dead_entries = {},
      find_entries = { "id" },
      requeue_entries = { "id" },
      purge_entries = { "id" },
      stats = {},
    }) do
      local problem = support.raised(store[method], store, table.unpack(arguments))
      assert.equal("closed", problem.code, method)
    end
  end)

  it("commits nothing of an open transaction", function()
    local store, path = support.store()
    local problem = support.raised(store.transaction, store, function(txn)
      txn:publish({})
      store:close()
      txn:publish({})
    end)
    assert.equal("closed", problem.code)
    local again <close> = outbox.open(path)
    assert.equal(0, again:stats().ready)
  end)
end)

describe("a method", function()
  it("checks its `self` and its arguments, and names the wrong one", function()
    local store <close> = support.store()
    local function refused(message, fn)
      assert.matches(message, support.raised(fn))
    end
    refused("bad argument #1 to 'publish' %(table expected, got no value%)", function()
      store:publish()
    end)
    refused("calling 'publish' on bad self %(outbox.store expected, got table%)", function()
      local other = setmetatable({}, { __index = store })
      other.publish = store.publish
      other:publish({})
    end)
    refused("bad argument #1 to 'transaction' %(function expected, got nil%)", function()
      store:transaction()
    end)
    refused("bad argument #1 to 'claim_entries' %(string expected, got number%)", function()
      store:claim_entries(1, 1)
    end)
    refused("bad argument #2 to 'claim_entries' %(number expected, got nil%)", function()
      store:claim_entries("p", nil)
    end)
    refused("bad argument #2 to 'claim_entries' %(time out of range%)", function()
      store:claim_entries("p", math.huge)
    end)
    refused("bad argument #2 to 'claim_entries' %(time out of range%)", function()
      store:claim_entries("p", 0 / 0)
    end)
    refused("bad argument #3 to 'claim_entries' %(unknown option 'limits'%)", function()
      store:claim_entries("p", 1, { limits = 1 })
    end)
    refused("limit must be an integer, at least 1", function()
      store:claim_entries("p", 1, { limit = 0 })
    end)
    refused("limit must be an integer, at least 1", function()
      store:claim_entries("p", 1, { limit = 1.5 })
    end)
    refused("no option exclusive any more: use a processor", function()
      store:claim_entries("p", 1, { exclusive = true })
    end)
    refused("bad argument #2 to 'get_claimed_entries' %(must be above 0%)", function()
      store:get_claimed_entries("p", 0)
    end)
    refused("bad argument #3 to 'delete_entries' %(string expected, got number%)", function()
      store:delete_entries("a", "b", 3)
    end)
    refused("bad argument #2 to 'retry_entry' %(number expected, got no value%)", function()
      store:retry_entry("a")
    end)
    refused("bad argument #2 to 'bury_entry' %(string expected, got table%)", function()
      store:bury_entry("a", {})
    end)
    refused("bad argument #1 to 'dead_entries' %(unknown option 'page'%)", function()
      store:dead_entries({ page = 1 })
    end)
    refused("after must be an integer", function()
      store:dead_entries({ after = "x" })
    end)
    refused("reverse must be a boolean", function()
      store:dead_entries({ reverse = 1 })
    end)
    refused("bad argument #1 to 'find_entries' %(string expected, got number%)", function()
      store:find_entries(1)
    end)
    refused("namespace must be a string", function()
      store:dead_entries({ namespace = 1 })
    end)
    support.remove()
  end)
end)
