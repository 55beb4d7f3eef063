local cqueues = require("cqueues")
local outbox = require("outbox")
local process = require("process")
local server = require("spec.support.server")
local socket = require("socket")
local support = require("spec.support")
local webhook = require("spec.support.webhook")

local answer, event, events = webhook.answer, webhook.event, webhook.events
local new_server, publish, requests = webhook.new_server, webhook.publish, webhook.requests

describe("the http publisher", function()
  setup(webhook.start)

  teardown(server.stop)

  before_each(webhook.reset)

  after_each(support.remove)

  -- The URL of a server that gives each of these answers to a request of its own, and hangs up.
  local function serve(answers)
    local listener = assert(socket.bind("127.0.0.1", 0))
    local _, port = listener:getsockname()
    local pid = process.fork(function()
      for _, bytes in ipairs(answers) do
        local connection = listener:accept()
        repeat
          local line = connection:receive("*l")
        until line == ""
        connection:send(bytes)
        connection:close()
      end
    end)
    listener:close()
    finally(function()
      process.kill(pid)
      process.wait(pid)
    end)
    return "http://127.0.0.1:" .. port
  end

  it("connects again if the server has closed the connection", function()
    local publisher <close> = outbox.publisher(webhook.url)
    assert.same({}, publisher:publish(events(1), "orders"))
    webhook.instance:kill()
    webhook.instance:start()
    assert.same({}, publisher:publish(events(1), "orders"))
    answer({ ["*"] = { status = 200, headers = { connection = "close" }, body = "ok" } })
    assert.same({}, publisher:publish(events(1), "orders"))
    assert.same({}, publisher:publish(events(1), "orders"))
    assert.equal(4, #requests())
  end)

  it("closes the connection and goes on if an answer is cut off", function()
    local cut_off = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
    local output = support.run(([[-e '
      local publisher <close> = require("outbox").publisher("%s")
      for id = 1, 2 do
        local failures = publisher:publish({ { id = tostring(id), created_at = 1 } }, "n")
        print(next(failures))
      end']]):format(serve({ cut_off, cut_off })), "timeout 30")
    assert.equal("nil\nnil\n", output)
  end)

  it("reads headers as long as servers send them", function()
    local publisher <close> = outbox.publisher(serve({ ("HTTP/1.1 200 OK\r\nset-cookie: %s\r\n"
      .. "content-length: 0\r\n\r\n"):format(("x"):rep(60000)) }))
    assert.same({}, publisher:publish(events(1), "orders"))
  end)

  it("signs as Standard Webhooks does", function()
    local key, id = "0123456789abcdef01234567", "id.1"
    local secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"
    local before = os.time()
    publish({ event(id, { payload = "the body" }) }, { secret = secret })
    local list = events(2)
    publish(list, { secret = secret, mode = "batched" })
    publish(list, { secret = secret, mode = "batched" })
    publish({ list[1] }, { secret = secret, mode = "batched" })
    local made = requests()
    for _, request in ipairs(made) do
      local headers, path = request.headers, support.path()
      local file <close> = assert(io.open(path, "w"))
      file:write(headers["webhook-id"], ".", headers["webhook-timestamp"], ".", request.body)
      file:close()
      local openssl <close> = assert(io.popen(("openssl dgst -sha256 -hmac %s -binary %s | "
        .. "openssl base64"):format(key, path)))
      assert.equal("v1," .. openssl:read("l"), headers["webhook-signature"])
      local timestamp = tonumber(headers["webhook-timestamp"])
      assert.is_true(timestamp >= before and timestamp <= os.time())
    end
    assert.equal("id%2E1", made[1].headers["webhook-id"])
    assert.equal(made[2].headers["webhook-id"], made[3].headers["webhook-id"])
    assert.not_equal(made[2].headers["webhook-id"], made[4].headers["webhook-id"])
  end)

  it("yields to the loop of cqueues that it is called in", function()
    answer({ ["*"] = { crowd = 2 } })
    local loop, done = cqueues.new(), {}
    for i = 1, 2 do
      loop:wrap(function()
        local publisher <close> = outbox.publisher(webhook.url)
        done[i] = publisher:publish(events(1), "orders")
      end)
    end
    assert(loop:loop())
    assert.same({ {}, {} }, done)
  end)

  it("verifies the certificate of the server", function()
    local secure = new_server("tls")
    local trusted = { ca_file = webhook.certify(secure, "IP:127.0.0.1") }
    local target = "https://" .. secure.authority
    local function reason_for(options)
      local publisher <close> = outbox.publisher(target, options)
      local failures, reason = publisher:publish(events(1), "")
      return failures and "delivered" or reason
    end
    assert.matches("certificate", reason_for({}))
    assert.equal("delivered", reason_for(trusted))
    assert.equal("delivered", reason_for({ verify = false }))
    secure:kill()
    webhook.certify(secure, "DNS:example.com")
    assert.matches("mismatch", reason_for(trusted))
    assert.equal("delivered", reason_for({ verify = false }))
  end)

  it("sends a body that is larger than what a connection takes at a time", function()
    local secure = new_server("tls")
    webhook.certify(secure, "IP:127.0.0.1")
    local payload = ("0123456789abcdef"):rep(512 * 1024)
    for _, case in ipairs({ { webhook.url, webhook.instance },
      { "https://" .. secure.authority, secure } }) do
      local publisher <close> = outbox.publisher(case[1], { verify = false })
      for _ = 1, 2 do
        assert.same({}, publisher:publish({ event("1", { payload = payload }) }, "orders"))
      end
      local first, second = table.unpack(requests(case[2]))
      assert.is_true(second.body == payload)
      assert.equal(first.peer, second.peer)
    end
  end)

  it("needs a URL and options that make sense", function()
    local function refused(expected, ...)
      assert.matches(expected, support.raised(outbox.publisher, ...), 1, true)
    end
    refused("a URL such as https://host/path expected", "http:host")
    refused("a URL such as https://host/path expected", "https://")
    refused("(ca_file must be a file of certificates; concurrency must be an integer from 1 to "
      .. '1000; headers must be a table of strings; mode must be "binary" or "batched"; proxy must '
      .. 'be a URL such as http://host:port, or ""; secret must be "whsec_" and 24 to 64 bytes '
      .. "in base64; sign must be a function, which the command line cannot give; timeout must be "
      .. "a number of seconds, at least 0.001; verify must be true or false)", webhook.url, {
        ca_file = "/nowhere", concurrency = 0, headers = { a = "b\nc" }, mode = "b",
        proxy = "https://me:secret@host", secret = "whsec_MDEyMw==", sign = "x",
        timeout = -1, verify = 0 })
    for _, path in ipairs({ "/tmp", "/etc/passwd" }) do
      refused("(ca_file must be a file of certificates)", webhook.url, { ca_file = path })
    end
  end)

  it("names the rock that it needs", function()
    local output = support.run([[-e '
      package.preload["http.request"] = function()
        error("module \x27http.request\x27 not found")
      end
      print(pcall(require("outbox").publisher, "http://x"))']])
    assert.equal("false\tthe http publisher needs lua-http: "
      .. "luarocks --lua-version 5.4 install http\n", output)
  end)
end)
