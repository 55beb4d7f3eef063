-- Helpers of the specs: temporary databases, a clock that the spec sets, programs in processes.

local outbox = require("outbox")
local process = require("process")
local testing = require("outbox.testing")

local M = { clock = testing.clock }

local paths = {}

--- Returns a path for a new database, in memory if the system has such a file system: the specs
-- need not wait for a disk. `remove` deletes it and SQLite's files beside it.
function M.path()
  local path = os.tmpname()
  local name = path:gsub("^.*/", "/dev/shm/")
  local file = io.open(name, "w")
  if file then
    file:close()
    os.remove(path)
    path = name
  end
  paths[#paths + 1] = path
  return path
end

function M.remove()
  for _, path in ipairs(paths) do
    for _, suffix in ipairs({ "", "-wal", "-shm", "-journal" }) do
      os.remove(path .. suffix)
    end
  end
  paths = {}
end

--- Returns a store on a new, migrated database, and its path.
function M.store(options)
  local path = M.path()
  local store = outbox.open(path, options)
  store:migrate()
  return store, path
end

--- Runs SQL on a store, in a transaction; returns the rows.
function M.sql(store, sql, ...)
  local values = table.pack(...)
  return store:transaction(function(txn)
    local rows = {}
    for row in txn:rows(sql, table.unpack(values, 1, values.n)) do
      rows[#rows + 1] = row
    end
    return rows
  end)
end

--- Starts a processor in a process of its own, on a migrated database. It sleeps until a commit
-- wakes it, and ends with that message. Returns, when it is ready, a function that waits for its
-- end and returns the payload of the message.
function M.sleeping_processor(path)
  local ready, delivered = process.gate(), M.path()
  local pid = process.fork(function()
    local store <close> = outbox.open(path)
    local p
    p = outbox.processor({ store = store, process_interval = 3600, publisher = function(messages)
      if messages[1].key == "ready" then
        ready:open()
      else
        local file <close> = assert(io.open(delivered, "w"))
        file:write(messages[1].payload)
        p:stop()
      end
    end })
    store:publish({ key = "ready" })
    p:run()
  end)
  ready:wait()
  return function()
    assert(process.wait(pid) == 0)
    local file <close> = assert(io.open(delivered))
    return file:read("a")
  end
end

--- Returns the values of one field of each entry.
function M.pluck(entries, field)
  local values = {}
  for i, entry in ipairs(entries) do
    values[i] = entry[field]
  end
  return values
end

--- Calls a function that must raise an error, and returns the error.
function M.raised(fn, ...)
  local ok, problem = pcall(fn, ...)
  assert(not ok, "nothing was raised")
  return problem
end

--- Returns the command that runs a Lua program with this rock on its path.
function M.command(arguments)
  return ("env LUA_PATH='%s' LUA_CPATH='%s' %s %s"):format(package.path, package.cpath, M.lua,
    arguments)
end

--- Runs a Lua program in a process of its own; returns its output and whether it succeeded.
-- `prefix` is a command to run it with.
function M.run(arguments, prefix)
  local pipe = assert(io.popen(("%s %s 2>&1"):format(prefix or "", M.command(arguments))))
  local output = pipe:read("a")
  return output, (pipe:close())
end

local i = 0
while arg[i - 1] do
  i = i - 1
end
M.lua = arg[i]

return M
