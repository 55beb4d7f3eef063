-- How a store finds its engine, and goes through it. The engines here have no database.

local engines = require("engines")
local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")

local MODULE = "outbox.postgres"
local URLS = { "postgresql://host/shop", "postgres://host/shop" }

describe("the engine for a URL", function()
  local function set_engine(...)
    local engine = engines.make(...)
    package.loaded[MODULE] = nil
    package.preload[MODULE] = function()
      return engine
    end
  end

  before_each(function()
    set_engine()
    engines.sql()
  end)

  after_each(function()
    package.loaded[MODULE], package.preload[MODULE] = nil, nil
    support.remove()
  end)

  it("is in another rock, which is named where it is missing", function()
    require("outbox.need")
    package.preload[MODULE] = nil
    local path, cpath = package.path, package.cpath
    finally(function()
      package.path, package.cpath = path, cpath
    end)
    package.path, package.cpath = "", ""
    for _, url in ipairs(URLS) do
      assert.equal("PostgreSQL needs the rock outbox-postgres: luarocks --lua-version 5.4 install "
        .. "outbox-postgres", support.raised(outbox.open, url))
    end
  end)

  it("is not loaded for a path", function()
    for _, path in ipairs({ ":memory:", "file:postgres://x?mode=memory", "file:x?mode=memory" }) do
      outbox.open(path):close()
      assert.is_nil(package.loaded[MODULE])
    end
  end)

  it("raises its own error where it does not load", function()
    local problem = {}
    package.preload[MODULE] = function()
      error(problem)
    end
    assert.equal(problem, support.raised(outbox.open, URLS[1]))
    package.loaded[MODULE], package.preload[MODULE] = true, nil
    assert.equal("the module outbox.postgres is no engine", support.raised(outbox.open, URLS[1]))
  end)

  it("must be of the same version, and of the same size", function()
    local function refused(...)
      set_engine(...)
      local problem = support.raised(outbox.open, URLS[1])
      assert.equal("misuse", problem.code)
      return problem.message
    end
    assert.equal("outbox-postgres 0.0.9 does not fit outbox " .. outbox._VERSION
      .. ": install the same version of both", refused("0.0.9"))
    assert.matches("does not fit outbox", refused(nil, 8), 1, true)
    assert.matches("does not fit outbox", refused(nil, -8), 1, true)
  end)

  it("gets the URL and the options", function()
    for _, url in ipairs(URLS) do
      local store <close> = outbox.open(url, { prefix = "red_", mode = "read",
        synchronous = "off", busy_timeout = 2.5 })
      assert.same({ 2, 0, 2500 }, { engines.options() })
      assert.equal("red_", store:prefix())
      assert.same({ "postgres", "$1" }, { store:dialect() })
    end
    local store <close> = outbox.open(":memory:")
    assert.same({ "sqlite", "?" }, { store:dialect() })
    assert.matches("unknown option 'timeout'", support.raised(outbox.open, URLS[1],
      { timeout = 1 }))
    assert.matches("a path cannot contain a NUL", support.raised(outbox.open, URLS[1] .. "\0"))
  end)

  it("says what is wrong", function()
    local problem = support.raised(outbox.open, "postgres://lost")
    assert.same({ "disconnected", "postgres://lost" }, { problem.code, problem.message })
  end)

  it("gets and gives booleans", function()
    local store <close> = outbox.open(URLS[1])
    store:transaction(function(txn)
      txn:execute("SELECT $1, $2", true, false)
      assert.equal("SELECT $1, $2\ntrue\nfalse\n", engines.sql())
      for row in txn:rows("SELECT true AS missing") do
        assert.is_true(row.missing)
      end
    end)
  end)

  it("has no part in the rule about forks, which is SQLite's", function()
    local function exit_of(fn)
      return process.wait(process.fork(fn))
    end
    local other = outbox.open(URLS[1])
    assert.equal(0, exit_of(function()
      outbox.open(support.path()):close()
    end))
    other:close()
    local store <close> = outbox.open(support.path())
    assert.equal(0, exit_of(function()
      outbox.open(URLS[1]):close()
      assert(support.raised(outbox.open, support.path()).code == "forked")
    end))
    store:migrate()
  end)

  it("is told of in the SQL of an inbox", function()
    local store <close> = outbox.open(URLS[1], { prefix = "red_" })
    local inbox = outbox.inbox({ store = store })
    assert.is_true(inbox:once("a", function() end))
    local sql = engines.sql()
    for _, part in ipairs({ "to_regclass('red_inbox')", "CREATE TABLE IF NOT EXISTS red_inbox",
      "INSERT INTO red_inbox (id, seen_at) VALUES ($1, $2)", "DELETE FROM red_inbox" }) do
      assert.is_truthy(sql:find(part, 1, true), part)
    end
    assert.is_nil(sql:find("main.", 1, true) or sql:find("?", 1, true) or sql:find("ROWID"))
  end)
end)
