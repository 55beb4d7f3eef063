local command = require("spec.support.command")
local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

local COMMAND, finish = command.COMMAND, command.finish
local start, succeed = command.start, command.succeed

describe("outbox top", function()
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

  local function bury(...)
    command.bury(store, ...)
  end

  it("writes a line for each update if there is no terminal", function()
    bury("a")
    publish("b")
    store:claim_entries("lapsed", outbox.clock.now() - 1)
    local text = succeed("top " .. path .. " --count 2 --interval 0.01")
    assert.matches("^20%d%d%-%S+Z ready=1 delayed=0 dead=1 oldest=%d%.%d arrived=%- departed=%- "
      .. "leases=0\n20%S+ ready=1 delayed=0 dead=1 oldest=%d%.%d arrived=0%.0 departed=0%.0 "
      .. "leases=0\n$", text)
  end)

  sqlite_it("shows how many entries arrive and depart, until it is told to end", function()
    publish("a", "b")
    local pid, pipe = start("top " .. path .. " --interval 0.01")
    assert.matches("arrived=%-", pipe:read("l"))
    store:transaction(function()
      publish("c", "d", "e")
      store:delete_entries("a", "b")
      store:retry_entry("c", outbox.clock.now() + 1000)
    end)
    local line
    repeat
      line = pipe:read("l")
    until not line:find("arrived=0.0", 1, true)
    local arrived, departed = line:match("ready=2 delayed=1 .* arrived=(%S+) departed=(%S+) ")
    assert.is_true(math.abs(arrived / departed - 3 / 2) < 0.01, line)
    process.kill(pid, 15)
    assert.equal("exit 0", select(2, finish(pipe)))
  end)

  it("draws a screen that fits the terminal, and shows the cursor again", function()
    bury("a", "b")
    publish("c", "d")
    store:retry_entry("c", outbox.clock.now() + 500, "busy\27[2J")
    store:claim_entries("worker", outbox.clock.now() + 1000)
    local pipe = command.start_on_terminal(
      ("stty cols 30 rows 30; %s top %s --count 2 --interval 0.01"):format(COMMAND, path))
      or pending("there are no pseudo-terminals here")
    local text = finish(pipe):gsub("\r\n", "\n")
    assert.matches("^\27%[%?25l\27%[2J\27%[H", text)
    assert.matches("\27%[%?25h$", text)
    local screen = text:match(".*\27%[H(.*)\27%[J"):gsub("\27%[K", "")
    assert.matches("\ndead +2\n", screen)
    assert.matches("\nNAMESPACE  READY", screen)
    assert.matches("\nlease of worker  deadline in ", screen)
    assert.matches("\ndelayed  1 of the last  busy\\x", screen)
    assert.matches("\ndead     2 of the last  refuse\n", screen)
    for line in screen:gmatch("[^\n]+") do
      assert.is_true(utf8.len(line) <= 30, line)
    end
    assert.is_nil(screen:find("\27"))
  end)
end)
