--- NATS JetStream, through the C client of NATS:
-- `nats://[user:password@|token@]host[:port][,host[:port]]...`, `tls://...` with TLS. The rock
-- outbox-nats has it.
--
-- Each message is published to a subject, and a stream that has this subject must acknowledge it;
-- all messages of a batch are sent in one go. The header `Nats-Msg-Id` is the message's id: so a
-- stream drops a message that comes twice within its `duplicate_window`. As the processor sends no
-- message of a key before the one before it is delivered, a message that is dropped is never behind
-- a later one of its key.
--
-- In the mode "plain" the payload is that of the message; one without a payload has an empty one.
-- The headers are those of the message, and its fields `id`, `source_id`, `namespace`, `key`,
-- `created_at` (RFC 3339) and `seq`. In the mode "cloudevents" the payload is a CloudEvent as JSON.
--
-- Options:
--
-- - `subject`: default "outbox.{namespace}". `{namespace}` is replaced by the message's namespace,
--   and `{key}` by its key; where that is empty, a separator before it is left out, too.
-- - `stream`: the stream that must take the messages, default any.
-- - `mode`: "plain" or "cloudevents"; `source` and `type`: attributes of CloudEvents.
-- - `user`, `password`, `token`: instead of those in the URL; `credentials`: a file of the client's
--   JWT and its seed.
-- - `timeout`: seconds, default 5, for connecting to each host, for sending each 64 KiB, and for
--   each answer.
-- - `ca_file`, `cert_file`, `key_file`: files in PEM format; `verify`: false accepts any
--   certificate.
--
-- A message is refused for good if it is too large, or if NATS cannot have its subject or its
-- headers. An error that its own headers can cause counts an attempt. Any other error, such as a
-- full stream, is a state of the server: no attempt is counted.
-- @module outbox.publishers.nats

local address = require("outbox.publishing.address")
local broker = require("outbox.publishing.broker")
local need = require("outbox.need")
local option = require("outbox.options")

local client, cloudevents, format, properties -- `new` loads them

local function credentials(value)
  local handle <close> = type(value) == "string" and io.open(value) or nil
  local text = handle and handle:read("a") -- nil for a directory
  return text and text:find("-----BEGIN NATS USER JWT-----", 1, true) ~= nil,
    "a file of credentials"
end

local OWN = {
  subject = { default = "outbox.{namespace}", check = option.string },
  stream = { check = option.string },
  token = { check = option.string },
  credentials = { check = credentials },
}
for name, known in pairs(broker.EVENTS) do
  OWN[name] = known
end

local M = {
  summary = { url = "nats://[user:password@]host[:port], tls://...", text = "NATS JetStream" },
  OPTIONS = broker.options(OWN, { "ca_file", "cert_file", "key_file", "verify" }),
}

-- A line of the protocol, with the subject in it, has at most 4096 bytes unless the server is told
-- otherwise. A longer one would end the connection.
local MAX_SUBJECT = 4000

-- The codes of JetStream's errors that a message is refused for.
local PERMANENT = {
  [10054] = true, -- larger than the stream's max_msg_size
  [10097] = true, -- headers of more than 64 KiB
}
local CHARGED = { -- the message's own headers have caused them
  [10063] = true, [10070] = true, [10071] = true, -- Nats-Expected-...: not the last one
  [10111] = true, -- Nats-Rollup
}

local Nats = broker.class({})

function Nats:connect()
  local target, options, hosts = self.target, self.options, {}
  for i, host in ipairs(target.hosts) do
    local name = host.host:find(":") and "[" .. host.host .. "]" or host.host
    hosts[i] = { name = host.host, url = ("nats://%s:%d"):format(name, host.port) }
  end
  return client.connect({
    hosts = hosts,
    user = self.user, password = self.password, token = self.token,
    credentials = options.credentials,
    -- Less than the wait for it, so that the next host is tried before that is over.
    timeout = math.ceil(options.timeout * 900),
    tls = self:tls(),
  })
end

