-- Connections to a server: sends a request and reads its answer. A connection is used again after
-- an answer that was read to its end.

local client = require("http.client")
local cqueues = require("cqueues")
local errno = require("cqueues.errno")
local proxy = require("outbox.publishing.http.proxy")
local util = require("http.util")

local EXCERPT = 200 -- bytes of an answer's body that are returned
-- Seconds to wait for the body of an answer. A connection can be used again only after it was read,
-- but some bodies never end: an answer may have neither a length nor a body, on a connection that
-- stays open. Nobody needs the body of an answer that accepts the message.
local PATIENCE, GRACE = 1, 0.05
local MAX_BODY = 65536 -- bytes of a body that are read, so that the connection can be used again
local MAX_LINE = 65536 -- bytes of a header: cookies and policies exceed the 4096 of cqueues

local M = {}
local Exchange = {}
Exchange.__index = Exchange

-- Not by `connection:close()`, which reads the rest of an answer, and waits for ever if the answer
-- was cut off.
local function hang_up(connection)
  connection:take_socket():close()
end

-- Reads the first line of an answer. Some servers leave out the reason phrase and the space before
-- it, which lua-http takes for an error.
local function read_status_line(connection, timeout)
  local line, reason, number = connection.socket:xread("*L", timeout)
  if not line then
    return nil, reason, number
  end
  local version, status, phrase = line:match("^HTTP/1%.(%d) +(%d%d%d)%f[%s] *(.-)\r\n$")
  if not version then
    connection.socket:seterror("r", errno.EILSEQ)
    return nil, errno.strerror(errno.EILSEQ), errno.EILSEQ
  end
  return version == "0" and 1.0 or 1.1, status, phrase
end

-- Writes the body of a request until it is sent, or until something can be read: a server may
-- answer a request that it does not want to read, and leave the connection open.
local function write_body_plain(connection, body, timeout)
  local deadline, socket = cqueues.monotime() + timeout, connection.socket
  local sent, reason, number = socket:xwrite(body, "f", 0) -- into the buffer
  if sent then
    sent, reason, number = socket:flush("n", 0)
  end
  while number == errno.ETIMEDOUT do
    local readable, _, why = socket:fill(1, 0)
    local left = deadline - cqueues.monotime()
    if readable or why ~= errno.ETIMEDOUT or left <= 0 then
      break
    end
    cqueues.poll({ pollfd = socket:pollfd(), events = socket:events() .. "r" }, left)
    sent, reason, number = socket:flush("n", 0)
  end
  return sent, reason, number
end

-- Sets what lua-http does otherwise.
local function prepare(connection)
  connection:setmaxline(MAX_LINE)
  connection.read_status_line = read_status_line
  connection.write_body_plain = write_body_plain
  return connection
end

-- Returns a new connection to the proxy: a tunnel to the target, if that has TLS.
local function connect_by_proxy(self, left)
  local target, via = self.target, self.proxy
  local connection, reason = client.connect({ host = via.host, port = via.port, version = 1.1 },
    left())
  if not connection then
    return nil, reason
  end
  prepare(connection)
  if not target.tls then
    return connection
  end
  local authority = util.to_authority(target.host, target.port)
  local open
  open, reason = proxy.open_tunnel(connection, via, authority, left)
  local socket = connection:take_socket()
  connection = nil
  if open then
    connection, reason = client.negotiate(socket, { host = target.host, tls = true,
      ctx = self.context, version = 1.1 }, left())
  end
  if not connection then
    socket:close()
    return nil, reason
  end
  return prepare(connection)
end

-- Returns an idle connection that is still open and has nothing to read, or else a new one.
local function take(self, left)
  while self.idle[1] do
    local connection = table.remove(self.idle)
    local _, _, why = connection.socket:fill(1, 0)
    if why == errno.ETIMEDOUT then
      return connection
    end
    hang_up(connection)
  end
  if self.proxy then
    return connect_by_proxy(self, left)
  end
  local target = self.target
  local connection, reason = client.connect({ host = target.host, port = target.port,
    tls = target.tls, ctx = self.context, version = 1.1 }, left())
  return connection and prepare(connection), reason
