-- The pages in docs/: what they show runs, and what they point to is there. Those that show the
-- command or a publisher have specs beside those of what they show.

local outbox = require("outbox")
local support = require("spec.support")

local COMMAND = (os.getenv("OUTBOX_TREE") or "lua_modules") .. "/bin/outbox"

local function read(path)
  return assert(io.open(path)):read("a")
end

local function snippets(page, language)
  return page:gmatch("\n```" .. language .. "\n(.-)\n```")
end

describe("docs", function()
  after_each(support.remove)

  it("name only files that are there", function()
    for path in io.popen("ls docs/*.md README.md"):lines() do
      local directory = path:match("^.*/") or ""
      for name in read(path):gmatch("%]%(([%w_./-]+)%)") do
        assert.is_truthy(io.open(directory .. name), path .. ": " .. name)
      end
    end
  end)

  it("choose options that a processor has", function()
    for snippet in snippets(read("docs/options.md"), "lua") do
      local path = support.path()
      assert(load((snippet:gsub('"shop%.db"', ("%q"):format(path)))))()
    end
  end)

  it("test in a way that passes", function()
    local path = support.path() .. "_spec.lua"
    finally(function()
      os.remove(path)
    end)
    local file = assert(io.open(path, "w"))
    for snippet in snippets(read("docs/testing.md"), "lua") do
      file:write(snippet, "\n\n")
    end
    file:close()
    local output, ok = support.run("/usr/bin/busted --ignore-lua -o TAP " .. path)
    assert.is_true(ok, output)
    assert.matches("1%.%.4\n", output)
  end)

  it("move what an old table holds", function()
    local store <close> = support.store()
    support.sql(store, "CREATE TABLE messages (id, topic, body, status)")
    support.sql(store, "INSERT INTO messages VALUES ('one', 'orders', 'a', 'pending'), "
      .. "('two', 'orders', 'b', 'sent'), ('three', 'orders', 'c', 'pending')")
    for snippet in snippets(read("docs/migrating.md"), "sql") do
      store:transaction(function(txn)
        for statement in snippet:gsub("BEGIN IMMEDIATE;", ""):gsub("COMMIT;", "")
          :gmatch("%s*([^;]+);") do
          txn:execute(statement)
        end
      end)
    end
    local entries = store:ready_entries()
    assert.same({ "one", "three" }, { entries[2].id, entries[3].id })
    assert.equal("c", entries[3].payload)
    assert.same({ { id = "two" } }, support.sql(store, "SELECT id FROM messages"))
  end)

  it("alert on numbers that the command writes", function()
    local path = support.path()
    os.remove(path)
    outbox.open(path):migrate()
    local metrics = io.popen(("%s stats %s --prometheus"):format(COMMAND, path)):read("a")
    for metric in read("docs/production.md"):gmatch("outbox_%l[%l_]+") do
      assert.matches("\n" .. metric, "\n" .. metrics, 1, true)
    end
  end)

  it("have cron write these numbers", function()
    local path, directory = support.path(), support.path()
    os.remove(path)
    os.remove(directory)
    outbox.open(path):migrate()
    assert(os.execute("mkdir " .. directory))
    local line = read("docs/production.md"):match("\n%* %* %* %* %* shop ([^\n]*)\n")
    line = line:gsub("/var/lib/node_exporter", directory):gsub("/var/lib/shop/shop.db", path)
      :gsub("/usr/local/bin/outbox", "$root/" .. COMMAND)
    assert(os.execute(("root=$PWD; PATH=/usr/bin:/bin; %s"):format(line)))
    assert.matches("\noutbox_ready_entries{", read(directory .. "/outbox.prom"))
    assert(os.execute("rm -r " .. directory))
  end)

  it("save a database, and bring it back", function()
    local directory = support.path()
    os.remove(directory)
    assert(os.execute("mkdir " .. directory))
    local function shell(snippet)
      assert(os.execute(("cd %s && systemctl() { :; } && { %s; }"):format(directory, snippet)))
    end
    local store = outbox.open(directory .. "/shop.db")
    store:migrate()
    store:publish({ id = "saved" })
    local save, restore = read("docs/production.md"):match(
      "\n```sh\n(sqlite3 .-)\n```.-\n```sh\n(.-)\n```")
    shell(save)
    store:publish({ id = "lost" })
    assert(os.execute(("cd %s && cp shop.db-wal wal"):format(directory)))
    store:close()
    assert(os.execute(("cd %s && mv wal shop.db-wal"):format(directory))) -- as a kill leaves it
    shell(restore)
    local restored <close> = outbox.open(directory .. "/shop.db")
    assert.same({ "saved" }, support.pluck(restored:ready_entries(), "id"))
    assert(os.execute("rm -r " .. directory))
  end)

  it("run the relay with options that it has", function()
    local unit = read("docs/production.md"):match("ExecStart=%S+/outbox ([^\n]*)")
    local help = io.popen(COMMAND .. " relay --help"):read("a")
    for option in unit:gmatch("%-%-[%l-]+") do
      assert.is_truthy(help:find(option, 1, true), option)
    end
  end)
end)

describe("the rockspecs", function()
  local function load_rockspec(path)
    local rockspec = {}
    assert(loadfile(path, "t", rockspec))()
    return rockspec
  end

  local scm = load_rockspec("outbox-scm-1.rockspec")
  local release = load_rockspec("outbox-0.1.0-1.rockspec")

  it("differ in the version alone, which is that of the library", function()
    assert.equal("v" .. outbox._VERSION, release.source.tag)
    assert.equal(outbox._VERSION .. "-1", release.version)
    release.version, release.source = scm.version, scm.source
    assert.same(scm, release)
  end)

  it("install every module", function()
    for path in io.popen("find lua -name '*.lua'"):lines() do
      local module = path:match("^lua/(.*)%.lua$"):gsub("/", ".")
      assert.equal(path, scm.build.modules[module])
    end
  end)
end)
