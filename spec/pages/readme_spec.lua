local outbox = require("outbox")
local support = require("spec.support")

describe("README.md", function()
  after_each(support.remove)

  local text = assert(io.open("README.md")):read("a")

  it("has snippets that all run, one after the other", function()
    local path = support.path()
    local printed = {}
    local environment = setmetatable({
      print = function(...)
        printed[#printed + 1] = table.concat({ tostring((...)), select(2, ...) }, "\t")
      end,
      require = function(module)
        if module == "outbox.testing" then
          return require(module)
        end
        if module == "luasql.sqlite3" then
          return { sqlite3 = function()
            local connection = require(module).sqlite3():connect(path)
            return { connect = function()
              return connection
            end }
          end }
        end
        assert.equal("outbox", module)
        return setmetatable({
          open = function(name, options)
            return outbox.open(name == ":memory:" and name or path, options)
          end,
        }, { __index = outbox })
      end,
    }, { __index = _G })
    local count = 0
    for snippet in text:gmatch("\n```lua\n(.-)\n```") do
      count = count + 1
      -- What the first one declares, the others use.
      snippet = snippet:gsub("^local (outbox) =", "%1 ="):gsub("\nlocal (store) =", "\n%1 =")
      assert(load(snippet, "=README.md, snippet " .. count, "t", environment))()
    end
    assert.equal(10, count)
    assert.equal("orders\t1\torder 1 was placed", printed[1])
    assert.matches("^my%-own%-id: refused, again in", printed[2])
    assert.matches("already in the outbox %(duplicate%)", printed[#printed])
    environment.store:close()
  end)

  it("shows SQL that runs, and so does docs/publishing.md", function()
    for _, page in ipairs({ text, assert(io.open("docs/publishing.md")):read("a") }) do
      local store <close> = support.store()
      support.sql(store, page:match("\n```sql\n(.-)\n```"))
      assert.equal(1, store:stats().ready)
    end
  end)

  it("names two commands that the Makefile has", function()
    local makefile = assert(io.open("Makefile")):read("a")
    for target in text:gmatch("\nmake (%a+)") do
      assert.matches("\n" .. target .. ":", makefile)
    end
  end)

  it("lists every code that src/outbox.h has", function()
    local header = assert(io.open("src/outbox.h")):read("a")
    for code in header:gmatch('/%* "(%a+)": ') do
      if code ~= "callback" then -- in Lua, what the callback raised
        assert.matches("`" .. code .. "`", text)
      end
    end
  end)

  it("lists every code that a processor adds", function()
    for _, name in ipairs({ "retry", "processor/answer", "processor/delivery",
      "processor/hooks" }) do
      local source = assert(io.open(("lua/outbox/%s.lua"):format(name))):read("a")
      for code in source:gmatch('problem%.new%("(%a+)"') do
        assert.matches("\n| `" .. code .. "` |", text)
      end
    end
  end)
end)
