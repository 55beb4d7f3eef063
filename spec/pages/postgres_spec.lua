-- What the pages show of PostgreSQL, on a server: that of OUTBOX_TEST_URL.

local outbox = require("outbox")
local page = require("spec.pages.page")
local postgres = require("spec.support.postgres")
local support = require("spec.support")

local describe = postgres.where_there_is(describe)

-- Runs a snippet of Lua whose database is at this URL; returns what it prints, and its store.
local function run(snippet, url)
  local printed, store = {}, nil
  local environment = setmetatable({
    require = function(module)
      assert.equal("outbox", module)
      return setmetatable({ open = function()
        store = outbox.open(url)
        return store
      end }, { __index = outbox })
    end,
    print = function(...)
      printed[#printed + 1] = table.concat({ ... }, "\t")
    end,
  }, { __index = _G })
  assert(load(snippet, "=snippet", "t", environment))()
  return printed, store
end

describe("PostgreSQL in the pages", function()
  local url, schema

  before_each(function()
    url, schema = postgres.schema()
  end)

  after_each(function()
    postgres.remove()
    support.remove()
  end)

  it("runs the first example of README.md", function()
    local text = page.read("README.md")
    local printed, store = run(page.snippets(text, "lua")(), url)
    assert.same({ "orders\t1\torder 1 was placed" }, printed)
    assert.equal(0, store:stats().ready)
    assert.equal(99.5, support.sql(store, "SELECT total FROM orders")[1].total)
    store:close()
  end)

  it("runs the demo", function()
    local output, ok = support.run(("examples/orders.lua '%s'"):format(url))
    assert.is_true(ok, output)
    assert.matches(" 2269 orders committed", output)
    assert.matches("the promise is kept", output)
  end)

  describe("in docs/postgres.md", function()
    local sql, lua = {}, nil
    local roles = { app = "app", publisher = "publisher", relay = "relay" }

    before_each(function()
      local text = page.read("docs/postgres.md")
      lua = page.snippets(text, "lua")()
      sql = {}
      for snippet in page.snippets(text, "sql") do
        sql[#sql + 1] = snippet
      end
      assert.equal(5, #sql)
      local _, store = run(lua, url)
      store:close()
      for name in pairs(roles) do -- roles belong to the whole server
        roles[name] = name .. schema:match("_%x+")
        postgres.sql(url, ("CREATE ROLE %s LOGIN"):format(roles[name]))
      end
      for _, i in ipairs({ 1, 3, 4 }) do
        postgres.sql(url, (sql[i]:gsub("SCHEMA shop", "SCHEMA " .. schema):gsub("TO (%l+)",
          function(name)
            return "TO " .. roles[name]
          end)))
      end
    end)

    after_each(function()
      for _, name in pairs(roles) do
        postgres.sql(url, ("DROP OWNED BY %s; DROP ROLE %s"):format(name, name))
      end
    end)

    local function as(role)
      return (url:gsub("//postgres@", "//" .. roles[role] .. "@"))
    end

    it("lets an application publish with INSERT alone", function()
      postgres.sql(as("app"), sql[2])
      assert.has_error(function()
        postgres.sql(as("app"), "SELECT * FROM outbox_entries")
      end)
      local store <close> = outbox.open(url)
      store:subscribe("orders", "mail")
      postgres.sql(as("app"), sql[2])
      assert.same({ "orders", "mail" }, support.pluck(store:ready_entries(), "namespace"))
    end)

    it("lets a publisher publish, and no more", function()
      local store <close> = outbox.open(as("publisher"))
      store:publish({ key = "k" }, { id = "mine" }, { deliver_at = store:clock().now() + 60 })
      for _, name in ipairs({ "stats", "ready_entries", "paused" }) do
        local ok, problem = pcall(store[name], store)
        assert.same({ false, "readonly" }, { ok, problem.code }, name)
      end
      local ok, problem = pcall(store.publish, store, { id = "mine" })
      assert.same({ false, "duplicate" }, { ok, problem.code })
    end)

    it("lets a relay do its work, and operators theirs", function()
      postgres.sql(as("app"), sql[2])
      local store <close> = outbox.open(as("relay"))
      store:migrate() -- there is nothing to do
      store:publish({ id = "b", key = "k", payload = "no" })
      local processor = outbox.processor({ store = store, retry = { max_attempts = 1 },
        publisher = function(messages)
          return messages[1].payload == "no" and { "refused" } or nil
        end })
      processor:pump()
      assert.equal(1, store:stats().dead)
      store:requeue_entries("b")
      store:bury_entry("b")
      store:purge_entries("b")
      store:pause("orders")
      store:resume("orders")
      store:subscribe("orders", "mail")
      store:claim_entries("hand", store:clock().now() + 1)
      store:release_claim("hand")
      assert.same({}, store:dead_entries())
    end)

    it("shows queries that run", function()
      for statement in sql[5]:gmatch("[^;]+;") do
        assert.is_string(postgres.sql(url, statement))
      end
    end)
  end)
end)
