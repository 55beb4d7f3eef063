-- What the http publisher makes of answers, byte for byte. The receiver is a plain socket in the
-- same process.

local cqueues = require("cqueues")
local outbox = require("outbox")
local socket = require("cqueues.socket")

local HEAD = "HTTP/1.1 200 OK\r\n"

-- Reads a request up to the empty line, without its body. Returns whether there was one.
local function read_request(connection)
  local line
  repeat
    line = connection:xread("*L")
  until not line or line:find("^\r?\n")
  return line ~= nil
end

-- Delivers messages to a receiver that answers each request with the bytes `answer`, or by the
-- function `answer(connection)`, and keeps the connection open. Returns what `publish` returned,
-- how long it took, and the number of connections.
local function deliver(answer, count, options, payload)
  local listener = assert(socket.listen("127.0.0.1", 0))
  local _, _, port = listener:localname()
  local loop = cqueues.new()
  local failures, reason, seconds, connections = nil, nil, nil, 0
  loop:wrap(function()
    for connection in listener:clients() do
      connection:onerror(function(_, _, why)
        return why
      end)
      connections = connections + 1
      loop:wrap(function()
        while read_request(connection) do
          if type(answer) == "function" then
            answer(connection)
          else
            connection:xwrite(answer, "bn")
          end
        end
        connection:close()
      end)
    end
  end)
  loop:wrap(function()
    local publisher <close> = outbox.publisher("http://127.0.0.1:" .. port, options)
    local messages = {}
    for i = 1, count or 1 do
      messages[i] = { id = tostring(i), namespace = "", created_at = 1, attempts = 0,
        payload = payload }
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

  it("uses a connection of HTTP/1.0 again only if the server says so", function()
    for _, case in ipairs({ { "HTTP/1.0", "", 3 }, { "HTTP/1.0", "connection: keep-alive\r\n", 1 },
      { "HTTP/1.0", "Connection: Keep-Alive\r\n", 1 }, { "HTTP/1.1", "", 1 },
      { "HTTP/1.1", "connection: close\r\n", 3 }, { "HTTP/1.0", "connection: close\r\n", 3 } }) do
      local version, header, wanted = table.unpack(case)
      local failures, _, _, connections = deliver(
        ("%s 200 OK\r\n%scontent-length: 2\r\n\r\nok"):format(version, header), 3,
        { concurrency = 1 })
      assert.same({ {}, wanted }, { failures, connections })
    end
  end)

  it("does not wait for a body that never comes: the status is known", function()
    for _, case in ipairs({ { "200 OK" }, { "204 No Content" }, { "302 Found" },
      { "304 Not Modified" }, { "422 Unprocessable Entity" }, { "404 Not Found" },
      { "500 Internal Server Error" }, { "503 Service Unavailable", "content-length: 7\r\n" },
      { "400 Bad Request", "transfer-encoding: chunked\r\n" } }) do
      local status, header = table.unpack(case)
      local failures, reason, seconds = deliver(
        ("HTTP/1.1 %s\r\n%s\r\n"):format(status, header or ""), 1, { timeout = 25 })
      if status:find("^2") then
        assert.same({}, failures)
      else
        assert.equal(status, reason or failures[1].reason)
      end
      assert.is_true(seconds < 10, status)
    end
  end)

  it("reads the beginning of a body that trickles for ever", function()
    for _, status in ipairs({ "200 OK", "404 Not Found" }) do
      local function trickle(connection)
        connection:xwrite(("HTTP/1.1 %s\r\n\r\nno such"):format(status), "bn")
        while connection:xwrite(".", "bn") do
          cqueues.sleep(0.1)
        end
      end
      local failures, reason, seconds = deliver(trickle, 1, { timeout = 25 })
      assert.is_true(seconds < 10, status)
      if status == "200 OK" then
        assert.same({}, failures)
      else
        assert.matches("^404 Not Found no such%.+$", reason)
      end
    end
  end)

  it("is not misled by a body that is broken: the status is known", function()
    for _, rest in ipairs({ "content-length: -5\r\n\r\n",
      "transfer-encoding: chunked\r\n\r\nx\r\n",
      "transfer-encoding: chunked\r\n\r\nfffffffff\r\n" }) do
      assert.same({}, (deliver(HEAD .. rest)))
    end
  end)

  it("waits for the answer that an interim one announces", function()
    local failures, _, _, connections = deliver("HTTP/1.1 100 Continue\r\n\r\n"
      .. "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" .. HEAD .. "content-length: 0\r\n\r\n",
      3, { concurrency = 1 })
    assert.same({ {}, 1 }, { failures, connections })
    local _, reason = deliver("HTTP/1.1 100 Continue\r\n\r\n", 1, { timeout = 0.1 })
    assert.matches("timed out", reason)
    _, reason = deliver("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", 1,
      { timeout = 25 })
    assert.equal("101 Switching Protocols", reason)
  end)

  it("understands an answer that comes before the request was read", function()
    local payload = ("x"):rep(32 * 1024 * 1024) -- more than the system keeps for a reader
    for _, closes in ipairs({ false, true }) do
      local failures, _, seconds = deliver(function(connection)
        connection:xwrite("HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig", "bn")
        if closes then
          connection:shutdown("w")
        end
        cqueues.sleep(60)
      end, 1, { timeout = 25 }, payload)
      assert.equal("413 Request Entity Too Large big", failures[1].reason)
      assert.is_true(failures[1].permanent)
      assert.is_true(seconds < 10)
    end
  end)

  it("takes an answer for what its headers say, wherever it is cut off", function()
    local heads = { HEAD .. "content-length: 3\r\n\r\n",
      "HTTP/1.1 422 No\r\ntransfer-encoding: chunked\r\n\r\n" }
    for i, bytes in ipairs({ heads[1] .. "bad", heads[2] .. "3\r\nbad\r\n0\r\n\r\n" }) do
      for length = 0, #bytes do
        local failures, reason = deliver(function(connection)
          connection:xwrite(bytes:sub(1, length), "bn")
          connection:shutdown("w")
        end)
        if length < #heads[i] then
          assert.is_nil(failures)
          assert.matches("^127%.0%.0%.1:%d+: ", reason)
        elseif i == 1 then
          assert.same({}, failures)
        else
          assert.matches("^422 Unprocessable Entity", failures[1].reason)
          assert.is_true(failures[1].permanent)
        end
      end
    end
  end)
end)
