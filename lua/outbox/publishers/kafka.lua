--- Kafka, through librdkafka: `kafka://[user:password@]host[:port][,host[:port]]...`. The rock
-- outbox-kafka has it.
--
-- Each message is a record. Its key is the message's key: so the records of a key are in one
-- partition, the one that Java's clients choose, too. Its value is the payload, null where there
-- is none. Its timestamp is when the message was published. In the mode "plain" it has the
-- message's headers and the headers `id`, `source_id`, `namespace`, `key`, `created_at` (RFC
-- 3339) and `seq`; in the mode "cloudevents" those of the Kafka binding of CloudEvents 1.0,
-- binary: `ce_id`, `ce_type` and so on, and `content-type`. A message can be added twice; its id
-- shows that it is the same message.
--
-- The producer is idempotent and waits for all replicas in sync (`acks=all`). librdkafka itself
-- sends again until `timeout`, without duplicates and in order.
--
-- Options:
--
-- - `topic`: the name of the topic, default "outbox.event.{namespace}". `{namespace}` is replaced
--   by the message's namespace, and `{key}` by its key; where that is empty, a separator before it
--   is left out, too.
-- - `mode`: "plain" or "cloudevents"; `source`, `type`: those of an event.
-- - `user`, `password`: instead of those in the URL; `mechanism`: "PLAIN", "SCRAM-SHA-256" or
--   "SCRAM-SHA-512".
-- - `tls`: true for TLS; `ca_file`, `cert_file`, `key_file`: files in PEM format; `verify`: false
--   accepts any certificate.
-- - `compression`: "none", "gzip", "snappy", "lz4" or "zstd".
-- - `timeout`: seconds, default 10, in which a message must be accepted.
-- - `config`: a table of more of librdkafka's own properties.
-- @module outbox.publishers.kafka

local address = require("outbox.publishing.address")
local broker = require("outbox.publishing.broker")
local need = require("outbox.need")
local option = require("outbox.options")

local client, cloudevents, format, properties -- `new` loads them

local MAX_MILLISECONDS = 0x7fffffff -- of librdkafka

-- librdkafka looks about every second for messages whose time is over.
local GRACE = 5

