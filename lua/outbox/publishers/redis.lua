--- Redis Streams, through hiredis: `redis://[[user]:password@]host[:port][/db]`,
-- `rediss://...` with TLS, `unix:/path/of/the/socket[?db=N]`. The rock outbox-redis has it.
--
-- Each message is added to a stream with `XADD`; all commands of a batch go in one round trip. The
-- fields of an entry are `id`, `source_id`, `namespace`, `key`, `payload`, `headers` (a JSON
-- object), `created_at` (RFC 3339) and `seq`. A field that the message does not have is left out. A
-- message can be added twice; its `id` shows that it is the same message.
--
-- Options:
--
-- - `stream`: the name of the stream, default "outbox:{namespace}". `{namespace}` is replaced by
--   the message's namespace, and `{key}` by its key; where that is empty, a separator before it is
--   left out, too.
-- - `maxlen`: about how many entries to keep in a stream, default no limit.
-- - `user`, `password`: instead of those in the URL.
-- - `timeout`: seconds, default 5, for connecting, for sending each 64 KiB, and for each answer.
-- - `ca_file`, `cert_file`, `key_file`: files in PEM format, for `rediss:`. hiredis does not
--   compare the name in the server's certificate with the host's.
--
-- A message fails if it is too large for the server or if its stream's key is not a stream. Any
-- other error, such as `OOM` or `READONLY`, is a state of the server: no attempt is counted.
-- @module outbox.publishers.redis

local address = require("outbox.publishing.address")
local broker = require("outbox.publishing.broker")
local need = require("outbox.need")
local option = require("outbox.options")

local client, format -- `new` loads them

-- The fields that need no encoding.
local PLAIN = { "id", "source_id", "namespace", "key", "payload" }

local M = {
  summary = {
    url = "redis://[user:password@]host[:port][/db], rediss://..., unix:/path",
    text = "Redis Streams",
  },
  OPTIONS = broker.options({
    stream = { default = "outbox:{namespace}", check = option.string },
    maxlen = { check = option.integer(math.maxinteger) },
  }, { "ca_file", "cert_file", "key_file" }),
}

local Redis = broker.class({})

function Redis:connect()
  local target = self.target
  return client.connect({
    host = target.host, port = target.port, path = target.path,
    tls = self:tls(),
  })
end

function Redis:greeting()
  local user, password = self.user, self.password
  local items = {}
  if password then
    items[1] = user and { "AUTH", user, password } or { "AUTH", password }
  end
  items[#items + 1] = { "SELECT", self.target.db } -- also shows whether a login is missing
  return items
end

-- The table is made with room for all arguments, because this function takes the largest part of
-- the time per message.
function Redis:item(message, namespace)
  local list = { "XADD", self.stream(namespace, message.key), "*", nil, nil, nil, nil, nil, nil,
    nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil }
  local count = 3
  if self.maxlen then
    list[3], list[4], list[5], list[6] = "MAXLEN", "~", self.maxlen, "*"
    count = 6
  end
  for i = 1, #PLAIN do
    local name = PLAIN[i]
    local value = message[name]
    if value then
      list[count + 1], list[count + 2] = name, value
      count = count + 2
    end
  end
  local headers = message.headers
  if headers then
    list[count + 1], list[count + 2] = "headers", format.headers(headers)
    count = count + 2
  end
  list[count + 1], list[count + 2] = "created_at", format.time(message.created_at)
  if message.seq then
    list[count + 3], list[count + 4] = "seq", tostring(message.seq)
  end
  return list
end

function Redis:judge(reason) -- luacheck: no self
  if reason:find("^WRONGTYPE ") or reason:find("^ERR Elements are too large") then
    return reason
  end
  return { reason = reason, uncharged = true }, true -- the host's name may soon be another server's
end

--- Parsing -----------------------------------------------------------------------------------

local FORMS = {
  redis = "redis://[user:password@]host[:port][/db]",
  rediss = "rediss://[user:password@]host[:port][/db]",
  unix = "unix:/path or unix:/path?db=N",
}

local function parse_path(rest)
  local path, db = rest:match("^(/[^?#]+)%?db=(%d+)$")
  path = path or rest:match("^/[^?#]+$")
  return path and { name = path, path = path, db = db or "0" }
end

function M.parse(scheme, rest)
  local target
  if scheme == "unix" then
    target = parse_path(rest)
  else
    local parsed = address.parse(rest, 6379)
    local db = parsed and (parsed.path or "0"):match("^%d+$")
    local login = not parsed or not parsed.user or parsed.password -- a user alone is no login
    if db and login and #parsed.hosts == 1 then
      target = { name = parsed.name, host = parsed.hosts[1].host, port = parsed.hosts[1].port,
        db = db, user = parsed.user, password = parsed.password, tls = scheme == "rediss" }
    end
  end
  return target, FORMS[scheme] .. " expected"
end

function M.new(target, options)
  format = require("outbox.publishing.format")
  client = need("outbox.destinations.redis", "the redis publisher needs outbox-redis",
    "outbox-redis")
  if target.tls and not client.has_tls then
    error("rediss: needs hiredis 1.0 or newer; outbox-redis was built with an older one", 0)
  end
  local self = broker.new(Redis, target, options)
  self.stream = format.expander(options.stream)
  self.maxlen = options.maxlen and tostring(options.maxlen)
  return self
end

return M
