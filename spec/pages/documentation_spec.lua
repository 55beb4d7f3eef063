-- The pages: what they show runs, and what they name is there. The pages of the command and of the
-- publishers have specs beside those of their subjects.

local core = require("outbox.core")
local outbox = require("outbox")
local page = require("spec.pages.page")
local support = require("spec.support")

local COMMAND = (os.getenv("OUTBOX_TREE") or "lua_modules") .. "/bin/outbox"

local read, snippets = page.read, page.snippets

-- The folders of the repository that pages name files in.
local FOLDERS = { ["bench/"] = true, ["bin/"] = true, ["docs/"] = true, ["examples/"] = true,
  ["lua/"] = true, ["spec/"] = true, ["src/"] = true, ["tools/"] = true }

-- The names that GitHub gives to the headings of a page.
local function anchors(text)
  local set = {}
  for heading in ("\n" .. text):gmatch("\n#+ ([^\n]+)") do
    set[heading:lower():gsub("[^%w _-]", ""):gsub(" ", "-")] = true
  end
  return set
end

local function pages()
  return io.popen("ls docs/*.md README.md CONTRIBUTING.md"):lines()
end

describe("docs", function()
  after_each(support.remove)

  it("name only files and headings that are there", function()
    for path in pages() do
      local directory = path:match("^.*/") or ""
      local text = read(path)
      for name, anchor in text:gmatch("%]%(([%w_./-]*)#?([%w_-]*)%)") do
        local target = name == "" and path or directory .. name
        assert.is_truthy(io.open(target), path .. ": " .. name)
        if anchor ~= "" then
          assert.is_true(anchors(read(target))[anchor], ("%s: %s#%s"):format(path, name, anchor))
        end
      end
      for folder, rest in text:gmatch("`(%l+/)([%w_./-]*)`") do
        if FOLDERS[folder] and not rest:find("%u") then -- NAME stands for any
          assert.is_truthy(io.open(folder .. rest), ("%s: %s%s"):format(path, folder, rest))
        end
      end
    end
  end)

  it("name only targets that the Makefile has", function()
    local targets, count = {}, 0
    for line in ("\n" .. read("Makefile")):gmatch("\n([%l][%w_ -]*):") do
      for target in line:gmatch("%S+") do
        targets[target] = true
      end
    end
    for path in pages() do
      for target in read(path):gmatch("`make ([%l-]+)") do
        assert.is_true(targets[target], path .. ": make " .. target)
        count = count + 1
      end
    end
    assert.is_true(count > 5)
  end)

  it("name only methods that a store has", function()
    local store <close> = support.store()
    for path in pages() do
      for name in read(path):gmatch("store:([%l_]+)") do
        assert.is_function(store[name], ("%s: store:%s"):format(path, name))
      end
    end
    for _, row in ipairs(page.rows(read("docs/by-hand.md"), "```\n")) do
      for name in row[1]:gmatch("`([%l_]+)%(") do
        assert.is_function(store[name], "docs/by-hand.md: " .. name)
      end
    end
  end)

  for path, expected in pairs({ ["docs/options.md"] = 3, ["docs/by-hand.md"] = 1 }) do
    it("have snippets that all run: " .. path, function()
      local count, _, environment = page.run(path)
      assert.equal(expected, count)
      environment.store:close()
    end)
  end

  it("show an error as it is printed", function()
    local count, printed, environment = page.run("docs/errors.md")
    assert.equal(1, count)
    assert.matches("already in the outbox %(duplicate%)", printed[1])
    assert.is_truthy(read("docs/errors.md"):find("--> " .. printed[1], 1, true))
    environment.store:close()
  end)

  it("list every code that the core has, and no other", function()
    local text, known = read("docs/errors.md"), {}
    assert.is_true(#core.CODES > 10)
    for _, code in ipairs(core.CODES) do
      known[code] = true
      assert.matches("`" .. code .. "`", text)
    end
    for _, row in ipairs(page.rows(text, "# Errors")) do
      for code in row[1]:gmatch("`(%a+)`") do
        assert.is_true(known[code], code)
      end
    end
  end)

  it("list every code that a processor adds, and no other", function()
    local added = {}
    local files = io.popen("find lua/outbox -name '*.lua' -path '*processor*' -o -name "
      .. "delivery.lua")
    for path in files:lines() do
      for code in read(path):gmatch('%.new%(%s*"(%a+)"') do
        added[code] = true
      end
    end
    local listed = {}
    for _, row in ipairs(page.rows(read("docs/errors.md"), "## Of a processor")) do
      listed[row[1]:match("^`(%a+)`$")] = true
    end
    assert.same(listed, added)
  end)

  it("list every column of every table", function()
    local store <close> = support.store()
    local tables = {}
    for _, row in ipairs(page.rows(read("docs/inside.md"), "## The tables")) do
      local name, columns = row[1]:match("^`(.*)`$"), {}
      for column in row[2]:gmatch("`([%l_]+)`") do
        columns[#columns + 1] = { name = column }
      end
      assert.same(columns, support.sql(store, "SELECT name FROM pragma_table_info(?)", name), name)
      tables[#tables + 1] = { name = name }
    end
    table.sort(tables, function(a, b)
      return a.name < b.name
    end)
    assert.same(tables, support.sql(store, "SELECT name FROM sqlite_master WHERE type = 'table' "
      .. "AND name NOT LIKE 'sqlite_%' ORDER BY name"))
  end)

  it("have every file of src/ and lua/ on the plan", function()
    local plan = read("docs/inside.md")
    for path in io.popen("find src lua -name '*.[ch]' -o -name '*.lua'"):lines() do
      local name = path:match("[^/]+$")
      local on_plan = plan:find("`" .. name .. "`", 1, true) ~= nil
      -- A header goes with its file; of some folders all files are alike.
      on_plan = on_plan or name:find("%.h$")
      for _, folder in ipairs({ "lua/outbox/publishers/", "lua/outbox/publishing/",
        "lua/outbox/command/", "src/destinations/" }) do
        on_plan = on_plan or path:find(folder, 1, true)
      end
      assert.is_truthy(on_plan, path)
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
    local store <close> = outbox.open(path)
    store:migrate()
    store:publish({})
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

describe("an engine", function()
  it("has every function of the manual, or engine.h says why not", function()
    local engine = read("src/engine.h")
    local manual = read("src/outbox.h"):gsub("/%*.-%*/", ""):gsub("\ntypedef ", "\n  ")
    for name in manual:gmatch("\n[%l][%w_ ]-[ *](outbox_[%l%d_]+)%(") do
      local operation = engine:find("\n  X%(" .. name:match("^outbox_(.*)") .. "%)")
      local exception = engine:match("Not in the list.-%*/"):find(name .. "%f[^%w_]")
      assert.is_truthy(not operation ~= not exception, name)
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
    assert.equal(("outbox-%s.tar.gz"):format(outbox._VERSION), release.source.url:match("[^/]*$"))
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

  it("list every source of a broker's client", function()
    local listed = {}
    for path in io.popen("ls outbox-*-scm-1.rockspec"):lines() do
      for source in load_rockspec(path).build.install_variables.SOURCES:gmatch("%S+") do
        listed[source] = true
      end
    end
    for path in io.popen("find src/destinations -name '*.c'"):lines() do
      assert.is_true(listed[path], path)
    end
  end)
end)
