--- Redis Streams, through lua-redis: `redis://[user:password@]host[:port][/db]`.
--
-- Each message is added to a stream (`XADD`), all of a batch in one round trip. Its fields: `id`,
-- `namespace`, `key`, `payload`, `headers` (a JSON object), `created_at` (RFC 3339); what a message
-- does not have is left out. A message can be added twice: tell by its `id`.
--
-- Options: `stream`, default "outbox:{namespace}", where the namespace is put in, and "outbox" is
-- left of it if that is empty; `maxlen`: about how many entries to keep in a stream; `timeout`,
-- default 5 s, of connecting, of sending each 64 KiB and of each answer.
--
-- A message that is too large for the server, or whose stream is something else there, has failed.
-- Any other error, such as `OOM` or `READONLY`, is the server's state: no message is charged.
-- @module outbox.publishers.redis

local format = require("outbox.publishers.format")
local need = require("outbox.need")
local option = require("outbox.options")

local redis = need("redis", "the redis publisher needs lua-redis", "redis-lua")

local SLICE = 65536 -- bytes that are sent within the timeout
local PLAIN = { "id", "namespace", "key", "payload" } -- the fields that are sent as they are

local M = {
  OPTIONS = {
    stream = { default = "outbox:{namespace}", check = option.string },
    maxlen = { check = option.integer(math.maxinteger) },
    timeout = { default = 5, check = option.seconds },
  },
}

local Redis = { __name = "outbox.publisher", batch_size = 100 }
Redis.__index = Redis

-- In a pipeline lua-redis wants a parser of every command, where Lua is 5.3 or newer.
local xadd = redis.command("XADD", function(reply)
  return reply
end)

-- lua-redis stops reading at the first error, and the answers after it are left on the way. So an
-- error that the server replies with becomes a value.
local function on_error(message)
  local reply = tostring(message):match("^redis error: (.*)")
  if reply then
    return { error = reply }
  end
  error(message, 0)
end

-- lua-redis sends all of a batch at once, which may take a slow line longer than the timeout.
local function write(client, buffer)
  for first = 1, #buffer, SLICE do
    local sent, reason = client.network.socket:send(buffer, first, first + SLICE - 1)
    if not sent then
      error(reason, 0)
    end
  end
end

local function check(reply)
  if type(reply) == "table" and reply.error then
    error(reply.error, 0)
  end
end

local function connect(self)
  local target = self.target
  local client = redis.connect({
    host = target.host, port = target.port, timeout = self.options.timeout,
  })
  self.client = client
  client.error, client.xadd, client.network.write = on_error, xadd, write
  if target.login then
    check(client:auth(table.unpack(target.login)))
  end
  check(client:select(target.db)) -- what is wrong with the connection shows here at the latest
end

-- A server closes what has been idle for long.
local function is_open(self)
  local socket = self.client.network.socket
  socket:settimeout(0, "t")
  local _, state = socket:receive(1)
  socket:settimeout(self.options.timeout, "t")
  return state == "timeout"
end

-- Made with room for all that there may be: of what is done per message, this takes the longest.
local function arguments(self, message, stream)
  local list = { stream, "*", nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil }
  local count = 2
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
    list[count + 1] = "headers"
    list[count + 2] = type(headers) == "table" and format.encode(headers) or headers
    count = count + 2
  end
  list[count + 1], list[count + 2] = "created_at", format.time(message.created_at)
  if self.options.maxlen then
    table.move(list, 2, count + 2, 5)
    list[2], list[3], list[4] = "MAXLEN", "~", self.options.maxlen
  end
  return list
end

local function is_message_at_fault(reply)
  return reply:find("^WRONGTYPE ") or reply:find("^ERR Elements are too large")
end

local function publish(self, messages, namespace)
  if self.client and not is_open(self) then
    self:close()
  end
  if not self.client then
    connect(self)
  end
  local stream = format.expand(self.options.stream, namespace)
  local replies = self.client:pipeline(function(pipeline)
    for _, message in ipairs(messages) do
      pipeline:xadd(arguments(self, message, stream))
    end
  end)
  local failures = {}
  for i, reply in ipairs(replies) do
    local reason = type(reply) == "table" and reply.error
    if reason and is_message_at_fault(reason) then
      failures[i] = reason
    elseif reason then
      failures[i] = { reason = reason, uncharged = true }
      self:close() -- its name may stand for another server by now
    end
  end
  return failures
end

function Redis:publish(messages, namespace)
  local ok, answer = pcall(publish, self, messages, namespace)
  if ok then
    return answer
  end
  self:close()
  return nil, (tostring(answer):gsub("^%S+:%d+: ", "")) -- where in lua-redis is of no interest
end

function Redis:close()
  if self.client then
    self.client.network.socket:close()
    self.client = nil
  end
end

Redis.__close = Redis.close

local function decode(text)
  return (text:gsub("%%(%x%x)", function(digits)
    return string.char(tonumber(digits, 16))
  end))
end

-- Where to connect to, nil if the URL does not say; to log in, the password, or the user and it.
local function parse(url)
  local authority, db = url:match("^//([^/?#]+)/?(%d*)$")
  local user, password, address = (authority or ""):match("^([^:]*):(.*)@(.-)$")
  address = address or authority or ""
  local host, port = address:match("^%[(.+)%]:?(%d*)$")
  if not host then
    host, port = address:match("^([^:@]+):?(%d*)$")
  end
  local login = password and { decode(password) }
  if login and user ~= "" then
    table.insert(login, 1, decode(user))
  end
  return host and
    { host = host, port = tonumber(port) or 6379, db = tonumber(db) or 0, login = login }
end

function M.parse(_, rest)
  return parse(rest), "redis://[user:password@]host[:port][/db] expected"
end

function M.new(target, options)
  return setmetatable({ target = target, options = options }, Redis)
end

return M
