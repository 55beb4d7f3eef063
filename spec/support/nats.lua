-- NATS servers with JetStream for the specs, and a client of their own, in Lua, for what their
-- streams have.

local cjson = require("cjson")
local mime = require("mime")
local process = require("process")
local server = require("spec.support.server")
local socket = require("socket")

local M = {}

--- Returns a server, not started yet. `config` is more of its configuration, in which `$DIRECTORY`
-- is the server's directory.
function M.new(config)
  local port = server.port()
  local instance = server.new(("nats-server -c $DIRECTORY/config -a 127.0.0.1 -p %d"):format(port),
    port)
  local file <close> = assert(io.open(instance.directory .. "/config", "w"))
  file:write(("jetstream { store_dir: $DIRECTORY/store }\n%s\n"):format(config or "")
    :gsub("$DIRECTORY", instance.directory), "")
  return instance
end

--- Has a server stand still until `continue`. Returns when all of its threads do, because they
-- do not stop at once.
function M.pause(instance)
  process.kill(instance.pid, 19) -- SIGSTOP
  repeat
    local pipe <close> = assert(io.popen(("cat /proc/%d/task/*/stat"):format(instance.pid)))
    local all = true
    for line in pipe:lines() do
      all = all and line:find("^.*%) T ") ~= nil
    end
  until all
end

function M.continue(instance)
  process.kill(instance.pid, 18) -- SIGCONT
end

local Client = {}
Client.__index = Client

local function send(self, ...)
  assert(self.socket:send(table.concat({ ... }, "\r\n") .. "\r\n"))
end

-- The payload of the next message.
local function receive(self)
  while true do
    local line = assert(self.socket:receive("*l"))
    local size = line:match("^MSG .- (%d+)$")
    if size then
      local payload = assert(self.socket:receive(math.tointeger(size) + 2)):sub(1, -3)
      return payload
    elseif line == "PING" then
      send(self, "PONG")
    end
    assert(not line:find("^%-ERR") and not line:find("^HMSG"), line)
  end
end

-- Sends requests to the API of JetStream, in one go; returns the answers.
local function request(self, subject, bodies)
  local lines, answers = {}, {}
  for i, body in ipairs(bodies) do
    lines[i] = ("PUB $JS.API.%s inbox %d\r\n%s"):format(subject, #body, body)
  end
  send(self, table.unpack(lines))
  for i = 1, #bodies do
    answers[i] = cjson.decode(receive(self))
    assert(not answers[i].error, answers[i].error and answers[i].error.description)
  end
  return table.unpack(answers)
end

--- Makes a stream.
function Client:stream(name, subject, config)
  local all = { name = name, subjects = { subject }, retention = "limits", storage = "file",
    num_replicas = 1 }
  for field, value in pairs(config or {}) do
    all[field] = value
  end
  request(self, "STREAM.CREATE." .. name, { cjson.encode(all) })
end

--- Removes all messages of a stream.
function Client:purge(name)
  request(self, "STREAM.PURGE." .. name, { "" })
end

--- Removes a stream.
function Client:delete(name)
  request(self, "STREAM.DELETE." .. name, { "" })
end

--- Returns the state of a stream: `messages`, `last_seq` and so on.
function Client:state(name)
  return request(self, "STREAM.INFO." .. name, { "" }).state
end

--- Returns the messages of a stream, each with its `subject`, `payload` and `headers`, a table.
function Client:messages(name)
  local state, list, bodies = self:state(name), {}, {}
  for seq = state.first_seq, state.last_seq do
    bodies[#bodies + 1] = ('{"seq":%d}'):format(seq)
    if #bodies == 100 or seq == state.last_seq then
      for _, answer in ipairs({ request(self, "STREAM.MSG.GET." .. name, bodies) }) do
        local message, headers = answer.message, {}
        for key, value in (mime.unb64(message.hdrs or "")):gmatch("([^\r\n:]+): ([^\r\n]*)") do
          assert(headers[key] == nil, key)
          headers[key] = value
        end
        list[#list + 1] = { subject = message.subject, headers = headers,
          payload = message.data and mime.unb64(message.data) or "" }
      end
      bodies = {}
    end
  end
  return list
end

function Client:close()
  self.socket:close()
end

--- Returns a client. `login` is fields of the protocol's CONNECT.
function M.connect(port, login)
  local client = setmetatable({ socket = assert(socket.connect("127.0.0.1", port)) }, Client)
  client.socket:setoption("tcp-nodelay", true)
  login = login or {}
  login.verbose, login.pedantic = false, false
  send(client, "CONNECT " .. cjson.encode(login), "SUB inbox 1")
  return client
end

return M
