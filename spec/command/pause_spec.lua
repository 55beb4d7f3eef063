local command = require("spec.support.command")
local support = require("spec.support")

local fail, run, succeed = command.fail, command.run, command.succeed

describe("outbox pause and resume", function()
  local store, path

  before_each(function()
    store, path = support.store()
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  it("stop the deliveries of namespaces, and begin them again", function()
    store:publish({ namespace = "a", payload = "1" }, { namespace = "b", payload = "2" })
    succeed("pause " .. path .. " --namespace a --namespace c")
    local sent = succeed("relay --once --to stdout: " .. path .. " 2>/dev/null")
    assert.matches('"payload":"2"', sent) -- with the status 0: what is paused is not due
    assert.not_matches('"payload":"1"', sent)
    assert.matches("^NAMESPACE  PAUSED\na +.- ago\nc +.- ago\n$", succeed("pause " .. path))
    assert.matches('"namespace":"a"', succeed("pause --json " .. path))
    succeed("resume " .. path .. " --namespace a")
    assert.matches('"payload":"1"', succeed("relay --once --to stdout: " .. path .. " 2>/dev/null"))
    succeed("resume --all " .. path)
    assert.equal("", succeed("pause " .. path))
  end)

  it("say what was not paused, and resume the others", function()
    store:pause("a")
    assert.same({ "", 3, "outbox: 'b' is not paused\n" },
      { run("resume " .. path .. " --namespace b --namespace a") })
    assert.same({}, store:paused())
  end)

  it("refuse wrong arguments", function()
    fail(2, "either %-%-namespace or %-%-all", "resume " .. path)
    fail(2, "either %-%-namespace or %-%-all", "resume --all --namespace a " .. path)
    fail(1, "%(cantopen%)", "pause /nowhere --namespace a")
  end)
end)
