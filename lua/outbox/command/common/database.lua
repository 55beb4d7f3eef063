-- The database that a subcommand works on.

local errors = require("outbox.error")
local format = require("outbox.command.common.format")
local outbox = require("outbox")

local M = {}

--- Gives a subcommand the argument DB and the options that go with it.
function M.define(command)
  command:argument("DB", "The database: a file, or a URI as SQLite reads it, file:PATH?NAME=VALUE.")
    :target("database"):argname("DB")
  command:option("--prefix", "The prefix of the names of the outbox's tables.", "outbox_")
    :argname("PREFIX")
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

--- Opens the database. If there is none, creates it, with the outbox's tables. A database that has
-- no table yet is none.
function M.create(options)
  local store, file, count = open(options, "create"), nil, nil
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
