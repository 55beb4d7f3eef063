-- The tables of options in docs/options.md name the options of the code, all of them and no other,
-- and their defaults; so do the types in lua/outbox/types.lua.

local outbox = require("outbox")
local page = require("spec.pages.page")
local support = require("spec.support")

local text = page.read("docs/options.md")
local types = page.read("lua/outbox/types.lua")

-- A default as a page shows it: a string, a number with its unit, or "required"; nil where it has
-- words or the name of a value.
local function literal(cell)
  local number, unit = cell:match("^([%d.]+) ?(%a*)$")
  if number then
    return tonumber(number) * (unit == "days" and 86400 or 1)
  end
  return cell == "required" and cell or cell:match('^`"(.*)"`$')
end

-- The options that a page lists after some text: by name the literal default, or the words.
local function documented(after)
  local options = {}
  for _, row in ipairs(page.rows(text, after)) do
    local name = assert(row[1]:match("^`([%l_]+)[`(]"), row[1])
    assert.is_nil(options[name], name .. " is listed twice")
    options[name] = { default = literal(row[2]), words = row[2] }
  end
  return options
end

local function names(options)
  local list = {}
  for name in pairs(options) do
    list[#list + 1] = name
  end
  table.sort(list)
  return list
end

-- The fields of a class in types.lua: by name the literal default.
local function typed(class)
  local fields = {}
  local block = assert(types:match("\n%-%-%-@class outbox%." .. class .. "%f[%s][^\n]*\n(.-)\n\n"))
  for name, optional, rest in block:gmatch("%-%-%-@field ([%l_]+)(%??) ([^\n]*)") do
    local default = rest:match('default ("[^"]*")$') or rest:match("default ([%d.]+)$")
    local value = default and load("return " .. default)()
    fields[name] = { default = optional == "" and "required" or value }
  end
  return fields
end

-- That a page and types.lua have the same names, and no literal defaults that differ.
local function agree(after, class)
  local options, fields = documented(after), typed(class)
  assert.same(names(options), names(fields))
  for name, field in pairs(fields) do
    if field.default ~= nil then
      assert.equal(field.default, options[name].default, name)
    end
  end
  return options
end

-- That a page has what the code knows of its options: `default`, `required`.
local function match(options, known)
  assert.same(names(known), names(options))
  for name, option in pairs(known) do
    local default = option.default
    if option.required then
      assert.equal("required", options[name].default, name)
    elseif type(default) == "number" or type(default) == "string" then
      assert.equal(default, options[name].default, name)
    else
      assert.not_equal("required", options[name].default, name)
    end
  end
end

-- The lists of options in the C code of the shim: under true the list that contains a name, under
-- false the list that does not.
local function shim_options(name)
  local lists = {}
  for path in io.popen("ls src/lua/*.c"):lines() do
    for list in page.read(path):gmatch("OPTIONS%[%] = {([^}]*)}") do
      local options = {}
      for option in list:gmatch('"([%l_]+)"') do
        options[option] = true
      end
      if options.prefix and options.clock then
        lists[options[name] ~= nil] = options
      end
    end
  end
  return lists
end

describe("docs/options.md", function()
  after_each(support.remove)

  it("lists the options of a store and their defaults", function()
    local options = agree("`outbox.open(path, options)`", "options")
    assert.same(names(shim_options("synchronous")[true]), names(options))

    local given = { prefix = "other_", mode = "create", synchronous = "off", busy_timeout = 1,
      clock = outbox.clock, id_generator = outbox.uuid_v4 }
    assert.same(names(given), names(options))
    outbox.open(":memory:", given):close()
    assert.error_matches(function()
      outbox.open(":memory:", { timeout = 1 })
    end, "timeout")

    local store <close> = support.store()
    assert.equal(options.prefix.default, store:prefix())
    assert.same({ { synchronous = 2 } }, support.sql(store, "PRAGMA synchronous"))
    assert.equal("full", options.synchronous.default)
    assert.equal("create", options.mode.default)
    local milliseconds = page.read("src/outbox.h"):match("%.busy_timeout = (%d+)")
    assert.equal(options.busy_timeout.default, milliseconds / 1000)
    assert.equal("`outbox.clock`", options.clock.words)
    assert.equal(outbox.clock, store:clock())
    assert.equal("a UUIDv7 of the entry's place", options.id_generator.words)
    assert.equal("7", store:publish({}):sub(15, 15))
  end)

  it("lists the options of an attached store and their defaults", function()
    local options = agree("`outbox.attach(connection, options)`", "attach_options")
    assert.same(names(shim_options("synchronous")[false]), names(options))

    outbox.install()
    local connection = require("luasql.sqlite3").sqlite3():connect(":memory:")
    local given = { prefix = "other_", clock = outbox.clock, id_generator = outbox.uuid_v4 }
    assert.same(names(given), names(options))
    for _, target in ipairs({ connection, function() end }) do
      outbox.attach(target, given)
      assert.error_matches(function()
        outbox.attach(target, { synchronous = "off" })
      end, "synchronous")
    end

    local store = outbox.attach(connection)
    store:migrate()
    assert.equal(options.prefix.default, store:prefix())
    assert.equal("`outbox.clock`", options.clock.words)
    assert.equal(outbox.clock, store:clock())
    assert.equal("a UUIDv7 of the entry's place", options.id_generator.words)
    assert.equal("7", store:publish({}):sub(15, 15))
    connection:close()
  end)

  it("lists the options of an attached store on PostgreSQL", function()
    local options = agree("`outbox.attach` on PostgreSQL, also:", "attach_postgres_options")
    local given = { dialect = "postgres", schema = "other", synchronous = "off" }
    assert.same(names(given), names(options))
    assert.equal(36, #outbox.attach(function() end, given):publish({}))
    local marks
    outbox.attach(function(_, ...)
      marks = marks or select("#", ...) > 0
    end, { dialect = options.dialect.default }):publish({})
    assert.is_true(marks)
  end)

  it("lists the options of a processor and their defaults", function()
    local known = require("outbox.processor.options")
    local options = agree("`outbox.processor(options)`", "processor_options")
    local batch_size = options.batch_size.default
    match(options, known.OPTIONS)

    -- Those that are computed, by what they do.
    local store <close> = support.store()
    local messages = {}
    for i = 1, 300 do
      messages[i] = {}
    end
    store:publish(table.unpack(messages))
    local size, processor
    processor = outbox.processor({ store = store, publisher = function(batch)
      size = #batch
      processor:stop()
    end })
    processor:pump()
    assert.equal(batch_size, size)
  end)

  it("lists the fields of retry and their defaults", function()
    match(agree("### Retries", "retry"), require("outbox.processor.options").RETRY)
  end)

  it("lists the options of an inbox and their defaults", function()
    local options = agree("`outbox.inbox(options)`", "inbox_options")
    local store <close> = support.store()
    assert.same({ "retention", "store" }, names(options))
    assert.equal("required", options.store.default)
    assert.error_matches(function()
      outbox.inbox({ retention = 1 })
    end, "store is missing")
    assert.equal(options.retention.default, outbox.inbox({ store = store }).retention)
    assert.equal(60, outbox.inbox({ store = store, retention = 60 }).retention)
    assert.error_matches(function()
      outbox.inbox({ store = store, retain = 1 })
    end, "unknown option 'retain'")
  end)
end)
