-- PostgreSQL for the specs. The server is that of OUTBOX_TEST_URL, which tools/test starts; each
-- test has a schema of its own there. A spec that stops or kills its server starts one for itself.

local busted = require("busted")

local M = {}

--- The URL of the server, or nil without one.
function M.url()
  local url = os.getenv("OUTBOX_TEST_URL")
  return url ~= "" and url or nil
end

--- Returns `block` (`describe` or `it`) where there is a server, and the build under test has the
-- engine. Otherwise returns busted's `pending`. For specs that need a server, whichever engine the
-- others are run on.
function M.where_there_is(block)
  local engine = package.searchpath("outbox.postgres", package.cpath)
  return M.url() and engine and block or busted.pending
end

-- tools/postgres and psql must not be run under AddressSanitizer: they have leaks of their own.
local function run(command, input)
  local name = os.tmpname()
  local file = assert(io.open(name, "wb"))
  file:write(input or "")
  file:close()
  local pipe = assert(io.popen(("env -u LD_PRELOAD %s <%s 2>&1"):format(command, name)))
  local output = pipe:read("a")
  local ok = pipe:close()
  os.remove(name)
  return ok, output
end

local function succeed(command, input)
  local ok, output = run(command, input)
  if not ok then
    error(output, 0)
  end
  return output
end

local function quote(text)
  return "'" .. text:gsub("'", "'\\''") .. "'"
end

local psql

--- Runs SQL with psql; returns what it prints: a line for each row, without the last line's end.
-- Columns are separated by "|", and NULL is empty. Raises the message when a statement fails.
function M.sql(url, text)
  psql = psql or succeed("tools/postgres bin"):gsub("%s+$", "") .. "/psql"
  local output = succeed(("%s -qAtX -v ON_ERROR_STOP=1 -f - %s"):format(psql, quote(url)),
    "SET client_min_messages = warning;\n" .. text)
  return (output:gsub("\n$", ""))
end

local schemas = {}

--- Makes a new, empty schema. Returns a URL for which it is the only one, and its name.
function M.schema()
  local url = assert(M.url(), "OUTBOX_TEST_URL is not set")
  local random <close> = assert(io.open("/dev/urandom", "rb"))
  local name = "test_" .. random:read(8):gsub(".", function(byte)
    return ("%02x"):format(byte:byte())
  end)
  M.sql(url, ("CREATE SCHEMA %s"):format(name))
  schemas[#schemas + 1] = name
  return ("%s%soptions=-csearch_path%%3D%s"):format(url, url:find("?", 1, true) and "&" or "?",
    name), name
end

-- Nobody may still work in a schema when it is dropped, but its connections may live on. If one
-- holds a transaction open, this fails rather than waits.
local function drop(names)
  local statements = { "SET lock_timeout = '10s';" }
  for i, name in ipairs(names) do
    statements[i + 1] = ("DROP SCHEMA IF EXISTS %s CASCADE;"):format(name)
  end
  M.sql(M.url(), table.concat(statements, "\n"))
end

--- Drops this schema.
function M.drop(name)
  for i, known in ipairs(schemas) do
    if known == name then
      table.remove(schemas, i)
      break
    end
  end
  drop({ name })
end

--- Drops all schemas that were made.
function M.remove()
  local names = schemas
  schemas = {}
  if #names > 0 then
    drop(names)
  end
end

local servers = {}

local Server = {}
Server.__index = Server

local function act(server, action, settings, primary)
  local words = { "tools/postgres", action, quote(server.folder) }
  words[4] = primary and quote(primary.folder)
  for name, value in pairs(settings or {}) do
    words[#words + 1] = quote(("%s=%s"):format(name, value))
  end
  return (succeed(table.concat(words, " ")):gsub("%s+$", ""))
end

--- Starts it, also again after a crash. Returns when it answers. The settings are added to those of
-- before.
function Server:start(settings)
  self.url = act(self, "start", settings)
end

--- Ends it as an administrator does, and starts it again.
function Server:restart(settings)
  self.url = act(self, "restart", settings)
end

--- Kills all of its processes with SIGKILL.
function Server:crash()
  act(self, "crash")
end

--- Makes it a standby of a server that runs, a copy of it with these settings besides. What it had
-- is removed.
function Server:follow(primary, settings)
  act(self, "stop")
  self.url = act(self, "standby", settings, primary)
end

--- Makes a primary of a standby.
function Server:promote()
  act(self, "promote")
end

local function add_server()
  local folder = os.tmpname()
  os.remove(folder)
  local server = setmetatable({ folder = folder }, Server)
  servers[#servers + 1] = server
  return server
end

--- Starts a server that only the calling spec uses, with these settings; its URL is `url`. It takes
-- a second or two. The spec must call `stop`.
function M.server(settings)
  local server = add_server()
  server:start(settings)
  return server
end

--- The same for a standby of such a server.
function M.standby(primary, settings)
  local server = add_server()
  server.url = act(server, "standby", settings, primary)
  return server
end

--- Starts a PgBouncer before such a server, whose clients share one session: each has it for a
-- transaction. `url` leads to it.
function M.pooler(server)
  local pooler = add_server()
  pooler.url = act(pooler, "pool", nil, server)
  return pooler
end

--- Whether PgBouncer is installed.
function M.has_pooler()
  return (os.execute("PATH=$PATH:/usr/sbin command -v pgbouncer >/dev/null"))
end

--- Returns a URL with the hosts of several servers, in this order, and these parameters.
function M.hosts(list, parameters)
  local hosts = {}
  for i, server in ipairs(list) do
    hosts[i] = server.url:match("@(.-)/")
  end
  return ("postgresql://postgres@%s/postgres?%s"):format(table.concat(hosts, ","), parameters)
end

--- Ends the servers that were started by `server`, and removes all that they have written.
function M.stop()
  local all = servers
  servers = {}
  for _, server in ipairs(all) do
    act(server, "stop")
  end
end

return M
