local command = require("spec.support.command")
local support = require("spec.support")

local fail, run, succeed = command.fail, command.run, command.succeed

describe("outbox subscribe", function()
  local store, path

  before_each(function()
    store, path = support.store()
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  it("subscribes several at once, lists them and ends them", function()
    assert.equal("", succeed("subscribe " .. path))
    succeed("subscribe " .. path .. " orders mail stock")
    succeed("subscribe " .. path .. " orders mail")
    assert.equal("NAMESPACE  COPY\norders     mail\norders     stock\n",
      succeed("subscribe " .. path))
    local lines = {}
    for line in succeed("subscribe --json " .. path):gmatch("[^\n]+") do
      lines[#lines + 1] = require("cjson").decode(line)
    end
    assert.same(store:subscriptions(), lines)
    succeed("publish " .. path .. " --namespace orders --id a x")
    assert.same({ "a:mail", "a:stock" }, support.pluck(store:ready_entries(), "id"))
    assert.matches("copy of +a\n", succeed("show " .. path .. " a:mail"))
    assert.matches('"source_id":"a"', succeed("list --json " .. path))
    succeed("subscribe --remove " .. path .. " orders mail stock")
    assert.same({}, store:subscriptions())
  end)

  it("ends the others if one is missing, and says so", function()
    store:subscribe("orders", "mail")
    assert.same({ "", 3, "outbox: 'orders' has no subscription 'stock'\n" },
      { run("subscribe --remove " .. path .. " orders stock mail") })
    assert.same({}, store:subscriptions())
  end)

  it("refuses wrong arguments", function()
    fail(2, "COPY is missing", "subscribe " .. path .. " orders")
    fail(2, "COPY is missing", "subscribe --remove " .. path)
    fail(2, "%-%-json is for the list", "subscribe --json " .. path .. " orders mail")
    fail(1, "%(cantopen%)", "subscribe /nowhere orders mail")
  end)
end)
