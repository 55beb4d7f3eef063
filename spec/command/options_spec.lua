-- The option tables of docs/command.md list what --help prints, and nothing else.

local command = require("spec.support.command")

local PAGE = command.read("docs/command.md"):match("\n## Options\n(.*)$")

-- The rows of the table that begins a text: the explanation of each option, by its usage.
local function rows_of(text)
  local rows = {}
  local table = text:match("\n| option | |\n[| -]+\n(.*)")
  for usage, explained in table:gmatch("| `([^`]+)` | ([^\n]*) |") do
    rows[usage] = explained
  end
  return rows
end

-- The same for the options of a subcommand's help. An explanation begins in column 29, beside the
-- usage, or below it if the usage is too long.
local function options_of(help)
  local options, last = {}, nil
  for line in help:match("\nOptions:\n(.*)$"):gmatch("([^\n]*)\n") do
    local usage = line:match("^   (%-.*)$")
    if line == "" then
      break
    elseif not usage then
      options[last] = (options[last] .. " " .. line:match("^ *(.*)$")):gsub("^ ", "")
    elseif line:sub(28, 28) == " " then
      last = line:sub(4, 28):match("^(.-) *$")
      options[last] = line:sub(29)
    else
      last = usage
      options[last] = ""
    end
  end
  return options
end

describe("the option tables of docs/command.md", function()
  local common = rows_of(PAGE:match("^(.-)\n### "))

  -- The names of all subcommands that take a database, with those of groups.
  local function subcommands()
    local names = {}
    local function add(prefix, help)
      for name in help:match("\nCommands:\n(.-)\n\n"):gmatch("   (%l+) +%u") do
        local full = prefix .. name
        local text = command.succeed(full .. " --help")
        if text:find("\nCommands:\n") then
          add(full .. " ", text .. "\n\n")
        elseif text:find("\n   DB ") then
          names[#names + 1] = full
        end
      end
    end
    add("", command.succeed("--help"))
    return names
  end

  it("list every option of every subcommand as --help explains it, and no other", function()
    local listed = {}
    for name, table in (PAGE .. "\n### "):gmatch("### ([%l ]+)\n(.-)\n%f[#]") do
      listed[name] = rows_of("\n" .. table)
    end
    local names = subcommands()
    assert.is_true(#names >= 11)
    for _, name in ipairs(names) do
      local expected = listed[name] or {}
      for usage, explained in pairs(common) do
        expected[usage] = explained
      end
      assert.same(options_of(command.succeed(name .. " --help")), expected, name)
      listed[name] = nil
    end
    assert.same({}, listed)
  end)
end)
