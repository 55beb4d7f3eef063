-- What the http publisher makes of answers, byte for byte. The receiver is a plain socket in the
-- same process.

local cqueues = require("cqueues")
local outbox = require("outbox")
local socket = require("cqueues.socket")

local HEAD = "HTTP/1.1 200 OK\r\n"

-- Reads a request without a body, up to the empty line. Returns whether there was one.
local function read_request(connection)
  local line
  repeat
    line = connection:xread("*L")
  until not line or line:find("^\r?\n")
  return line ~= nil
end

-- Delivers messages to a receiver that answers each request with `bytes`, and keeps the connection
-- open. Returns what the publisher answers, how long it took, and the number of connections.
local function deliver(bytes, count, options)
  local listener = assert(socket.listen("127.0.0.1", 0))
  local _, _, port = listener:localname()
  local loop = cqueues.new()
  local failures, reason, seconds, connections = nil, nil, nil, 0
  loop:wrap(function()
    for connection in listener:clients() do
      connections = connections + 1
      loop:wrap(function()
        while read_request(connection) do
          connection:xwrite(bytes, "bn")
        end
        connection:close()
      end)
    end
  end)
  loop:wrap(function()
    local publisher <close> = outbox.publisher("http://127.0.0.1:" .. port, options)
    local messages = {}
    for i = 1, count or 1 do
      messages[i] = { id = tostring(i), namespace = "", created_at = 1, attempts = 0 }
    end
    local start = cqueues.monotime()
    failures, reason = publisher:publish(messages, "")
    seconds = cqueues.monotime() - start
  end)
  local deadline = cqueues.monotime() + 30
  repeat
    assert(loop:step(1))
  until seconds or cqueues.monotime() > deadline
  listener:close()
  return failures, reason, seconds, connections
end

describe("the http publisher", function()
  it("understands a status line without a reason phrase", function()
    for _, line in ipairs({ "HTTP/1.1 200", "HTTP/1.1 200 ", "HTTP/1.0 200", "HTTP/1.1 200  OK",
      "HTTP/1.1  200 OK", "HTTP/1.1 299" }) do
      local failures, reason = deliver(line .. "\r\ncontent-length: 0\r\n\r\n")
      assert.same({ {}, nil }, { failures, reason })
    end
    local failures, reason = deliver("HTTP/1.1 404\r\ncontent-length: 4\r\n\r\ngone")
    assert.is_nil(failures)
    assert.equal("404 Not Found gone", reason)
  end)

  it("takes what is no status line for no answer", function()
    for _, line in ipairs({ "HTTP/1.1 20", "HTTP/1.1 2000", "HTTP/1.1 200OK", "HTTP/1.1", "200 OK",
      "SSH-2.0-OpenSSH_9.2" }) do
      local failures, reason = deliver(line .. "\r\n\r\n", 1, { timeout = 1 })
      assert.is_nil(failures)
      assert.matches("^127%.0%.0%.1:%d+: ", reason)
    end
  end)

  it("does not wait for the body of a 2xx", function()
    for _, rest in ipairs({ "content-length: 5\r\n\r\n", "content-length: 5\r\n\r\nhal",
      "transfer-encoding: chunked\r\n\r\n", "transfer-encoding: chunked\r\n\r\n3\r\nhal\r\n",
      "\r\n" }) do
      local failures, reason, seconds = deliver(HEAD .. rest, 3, { timeout = 20, concurrency = 1 })
      assert.same({ {}, nil }, { failures, reason })
      assert.is_true(seconds < 2)
    end
  end)

  it("uses a connection again if the body of a 2xx has arrived", function()
    for _, rest in ipairs({ "content-length: 0\r\n\r\n", "content-length: 5\r\n\r\nhallo",
      "transfer-encoding: chunked\r\n\r\n3\r\nhal\r\n0\r\n\r\n" }) do
      local failures, _, _, connections = deliver(HEAD .. rest, 5, { concurrency = 1 })
      assert.same({ {}, 1 }, { failures, connections })
    end
  end)
end)
