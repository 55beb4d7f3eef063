-- Real servers for the specs, each on its own port of the loopback interface.

local outbox = require("outbox")
local process = require("process")
local socket = require("socket")

local M = {}

local servers = {}

--- Returns a free port.
function M.port()
  local listener = assert(socket.bind("127.0.0.1", 0))
  local _, port = listener:getsockname()
  listener:close()
  return math.tointeger(tonumber(port))
end

local function answers(port)
  local connection = socket.connect("127.0.0.1", port)
  if connection then
    connection:close()
  end
  return connection ~= nil
end

-- Waits until the server answers or, if `wanted` is false, no longer does.
local function wait(server, wanted)
  local deadline = outbox.clock.now() + 60 -- RabbitMQ takes its time
  while answers(server.port) ~= wanted do
    assert(outbox.clock.now() < deadline, server.command)
    outbox.clock.sleep(0.005)
  end
end

local Server = {}
Server.__index = Server

--- Starts the server, also again after a kill. Returns when it answers.
function Server:start()
  local shell <close> = assert(io.popen(
    ("DIRECTORY=%s; exec %s >>$DIRECTORY/log 2>&1 </dev/null & echo $!")
      :format(self.directory, self.command)))
  self.pid = math.tointeger(tonumber(shell:read("l")))
  wait(self, true)
end

--- Kills the server, by default with SIGKILL. Returns when it no longer answers.
function Server:kill(signal)
  process.kill(self.pid, signal)
  self.pid = nil
  wait(self, false)
end

--- Returns a server, not started yet: a command that listens on the port. It has its own directory,
-- `$DIRECTORY`.
function M.new(command, port)
  local directory = os.tmpname()
  os.remove(directory)
  assert(os.execute("mkdir " .. directory))
  local server = setmetatable({ command = command, port = port, directory = directory }, Server)
  servers[#servers + 1] = server
  return server
end

--- Kills all started servers, and removes their directories.
function M.stop()
  for _, server in ipairs(servers) do
    if server.pid then
      server:kill()
    end
    os.execute("rm -rf " .. server.directory)
  end
  servers = {}
end

return M
