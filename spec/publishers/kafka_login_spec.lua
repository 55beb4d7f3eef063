-- How the kafka publisher logs in, and whom it trusts.

local kafka = require("spec.support.kafka")
local outbox = require("outbox")
local server = require("spec.support.server")
local support = require("spec.support")

describe("the kafka publisher", function()
  local cluster

  setup(function()
    cluster = kafka.start()
    cluster:tell("topic outbox.event 1")
  end)

  teardown(function()
    cluster:close()
  end)

  after_each(server.stop)

  -- Returns a gate before the cluster, not started yet.
  local function new_gate(login)
    local port = server.port()
    local gate = server.new(support.command(("spec/support/kafka_gate.lua %d %d $DIRECTORY %s")
      :format(port, cluster.port, login or "")), port)
    gate.authority = "127.0.0.1:" .. port
    return gate
  end

  -- Makes a certificate with its key, `NAME.pem`, that signs itself; returns its path.
  local function certify(gate, name, subject)
    local path = ("%s/%s.pem"):format(gate.directory, name)
    assert(os.execute(("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
      .. "-keyout %s.key -out %s -subj /CN=test -days 2 -addext subjectAltName=%s 2>/dev/null "
      .. "&& cat %s.key >>%s"):format(path, path, subject, path, path)))
    return path
  end

  -- Delivers a message; returns "delivered", or the reason why it was not.
  local function deliver(gate, options, login)
    options.timeout = options.timeout or 1.5
    local url = ("kafka://%s%s"):format(login or "", gate.authority)
    local publisher <close> = outbox.publisher(url, options)
    local failures = publisher:publish({ { id = "1", created_at = 1 } }, "")
    if failures[1] then
      assert.is_true(failures[1].uncharged)
      return failures[1].reason
    end
    return "delivered"
  end

  local function delivered(gate, options, login)
    options.timeout = 10
    assert.equal("delivered", deliver(gate, options, login))
  end

  it("verifies the certificate of a broker", function()
    local gate = new_gate()
    local trusted = certify(gate, "server", "IP:127.0.0.1")
    local other = certify(gate, "other", "IP:127.0.0.1")
    gate:start()
    delivered(gate, { tls = true, ca_file = trusted })
    delivered(gate, { tls = true, verify = false })
    assert.matches("certificate verify failed", deliver(gate, { tls = true }), 1, true)
    assert.matches("certificate verify failed", deliver(gate, { tls = true, ca_file = other }), 1,
      true)
    assert.not_equal("delivered", deliver(gate, {}))
    assert.equal(2, #cluster:read("outbox.event"))
  end)

  it("verifies the host name in the certificate of a broker", function()
    local gate = new_gate()
    local trusted = certify(gate, "server", "DNS:example.org")
    gate:start()
    local reason = deliver(gate, { tls = true, ca_file = trusted })
    assert.matches("certificate verify failed", reason, 1, true)
    delivered(gate, { tls = true, ca_file = trusted, verify = false })
  end)

  it("shows a certificate of its own", function()
    local gate = new_gate()
    local trusted = certify(gate, "server", "IP:127.0.0.1")
    local mine, other = certify(gate, "client_ca", "DNS:me"), certify(gate, "other", "DNS:me")
    gate:start()
    delivered(gate, { tls = true, ca_file = trusted, cert_file = mine, key_file = mine })
    for _, own in ipairs({ {}, { cert_file = other, key_file = other } }) do
      own.tls, own.ca_file = true, trusted
      assert.not_equal("delivered", deliver(gate, own))
    end
  end)

  it("logs in, with TLS and without", function()
    local gate = new_gate("'al ice:p:@ %'")
    gate:start()
    delivered(gate, {}, "al%20ice:p%3A@ %@")
    delivered(gate, { user = "al ice", password = "p:@ %" }, "bob:x@")
    assert.matches("wrong password", deliver(gate, {}, "al%20ice:p@"), 1, true)
    assert.not_equal("delivered", deliver(gate, {}))
    gate:kill()
    local trusted = certify(gate, "server", "IP:127.0.0.1")
    gate:start()
    delivered(gate, { tls = true, ca_file = trusted }, "al%20ice:p%3A@ %@")
    assert.matches("wrong password", deliver(gate, { tls = true, ca_file = trusted }, "bob:x@"), 1,
      true)
  end)

  it("waits while the cluster has no logins", function()
    cluster.authority = cluster.servers
    for _, mechanism in ipairs({ "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512" }) do
      assert.matches("SASL", deliver(cluster, { mechanism = mechanism }, "al:x@"), 1, true)
    end
  end)

  it("needs files that are what they must be", function()
    local gate = new_gate()
    local own, other = certify(gate, "own", "DNS:me"), certify(gate, "other", "DNS:me")
    local damaged = gate.directory .. "/damaged.pem"
    local file <close> = assert(io.open(damaged, "w"))
    file:write("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    file:close()
    local function refused(expected, options)
      options.tls = true
      assert.matches(expected, support.raised(outbox.publisher, "kafka://host", options))
    end
    refused("ca_file must be a file in PEM format", { ca_file = "Makefile" })
    refused("^librdkafka: ssl.ca.location failed", { ca_file = damaged })
    refused("^librdkafka: ssl.certificate.location failed", { cert_file = damaged, key_file = own })
    refused("^librdkafka: .*key", { cert_file = own, key_file = other })
  end)
end)