end

-- The request as the proxy wants it, which is no tunnel.
local function address_to_proxy(self, headers)
  local authority = util.to_authority(self.target.host, self.target.port, "http")
  headers:upsert(":path", "http://" .. authority .. headers:get(":path"))
  if self.proxy.authorization then
    headers:upsert("proxy-authorization", self.proxy.authorization)
  end
end

-- Reads the body of an answer for so many seconds at most. Returns its beginning, and whether it
-- was read to its end.
local function read_body(stream, seconds)
  local deadline, excerpt, count = cqueues.monotime() + seconds, "", 0
  repeat
    local chunk, reason = stream:get_next_chunk(math.max(deadline - cqueues.monotime(), 0))
    if not chunk then
      return excerpt, not reason
    end
    excerpt, count = (excerpt .. chunk):sub(1, EXCERPT), count + #chunk
  until count > MAX_BODY
  return excerpt, false
end

-- Whether the server keeps the connection open after an answer. By default one of HTTP/1.0 closes
-- it, perhaps only after the next request was sent.
local function stays_open(stream, answer)
  local connection = (answer:get_comma_separated("connection") or ""):lower()
  return stream.peer_version > 1.0 or connection:find("keep-alive", 1, true) ~= nil
end

-- The answers 1xx announce another one, except 101, which nobody has asked for.
local function is_interim(answer)
  local status = answer:get(":status")
  return status:sub(1, 1) == "1" and status ~= "101"
end

-- A connection that is closed when its request is done, unless it was kept before.
local InUse = {
  __close = function(self)
    if self.connection then
      hang_up(self.connection)
    end
  end,
}

--- Sends a request. Returns the answer's headers and the beginning of its body, or nil and the
-- reason why there is no answer. A server may answer before it has read the whole request, so the
-- answer is read even if sending has failed. An answer counts as soon as its headers have arrived,
-- whatever becomes of its body.
function Exchange:send(headers, body)
  local deadline = cqueues.monotime() + self.timeout
  local function left()
    return math.max(deadline - cqueues.monotime(), 0)
  end
  local asks_proxy = self.proxy and not self.target.tls
  if asks_proxy then
    address_to_proxy(self, headers)
  end
  local connection, reason = take(self, left)
  if not connection then
    return nil, reason
  end
  local in_use <close> = setmetatable({ connection = connection }, InUse)
  local stream = connection:new_stream()
  local sent, answer
  sent, reason = stream:write_headers(headers, body == "", left())
  if sent and body ~= "" then
    sent, reason = stream:write_chunk(body, true, left())
  end
  repeat
    local why
    answer, why = stream:get_headers(left())
    reason = reason or why
  until not answer or not is_interim(answer)
  if not answer then
    return nil, reason or "the connection was closed"
  elseif asks_proxy and answer:get(":status") == "407" then
    return nil, "407 Proxy Authentication Required"
  end
  local seconds = answer:get(":status"):sub(1, 1) == "2" and GRACE or PATIENCE
  local ok, excerpt, ended = pcall(read_body, stream, math.min(seconds, left()))
  if sent and ok and ended and stays_open(stream, answer) then
    self.idle[#self.idle + 1], in_use.connection = connection, nil
  end
  return answer, ok and excerpt or ""
end

--- Closes the idle connections.
function Exchange:close()
  for _, connection in ipairs(self.idle) do
    hang_up(connection)
  end
  self.idle = {}
end

--- Makes an exchange with the `host` and the `port` of a target, through a proxy of
-- `outbox.publishing.http.proxy` or, if that is nil, without one. `timeout` is in seconds, for each
-- request. `context` is of TLS, if the target has it.
function M.new(target, via, timeout, context)
  return setmetatable({ target = target, proxy = via, timeout = timeout, context = context,
    idle = {} }, Exchange)
end

return M
