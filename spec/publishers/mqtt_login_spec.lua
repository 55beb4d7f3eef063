local mosquitto = require("spec.support.mosquitto")
local outbox = require("outbox")
local server = require("spec.support.server")
local socket = require("socket")
local support = require("spec.support")
local testing = require("outbox.testing")
local process = require("process")

describe("the mqtt publisher's login", function()
  local ports, instance, directory = {}, nil, nil

  local function run(command, ...)
    command = command:format(...):gsub("%$D", directory)
    assert(os.execute("{ " .. command .. "; } >/dev/null 2>&1"), command)
  end

  local function write(name, text)
    local file <close> = assert(io.open(directory .. "/" .. name, "w"))
    file:write(text)
  end

  -- A key and a certificate, signed by an authority or by itself.
  local function certificate(name, authority, extension)
    run("openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=%s "
      .. "-keyout $D/%s.key -out $D/%s.csr", name, name, name)
    write("extension", extension)
    run("openssl x509 -req -in $D/%s.csr %s -days 2 -extfile $D/extension -out $D/%s.pem", name,
      authority and ("-CA $D/%s.pem -CAkey $D/%s.key -CAcreateserial"):format(authority, authority)
      or ("-signkey $D/%s.key"):format(name), name)
  end

  setup(function()
    for _, name in ipairs({ "plain", "tls", "named", "mutual" }) do
      ports[name] = server.port()
    end
    local function tls(name, key, more)
      return ("listener %d 127.0.0.1\ncertfile $DIRECTORY/%s.pem\nkeyfile $DIRECTORY/%s.key\n%s\n")
        :format(ports[name], key, key, more or "")
    end
    instance = mosquitto.broker(ports.plain, [[
      password_file $DIRECTORY/passwords
      acl_file $DIRECTORY/rights
    ]] .. tls("tls", "server") .. tls("named", "other")
      .. tls("mutual", "server", "cafile $DIRECTORY/authority.pem\nrequire_certificate true"))
    directory = instance.directory
    certificate("authority", nil, "basicConstraints=critical,CA:TRUE")
    certificate("stranger", nil, "basicConstraints=critical,CA:TRUE")
    certificate("server", "authority", "subjectAltName=IP:127.0.0.1")
    certificate("other", "authority", "subjectAltName=DNS:example.com")
    certificate("client", "authority", "extendedKeyUsage=clientAuth")
    run("openssl ec -in $D/client.key -aes256 -passout pass:x -out $D/locked.key")
    write("passwords", "")
    run("mosquitto_passwd -b $D/passwords 'al@i ce' '>p:@/ %%'")
    run("mosquitto_passwd -b $D/passwords bob secret")
    write("rights", "topic write open/#\nuser al@i ce\ntopic readwrite #\nuser bob\n"
      .. "topic write open/#\n")
    run("chmod 600 $D/passwords $D/rights")
    instance:start()
  end)

  teardown(server.stop)

  local message = { id = "1", created_at = 1 }

  -- "delivered", or why not.
  local function outcome(target, options)
    options = options or {}
    options.topic = options.topic or "open/x"
    local publisher <close> = outbox.publisher(target, options)
    local failures, reason = publisher:publish({ message }, "")
    if failures and next(failures) == nil then
      return "delivered"
    end
    return failures and failures[1] or reason
  end

  local function plain(login)
    return ("mqtt://%s127.0.0.1:%d"):format(login or "", ports.plain)
  end

  it("has the user and the password of the URL or of the options", function()
    local all = { topic = "any" }
    assert.equal("delivered", outcome(plain("al%40i ce:>p:@%2F %25@"), all))
    assert.equal("delivered", outcome(plain("bob:wrong@"), { user = "al@i ce",
      password = ">p:@/ %", topic = "any" }))
    for _, login in ipairs({ "al%40i ce:wrong@", "nobody:x@", "bob@", "bob:@" }) do
      assert.equal(("127.0.0.1:%d: refused: Not authorized"):format(ports.plain),
        outcome(plain(login), all))
    end
  end)

  it("that may not publish counts no attempt, and waits until it may", function()
    local target = plain("bob:secret@")
    assert.same({ reason = "Not authorized", uncharged = true }, outcome(target, { topic = "x" }))
    local store <close> = support.store({ clock = testing.clock(1), synchronous = "off" })
    store:publish({ id = "a", key = "open" }, { id = "b", key = "closed" })
    local publisher <close> = outbox.publisher(target, { topic = "{key}/x" })
    local p = outbox.processor({ store = store, publisher = publisher, on_error = function() end })
    assert.equal(1, p:pump())
    assert.outbox(store).has_entry({ id = "b", attempts = 0 })
    write("rights", "topic write open/#\nuser bob\ntopic write #\n")
    process.kill(instance.pid, 1) -- SIGHUP: the broker reads the file again
    repeat
      store:clock().advance(60)
    until p:pump() == 1
    assert.outbox(store).is_empty()
    support.remove()
  end)

  local function mqtts(name)
    return "mqtts://127.0.0.1:" .. ports[name]
  end

  it("verifies the certificate of the broker", function()
    local ca_file = directory .. "/authority.pem"
    assert.equal("delivered", outcome(mqtts("tls"), { ca_file = ca_file }))
    for _, options in ipairs({ {}, { ca_file = directory .. "/stranger.pem" } }) do
      assert.matches("certificate verify failed", outcome(mqtts("tls"), options))
    end
    assert.equal("delivered", outcome(mqtts("tls"), { verify = false }))
    assert.matches("host name verification failed", outcome(mqtts("named"), { ca_file = ca_file }))
    assert.equal("delivered", outcome(mqtts("named"), { verify = false }))
    assert.matches("host name verification failed",
      outcome("mqtts://localhost:" .. ports.tls, { ca_file = ca_file }))
  end)

  it("shows the client's own certificate", function()
    local options = { ca_file = directory .. "/authority.pem" }
    assert.is_string(outcome(mqtts("mutual"), options))
    assert.not_equal("delivered", outcome(mqtts("mutual"), options))
    options.cert_file, options.key_file = directory .. "/client.pem", directory .. "/client.key"
    assert.equal("delivered", outcome(mqtts("mutual"), options))
    options.key_file = directory .. "/locked.key" -- nobody is asked for the password
    assert.matches("client key file", outcome(mqtts("mutual"), options))
    options.key_file = nil
    assert.matches("'cert_file' and 'key_file' need each other",
      support.raised(outbox.publisher, mqtts("mutual"), options), 1, true)
    assert.matches("ca_file must be a file in PEM format",
      support.raised(outbox.publisher, mqtts("tls"), { ca_file = "/nowhere" }), 1, true)
  end)

  it("sends a large message through TLS", function()
    local publisher <close> = outbox.publisher(mqtts("tls"),
      { ca_file = directory .. "/authority.pem", topic = "open/{key}" })
    local large = { id = "1", created_at = 1, payload = ("x"):rep(5000000) }
    for _ = 1, 3 do
      assert.same({}, publisher:publish({ message, large, message }, ""))
    end
  end)

  it("gives up where there is no TLS, or no broker", function()
    -- How the system says that the connection is gone depends on when it is asked.
    local gone = { ["The connection was lost."] = true, ["Connection reset by peer"] = true,
      ["Connection refused"] = true }
    for _, target in ipairs({ "mqtts://127.0.0.1:" .. ports.plain,
      "mqtt://127.0.0.1:" .. ports.tls, "mqtts://127.0.0.1:" .. server.port() }) do
      local reason = outcome(target, target:find("^mqtts") and { verify = false } or {})
      assert.is_true(gone[reason:match(": (.*)$")], reason)
    end
    local listener = assert(socket.bind("127.0.0.1", 0)) -- it accepts, and says nothing
    local _, silent = listener:getsockname()
    assert.equal(("127.0.0.1:%s: no answer within 0.5 s"):format(silent),
      outcome("mqtts://127.0.0.1:" .. silent, { verify = false, timeout = 0.5 }))
    listener:close()
  end)
end)
