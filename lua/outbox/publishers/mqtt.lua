--- MQTT 5, through libmosquitto: `mqtt://[user:password@]host[:port]`, `mqtts://...` with TLS. The
-- rock outbox-mqtt has it.
--
-- Each message is published to a topic with QoS 1. As many are on their way as the broker allows.
-- The payload is the message's, byte for byte; an absent payload is an empty one in MQTT. The user
-- properties are the message's headers and its fields `id`, `source_id`, `namespace`, `key`,
-- `created_at` (RFC 3339) and `seq`; the header `content-type` is the property Content Type
-- instead. A string of MQTT is UTF-8 without control characters: any other value becomes base64,
-- in a property named `<name>_base64`.
--
-- With `mode = "cloudevents"` a message is an event of CloudEvents 1.0, in the binary mode of its
-- binding to MQTT 5: the user properties are the attributes, and the Content Type is
-- `datacontenttype`. What MQTT cannot have in a value is `%XX` there.
--
-- Options:
--
-- - `topic`: the name of the topic, default "outbox/{namespace}/{key}". `{namespace}` is replaced
--   by the message's namespace, and `{key}` by its key; where that is empty, a separator before it
--   is left out, too.
-- - `mode`: "plain" (default) or "cloudevents"; `source`, `type`: attributes of CloudEvents.
-- - `mandatory`: whether a message waits that nobody has subscribed to, default false.
-- - `retain`: whether the broker keeps the last message of each topic, default false.
-- - `expiry`: after how many seconds the broker drops a message, default never.
-- - `client_id`: default random. A broker closes the connection of a client if another one comes
--   with its id.
-- - `user`, `password`: instead of those in the URL.
-- - `timeout`: seconds without any progress, default 5.
-- - `ca_file`, `cert_file`, `key_file`: files in PEM format, for `mqtts:`.
-- - `verify`: false accepts any certificate, default true.
--
-- A message becomes a dead letter if its topic is not allowed, if a property is longer than 65,535
-- bytes, or if it is too large for the broker. Any other refusal is a state of the broker: no
-- attempt is counted.
-- @module outbox.publishers.mqtt

local address = require("outbox.publishing.address")
local broker = require("outbox.publishing.broker")
local need = require("outbox.need")
local core = require("outbox.core")
local option = require("outbox.options")

local client, cloudevents, format, properties -- `new` loads them

local MAX_TEXT = 65535 -- bytes of a string of MQTT
local FIRST_ERROR = 0x80 -- of the reason codes
local NO_SUBSCRIBERS, NOT_AUTHORIZED = 0x10, 0x87
-- The message's own fault: topic name invalid, packet too large, payload format invalid.
local FAULTS = { [0x90] = true, [0x95] = true, [0x99] = true }

local M = {
  summary = { url = "mqtt://[user:password@]host[:port], mqtts://...", text = "MQTT 5" },
  OPTIONS = broker.options({
    topic = { default = "outbox/{namespace}/{key}", check = option.string },
    mode = broker.EVENTS.mode,
    source = broker.EVENTS.source,
    type = broker.EVENTS.type,
    mandatory = { default = false, check = option.boolean },
    retain = { default = false, check = option.boolean },
    expiry = { check = option.integer(0xffffffff) },
    client_id = { check = option.string },
  }, { "ca_file", "cert_file", "key_file", "verify" }),
}

local Mqtt = broker.class({})

function Mqtt:connect()
  local target, options = self.target, self.options
  -- Made here and not in `new`, so that processes that were forked in between have different ones.
  -- With the same one when it connects again, the broker drops what it has of the old connection.
  self.client_id = self.client_id or options.client_id
    or "outbox" .. core.uuid_v4():gsub("-", ""):sub(-16)
  return client.connect({
    host = target.host, port = target.port, client_id = self.client_id,
    user = self.user, password = self.password,
    retain = options.retain, expiry = options.expiry,
    tls = self:tls(),
  })
end

--- Items ---------------------------------------------------------------------------------------

local function at_fault(reason, ...)
  return nil, { reason = reason:format(...), permanent = true }
end

-- The methods `fill_` fill in an item: the content type at 3, then names and values.

function Mqtt:fill_plain(item, message, namespace) -- luacheck: no self
  local is_text, count = client.is_text, #item
  properties(message, namespace, function(name, value, is_field)
    if not is_text(value) then
      name, value = name .. "_base64", format.base64(value)
    end
    if not is_field and name:lower() == "content-type" then
      item[3] = value
    else
      item[count + 1] = (is_field or is_text(name)) and name or cloudevents.encode(name)
      item[count + 2] = value
      count = count + 2
    end
  end)
end

function Mqtt:fill_cloudevents(item, message, namespace)
  for name, value in pairs(cloudevents.attributes(message, namespace, self.options)) do
    local text = tostring(value)
    if name == "datacontenttype" then
      item[3] = text
    else
      item[#item + 1] = name
      item[#item + 1] = client.is_text(text) and text or cloudevents.encode(text)
    end
  end
end

local function is_topic(name)
  return not name:find("[+#]") and client.is_text(name)
end

function Mqtt:item(message, namespace)
  local topic, is_good = self.topic(namespace, message.key)
  if not is_good then
    return at_fault("MQTT does not allow the name of the topic")
  end
  local item = { topic, message.payload or "", "" }
  self:fill(item, message, namespace)
  for i = 3, #item do
    if #item[i] > MAX_TEXT then
      return at_fault("a property of MQTT has at most %d bytes", MAX_TEXT)
    end
  end
  return item
end

function Mqtt:judge(code)
  if code < FIRST_ERROR and not (code == NO_SUBSCRIBERS and self.options.mandatory) then
    return nil
  end
  local reason = client.reason(code)
  if FAULTS[code] then
    return { reason = reason, permanent = true }
  end
  return { reason = reason, uncharged = true }, code == NOT_AUTHORIZED -- the next login may be
end

--- Parsing -------------------------------------------------------------------------------------

function M.parse(scheme, rest)
  local tls, target = scheme == "mqtts", nil
  local parsed = address.parse(rest, tls and 8883 or 1883)
  if parsed and not parsed.path and #parsed.hosts == 1 then
    target = { name = parsed.name, host = parsed.hosts[1].host, port = parsed.hosts[1].port,
      user = parsed.user, password = parsed.password, tls = tls }
  end
  return target, scheme .. "://[user:password@]host[:port] expected"
end

local function check_login(self, client_id)
  if self.user and not client.is_text(self.user) then
    error("the user must be UTF-8 without control characters, at most 65,535 bytes", 0)
  elseif self.password and (#self.password > MAX_TEXT or self.password:find("\0", 1, true)) then
    error("the password must have no byte 0, and at most 65,535 bytes", 0)
  elseif client_id and (client_id == "" or not client.is_text(client_id)) then
    error("'client_id' must be UTF-8 without control characters, 1 to 65,535 bytes", 0)
  end
end

function M.new(target, options)
  client = need("outbox.destinations.mqtt", "the mqtt publisher needs outbox-mqtt",
    "outbox-mqtt")
  cloudevents = require("outbox.publishing.cloudevents")
  format = require("outbox.publishing.format")
  properties = require("outbox.publishing.properties")
  local self = broker.new(Mqtt, target, options)
  self.topic = format.expander(options.topic, is_topic)
  self.fill = options.mode == "cloudevents" and self.fill_cloudevents or self.fill_plain
  check_login(self, options.client_id)
  return self
end

return M
