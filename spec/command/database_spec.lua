local command = require("spec.support.command")
local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")

local describe = support.only("sqlite", describe)

local COMMAND, fail, run = command.COMMAND, command.fail, command.run
local shell, succeed = command.shell, command.succeed

-- Root can read and write everything, so there the command runs as another user.
local NOBODY = io.popen("id -u"):read("n") == 0
  and "setpriv --reuid=65534 --regid=65534 --clear-groups " or ""

describe("the database of the command", function()
  local directory

  before_each(function()
    directory = support.path()
    os.remove(directory)
    assert(os.execute(("mkdir -m 755 '%s'"):format(directory)))
  end)

  after_each(function()
    os.execute(("chmod -R u+w '%s'; rm -r '%s'"):format(directory, directory))
    support.remove()
  end)

  local function exists(path)
    local file = io.open(path)
    return file ~= nil and file:close()
  end

  -- Makes an outbox with an entry in each state; returns its path.
  local function make()
    local path = directory .. "/app.db"
    local store <close> = outbox.open(path)
    store:migrate()
    store:publish({ id = "a", payload = "of a" }, { id = "b" })
    store:publish({ id = "c", deliver_at = outbox.clock.now() + 500 })
    store:bury_entry("b", "refused")
    store:claim_entries("worker", outbox.clock.now() + 500)
    return path
  end

  -- Every subcommand that only looks, with a pattern of its output.
  local LOOKS = {
    { "stats %s", "ready +1 .*delayed +1 .*dead +1.*leases +1" }, { "leases %s", "worker" },
    { "list %s", "\n1 +a " }, { "list %s delayed", " c " }, { "list %s dead", "refused" },
    { "dead list %s", "refused" }, { "show %s a --raw", "^of a$" },
    { "top %s --count 1", "ready=1 delayed=1 dead=1" },
  }

  local function look(uri, before)
    for _, case in ipairs(LOOKS) do
      local out, status, err = shell((before or "") .. COMMAND .. " "
        .. case[1]:format("'" .. uri .. "'"))
      assert.same({ 0, "" }, { status, err }, case[1])
      assert.matches(case[2], out)
    end
  end

  it("makes no tables in another's database, however it is named", function()
    local path = directory .. "/other.db"
    assert(os.execute(("sqlite3 %s 'CREATE TABLE t (x)'"):format(path)))
    for _, name in ipairs({ path, directory .. "/./other.db", "file:" .. path, "file://" .. path,
      "file://localhost" .. path, "file:" .. directory .. "/%6Fther.db",
      "file:" .. path .. "?mode=rwc", "file:" .. path .. "?cache=private#fragment" }) do
      local _, status, err = run(("publish '%s' x"):format(name))
      assert.equal(1, status, name)
      assert.matches("missing; call migrate first %(schema%)", err)
    end
    local _, status, err = shell(("cd %s && %s publish file:other.db x"):format(directory,
      command.COMMAND:find("^/") and COMMAND or "$OLDPWD/" .. COMMAND))
    assert.equal(1, status)
    assert.matches("%(schema%)", err)
    assert.equal("t\n", (shell(("sqlite3 %s .tables"):format(path)):gsub(" +\n", "\n")))
  end)

  it("is created where a URI says, and not a second time", function()
    local uri = "file:" .. directory .. "/a%20b.db"
    local _, status, err = run(("publish '%s' x"):format(uri))
    assert.same({ 0, "outbox: created " .. uri .. "\n" }, { status, err })
    succeed(("publish '%s/a b.db' x"):format(directory))
    assert.matches("ready +2", succeed(("stats '%s'"):format(uri)))
    assert(exists(directory .. "/a b.db"))
  end)

  it("is created by no subcommand that needs one, and no path is created by mode=ro", function()
    local path = directory .. "/none.db"
    for _, uri in ipairs({ path, "file:" .. path, "file:" .. path .. "?mode=ro" }) do
      fail(1, "No such file or directory %(cantopen%)", ("stats '%s'"):format(uri))
      fail(1, "No such file or directory %(cantopen%)", ("relay '%s' --to stdout:"):format(uri))
      fail(1, "No such file or directory %(cantopen%)", ("dead requeue '%s' --all"):format(uri))
    end
    fail(1, "No such file or directory %(cantopen%)", ("publish 'file:%s?mode=ro' x"):format(path))
    fail(1, "access mode not allowed: rwc %(cantopen%)", ("stats 'file:%s?mode=rwc'"):format(path))
    assert.is_false(exists(path))
    command.write(path, "")
    fail(1, "it is empty %(cantopen%)", "stats " .. path)
  end)

  it("is a file: a message in memory would be lost", function()
    for _, name in ipairs({ ":memory:", "file::memory:", "file:x?mode=memory", "file:" }) do
      local out, status = run(("publish '%s' x"):format(name))
      assert.equal("", out)
      assert.is_true(status == 1 or status == 2, name)
      fail(1, "it is empty %(cantopen%)", ("stats '%s'"):format(name))
    end
    fail(2, "DB must be a file", "publish :memory: x")
  end)

  it("can be looked at, and not written, with mode=ro", function()
    local path = make()
    local uri = "file:" .. path .. "?mode=ro"
    look(uri)
    fail(1, "cannot be written %(readonly%)", ("publish '%s' x"):format(uri))
    fail(1, "cannot be written %(readonly%)", ("dead requeue '%s' --all"):format(uri))
    fail(1, "cannot be written %(readonly%)", ("relay '%s' --to stdout:"):format(uri))
  end)

  it("can be looked at in a journal mode that is not WAL, which stays", function()
    local path = make()
    local function mode(change)
      return (shell(("sqlite3 %s 'PRAGMA journal_mode%s'"):format(path, change or "")))
    end
    assert.equal("delete\n", mode("=DELETE"))
    look(path)
    look("file:" .. path .. "?mode=ro")
    assert(os.execute(("chmod 444 %s && chmod 555 %s"):format(path, directory)))
    look(path, NOBODY)
    assert.equal("delete\n", mode())
  end)

  it("can be looked at by a user who may only read it, while a program has it open", function()
    local path = make()
    local open <close> = outbox.open(path)
    open:publish({ id = "d" })
    open:delete_entries("d")
    assert(os.execute(("chmod 444 %s* && chmod 555 %s"):format(path, directory)))
    look(path, NOBODY)
    local _, status, err = shell(NOBODY .. COMMAND .. " dead requeue " .. path .. " --all")
    assert.equal(1, status)
    assert.matches("%(readonly%)\n$", err)
  end)

  it("says what to do where a log cannot be made for a user who may only read", function()
    local path = make()
    assert(os.execute(("chmod 444 %s && chmod 555 %s"):format(path, directory)))
    local _, status, err = shell(NOBODY .. COMMAND .. " stats " .. path)
    assert.equal(1, status)
    assert.matches("^outbox: [^\n]*user who may write to its directory[^\n]*immutable=1 "
      .. "%(cantopen%)\n$", err)
    look("file:" .. path .. "?immutable=1", NOBODY)
  end)

  it("says the same where a killed program left a log without its index", function()
    local path = make()
    local pid = process.fork(function()
      local store = outbox.open(path)
      store:publish({ id = "d" })
      process.kill(process.pid(), 9)
    end)
    process.wait(pid)
    assert(os.execute(("rm %s-shm && chmod 444 %s* && chmod 555 %s"):format(path, path, directory)))
    local _, status, err = shell(NOBODY .. COMMAND .. " stats " .. path)
    assert.equal(1, status)
    assert.matches("user who may write to its directory", err)
  end)
end)

describe("a store that only reads", function()
  after_each(support.remove)

  it("refuses to write, and needs a database", function()
    local store, path = support.store()
    store:publish({ id = "a" })
    local reader <close> = outbox.open(path, { mode = "read" })
    assert.equal("a", reader:ready_entries()[1].id)
    for _, write in ipairs({ "publish", "delete_entries", "purge_entries" }) do
      if reader[write] then
        local ok, problem = pcall(reader[write], reader, write == "publish" and {} or "a")
        assert.same({ false, "readonly" }, { ok, problem.code }, write)
      end
    end
    assert.equal(1, reader:stats().ready)
    store:close()
    for _, mode in ipairs({ "read", "write" }) do
      local ok, problem = pcall(outbox.open, path .. ".none", { mode = mode })
      assert.same({ false, "cantopen" }, { ok, problem.code })
    end
    assert.has_error(function()
      outbox.open(path, { mode = "look" })
    end, "bad argument #2 to 'open' (mode must be one of \"create\", \"write\", \"read\")")
  end)
end)
