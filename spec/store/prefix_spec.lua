-- The prefix of the tables' names: one rule, wherever it is given.

local outbox = require("outbox")
local support = require("spec.support")

local describe = support.only("sqlite", describe)

local COMMAND = (os.getenv("OUTBOX_TREE") or "lua_modules") .. "/bin/outbox"

local LONGEST = ("p"):rep(63) .. "_"
local TAKEN = { "outbox_", "o", "_", "__", "A", "Z9", "a_B_3", "select", LONGEST }
local REFUSED = { "", LONGEST .. "_", ("p"):rep(99), "1", "9a", "a-b", "-a", "a.", "main.a",
  "a'b", "'", 'a"b', '"', "a`b", "[a]", "a b", " a", "a ", "a\n", "a\tb", "a;", "a%", "a?", "@",
  "a\\", "\0", "a\0", "a\0b", "ä", "aé", "\u{20ac}", "a\u{200b}", "\xff", "a\xff", "\x7f" }

describe("a prefix", function()
  local path, connection

  before_each(function()
    outbox.install()
    path = support.path()
    connection = assert(require("luasql.sqlite3").sqlite3():connect(path))
  end)

  after_each(function()
    connection:close()
    support.remove()
  end)

  -- Each function that takes a prefix is used with these options, and must then use this prefix.
  local ROUTES = {
    { "outbox.open", function(options, prefix)
      local store <close> = outbox.open(path, options)
      store:migrate()
      store:publish({ id = "a" })
      assert.equal("a", store:ready_entries()[1].id)
      assert.equal(prefix, store:prefix())
    end },
    { "outbox.attach with a connection", function(options, prefix)
      local store <close> = outbox.attach(connection, options)
      store:migrate()
      store:publish({ id = "a" })
      assert.equal("a", store:ready_entries()[1].id)
      assert.equal(prefix, store:prefix())
    end },
    { "outbox.attach with a function", function(options, prefix)
      local tables = {}
      local store = outbox.attach(function(sql)
        for name in sql:gmatch("INTO main%.([%w_]+) ") do
          tables[#tables + 1] = name
        end
      end, options)
      store:publish({ id = "a" }, { id = "b", deliver_at = 1e10 })
      assert.same({ prefix .. "entries", prefix .. "delayed" }, tables)
    end },
  }

  for _, route in ipairs(ROUTES) do
    local name, use = table.unpack(route)

    it("is taken by " .. name .. " when it is a plain identifier of up to 64 bytes", function()
      for _, prefix in ipairs(TAKEN) do
        use({ prefix = prefix }, prefix)
      end
    end)

    it("is refused by " .. name .. " when it is not", function()
      local taken = {}
      for _, prefix in ipairs(REFUSED) do
        local ok, problem = pcall(use, { prefix = prefix }, prefix)
        if ok or not problem:find("bad argument #2 to '[^\n]*plain identifier[^\n]*$") then
          taken[#taken + 1] = prefix
        end
      end
      assert.same({}, taken)
    end)

    it("is refused by " .. name .. " when it is not a string", function()
      for _, prefix in ipairs({ false, true, 1, 1.5, {}, print }) do
        local problem = support.raised(use, { prefix = prefix }, "")
        assert.matches("bad argument #2 to '[^\n]*prefix", problem)
      end
    end)

    it("is outbox_ for " .. name .. " when none is given", function()
      use({}, "outbox_")
    end)
  end

  it("of the longest kind goes for the table of an inbox too", function()
    local store <close> = outbox.open(path, { prefix = LONGEST })
    store:migrate()
    local inbox = outbox.inbox({ store = store })
    assert.is_true(inbox:once("a", function() end))
    assert.is_false(inbox:once("a", function() end))
    assert.same({ { n = 1 } },
      support.sql(store, ("SELECT count(*) AS n FROM %sinbox"):format(LONGEST)))
  end)

  describe("given to the command", function()
    local function run(prefix)
      local quoted = "'" .. prefix:gsub("'", "'\\''") .. "'"
      local pipe = io.popen(("%s migrate %s --prefix=%s 2>&1"):format(COMMAND, path, quoted))
      local output = pipe:read("a")
      local _, _, status = pipe:close()
      return output, status
    end

    it("is taken when it is a plain identifier of up to 64 bytes", function()
      for _, prefix in ipairs({ "o", "_", "A_9", LONGEST }) do
        local output, status = run(prefix)
        assert.equal(0, status, output)
        local store <close> = outbox.open(path, { prefix = prefix })
        assert.equal(0, store:stats().ready)
      end
    end)

    it("is refused when it is not", function()
      local refused = { "", LONGEST .. "_", "1a", "a-b", "a.b", "a'b", 'a"b', "a b", "ä" }
      for _, prefix in ipairs(refused) do
        local output, status = run(prefix)
        assert.equal(2, status, prefix)
        assert.matches("plain identifier", output, 1, true)
      end
    end)
  end)
end)
