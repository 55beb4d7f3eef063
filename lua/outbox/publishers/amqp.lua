--- RabbitMQ, through librabbitmq (AMQP 0-9-1): `amqp://[user:password@]host[:port][/vhost]`,
-- `amqps://...` with TLS. The rock outbox-amqp has it.
--
-- Each message is published to an exchange, persistent and mandatory, and the broker confirms it.
-- The payload is the body. The property `message_id` is the id, `timestamp` is when the message was
-- published, in seconds, and `content_type` is its header of that name. The headers are those of
-- the message and `namespace`, `key`, `seq`, `created_at` (RFC 3339) and `source_id`. In the mode
-- "cloudevents" they are the attributes of an event instead, each with `cloudEvents:` before its
-- name. A message can arrive twice; its `message_id` shows that it is the same message.
--
-- Options:
--
-- - `exchange`: default "", the default exchange, where the routing key is the name of a queue.
-- - `routing_key`: default "outbox.{namespace}". In both `{namespace}` is replaced by the message's
--   namespace, and `{key}` by its key; where that is empty, a separator before it is left out, too.
-- - `mandatory`: false gives up messages that no queue takes; default true.
-- - `mode`, `source`, `type`: "plain" or "cloudevents", and two attributes of its events.
-- - `user`, `password`: instead of those in the URL; without any they are "guest".
-- - `timeout`: seconds, default 5, for connecting and for each answer.
-- - `ca_file`, `cert_file`, `key_file`, `verify`: for `amqps:`; the files are in PEM format.
--
-- A message is refused for good if it has a name that AMQP does not allow, or is too large for the
-- server. Nothing else is a message's fault: no attempt is counted.
-- @module outbox.publishers.amqp

local address = require("outbox.publishing.address")
local broker = require("outbox.publishing.broker")
local need = require("outbox.need")
local option = require("outbox.options")

local client, cloudevents, format, properties -- `new` loads them

local MAX_SHORT = 255 -- bytes in a name of AMQP
local MAX_HEADERS = 130000 -- bytes: with the other properties they must fit into a frame

local M = {
  summary = {
    url = "amqp://[user:password@]host[:port][/vhost], amqps://...",
    text = "RabbitMQ",
  },
  OPTIONS = broker.options({
    exchange = { default = "", check = option.string },
    routing_key = { default = "outbox.{namespace}", check = option.string },
    mandatory = { default = true, check = option.boolean },
    mode = broker.EVENTS.mode,
    source = broker.EVENTS.source,
    type = broker.EVENTS.type,
  }, { "ca_file", "cert_file", "key_file", "verify" }),
}

local Amqp = broker.class({})

function Amqp:connect()
  local target, options = self.target, self.options
  return client.connect({
    host = target.host, port = target.port, vhost = target.vhost, timeout = options.timeout,
    user = self.user, password = self.password, mandatory = options.mandatory,
    tls = self:tls(),
  })
end

local function refuse(what)
  return nil, { reason = what, permanent = true }
end

-- Fills the headers of an item. The media type becomes a property, unless it is too long for one.
-- Returns nil, or why AMQP does not allow the headers.
local function add_headers(item, message, namespace, options)
  local count, size, reason = #item, 0, nil
  local function add(name, value)
    if #name > MAX_SHORT then
      reason = ("a header's name is longer than %d bytes"):format(MAX_SHORT)
    end
    item[count + 1], item[count + 2] = name, value
    count, size = count + 2, size + #name + (type(value) == "string" and #value or 8) + 6
  end
  local function add_or_set(name, value, media_type)
    if media_type and not item[6] and #value <= MAX_SHORT then
      item[6] = value
    else
      add(name, value)
    end
  end
  if options.mode == "cloudevents" then
    for name, value in pairs(cloudevents.attributes(message, namespace, options)) do
      add_or_set("cloudEvents:" .. name, value, name == "datacontenttype")
    end
  else
    properties(message, namespace, function(name, value, is_field)
      if name ~= "id" then -- it is the message_id
        add_or_set(name, value, not is_field and name:lower() == "content-type")
      end
    end)
  end
  if size > MAX_HEADERS then
    reason = ("the headers are larger than %d bytes"):format(MAX_HEADERS)
  end
  return reason
end

-- An item is an array: exchange, routing key, payload, id, timestamp, media type or false; then the
-- names and values of the headers by turns.
function Amqp:item(message, namespace)
  local options = self.options
  local exchange, is_exchange = self.exchange(namespace, message.key)
  local routing_key, is_routing_key = self.routing_key(namespace, message.key)
  local wrong = not is_exchange and "exchange" or not is_routing_key and "routing_key"
    or #message.id > MAX_SHORT and "id"
  if wrong then
    return refuse(("%s: longer than %d bytes"):format(wrong, MAX_SHORT))
  end
  local timestamp = math.max(0, math.floor(message.created_at))
  local item = { exchange, routing_key, message.payload or "", message.id, timestamp, false }
  local reason = add_headers(item, message, namespace, options)
  if reason then
    return refuse(reason)
  end
  return item
end

function Amqp:judge(result) -- luacheck: no self
  if result:find("^PRECONDITION_FAILED") or result:find("^CONTENT_TOO_LARGE") then
    return { reason = result, permanent = true }, true -- the broker has closed the channel
  elseif result == "basic.nack" then
    result = "the broker refused the message (basic.nack): a queue is full, or it failed"
  end
  return { reason = result, uncharged = true }
end

--- Parsing -----------------------------------------------------------------------------------

local PORTS = { amqp = 5672, amqps = 5671 }

function M.parse(scheme, rest)
  local target
  local parsed = address.parse(rest, PORTS[scheme])
  local vhost = parsed and parsed.path or "/"
  local login = not parsed or not parsed.user == not parsed.password -- one alone is no login
  local plain = not rest:find("^//[^/]*/.*/") -- a "/" in the vhost's name is written as %2F
  if parsed and login and plain and #parsed.hosts == 1 and #vhost <= MAX_SHORT
    and not vhost:find("\0") then
    target = { name = parsed.name, host = parsed.hosts[1].host, port = parsed.hosts[1].port,
      vhost = vhost, user = parsed.user, password = parsed.password, tls = scheme == "amqps" }
  end
  return target, scheme .. "://[user:password@]host[:port][/vhost] expected"
end

function M.new(target, options)
  format = require("outbox.publishing.format")
  cloudevents = require("outbox.publishing.cloudevents")
  properties = require("outbox.publishing.properties")
  client = need("outbox.destinations.amqp", "the amqp publisher needs outbox-amqp",
    "outbox-amqp")
  local self = broker.new(Amqp, target, options)
  for _, name in ipairs({ "exchange", "routing_key" }) do
    self[name] = format.expander(options[name], function(text)
      return #text <= MAX_SHORT
    end)
  end
  if not self.user and not self.password then
    self.user, self.password = "guest", "guest"
  elseif not self.user or not self.password then
    error("'user' and 'password' need each other", 0)
  end
  return self
end

return M
