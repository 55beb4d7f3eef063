local command = require("spec.support.command")
local outbox = require("outbox")
local support = require("spec.support")

local fail, run = command.fail, command.run
local shell, succeed, write = command.shell, command.succeed, command.write

describe("the command", function()
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

  it("shows its version", function()
    assert.equal("outbox " .. outbox._VERSION .. "\n", succeed("--version"))
  end)

  it("explains each subcommand and every option of it", function()
    local commands = { "migrate", "publish", "relay", "stats", "leases", "top", "list", "show",
      "bury", "dead list", "dead requeue", "dead purge", "completion" }
    for _, name in ipairs(commands) do
      local help = succeed(name .. " --help")
      assert.matches("^Usage: outbox " .. name, help)
      local usage, explained = help:match("^(.-)\n\n(.*)$")
      for option in usage:gmatch("%-%-[%l-]+") do
        assert.matches("\n   " .. option:gsub("%-", "%%-") .. "[ \n]", "\n" .. explained, name)
      end
      assert.matches("\n   " .. name:match("^%l+") .. " +%u", succeed("--help"))
    end
    assert.matches("2  wrong arguments", succeed("--help"))
  end)

  it("completes in three shells", function()
    local script = support.path()
    write(script, succeed("completion bash")
      .. 'COMP_WORDS=(outbox "$@"); COMP_CWORD=$#; _outbox; echo "${COMPREPLY[@]}"\n')
    local function complete(words)
      return (shell(("bash %s %s"):format(script, words)))
    end
    assert.equal("purge\n", complete("dead pu"))
    assert.equal("--batch-size --batch-bytes\n", complete("relay --ba"))
    assert.matches("#compdef outbox", succeed("completion zsh"))
    assert.matches("complete %-c outbox", succeed("completion fish"))
  end)

  it("refuses wrong arguments with status 2, and says what is wrong", function()
    fail(2, "^outbox: unknown command 'lst'\nDid you mean 'list'%?\nSee outbox %-%-help\n$",
      "lst")
    fail(2, "^outbox: unknown command 'lst'\nSee outbox help %-%-help\n$", "help lst")
    fail(2, "^outbox: a command is required", "")
    fail(2, "a command is required\nSee outbox dead %-%-help", "dead")
    fail(2, "missing argument 'DB'", "stats")
    fail(2, "unknown option '%-%-jsn'", "stats " .. path .. " --jsn")
    fail(2, "must be one of 'ready', 'delayed', 'dead'", "list " .. path .. " gone")
    fail(2, "'0' is not an integer above 0", "list " .. path .. " --limit 0")
    fail(2, "'x' is not an integer\n", "list " .. path .. " --after x")
    fail(2, "'%-1' is not a number", "publish " .. path .. " x --in=-1")
    fail(2, "'0' is not a number of seconds, at least 0.001",
      "top " .. path .. " --count 2 --interval 0")
    fail(2, "'x' is not NAME=VALUE", "publish " .. path .. " x --header x")
    fail(2, "^outbox: the prefix is not a plain identifier\n$",
      "stats " .. path .. " --prefix 'no good'")
    fail(2, "can not be used together", "stats " .. path .. " --json --prometheus")
  end)

  it("fails if its version, help or completion cannot be written", function()
    for _, arguments in ipairs({ "--version", "--help", "stats --help", "help", "help stats",
      "completion bash", "completion zsh", "completion fish" }) do
      local _, status, err = run(arguments .. " >/dev/full")
      assert.same({ 1, "outbox: cannot write: No space left on device (output)\n" },
        { status, err }, arguments)
    end
  end)

  it("names the rock that it needs if that is missing", function()
    local output, ok = support.run(
      [[-e 'package.preload.argparse = function(name)
        error(("module %q not found"):format(name):gsub("\"", "\39"))
      end' bin/outbox]])
    assert.equal("outbox: the command needs argparse: "
      .. "luarocks --lua-version 5.4 install argparse (Debian: lua-argparse)\n", output)
    assert.is_nil(ok)
  end)

  it("fails with status 1, and the code of the error", function()
    fail(1, "^outbox: /nowhere/at/all: No such file or directory %(cantopen%)\n$",
      "stats /nowhere/at/all")
    fail(1, "not a database %(notadb%)", "stats README.md")
    fail(1, "call migrate first[^\n]* %(schema%)", "stats " .. path .. " --prefix other_")
    publish("a")
    fail(1, "already in the outbox %(duplicate%)", "publish " .. path .. " x --id a")
  end)
end)
