local command = require("spec.support.command")
local outbox = require("outbox")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

local fail, json_lines, succeed = command.fail, command.json_lines, command.succeed

describe("outbox show", function()
  local store, path

  before_each(function()
    store, path = support.store()
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function bury(...)
    command.bury(store, ...)
  end

  it("shows everything about an entry, whatever its state", function()
    store:publish({ id = "a", namespace = "orders", key = "7", payload = "line 1\nline 2",
      headers = { b = "2", a = "1" } })
    store:claim_entries("worker", outbox.clock.now() + 1000)
    local text = succeed("show " .. path .. " a")
    for _, line in ipairs({ "id          a", "state       ready", "seq         1",
      "namespace   orders", "key         7", "created     20%d%d%-.*Z, %d%.%d s ago",
      "claimed     by worker, until 20%d%d%-.*Z", "attempts    0", "last error  %-",
      "header      a: 1\nheader      b: 2", "payload     13 bytes\n\nline 1\nline 2" }) do
      assert.matches("\n" .. line .. "\n", "\n" .. text)
    end
    store:claim_entries("worker", outbox.clock.now() - 1)
    assert.is_nil(succeed("show " .. path .. " a"):find("claimed"))
    store:claim_entries("worker", outbox.clock.now() + 1000)
    store:retry_entry("a", outbox.clock.now() + 500, "busy")
    text = succeed("show " .. path .. " a")
    assert.matches("state +delayed\n.*due +20%d%d.*, in %d+ .*last error +busy\n", text)
    assert.is_nil(text:find("claimed"))
    bury("b")
    assert.matches("state +dead\n.*died +20%d%d.* ago\n", succeed("show " .. path .. " b"))
    local entry = json_lines(succeed("show " .. path .. " b --json"))[1]
    assert.same({ "b", "dead", "refused", 1 },
      { entry.id, entry.state, entry.last_error, entry.attempts })
  end)

  sqlite_it("lets no bytes through that would control a terminal", function()
    local evil = "\27]0;title\7\27[2J\r\127\xC2\x9B31m\xE2\x80\xAEtxt\xFF\xE2\x82\0tab\tok ö€\n"
    store:publish({ id = evil, namespace = evil, key = evil, payload = evil,
      headers = { [evil] = evil } })
    store:bury_entry(evil, evil)
    local shown = "\\x1b]0;title\\x07\\x1b[2J\\x0d\\x7f\\xc2\\x9b31m\\xe2\\x80\\xaetxt\\xff\\xe2"
      .. "\\x82\\x00tab"
    support.sql(store, "UPDATE outbox_dead SET id = 'a'")
    local text = succeed("show " .. path .. " a") .. succeed("list " .. path .. " dead")
    assert.is_nil(text:find("[\0-\8\11-\31\127]"), "controls")
    assert.is_truthy(utf8.len(text))
    assert.is_truthy(text:find("\n" .. shown .. "\tok ö€\n", 1, true), text)
    assert.is_truthy(text:find("namespace   " .. shown .. "\\tok ö€\\n\n", 1, true), text)
    assert.is_nil(text:find("\xC2\x9B", 1, true) or text:find("\xE2\x80\xAE", 1, true))
  end)

  it("ends with status 3 if there is no such entry", function()
    fail(3, "^outbox: no entry has the id b\n$", "show " .. path .. " b")
    fail(3, "no entry has the id", "show " .. path .. " b --raw")
  end)
end)
