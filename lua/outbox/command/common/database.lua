-- The database that a subcommand works on.

local errors = require("outbox.error")
local format = require("outbox.command.common.format")
local outbox = require("outbox")

local M = {}

--- Gives a subcommand the argument DB and the options that go with it.
function M.define(command)
  command:argument("DB", "The database file."):target("database"):argname("DB")
  command:option("--prefix", "The prefix of the names of the outbox's tables.", "outbox_")
    :argname("PREFIX")
end

-- Returns whether there is a database at the path, and why there is none. An empty file is no
-- database. Must be called before the database is opened: if a process closes a file, it loses all
-- its locks on that file.
local function look(path)
  local file, reason = io.open(path, "rb")
  if not file then
    return false, reason
  end
  local size = file:seek("end")
  file:close()
  return size ~= 0, path .. ": the file is empty"
end

local function open(options, synchronous)
  return outbox.open(options.database, { prefix = options.prefix, synchronous = synchronous })
end

--- Opens the database. Raises if there is none.
function M.open(options, synchronous)
  local there, reason = look(options.database)
  if not there then
    error(errors.new("cantopen", reason), 0)
  end
  return open(options, synchronous)
end

--- Opens the database. If there is none, creates it, with the outbox's tables.
function M.create(options)
  local there = look(options.database)
  local store = open(options)
  if not there then
    store:migrate()
    io.stderr:write("outbox: created ", format.line(options.database), "\n")
  end
  return store
end

return M
