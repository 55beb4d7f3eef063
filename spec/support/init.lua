-- Helpers of the specs: temporary databases, a clock that the spec sets, programs in processes.
--
-- The specs of the database run on SQLite, and again on PostgreSQL if OUTBOX_TEST_ENGINE is
-- `postgres`. `store` and `database` give each test a database of that engine. Where a spec opens a
-- file or speaks SQLite's SQL, `only` leaves it to SQLite.

local busted = require("busted")
local outbox = require("outbox")
local postgres = require("spec.support.postgres")
local process = require("process")
local testing = require("outbox.testing")

local M = { clock = testing.clock, engine = os.getenv("OUTBOX_TEST_ENGINE") or "sqlite" }
assert(M.engine == "sqlite" or M.engine == "postgres", "OUTBOX_TEST_ENGINE: sqlite or postgres")

local paths = {}

--- Returns `block` (`describe` or `it`) if the specs run on this engine. Otherwise returns
-- busted's `pending`, which counts what it takes the place of, and runs nothing of it. For a whole
-- file: `local describe = support.only("sqlite", describe)`.
function M.only(engine, block)
  return engine == M.engine and block or busted.pending
end

--- A name of letters that SQL, C or files give a meaning to. SQLite takes any bytes for an id, a
-- namespace, a key and a processor id; PostgreSQL takes text alone.
M.ODD = M.engine == "sqlite" and "\0\255'\n\\%" or "\1é'\n\\%"

--- Returns a path for a new file, in memory if the system has such a file system: the specs need
-- not wait for a disk. `remove` deletes it and SQLite's files beside it.
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

--- Returns the name of a new, empty database, as outbox.open takes it: a path, or the URL of a new
-- schema. `remove` deletes it.
function M.database()
  return M.engine == "postgres" and postgres.schema() or M.path()
end

function M.remove()
  for _, path in ipairs(paths) do
    for _, suffix in ipairs({ "", "-wal", "-shm", "-journal" }) do
      os.remove(path .. suffix)
    end
  end
  paths = {}
  postgres.remove()
end

--- Returns a store on a new, migrated database, and its path or URL.
function M.store(options)
  local path = M.database()
  local store = outbox.open(path, options)
  store:migrate()
  return store, path
end

--- Returns SQL with its parameters, `?` or `?1`, as the engine writes them. It has no other `?`.
function M.portable(sql)
  if M.engine == "sqlite" then
    return sql
  end
  local count = 0
  return (sql:gsub("%?(%d*)", function(number)
    count = count + 1
    return "$" .. (number ~= "" and number or count)
  end))
end

--- Runs SQL on a store, in a transaction; returns the rows. Parameters are `?` on both engines.
function M.sql(store, sql, ...)
  sql = M.portable(sql)
  local values = table.pack(...)
  return store:transaction(function(txn)
    local rows = {}
    for row in txn:rows(sql, table.unpack(values, 1, values.n)) do
      rows[#rows + 1] = row
    end
    return rows
  end)
end

--- For `store:transaction`: keeps every other writer waiting until the coroutine is resumed. On
-- SQLite any transaction does.
function M.keep_busy(txn)
  if M.engine == "postgres" then
    txn:execute("LOCK TABLE outbox_entries, outbox_claims IN ACCESS EXCLUSIVE MODE")
  end
  coroutine.yield()
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