-- Makes the check of a string that is one of a few.
local function one_of(...)
  local allowed, list = {}, { ... }
  for i, value in ipairs(list) do
    allowed[value], list[i] = true, ('"%s"'):format(value)
  end
  local text = table.concat(list, ", ", 1, #list - 1) .. " or " .. list[#list]
  return function(value)
    return allowed[value] == true, text
  end
end

local PRIMITIVE = { string = true, number = true, boolean = true }

local function is_config(value)
  for name, property in pairs(type(value) == "table" and value or { false }) do
    if type(name) ~= "string" or not PRIMITIVE[type(property)] then
      return false, "a table of librdkafka's properties"
    end
  end
  return true
end

local OWN = {
  topic = { default = "outbox.event.{namespace}", check = option.string },
  compression = { default = "none", check = one_of("none", "gzip", "snappy", "lz4", "zstd") },
  mechanism = { default = "PLAIN", check = one_of("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512") },
  timeout = { default = 10, check = option.seconds },
  tls = { default = false, check = option.boolean },
  config = { check = is_config },
}
for name, known in pairs(broker.EVENTS) do
  OWN[name] = known
end

local FORM = "kafka://[user:password@]host[:port][,host[:port]]..."

local M = {
  summary = { url = FORM, text = "Kafka" },
  OPTIONS = broker.options(OWN, { "ca_file", "cert_file", "key_file", "verify" }),
}

local Kafka = broker.class({})

--- Configuration -----------------------------------------------------------------------------

-- What says the same as these properties, or why they would break what a publisher promises.
local RESERVED = {
  ["bootstrap.servers"] = "the URL has the hosts",
  ["metadata.broker.list"] = "the URL has the hosts",
  ["message.timeout.ms"] = "there is the option 'timeout'",
  ["delivery.timeout.ms"] = "there is the option 'timeout'",
  ["transactional.id"] = "there are no transactions",
  ["delivery.report.only.error"] = "each record needs its report",
  ["enabled_events"] = "each record needs its report",
}

-- Adds the properties of a login, and of TLS.
local function add_security(set, target, options)
  local user, password = options.user or target.user, options.password or target.password
  if (user == nil) ~= (password == nil) then
    error("'user' and 'password' need each other", 0)
  elseif not user and options.mechanism ~= OWN.mechanism.default then
    error("'mechanism' needs 'user' and 'password'", 0)
  end
  local protocol = options.tls and "SSL" or "PLAINTEXT"
  if user then
    protocol = "SASL_" .. protocol
    set("sasl.mechanism", options.mechanism)
    set("sasl.username", user)
    set("sasl.password", password)
  end
  set("security.protocol", protocol)
  if options.tls then
    set("enable.ssl.certificate.verification", tostring(options.verify))
    set("ssl.endpoint.identification.algorithm", options.verify and "https" or "none")
    for file, name in pairs({ ca_file = "ssl.ca.location", cert_file = "ssl.certificate.location",
      key_file = "ssl.key.location" }) do
      if options[file] then
        set(name, options[file])
      end
    end
  end
end

-- Returns librdkafka's properties but the hosts, names and values by turns. Those of `config` come
-- last, because they count. Raises where the options make no sense together.
local function configure(target, options)
  local list = {}
  local function set(name, value)
    list[#list + 1], list[#list + 2] = name, tostring(math.tointeger(value) or value)
  end
  local milliseconds = math.floor(math.min(options.timeout * 1000, MAX_MILLISECONDS))
  local half = math.max(milliseconds // 2, 10) -- so that there is time for another broker
  set("client.id", "outbox")
  set("enable.idempotence", "true")
  set("acks", "all")
  set("partitioner", "murmur2_random") -- that of Java's clients
  set("linger.ms", 1) -- with 0 a batch becomes several requests
  set("message.timeout.ms", milliseconds)
  set("socket.timeout.ms", math.min(half, 60000))
  set("topic.metadata.propagation.max.ms", math.min(half, 30000))
  set("reconnect.backoff.max.ms", 1000)
  set("compression.type", options.compression)
  add_security(set, target, options)
  for name, value in pairs(options.config or {}) do
    if RESERVED[name] then
      error(("'config.%s' cannot be set: %s"):format(name, RESERVED[name]), 0)
    end
    set(name, value)
  end
  return list
end

-- Raises why librdkafka does not take the properties. Without hosts it connects to none.
local function try(list)
  local made, reason = client.connect(list)
  if not made then
    error("librdkafka: " .. reason, 0)
  end
  made:close()
end

function Kafka:connect()
  return client.connect(self.config)
end

--- Records -----------------------------------------------------------------------------------

local MAX_TOPIC = 249

local function is_topic(name)
  return #name <= MAX_TOPIC and not name:find("[^A-Za-z0-9._-]") and name ~= "." and name ~= ".."
end

-- The Kafka binding of CloudEvents, binary. Unlike HTTP's it has UTF-8 as it is.
local function add_attributes(message, namespace, options, set)
  for name, value in pairs(cloudevents.attributes(message, namespace, options)) do
    local text = tostring(value)
    set(name == "datacontenttype" and "content-type" or "ce_" .. name,
      utf8.len(text) and text or cloudevents.encode(text))
  end
end

function Kafka:item(message, namespace)
  local options = self.options
  local topic, is_good = self.topic(namespace, message.key)
  if not is_good then
    return nil, { reason = ("a topic cannot have the name '%s'"):format(topic), permanent = true }
  end
  local microseconds = math.floor(message.created_at * 1e6 + 0.5)
  local item = { topic, message.key or false, message.payload or false, microseconds // 1000 }
  local count = 4
  local function set(name, value)
    item[count + 1], item[count + 2] = name, value
    count = count + 2
  end
  if options.mode == "cloudevents" then
    add_attributes(message, namespace, options, set)
  else
    properties(message, namespace, set)
  end
  return item
end

--- Refusals ----------------------------------------------------------------------------------

-- Errors that a message itself may cause. A broker refuses a whole request with them, without
-- saying which of its messages was at fault.
local AT_FAULT = { MSG_SIZE_TOO_LARGE = true, RECORD_LIST_TOO_LARGE = true,
  INVALID_MSG_SIZE = true, INVALID_RECORD = true, INVALID_TIMESTAMP = true,
  POLICY_VIOLATION = true }

function Kafka:judge(refusal, count) -- luacheck: no self
  local name, reason = refusal.name, refusal.text
  if AT_FAULT[name] and (count == 1 or not refusal.sent) then
    return { reason = reason, permanent = true }
  elseif name == "INVALID_MSG" and count == 1 then -- old brokers: no key; but also bytes damaged
    return reason
  end
  -- What librdkafka knows of a topic it asks again only after minutes. But a producer that has
  -- waited in vain is kept: brokers drop what they still get of it twice.
  return { reason = reason, uncharged = true }, not AT_FAULT[name] and name ~= "_MSG_TIMED_OUT"
end

--- Parsing -----------------------------------------------------------------------------------

function M.parse(_, rest)
  local parsed = address.parse(rest, 9092)
  if not parsed or parsed.path then
    return nil, FORM .. " expected"
  end
  local servers = {}
  for i, host in ipairs(parsed.hosts) do
    servers[i] = (host.host:find(":") and "[%s]:%d" or "%s:%d"):format(host.host, host.port)
  end
  return { name = parsed.name, servers = table.concat(servers, ","), user = parsed.user,
    password = parsed.password }
end

function M.new(target, options)
  cloudevents = require("outbox.publishing.cloudevents")
  format = require("outbox.publishing.format")
  properties = require("outbox.publishing.properties")
  client = need("outbox.destinations.kafka", "the kafka publisher needs outbox-kafka",
    "outbox-kafka")
  target.tls = options.tls
  local self = broker.new(Kafka, target, options)
  self.topic = format.expander(options.topic, is_topic)
  self.config = configure(target, options)
  try(self.config)
  local count = #self.config
  self.config[count + 1], self.config[count + 2] = "bootstrap.servers", target.servers
  self.timeout = options.timeout + GRACE -- librdkafka's own report comes first
  return self
end

return M
