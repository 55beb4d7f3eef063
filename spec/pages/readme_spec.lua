local page = require("spec.pages.page")
local support = require("spec.support")

describe("README.md", function()
  after_each(support.remove)

  local text = page.read("README.md")

  it("has snippets that all run, one after the other", function()
    local count, printed, environment = page.run("README.md")
    assert.equal(6, count)
    assert.equal("orders\t1\torder 1 was placed", printed[1])
    assert.matches("^my%-own%-id: refused, again in", printed[2])
    environment.store:close()
  end)

  it("shows SQL that runs, and so does docs/publishing.md", function()
    for _, path in ipairs({ "README.md", "docs/publishing.md" }) do
      local store <close> = support.store()
      support.sql(store, page.read(path):match("\n```sql\n(.-)\n```"))
      assert.equal(1, store:stats().ready)
    end
  end)

  it("names three targets that the Makefile has", function()
    local makefile = page.read("Makefile")
    local count = 0
    for target in text:gmatch("\nmake (%a+)") do
      assert.matches("\n" .. target .. ":", makefile)
      count = count + 1
    end
    assert.equal(3, count)
  end)

  it("can be read in a few minutes", function()
    local _, lines = text:gsub("\n", "")
    assert.is_true(lines <= 220, lines .. " lines")
  end)
end)
