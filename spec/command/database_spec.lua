local command = require("spec.support.command")
local outbox = require("outbox")
local support = require("spec.support")

local COMMAND, fail, run = command.COMMAND, command.fail, command.run
local shell, succeed = command.shell, command.succeed

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
