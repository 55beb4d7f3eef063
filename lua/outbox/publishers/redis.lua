--- Redis Streams, through lua-redis: `redis://[user:password@]host[:port][/db]`.
--
-- Each message is added to a stream with `XADD`; all commands of a batch go in one round trip. The
-- fields of an entry are `id`, `namespace`, `key`, `payload`, `headers` (a JSON object),
-- `created_at` (RFC 3339) and `seq`. A field that the message does not have is left out. A message
-- can be added twice; its `id` shows that it is the same message.
--
-- Options:
--
-- - `stream`: the name of the stream, default "outbox:{namespace}". `{namespace}` is replaced by
--   the message's namespace; for the empty namespace the name is "outbox".
-- - `maxlen`: about how many entries to keep in a stream, default no limit.
-- - `timeout`: seconds, default 5, for connecting, for sending each 64 KiB, and for each answer.
--
-- A message fails if it is too large for the server or if its stream's key is not a stream. Any
-- other error, such as `OOM` or `READONLY`, is a state of the server: no attempt is counted.
-- @module outbox.publishers.redis

local need = require("outbox.need")
local option = require("outbox.options")

local format, redis, xadd -- need lua-cjson and lua-redis, so `new` loads them

local SLICE = 65536 -- bytes that must be sent within one timeout
-- The fields that need no encoding.
local PLAIN = { "id", "source_id", "namespace", "key", "payload" }

local M = {
  summary = { url = "redis://[user:password@]host[:port][/db]", text = "Redis Streams" },
  OPTIONS = {
    stream = { default = "outbox:{namespace}", check = option.string },
    maxlen = { check = option.integer(math.maxinteger) },
    timeout = { default = 5, check = option.seconds },
  },
}

local Redis = { __name = "outbox.publisher", batch_size = 100 }
Redis.__index = Redis

local function load_clients()
  format = require("outbox.publishing.format")
  redis = need("redis", "the redis publisher needs lua-redis", "redis-lua")
  -- On Lua 5.3 and newer, lua-redis needs a parser for each command in a pipeline.
  xadd = redis.command("XADD", function(reply)
    return reply
  end)
end

-- lua-redis stops reading at the first error and leaves the following answers unread. Therefore an
-- error reply of the server becomes a value.
local function on_error(message)
  local reply = tostring(message):match("^redis error: (.*)")
  if reply then
    return { error = reply }
  end
  error(message, 0)
end

-- lua-redis sends a whole batch in one call, which a slow line may not finish within the timeout.
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
  check(client:select(target.db)) -- also shows an error of the connection, before any message
end

-- Whether the connection is still open: a server closes one that was idle for long.
local function is_open(self)
  local socket = self.client.network.socket
  socket:settimeout(0, "t")
  local _, state = socket:receive(1)
  socket:settimeout(self.options.timeout, "t")
  return state == "timeout"
end

-- The arguments of XADD. The table is made with room for all of them, because this function takes
-- the largest part of the time per message.
local function arguments(self, message, stream)
  local list = { stream, "*", nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil, nil,
    nil, nil, nil }
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
    list[count + 2] = format.headers(headers)
    count = count + 2
  end
  list[count + 1], list[count + 2] = "created_at", format.time(message.created_at)
  if message.seq then
    list[count + 3], list[count + 4] = "seq", message.seq
    count = count + 2
  end
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
      self:close() -- the host's name may belong to another server by the next call
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
  return nil, (tostring(answer):gsub("^%S+:%d+: ", "")) -- without the position in lua-redis
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

-- Returns the host, the port, the database and the arguments of AUTH (the password, or the user and
-- the password; nil without a password), or nil if the URL has another form.
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
  return parse(rest), M.summary.url .. " expected"
end

function M.new(target, options)
  load_clients()
  return setmetatable({ target = target, options = options }, Redis)
end

return M
