local runs = require("spec.support.command")
local support = require("spec.support")

local COMMAND, read, run = runs.COMMAND, runs.read, runs.run
local shell, succeed = runs.shell, runs.succeed

describe("docs/command.md, and docs/destinations.md", function()
  -- Without what differs from one time to the next.
  local function essence(text)
    return (text:gsub("%x+%-%x+%-%x+%-%x+%-%x+", "ID"):gsub("processor=%S+", "processor=NAME")
      :gsub("%d%d%d%d%-%d%d%-%d%dT[%d:.]+Z", "TIME"):gsub("%d+%.%d+", "SECONDS"):gsub(" +", " "))
  end

  for page, number in pairs({ ["docs/command.md"] = 18, ["docs/destinations.md"] = 9 }) do
    it("shows what the command does: " .. page, function()
      local directory = support.path()
      os.remove(directory)
      assert(os.execute("mkdir " .. directory))
      finally(function()
        os.execute("rm -r " .. directory)
      end)
      local count = 0
      local function check(command, output)
        local out, status = shell(("PATH=$PWD/%s:$PATH; cd %s && { %s; } 2>&1"):format(
          COMMAND:match("^(.*)/"), directory, command))
        assert.same({ essence(output), 0 }, { essence(out), status }, command)
        count = count + 1
      end
      for block in read(page):gmatch("\n```console\n(.-)```\n") do
        local command, output
        for line in (block .. "$ \n"):gmatch("[^\n]*\n") do
          if line:find("^%$ ") then
            if command then
              check(command, output)
            end
            command, output = line:sub(3, -2), ""
          elseif command:find("\\$") then
            command = command:sub(1, -2) .. line:sub(1, -2)
          else
            output = output .. line
          end
        end
      end
      assert.equal(number, count)
    end)
  end

  it("names every subcommand, metric and status, and files that are there", function()
    local page, help = read("docs/command.md"), succeed("--help")
    for name in page:gmatch("%]%(([%w_./-]+)") do
      assert.is_truthy(name:find("^http") or io.open("docs/" .. name), name)
    end
    for command in help:gmatch("\n   (%l+) +%u") do
      assert.matches("[ `]" .. command .. "[ `\n]", page)
    end
    for status in help:match("\nExit status:\n(.*)"):gmatch("   (%d)  ") do
      assert.matches("\n| " .. status .. " | ", page)
    end
    local path = support.path()
    run("migrate " .. path)
    run("publish " .. path .. " hello")
    for metric in succeed("stats " .. path .. " --prometheus"):gmatch("\n(outbox_[%l_]+){") do
      assert.matches("`" .. metric .. "`", page)
    end
    support.remove()
  end)
end)
