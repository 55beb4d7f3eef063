-- Brokers of MQTT for the specs, and what arrives there.

local cjson = require("cjson")
local outbox = require("outbox")
local process = require("process")
local server = require("spec.support.server")
local socket = require("socket")

local M = {}

local BASE = [[
user root
set_tcp_nodelay true
max_queued_messages 0
allow_anonymous true
]]

--- Returns a broker on the port, not started yet. $DIRECTORY in its configuration is its own.
function M.broker(port, config)
  local instance = server.new("mosquitto -c $DIRECTORY/config", port)
  local file <close> = assert(io.open(instance.directory .. "/config", "w"))
  config = BASE .. ("listener %d 127.0.0.1\n"):format(port) .. (config or "")
  file:write((config:gsub("%$DIRECTORY", instance.directory)))
  return instance
end

--- Publishes to the broker with a client of its own.
function M.publish(port, options)
  return os.execute(("mosquitto_pub -p %d -V 5 %s 2>/dev/null"):format(port, options))
end

--- Readers -----------------------------------------------------------------------------------

local Reader = {}
Reader.__index = Reader

local marks = 0

-- Returns the message of a line.
local function parse(line)
  local payload, json = line:match("^(%x*) (.*)$")
  local message = cjson.decode(json)
  local properties = message.properties or {}
  return {
    topic = message.topic,
    payload = payload:gsub("%x%x", function(digits)
      return string.char(tonumber(digits, 16))
    end),
    retain = message.retain == 1,
    content_type = properties["content-type"],
    expiry = properties["message-expiry-interval"],
    user = properties["user-properties"],
  }
end

-- Reads on, up to the mark or to the end of what is there. Returns whether it was the mark.
local function read(self, mark, list)
  local file <close> = assert(io.open(self.path))
  file:seek("set", self.offset)
  for line in file:lines("L") do
    if line:sub(-1) ~= "\n" then
      break
    end
    self.offset = self.offset + #line
    local message = parse(line)
    if message.topic == mark then
      return true
    elseif not message.topic:find("^mark/") then
      list[#list + 1] = message
    end
  end
end

--- Returns what has arrived since the last call. A mark is sent behind it, perhaps several, as the
-- reader may have to connect first.
function Reader:all()
  local list, deadline = {}, outbox.clock.now() + 30
  while true do
    marks = marks + 1
    local mark = "mark/" .. marks
    local sent, again = M.publish(self.port, "-t " .. mark .. " -n"), outbox.clock.now() + 1
    repeat
      if sent and read(self, mark, list) then
        return list
      end
      assert(outbox.clock.now() < deadline, "the reader hears nothing")
      outbox.clock.sleep(0.002)
    until outbox.clock.now() > again
  end
end

function Reader:close()
  process.kill(self.pid)
  os.remove(self.path)
end

--- Returns a reader of all that arrives from now on; it connects again if the broker is restarted.
-- It is sent at once what arrives: with QoS 1 some of it would wait in the broker.
function M.reader(port)
  local self = setmetatable({ port = port, path = os.tmpname(), offset = 0 }, Reader)
  local shell <close> = assert(io.popen(("exec mosquitto_sub -p %d -V 5 -q 0 -t '#' -F '%%X %%j' "
    .. ">%s 2>/dev/null </dev/null & echo $!"):format(port, self.path)))
  self.pid = math.tointeger(tonumber(shell:read("l")))
  self:all()
  return self
end

--- A broker that answers anything ------------------------------------------------------------

local function receive(connection)
  local kind, size, shift, byte = connection:receive(1), 0, 0, 128
  if not kind then
    return nil
  end
  while byte >= 128 do
    byte = connection:receive(1):byte()
    size, shift = size | (byte & 127) << shift, shift + 7
  end
  return kind:byte() >> 4, size > 0 and connection:receive(size) or ""
end

--- Starts a process that answers CONNECT with the bytes `greeting`, a message to the topic "x97"
-- with a PUBACK of this reason code, and one to "d97" with a DISCONNECT. Serves one connection.
-- Returns the port and the pid.
function M.scripted(greeting)
  local listener = assert(socket.bind("127.0.0.1", 0))
  local _, port = listener:getsockname()
  local pid = process.fork(function()
    local connection = listener:accept()
    connection:setoption("tcp-nodelay", true)
    receive(connection)
    connection:send(greeting)
    local kind, body = receive(connection)
    while kind == 3 do
      local topic, after = string.unpack(">s2", body)
      local letter, digits = topic:match("([dx])(%x%x)$")
      local code = string.char(tonumber(digits, 16))
      connection:send(letter == "d" and "\xe0\x02" .. code .. "\0"
        or "\x40\x04" .. body:sub(after, after + 1) .. code .. "\0")
      kind, body = receive(connection)
    end
  end)
  listener:close()
  return math.tointeger(tonumber(port)), pid
end

return M
