-- An HTTP proxy for the specs: proxy.lua PORT DIRECTORY. It passes requests on, and opens tunnels.
-- It appends each request that it gets as a line of JSON to the file `requests` in its directory,
-- with the `line`, the `headers`, and `connection`, the number of the connection. If there is a
-- file `refusal`, that is its answer to all requests, after which it hangs up.

local cjson = require("cjson")
local cqueues = require("cqueues")
local socket = require("cqueues.socket")

local directory = arg[2] .. "/"
local loop = cqueues.new()

local function quiet(connection)
  connection:setmode("b", "bn")
  connection:onerror(function(_, _, why)
    return why
  end)
  return connection
end

-- Reads the head of a request or of an answer. Returns its bytes, the first line and the headers.
local function read_head(connection)
  local line, lines, headers = connection:xread("*L"), {}, {}
  while line and line ~= "\r\n" do
    lines[#lines + 1] = line
    local name, value = line:match("^([^%s:]+): *(.-)\r\n$")
    if name then
      headers[name:lower()] = value
    end
    line = connection:xread("*L")
  end
  return line and table.concat(lines) .. "\r\n", lines[1], headers
end

local function note(line, headers, number)
  local log <close> = assert(io.open(directory .. "requests", "a"))
  log:write(cjson.encode({ line = line:match("^(.-)\r\n"), headers = headers,
    connection = number }), "\n")
end

-- Copies what comes from one connection to another, until the first one ends.
local function copy(from, to)
  repeat
    local bytes = from:xread(-4096)
  until not bytes or not to:xwrite(bytes)
  to:shutdown("w")
end

-- Passes on all that both connections send, until both have ended.
local function join(connection, server)
  local both = cqueues.new()
  both:wrap(copy, server, connection)
  both:wrap(copy, connection, server)
  assert(both:loop())
  server:close()
end

local function copy_body(headers, from, to)
  local length = tonumber(headers["content-length"] or 0)
  return length == 0 or to:xwrite(from:xread(length))
end

-- Serves a connection until it ends. `server` is the connection of the requests without a tunnel.
local function serve(connection, number)
  local server
  for head, line, headers in read_head, connection do
    note(line, headers, number)
    local refusal <close> = io.open(directory .. "refusal")
    local host, port = line:match("^CONNECT ([^ ]+):(%d+) ")
    if refusal then
      connection:xwrite(refusal:read("a"))
      break
    elseif host then
      server = quiet(socket.connect(host, tonumber(port)))
      -- The length says nothing here; some proxies send one nevertheless.
      connection:xwrite("HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
      join(connection, server)
      break
    else
      local authority, path = line:match("^%u+ http://([^/]+)(%S*)")
      host, port = authority:match("^(.-):(%d+)$")
      server = server or quiet(socket.connect(host, tonumber(port)))
      local passed = head:gsub("http://%S+", function()
        return path
      end, 1):gsub("\r\nproxy%-authorization:[^\r]*", "")
      server:xwrite(passed)
      copy_body(headers, connection, server)
      local answer, _, answer_headers = read_head(server)
      connection:xwrite(answer)
      copy_body(answer_headers, server, connection)
    end
  end
  connection:close()
end

local listener = assert(socket.listen("127.0.0.1", tonumber(arg[1])))
loop:wrap(function()
  local number = 0
  for connection in listener:clients() do
    number = number + 1
    loop:wrap(serve, quiet(connection), number)
  end
end)
assert(loop:loop())
