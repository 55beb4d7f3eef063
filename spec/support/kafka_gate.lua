-- A gate before a Kafka cluster, for the specs, because mock brokers have neither TLS nor SASL:
-- kafka_gate.lua PORT CLUSTER_PORT DIRECTORY [LOGIN]. It speaks TLS if its directory has a
-- `server.pem`, with certificate and key; it asks clients for a certificate of `client_ca.pem` if
-- that is there. LOGIN is what clients must send with the mechanism PLAIN, "USER:PASSWORD". All
-- other requests go to the cluster, and its answers come back with the port of the gate.

local cqueues = require("cqueues")
local context = require("openssl.ssl.context")
local pkey = require("openssl.pkey")
local socket = require("cqueues.socket")
local store = require("openssl.x509.store")
local x509 = require("openssl.x509")

local port, cluster_port, directory, login = math.tointeger(tonumber(arg[1])),
  math.tointeger(tonumber(arg[2])), arg[3] .. "/", arg[4]
local API_VERSIONS, HANDSHAKE, AUTHENTICATE = 18, 17, 36
local LOGIN_FAILED, MINE = 58, string.pack(">i2i2i2i2i2i2", HANDSHAKE, 0, 1, AUTHENTICATE, 0, 0)

local function read(name)
  local file <close> = io.open(directory .. name)
  return file and file:read("a")
end

local tls
if read("server.pem") then
  tls = context.new("TLS", true)
  tls:setCertificate(x509.new(read("server.pem")))
  tls:setPrivateKey(pkey.new(read("server.pem")))
  local client_ca = read("client_ca.pem")
  if client_ca then
    tls:setStore(store.new():add(x509.new(client_ca)))
    tls:setVerify(context.VERIFY_PEER | context.VERIFY_FAIL_IF_NO_PEER_CERT)
  end
end

local function receive(connection)
  local size = connection:read(4)
  return size and connection:read((string.unpack(">I4", size)))
end

local function send(connection, frame)
  return connection:write(string.pack(">s4", frame)) and connection:flush()
end

-- Returns the answer to a request of SASL, and whether the client is logged in now; nil to any
-- other one.
local function answer(api, request)
  local correlation, client_size = request:sub(5, 8), string.unpack(">i2", request, 9)
  local rest = request:sub(11 + math.max(client_size, 0))
  if not login then
    return nil
  elseif api == HANDSHAKE then
    return correlation .. string.pack(">i2i4s2", 0, 1, "PLAIN")
  elseif api == AUTHENTICATE then
    local user, password = string.unpack(">s4", rest):match("^%z([^%z]*)%z([^%z]*)$")
    local ok = user and user .. ":" .. password == login
    return correlation .. (ok and string.pack(">i2i2s4", 0, -1, "")
      or string.pack(">i2s2s4", LOGIN_FAILED, "wrong password", "")), ok
  end
end

local function edit(api, version, response)
  if api == API_VERSIONS and login and version < 3 then -- the cluster knows no later version
    local problem, count = string.unpack(">i2i4", response, 5)
    response = response:sub(1, 4) .. string.pack(">i2i4", problem, count + 2) .. MINE
      .. response:sub(11)
  end
  local address = "127.0.0.1" .. string.pack(">i4", cluster_port)
  return (response:gsub(address:gsub("%W", "%%%0"), "127.0.0.1" .. string.pack(">i4", port)
    :gsub("%%", "%%%%")))
end

local function serve(connection)
  connection:setmode("b", "b")
  if tls and not connection:starttls(tls) then
    return
  end
  local cluster = socket.connect("127.0.0.1", cluster_port)
  cluster:setmode("b", "b")
  local logged_in = login == nil
  for request in receive, connection do
    local api, version = string.unpack(">i2i2", request)
    local response, ok = answer(api, request)
    logged_in = logged_in or ok
    if not response then
      if not logged_in and api ~= API_VERSIONS then
        break
      end
      send(cluster, request)
      response = receive(cluster)
      if not response then
        break
      end
      response = edit(api, version, response)
    end
    send(connection, response)
  end
  cluster:close()
end

local loop, listener = cqueues.new(), socket.listen("127.0.0.1", port)
loop:wrap(function()
  for connection in listener:clients() do
    connection:onerror(function(_, _, code)
      return code
    end)
    loop:wrap(function()
      pcall(serve, connection)
      connection:close()
    end)
  end
end)
assert(loop:loop())
