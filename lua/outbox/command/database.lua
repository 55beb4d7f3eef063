-- The database that a subcommand works on.

local outbox = require("outbox")
local problem = require("outbox.problem")

local M = {}

--- Gives a subcommand its argument DB and the options that go with it.
function M.define(command)
  command:argument("DB", "The database file."):target("database"):argname("DB")
  command:option("--prefix", "What the names of the outbox's tables begin with.", "outbox_")
    :argname("PREFIX")
end

-- Whether there is a database at the path: an empty file is none yet. To be asked before it is
-- opened, for a process that closes a file gives up all its locks on it.
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

--- Opens the database, which must be there.
function M.open(options, synchronous)
  local there, reason = look(options.database)
  if not there then
    error(problem.new("cantopen", reason), 0)
  end
  return open(options, synchronous)
end

--- Opens the database; where there is none, makes one, with the outbox's tables.
function M.create(options)
  local there = look(options.database)
  local store = open(options)
  if not there then
    store:migrate()
    io.stderr:write("outbox: created ", options.database, "\n")
  end
  return store
end

return M
