-- The command: parses its arguments, runs a subcommand, and returns the exit status. `bin/outbox`
-- calls it.
--
-- A subcommand is a module, outbox.command.<name>, that returns a table:
--
--    summary, description  text for --help
--    epilog                more text for --help, or a function that returns it
--    define(command)       adds arguments and options to a command of argparse
--    run(options)          does it; returns the exit status, nil for 0
--    commands              instead of `define` and `run`: a list of such tables, each with a `name`

local errors = require("outbox.error")
local format = require("outbox.command.common.format")
local need = require("outbox.need")
local outbox = require("outbox")

-- The subcommands, in the order of --help.
local SUBCOMMANDS = { "migrate", "publish", "relay", "stats", "leases", "top", "list", "show",
  "bury", "dead", "subscribe", "pause", "resume", "move" }

-- The exit status of an error with this code. 0 is success and 1 any other error; `relay --once`
-- returns another one itself.
local STATUS = { usage = 2, missing = 3 }
-- As if a signal had ended the process: SIGINT, and SIGPIPE where that is ignored.
local INTERRUPTED, UNREAD = 130, 141
-- The database file was deleted or replaced. A supervisor should start the command again.
local MOVED = 5

local EPILOG = [[
Exit status:
   0  done
   1  it failed: standard error has the reason and the code of the error
   2  wrong arguments
   3  there is no entry with this id
   4  relay --once: something that was due is not delivered
   5  relay, top: the database file was deleted, moved or replaced]]

local function refuse(parser, message)
  local command = parser:get_usage():match("^Usage: ([%l ]*%l)")
  io.stderr:write(("outbox: %s\nSee %s --help\n"):format(format.lines(message), command))
  os.exit(STATUS.usage, true)
end

local function print_and_exit(...)
  format.write(...)
  format.flush()
  os.exit(0, true)
end

-- argparse itself prints these texts and exits with 0 even if they could not be written.
local function print_safely(class)
  for name, ending in pairs({ get_help = "\n", get_bash_complete = "", get_zsh_complete = "",
    get_fish_complete = "" }) do
    local get = class[name]
    class[name] = function(parser)
      print_and_exit(get(parser), ending)
    end
  end
end

-- Makes the epilog when the help is shown, and not before.
local function set_epilog(command, make)
  local get_help = command.get_help
  function command.get_help(self)
    self:epilog(make())
    return get_help(self)
  end
end

local function add(parser, name, subcommand)
  local command = parser:command(name):summary(subcommand.summary)
    :description(subcommand.description)
  if type(subcommand.epilog) == "function" then
    set_epilog(command, subcommand.epilog)
  elseif subcommand.epilog then
    command:epilog(subcommand.epilog)
  end
  if subcommand.commands then
    for _, inner in ipairs(subcommand.commands) do
      add(command, inner.name, inner)
    end
    return
  end
  subcommand.define(command)
  command:action(function(options)
    options.run = subcommand.run
  end)
end

local function make_parser()
  local argparse = need("argparse", "the command needs argparse", "argparse", "lua-argparse")
  local parser = argparse("outbox")
    :description("Shows what is in an outbox, publishes to it, and delivers its messages.")
    :epilog(EPILOG)
    :help_max_width(90)
    :help_description_margin(28)
  local class = getmetatable(parser) -- also the class of its commands
  class.error = refuse
  print_safely(class)
  parser:flag("--version", "Show the version and exit."):action(function()
    print_and_exit("outbox ", outbox._VERSION, "\n")
  end)
  for _, name in ipairs(SUBCOMMANDS) do
    add(parser, name, require("outbox.command." .. name))
  end
  parser:add_complete_command():add_help_command()
  return parser
end

-- Writes an error to standard error; returns the exit status.
local function explain(raised)
  -- An error of ours is one line, and may name a path or a header. Any other may have several.
  local show = type(raised) == "table" and format.line or format.lines
  local text, code = show(errors.text(raised)), type(raised) == "table" and raised.code
  local wrong = text:match("bad argument.- %((.*)%)$") -- the library refuses one of our arguments
  if text:find("interrupted!$") then
    return INTERRUPTED -- the error that lua5.4 raises for a SIGINT
  elseif code == "unread" then
    return UNREAD
  end
  local known = STATUS[code] or wrong
  if known then
    text = wrong or show(raised.message)
  end
  if not (code and raised.is_logged) then
    io.stderr:write(text:find("^outbox: ") and text or "outbox: " .. text, "\n")
  end
  return known and (STATUS[code] or STATUS.usage) or code == "moved" and MOVED or 1
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
