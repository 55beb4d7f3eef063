-- Connections to a server: sends a request and reads its answer. A connection is used again after
-- an answer that was read to its end.

local client = require("http.client")
local cqueues = require("cqueues")
local errno = require("cqueues.errno")

local EXCERPT = 200 -- bytes of an answer's body that are returned
-- Seconds to wait for the body of an answer that accepts the message. Nobody needs the body, but a
-- connection can be used again only after it was read.
local GRACE = 0.05
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

-- Returns an idle connection that is still open and has nothing to read, or else a new one.
local function take(self, seconds)
  while self.idle[1] do
    local connection = table.remove(self.idle)
    local _, _, why = connection.socket:fill(1, 0)
    if why == errno.ETIMEDOUT then
      return connection
    end
    hang_up(connection)
  end
  local connection, reason = client.connect({
    host = self.target.host, port = self.target.port, tls = self.target.tls, ctx = self.context,
    version = 1.1,
  }, seconds)
  if connection then
    connection:setmaxline(MAX_LINE)
    connection.read_status_line = read_status_line
  end
  return connection, reason
end

--- Sends a request. Returns the answer's headers and the beginning of its body, or nil and the
-- reason why there is no answer. A server may answer before it has read the whole request, so the
-- answer is read even if sending has failed. An answer that accepts the message counts without its
-- body.
function Exchange:send(headers, body)
  local deadline = cqueues.monotime() + self.timeout
  local function left()
    return math.max(deadline - cqueues.monotime(), 0)
  end
  local connection, reason = take(self, left())
  if not connection then
    return nil, reason
  end
  local stream = connection:new_stream()
  local sent, answer, excerpt, more
  sent, reason = stream:write_headers(headers, body == "", left())
  if sent and body ~= "" then
    sent, reason = stream:write_chunk(body, true, left())
  end
  repeat
    local why
    answer, why = stream:get_headers(left())
    reason = reason or why
  until not answer or answer:get(":status"):sub(1, 1) ~= "1"
  if answer then
    if answer:get(":status"):sub(1, 1) == "2" then
      deadline = math.min(deadline, cqueues.monotime() + GRACE)
    end
    excerpt = stream:get_body_chars(EXCERPT, left())
    more, reason = stream:get_next_chunk(left())
  end
  if sent and answer and not more and not reason then
    self.idle[#self.idle + 1] = connection
  else
    hang_up(connection)
  end
  if answer then
    return answer, excerpt
  end
  return nil, reason or "the connection was closed"
end

--- Closes the idle connections.
function Exchange:close()
  for _, connection in ipairs(self.idle) do
    hang_up(connection)
  end
  self.idle = {}
end

--- Makes an exchange with the `host` and the `port` of a target. `timeout` is in seconds, for each
-- request. `context` is of TLS, if the target has it.
function M.new(target, timeout, context)
  return setmetatable({ target = target, timeout = timeout, context = context, idle = {} },
    Exchange)
end

return M
