-- The rocks of the brokers: each is installed as docs/destinations.md says, beside outbox and no
-- other.

local page = require("spec.pages.page")

-- With OUTBOX_TREE another build is tested, of which no rock is made.
if os.getenv("OUTBOX_TREE") then
  return
end

describe("the rock of a broker", function()
  local home

  local function shell(script, ...)
    local pipe <close> = io.popen(script:format(...) .. " 2>&1")
    local output = pipe:read("a")
    return output, (pipe:close())
  end

  -- Runs a script in a copy of the sources, with nothing of this process's environment.
  local function run(script)
    local file <close> = assert(io.open(home .. "/script", "w"))
    file:write("cd\n", script, "\n")
    file:close()
    return shell("env -i HOME=%s PATH=/usr/local/bin:/usr/bin:/bin sh %s/script", home, home)
  end

  setup(function()
    home = shell("mktemp -d"):match("[^\n]+")
    shell("cp -r bin docs examples lua src *.rockspec LICENSE %s", home)
    local output, ok = run("luarocks --lua-version 5.4 make --local --deps-mode=none "
      .. "outbox-scm-1.rockspec")
    assert.is_true(ok, output)
  end)

  teardown(function()
    shell("rm -r %s", home)
  end)

  local function relay(scheme)
    return run(([[
      eval "$(luarocks --lua-version 5.4 path)"
      rm -f app.db*
      outbox publish app.db hello
      timeout 60 outbox relay app.db --to %s://127.0.0.1:1 --option timeout=1 --once]])
      :format(scheme))
  end

  local text = page.read("docs/destinations.md")
  for install, name in text:gmatch("\n(luarocks [^\n]* outbox%-(%w+)%-scm%-1%.rockspec)\n") do
    it("is all that " .. name .. " needs beside outbox", function()
      local scheme = text:match("`(%l+)://[^|]*| [^|]* | %d+ | outbox%-" .. name)
      assert.matches("needs outbox-" .. name .. ": luarocks", relay(scheme), 1, true)
      local output, ok = run(install)
      assert.is_true(ok, output)
      output = relay(scheme)
      assert.matches("127.0.0.1:1", output, 1, true)
      assert.is_nil(output:find("needs outbox-", 1, true))
    end)
  end
end)
