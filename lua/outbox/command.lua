-- The command: what its arguments mean, which function does it, and with which status it ends.
-- `bin/outbox` calls it with the arguments, and exits with what it returns.

local format = require("outbox.command.format")
local need = require("outbox.need")
local option = require("outbox.options")
local outbox = require("outbox")
local problem = require("outbox.problem")

-- 0 is success, 1 any other failure; what `relay --once` returns is its own.
local STATUS = { usage = 2, missing = 3 }
-- As if a signal had ended it: SIGINT, and SIGPIPE where that was ignored.
local INTERRUPTED, UNREAD = 130, 141

local EPILOG = [[
Exit status:
   0  done
   1  it failed: standard error says why, and names the code of the error
   2  wrong arguments
   3  there is no entry with this id
   4  relay --once: something that was due is not delivered]]

--- What becomes of an argument's text: the value, or nil and what is wrong with it.
local convert = {}

function convert.number(text)
  local number = text:find("^[%d.]+$") and tonumber(text)
  return number, ("'%s' is not a number"):format(text)
end

function convert.seconds(text)
  local seconds = convert.number(text)
  local ok, wanted = option.seconds(seconds)
  return ok and seconds or nil, ("'%s' is not %s"):format(text, wanted)
end

function convert.integer(text)
  local integer = text:find("^%-?%d+$") and math.tointeger(tonumber(text))
  return integer, ("'%s' is not an integer"):format(text)
end

function convert.count(text)
  local count = convert.integer(text)
  return count and count > 0 and count or nil, ("'%s' is not an integer above 0"):format(text)
end

function convert.pair(text)
  local name, value = text:match("^([^=]+)=(.*)$")
  return name and { name = name, value = value }, ("'%s' is not NAME=VALUE"):format(text)
end

local function refuse(parser, message)
  local command = parser:get_usage():match("^Usage: ([%l ]*%l)")
  io.stderr:write(("outbox: %s\nSee %s --help\n"):format(message, command))
  os.exit(STATUS.usage, true)
end

local function print_and_exit(...)
  format.write(...)
  format.flush()
  os.exit(0, true)
end

-- argparse prints these texts and exits with 0, whether they could be written or not.
local function print_safely(class)
  for name, ending in pairs({ get_help = "\n", get_bash_complete = "", get_zsh_complete = "",
    get_fish_complete = "" }) do
    local get = class[name]
    class[name] = function(parser)
      print_and_exit(get(parser), ending)
    end
  end
end

local function make_parser()
  local argparse = need("argparse", "the command needs argparse", "argparse")
  local parser = argparse("outbox")
    :description("Looks into an outbox, publishes to it, and delivers what waits there.")
    :epilog(EPILOG)
    :help_max_width(90)
    :help_description_margin(28)
  local class = getmetatable(parser) -- of its commands as well
  class.error = refuse
  print_safely(class)
  parser:flag("--version", "Show the version and exit."):action(function()
    print_and_exit("outbox ", outbox._VERSION, "\n")
  end)
  for _, group in ipairs({ "publish", "relay", "stats", "top", "entries" }) do
    require("outbox.command." .. group)(parser, convert)
  end
  parser:add_complete_command():add_help_command()
  return parser
end

-- Tells people what was raised; returns the status.
local function explain(raised)
  local text, code = problem.text(raised), type(raised) == "table" and raised.code
  local wrong = text:match("bad argument.- %((.*)%)$") -- what the library says of arguments of ours
  if text:find("interrupted!$") then
    return INTERRUPTED -- what lua5.4 makes of a SIGINT
  elseif code == "unread" then
    return UNREAD
  elseif STATUS[code] or wrong then
    io.stderr:write("outbox: ", wrong or raised.message, "\n")
    return STATUS[code] or STATUS.usage
  end
  io.stderr:write(text:find("^outbox: ") and text or "outbox: " .. text, "\n")
  return 1
end

return function(arguments)
  local ok, result = pcall(function()
    local options = make_parser():parse(arguments)
    local status = options.run(options)
    format.flush()
    return status or 0
  end)
  return ok and result or explain(result)
end
