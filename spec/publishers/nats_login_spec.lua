-- How the NATS publisher logs in, and TLS.

local credentials = require("spec.support.nats_credentials")
local nats = require("spec.support.nats")
local outbox = require("outbox")
local process = require("process")
local server = require("spec.support.server")
local socket = require("socket")
local support = require("spec.support")

local MESSAGE = { id = "1", created_at = 1 }

describe("the nats publisher", function()
  after_each(server.stop)

  -- Publishes a message; returns the reason why it cannot, or nil.
  local function reason_for(url, options)
    local publisher <close> = outbox.publisher(url, options)
    local failures, reason = publisher:publish({ MESSAGE }, "n")
    local failure = failures and failures[1]
    return failure and failure.reason or reason
  end

  local function start(config, login)
    local instance = nats.new(config)
    instance:start()
    nats.connect(instance.port, login):stream("ALL", "outbox.>")
    return function(text)
      return ("nats://%s127.0.0.1:%d"):format(text or "", instance.port)
    end
  end

  it("logs in as a user", function()
    local url = start([[authorization { users: [ { user: "al:i@ce", password: "p:@/ %" } ] }]],
      { user = "al:i@ce", pass = "p:@/ %" })
    assert.is_nil(reason_for(url("al%3Ai%40ce:p%3A%40%2F %25@")))
    assert.is_nil(reason_for(url("nobody:x@"), { user = "al:i@ce", password = "p:@/ %" }))
    assert.matches("Authorization Violation", reason_for(url("al%3Ai%40ce:wrong@")))
    assert.matches("Authorization Violation", reason_for(url()))
  end)

  it("logs in with a token", function()
    local url = start([[authorization { token: "s@cret" }]], { auth_token = "s@cret" })
    assert.is_nil(reason_for(url("s%40cret@")))
    assert.is_nil(reason_for(url(), { token = "s@cret" }))
    assert.matches("Authorization Violation", reason_for(url("wrong@")))
  end)

  it("logs in with a file of credentials", function()
    local folder = os.tmpname()
    os.remove(folder)
    assert(os.execute("mkdir " .. folder))
    finally(function()
      os.execute("rm -rf " .. folder)
    end)
    local config, text = credentials.new(folder)
    local _, stranger = credentials.new(folder)
    local function write(name, content)
      local file <close> = assert(io.open(folder .. name, "w"))
      file:write(content)
      return { credentials = folder .. name }
    end
    local instance = nats.new(config)
    instance:start()
    local url = "nats://127.0.0.1:" .. instance.port
    -- It is logged in: this account has no stream.
    assert.equal("no stream has the message's subject", reason_for(url, write("/user", text)))
    assert.matches("Authorization Violation", reason_for(url, write("/stranger", stranger)))
    assert.matches("Authorization Violation", reason_for(url))
    assert.is_string(reason_for(url, write("/broken", (text:gsub("SEED", "SEEED")))))
  end)

  it("waits while it may not publish, or not hear the answers", function()
    local url = start([[authorization { users: [
      { user: root, password: x },
      { user: mute, password: x, permissions: { publish: { deny: "outbox.>" } } },
      { user: deaf, password: x, permissions: { subscribe: { deny: "_INBOX.>" } } } ] }]],
      { user = "root", pass = "x" })
    assert.is_nil(reason_for(url("root:x@")))
    assert.matches('Permissions Violation for Publish to "outbox.n"', reason_for(url("mute:x@")), 1,
      true)
    assert.matches("Permissions Violation for Subscription", reason_for(url("deaf:x@")), 1, true)
  end)

  it("leaves the process as it was: its signals, and its standard error", function()
    local output = support.run(([[-e '
      local function kill()
        print(select(2, os.execute("kill -PIPE $$")))
      end
      kill()
      local publisher <close> = require("outbox").publisher("%s")
      print(publisher:publish({ { id = "1", created_at = 1 } }, ""))
      kill()']]):format("nats://127.0.0.1:" .. server.port()))
    local before, reason, after = output:match("^(.-)\n(.-)\n(.-)\n$")
    assert.equal(before, after)
    assert.matches("No server available", reason)
  end)

  -- TLS -----------------------------------------------------------------------------------------

  -- Makes a certificate, signed by itself, of a server and of a client; returns the path of its
  -- folder.
  local function certificate(name)
    local folder = os.tmpname()
    os.remove(folder)
    assert(os.execute(("mkdir %s && openssl req -x509 -newkey ec -pkeyopt "
      .. "ec_paramgen_curve:prime256v1 -nodes -keyout %s/key.pem -out %s/certificate.pem "
      .. "-subj /CN=test -days 2 -addext subjectAltName=%s 2>/dev/null")
      :format(folder, folder, folder, name)))
    finally(function()
      os.execute("rm -rf " .. folder)
    end)
    return folder
  end

  -- A server with TLS. Its stream is made without, before.
  local function start_tls(folder, more)
    local instance = nats.new()
    instance:start()
    nats.connect(instance.port):stream("ALL", "outbox.>")
    instance:kill()
    local path = instance.directory .. "/config"
    local file <close> = assert(io.open(path, "a"))
    file:write(("tls { cert_file: %s/certificate.pem, key_file: %s/key.pem, timeout: 10, %s }\n")
      :format(folder, folder, more or ""))
    file:close()
    instance:start()
    return ("tls://127.0.0.1:%d"):format(instance.port), instance
  end

  it("verifies the certificate of the server", function()
    local folder = certificate("IP:127.0.0.1,DNS:localhost")
    local target = start_tls(folder)
    local trusted = { ca_file = folder .. "/certificate.pem" }
    assert.is_nil(reason_for(target, trusted))
    assert.is_nil(reason_for((target:gsub("127.0.0.1", "localhost")), trusted))
    assert.matches("self%-signed certificate", reason_for(target))
    assert.matches("certificate", reason_for(target,
      { ca_file = certificate("IP:127.0.0.1") .. "/certificate.pem" }))
    assert.is_nil(reason_for(target, { verify = false }))
    assert.matches("the server wants TLS: its URL is tls://...", reason_for((target:gsub("tls",
      "nats"))), 1, true)
  end)

  it("refuses a certificate of another host", function()
    local folder = certificate("DNS:example.com")
    local target = start_tls(folder)
    local trusted = { ca_file = folder .. "/certificate.pem" }
    assert.matches("mismatch", reason_for(target, trusted))
    assert.matches("mismatch", reason_for((target:gsub("127.0.0.1", "localhost")), trusted))
    trusted.verify = false
    assert.is_nil(reason_for(target, trusted))
  end)

  it("has a certificate of its own", function()
    local folder = certificate("IP:127.0.0.1")
    local target = start_tls(folder, ("ca_file: %s/certificate.pem, verify: true"):format(folder))
    local own = { ca_file = folder .. "/certificate.pem",
      cert_file = folder .. "/certificate.pem", key_file = folder .. "/key.pem" }
    assert.is_nil(reason_for(target, own))
    assert.is_string(reason_for(target, { ca_file = own.ca_file }))
    own.key_file = certificate("IP:127.0.0.1") .. "/key.pem"
    assert.matches("key values mismatch", reason_for(target, own))
    own.key_file = nil
    assert.matches("'cert_file' and 'key_file' need each other",
      support.raised(outbox.publisher, target, own), 1, true)
  end)

  it("delivers batches of any size with TLS, also after the server was restarted", function()
    local folder = certificate("IP:127.0.0.1")
    local target, instance = start_tls(folder)
    local publisher <close> = outbox.publisher(target,
      { ca_file = folder .. "/certificate.pem" })
    local id = 0
    for round, count in ipairs({ 1, 1000, 20 }) do
      local list = {}
      for i = 1, count do
        id = id + 1
        list[i] = { id = tostring(id), created_at = 1, payload = round == 3
          and ("x"):rep(1000000) or "x" }
      end
      assert.same({}, publisher:publish(list, "n"))
      instance:kill()
      instance:start()
    end
  end)

  it("gives up on a server that does not answer in the midst of TLS", function()
    local folder = certificate("IP:127.0.0.1")
    local target, instance = start_tls(folder)
    local publisher <close> = outbox.publisher(target,
      { ca_file = folder .. "/certificate.pem", timeout = 0.5 })
    assert.same({}, publisher:publish({ MESSAGE }, "n"))
    nats.pause(instance)
    local list = {}
    for i = 1, 30 do
      list[i] = { id = tostring(i), created_at = 1, payload = ("x"):rep(1000000) }
    end
    local answer, reason = publisher:publish(list, "n")
    nats.continue(instance)
    assert.is_nil(answer)
    -- OpenSSL may wait until a whole message is sent.
    assert.is_true(reason == "no answer within 0.5 s" or reason == "Timeout", reason)
  end)

  it("gives up on a server that never ends the handshake of TLS", function()
    local listener = assert(socket.bind("127.0.0.1", 0))
    local _, port = listener:getsockname()
    local pid = process.fork(function()
      local connection = listener:accept()
      connection:send('INFO {"server_id":"x","max_payload":1000,"tls_required":true,'
        .. '"headers":true}\r\n')
      connection:receive("*a") -- until the client has closed the connection
    end)
    listener:close()
    finally(function()
      process.kill(pid)
      process.wait(pid)
    end)
    local reason = reason_for("tls://127.0.0.1:" .. port, { timeout = 0.5 })
    assert.matches("no answer within 0.5 s", reason, 1, true)
  end)
end)
