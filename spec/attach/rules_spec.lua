-- A store on a function, whose publish is written in Lua, has the rules of a store in C: it refuses
-- the same messages and the same prefixes, in the same words.

local outbox = require("outbox")

local VALUES = { 1, 1.5, "x", true, false, {}, print, coroutine.create(print), io.stdout,
  outbox.blob("x") }

-- Keeps only the values whose type is not the wanted one.
local function but(wanted)
  local list = {}
  for _, value in ipairs(VALUES) do
    if type(value) ~= wanted then
      list[#list + 1] = value
    end
  end
  return list
end

-- Lists of arguments to publish, each with its length: some are nil. Each has a wrong message.
local function wrong_arguments()
  local lists = { { n = 0 }, { n = 1 }, { {}, n = 2 }, { {}, nil, {}, n = 3 } }
  local function add(message)
    lists[#lists + 1] = { message, n = 1 }
    lists[#lists + 1] = { {}, { key = "k" }, message, {}, n = 4 }
  end
  for _, value in ipairs(but("table")) do
    add(value)
  end
  for _, name in ipairs({ "x", "ID", "", "id ", "id\0", "deliver at", 1, 1.5, true, io.stdout,
    setmetatable({}, { __tostring = function() return "a table" end }) }) do
    add({ [name] = "x" })
  end
  for field, wanted in pairs({ id = "string", namespace = "string", key = "string",
    payload = "string", headers = "table", deliver_at = "number" }) do
    for _, value in ipairs(but(wanted)) do
      if field ~= "key" or math.type(value) ~= "integer" then
        add({ [field] = value })
        add({ id = "a", payload = "p", [field] = value })
      end
    end
  end
  for _, time in ipairs({ 0 / 0, math.huge, -math.huge, 1e11 + 1, -1e11 - 1, 1e300,
    math.maxinteger, math.mininteger }) do
    add({ deliver_at = time })
  end
  for _, value in ipairs(but("string")) do
    add({ headers = { name = value } })
    add({ headers = { [value] = "x" } })
  end
  return lists
end

describe("a store on a function", function()
  local own, attached, on_postgres, ran

  before_each(function()
    own = outbox.open(":memory:")
    own:migrate()
    ran = 0
    local function run()
      ran = ran + 1
    end
    attached = outbox.attach(run)
    on_postgres = outbox.attach(run, { dialect = "postgres" })
  end)

  after_each(function()
    own:close()
  end)

  local function refusal(store, arguments)
    local ok, reason = pcall(function()
      store:publish(table.unpack(arguments, 1, arguments.n))
    end)
    assert(not ok, "it was published")
    return reason
  end

  it("refuses the same messages as others, in the same words", function()
    local reasons = {}
    for _, arguments in ipairs(wrong_arguments()) do
      local reason = refusal(own, arguments)
      assert.equal("string", type(reason))
      assert.equal(reason, refusal(attached, arguments))
      assert.equal(reason, refusal(on_postgres, arguments))
      reasons[reason:gsub("^[%w_./]+:%d+: ", "")] = true
    end
    assert.equal(0, own:stats().ready)
    assert.equal(0, ran)
    for _, reason in ipairs({
      "bad argument #1 to 'publish' (table expected, got no value)",
      "bad argument #1 to 'publish' (table expected, got nil)",
      "bad argument #2 to 'publish' (table expected, got nil)",
      "bad argument #1 to 'publish' (table expected, got FILE*)",
      "bad argument #3 to 'publish' (unknown field 'a table')",
      "bad argument #1 to 'publish' (field 'headers' must be a table, not a string)",
      "bad argument #3 to 'publish' (field 'deliver_at' is out of range)",
      "headers must be strings: 'name' is a userdata",
    }) do
      assert.is_true(reasons[reason], reason)
    end
  end)

  it("takes an integer for a key as others do", function()
    for _, key in ipairs({ 7, math.mininteger }) do
      own:publish({ key = key })
      assert.equal(tostring(key), own:ready_entries({ reverse = true })[1].key)
      local values
      outbox.attach(function(_, ...)
        values = select("#", ...) > 0 and { ... } or values
      end):publish({ namespace = "n", key = key })
      assert.equal(tostring(key), values[3])
      assert.equal("string", math.type(values[3]) or type(values[3]))
    end
    for _, key in ipairs({ 7.0, 0.5, true }) do
      local reason = refusal(own, table.pack({ key = key }))
      assert.equal(reason, refusal(attached, table.pack({ key = key })))
      assert.matches("must be a string or an integer", reason)
    end
    local reason = refusal(attached, table.pack({ {}, {} }))
    assert.matches("pass messages as arguments", reason)
    assert.equal(reason, refusal(own, table.pack({ {}, {} })))
  end)

  it("takes the same times as others", function()
    for _, time in ipairs({ 0, -1, 0.5, 1e11, -1e11, 100000000000 }) do
      assert.equal("string", type(own:publish({ deliver_at = time })))
      assert.equal("string", type(attached:publish({ deliver_at = time })))
      assert.equal("string", type(on_postgres:publish({ deliver_at = time })))
    end
  end)

  it("refuses the same prefixes as others, in the same words", function()
    local function refused(make, prefix)
      local ok, problem = pcall(function()
        make({ prefix = prefix })
      end)
      return not ok and problem:match("bad argument #2 to '.*' %((.*)%)$")
    end
    local function open(options)
      outbox.open(":memory:", options):close()
    end
    local function attach(options)
      outbox.attach(print, options)
    end
    local function attach_postgres(options)
      options.dialect = "postgres"
      outbox.attach(print, options)
    end
    for prefix, reason in pairs({
      [""] = "the prefix is not a plain identifier",
      ["a b"] = "the prefix is not a plain identifier",
      ["1a"] = "the prefix is not a plain identifier",
      ["a'"] = "the prefix is not a plain identifier",
      ["a\0b"] = "the prefix is not a plain identifier",
      ["\u{e4}_"] = "the prefix is not a plain identifier",
      [("a"):rep(65)] = "the prefix is not a plain identifier",
      [1] = "prefix must be a string",
      [false] = "prefix must be a string",
      [print] = "prefix must be a string",
    }) do
      assert.equal(reason, refused(open, prefix))
      assert.equal(reason, refused(attach, prefix))
      assert.equal(reason, refused(attach_postgres, prefix))
    end
    for _, prefix in ipairs({ "a", "_", "A1_", ("a"):rep(64) }) do
      assert.is_false(refused(open, prefix))
      assert.is_false(refused(attach, prefix))
      assert.is_false(refused(attach_postgres, prefix))
    end
  end)
end)
