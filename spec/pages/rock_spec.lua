-- The source rock: built, and installed as README says, by root and by a user without privileges.

local outbox = require("outbox")
local page = require("spec.pages.page")

-- With OUTBOX_TREE another build is tested, of which no rock is made.
if os.getenv("OUTBOX_TREE") then
  return
end

describe("the source rock", function()
  local readme = page.read("README.md")
  local install = readme:match("\nmake rock\n(.-)\n```")
  local use = readme:match("\n```sh\n(printf .-)\n```")
  local name = ("outbox-%s-1.src.rock"):format(outbox._VERSION)
  local home

  local function shell(script, ...)
    local pipe <close> = io.popen(script:format(...) .. " 2>&1")
    local output = pipe:read("a")
    return output, (pipe:close())
  end

  local function succeed(...)
    local output, ok = shell(...)
    assert.is_true(ok, output)
    return output
  end

  setup(function()
    assert.equal("build/" .. name .. "\n", succeed("make --silent rock"))
  end)

  before_each(function()
    home = succeed("mktemp -d"):match("[^\n]+")
    succeed("mkdir %s/build && cp build/%s %s/build", home, name, home)
  end)

  after_each(function()
    succeed("rm -r %s", home)
  end)

  -- Runs a script in the home directory with nothing of this process's environment. `user` is a
  -- command that runs another one as some user.
  local function run(script, user)
    local file <close> = assert(io.open(home .. "/script", "w"))
    file:write("set -e\ncd\n", script, "\n")
    file:close()
    return succeed("%s env -i HOME=%s PATH=/usr/local/bin:/usr/bin:/bin sh %s/script", user or "",
      home, home)
  end

  local function check(output)
    assert.matches("\nUsage: outbox ", output)
    assert.matches("outbox: created app.db\n", output, 1, true)
    assert.matches('"payload":"order 1 was placed"', output, 1, true)
    assert.matches("delivered=1 ", output, 1, true)
    assert.matches("\nversion " .. outbox._VERSION .. "\n", output, 1, true)
  end

  local version = "lua5.4 -e 'print(\"version \" .. require(\"outbox\")._VERSION)'\n"

  it("installs for a user without privileges, as README says, and is ready for use", function()
    local user
    if succeed("id -u") == "0\n" then
      user = "setpriv --reuid=65534 --regid=65534 --clear-groups"
      succeed("chown -R 65534:65534 %s", home)
    end
    check(run(table.concat({ install, "outbox --help", use, version }, "\n"), user))
  end)

  it("installs into another tree, with its pages", function()
    local tree = home .. "/tree"
    local moved = install:gsub("%-%-local", "--tree " .. tree)
      :gsub(" path%)", " --tree " .. tree .. " path)")
    check(run(table.concat({ moved, "outbox --help", use, version }, "\n")))
    local rock = ("%s/lib/luarocks/rocks-5.4/outbox/%s-1/"):format(tree, outbox._VERSION)
    assert.equal(page.read("docs/command.md"), page.read(rock .. "docs/command.md"))
    assert.equal(page.read("examples/service.lua"), page.read(rock .. "examples/service.lua"))
  end)

  it("holds nothing but the rockspec, and the archive that source.url names", function()
    local rockspec = {}
    assert(loadfile(("outbox-%s-1.rockspec"):format(outbox._VERSION), "t", rockspec))()
    local archive = rockspec.source.url:match("[^/]*$")
    local listed = succeed("unzip -Z1 build/%s | sort", name)
    assert.equal(("outbox-%s-1.rockspec\n%s\n"):format(outbox._VERSION, archive), listed)
    for path in io.popen("find src lua bin docs examples -type f ! -name '*.o' ! -name '*.so'")
      :lines() do
      local _, there = shell("tar -tzf build/%s | grep -qx %s/%s", archive,
        archive:match("^(.*)%.tar%.gz$"), path)
      assert.is_true(there, path)
    end
  end)

  it("declares the rocks that its command needs", function()
    local declared = {}
    for _, path in ipairs({ "outbox-scm-1.rockspec",
      ("outbox-%s-1.rockspec"):format(outbox._VERSION) }) do
      local rockspec = {}
      assert(loadfile(path, "t", rockspec))()
      for _, dependency in ipairs(rockspec.dependencies) do
        declared[path .. dependency:match("^%S+")] = true
      end
      assert.is_true(declared[path .. "argparse"] and declared[path .. "lua-cjson"])
    end
  end)
end)
