-- The database that a subcommand works on.

local errors = require("outbox.error")
local format = require("outbox.command.common.format")
local outbox = require("outbox")
local url = require("outbox.command.common.url")

local M = {}

local VISIBLE = "outbox: every user of this machine can see the password in the URL, for instance "
  .. "with ps: put it into PGPASSWORD or ~/.pgpass, or name a file with ?passfile=FILE\n"

local warned = false

-- The converter of the argument.
local function read(name)
  local _, hidden = url.hide(name)
  if hidden and not warned then
    warned = true
    io.stderr:write(VISIBLE)
  end
  return name
end

--- Adds an argument that is a database.
function M.argument(command, name, target, description)
  return command:argument(name, description):target(target):argname(name):convert(read)
end

--- Gives a subcommand the argument DB and the options that go with it.
function M.define(command)
  M.argument(command, "DB", "database", "The database: a file, a URI as SQLite reads it, "
    .. "file:PATH?NAME=VALUE, or the URL of a PostgreSQL database, postgresql://HOST/NAME.")
  M.define_prefix(command)
end

--- Adds the option --prefix.
function M.define_prefix(command)
  command:option("--prefix", "The prefix of the names of the outbox's tables.", "outbox_")
    :argname("PREFIX")
end

--- Returns a database's name as it may be shown or logged: a URL without its password.
function M.shown(name)
  return (url.hide(name))
end

local function open(options, mode, synchronous)
  return outbox.open(options.database,
    { prefix = options.prefix, mode = mode, synchronous = synchronous })
end

--- Opens the database to look at it. It need not be writable. Raises if there is none.
function M.look(options)
  return open(options, "read")
end

--- Opens the database. Raises if there is none.
function M.open(options, synchronous)
  return open(options, "write", synchronous)
end

-- What SQLite says about the database that it has opened: its file, "" for one that has none, and
-- how many tables it has, indexes and others included.
local ABOUT = "SELECT file, (SELECT count(*) FROM main.sqlite_master) AS count "
  .. "FROM pragma_database_list WHERE name = 'main'"

--- Opens the database. If there is no file, creates it, with the outbox's tables. A file that has
-- no table yet is none. On a server, the database is there, and may be another's.
function M.create(options)
  local store, file, count = open(options, "create"), nil, nil
  if url.is_url(options.database) then
    return store
  end
  store:transaction(function(txn)
    for about in txn:rows(ABOUT) do
      file, count = about.file, about.count
    end
  end)
  if file == "" then
    error(errors.new("usage", "DB must be a file: any other database ends with the command"), 0)
  elseif count == 0 then
    store:migrate()
    io.stderr:write("outbox: created ", format.line(options.database), "\n")
  end
  return store
end

return M
