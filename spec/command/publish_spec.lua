local command = require("spec.support.command")
local outbox = require("outbox")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

local fail, run, succeed = command.fail, command.run, command.succeed

describe("outbox migrate", function()
  local store, path

  before_each(function()
    store, path = support.store()
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function publish(...)
    command.publish(store, ...)
  end

  sqlite_it("makes a database and its tables, and leaves existing tables alone", function()
    local new = support.path()
    os.remove(new)
    local _, status, err = run("migrate " .. new)
    assert.same({ 0, "outbox: created " .. new .. "\n" }, { status, err })
    assert.matches("ready +0\n", succeed("stats " .. new))
    publish("a")
    assert.equal("", succeed("migrate " .. path))
    assert.equal(1, store:stats().ready)
    assert.equal("", succeed("migrate " .. path .. " --prefix other_"))
    assert.matches("ready +0\n", succeed("stats " .. path .. " --prefix other_"))
  end)
end)

describe("outbox publish", function()
  local store, path

  before_each(function()
    store, path = support.store()
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  it("publishes standard input byte for byte, and prints the id", function()
    local bytes = {}
    for byte = 0, 255 do
      bytes[#bytes + 1] = string.char(byte)
    end
    local payload = table.concat(bytes):rep(400) .. "\r\n"
    local id = succeed("publish " .. path, payload):match("^(%x+%-[%x-]+)\n$")
    local entry = store:ready_entries()[1]
    assert.same({ id, payload, "" }, { entry.id, entry.payload, entry.namespace })
    assert.equal(payload, succeed("show --raw " .. path .. " " .. id))
    assert.equal("mine\n", succeed("publish " .. path .. " --id mine"))
    assert.equal("", store:find_entries("mine")[1].payload)
  end)

  it("takes every field of a message", function()
    succeed("publish " .. path .. " 'the payload' --id mine --namespace orders --key 7"
      .. " --header content-type=text/plain --header 'x=y = z'")
    local entry = store:ready_entries()[1]
    assert.same({ "mine", "orders", "7", "the payload" },
      { entry.id, entry.namespace, entry.key, entry.payload })
    assert.same({ ["content-type"] = "text/plain", x = "y = z" }, entry.headers)
    succeed("publish " .. path .. " --id hyphen -- -5")
    assert.equal("-5", store:find_entries("hyphen")[1].payload)
  end)

  it("can delay the delivery", function()
    local before = outbox.clock.now()
    succeed("publish " .. path .. " soon --id soon --in 3600.5")
    succeed("publish " .. path .. " then --id then --deliver-at 9999999999")
    local due = store:find_entries("soon")[1].due_at - 3600.5
    assert.is_true(before - 1e-6 <= due and due <= outbox.clock.now())
    assert.equal(9999999999, store:find_entries("then")[1].due_at)
  end)

  sqlite_it("makes a database if there is none, but no tables in an existing one", function()
    local new = support.path() -- an empty file is none yet
    local id, status, err = run("publish " .. new .. " first")
    assert.same({ 0, "outbox: created " .. new .. "\n" }, { status, err })
    assert.equal("first", (succeed("show --raw " .. new .. " " .. id:sub(1, -2))))
    fail(1, "call migrate first %(schema%)", "publish " .. path .. " lost --prefix other_")
    os.remove(new)
    fail(1, "No such file", "relay " .. new .. " --to stdout: --once")
  end)

  it("publishes nothing if standard input cannot be read", function()
    local _, status, err = run("publish " .. path .. " </tmp")
    assert.same({ 1, "outbox: cannot read standard input: Is a directory (input)\n" },
      { status, err })
    assert.equal(0, store:stats().ready)
  end)
end)