-- Whether messages can be published to the subject: it has no wildcard, and no part that is empty.
-- A message must not reach the server's own subjects, which begin with "$", unless the option says
-- so.
local function is_subject(subject, template)
  return #subject <= MAX_SUBJECT and not subject:find("[%z\1-\32\127]")
    and not ("." .. subject .. "."):find("%.[*>]?%.")
    and (subject:byte() ~= 36 or template:byte() == 36)
end

local function refuse(what)
  return nil, { reason = what, permanent = true }
end

-- The name of the first header with a line break or NUL in its text, or with a space before it,
-- which would be lost.
local function find_wrong(item)
  for i = 4, #item, 2 do
    if item[i]:find("^[ \t]") or item[i]:find("[%z\r\n]") then
      return item[i - 1]
    end
  end
end

function Nats:item(message, namespace)
  local subject, is_good = self.subject(namespace, message.key)
  if not is_good then
    return refuse("NATS cannot have the subject " .. ("%q"):format(subject:sub(1, 100)))
  end
  local item = { subject, message.payload or "" }
  local count, wrong = 2, nil
  local function set(name, text, is_field)
    if not is_field and not name:find("^[!-9;-~]+$") then
      wrong = wrong or name
    end
    item[count + 1], item[count + 2] = name, text
    count = count + 2
  end
  if self.cloudevents then
    item[2] = cloudevents.json(message, namespace, self.options)
    set("content-type", "application/cloudevents+json", true)
  else
    properties(message, namespace, set)
  end
  set("Nats-Msg-Id", message.id, true)
  if self.options.stream then
    set("Nats-Expected-Stream", self.options.stream, true)
  end
  local all = table.concat(item, "\1", 3) -- looked at in one go, because that is faster
  if all:find("[%z\r\n]") or all:find("\1[ \t]") then
    wrong = wrong or find_wrong(item)
  end
  if wrong then
    return refuse("NATS cannot have the header " .. ("%q"):format(wrong:sub(1, 100)))
  end
  return item
end

function Nats:judge(answer) -- luacheck: no self
  if answer == "max_payload" then
    return { reason = "larger than the server's max_payload", permanent = true }
  elseif answer == "no responders" then
    return { reason = "no stream has the message's subject", uncharged = true }
  end
  if answer:find('^{"stream":') and not answer:find('"error"', 1, true) then
    return nil -- nearly all answers
  end
  local ok, ack = format.decode(answer)
  ack = ok and type(ack) == "table" and ack or {}
  local problem = ack.error
  if type(problem) ~= "table" then
    -- Something else than a stream may listen to the subject, and answer.
    return not ack.stream and { reason = "no stream has answered: " .. answer:sub(1, 100),
      uncharged = true } or nil
  end
  local reason, code = tostring(problem.description), problem.err_code
  if CHARGED[code] then
    return reason
  end
  return { reason = reason, permanent = PERMANENT[code], uncharged = not PERMANENT[code] }
end

--- Parsing -----------------------------------------------------------------------------------

function M.parse(scheme, rest)
  local parsed = address.parse(rest, 4222)
  local target = parsed and not parsed.path and {
    name = parsed.name, hosts = parsed.hosts, tls = scheme == "tls",
    user = parsed.password and parsed.user, password = parsed.password,
    token = not parsed.password and parsed.user or nil,
  }
  return target or nil,
    scheme .. "://[user:password@|token@]host[:port][,host[:port]]... expected"
end

-- Raises where options contradict each other.
local function check_login(self, options)
  local logins = (self.user and 1 or 0) + (self.token and 1 or 0)
    + (options.credentials and 1 or 0)
  if logins > 1 then
    error("only one of 'user', 'token' and 'credentials' can be used", 0)
  elseif self.password and not self.user then
    error("'password' needs 'user'", 0)
  end
end

function M.new(target, options)
  cloudevents = require("outbox.publishing.cloudevents")
  format = require("outbox.publishing.format")
  properties = require("outbox.publishing.properties")
  client = need("outbox.destinations.nats", "the nats publisher needs outbox-nats",
    "outbox-nats")
  local self = broker.new(Nats, target, options)
  self.subject = format.expander(options.subject, function(subject)
    return is_subject(subject, options.subject)
  end)
  self.cloudevents = options.mode == "cloudevents"
  self.token = options.token or target.token
  check_login(self, options)
  return self
end

return M
