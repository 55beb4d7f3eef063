-- Sends messages as CloudEvents over HTTP, through lua-http. The destination `http:` makes
-- publishers of it; its options are described there.

local need = require("outbox.need")

local request = need("http.request", "the http publisher needs lua-http", "http")
local answers = require("outbox.publishing.http.answers")
local basexx = require("basexx")
local cloudevents = require("outbox.publishing.cloudevents")
local core = require("outbox.core")
local cqueues = require("cqueues")
local digest = require("openssl.digest")
local errors = require("outbox.error")
local exchange = require("outbox.publishing.http.exchange")
local format = require("outbox.publishing.format")
local hmac = require("openssl.hmac")
local proxy = require("outbox.publishing.http.proxy")
local signing = require("outbox.publishing.http.signing")
local ssl_context = require("openssl.ssl.context")
local tls = require("http.tls")
local x509_store = require("openssl.x509.store")

local M = {}

local UNSENT = { reason = "not sent, as another before it failed", uncharged = true, down = true }

local Http = { __name = "outbox.publisher", ordered = true }
Http.__index = Http

--- One request --------------------------------------------------------------------------------

local function sign(self, headers, id, body)
  local timestamp = ("%d"):format(os.time())
  id = id:gsub("%.", "%%2E") -- because a dot ends the id
  local signature = hmac.new(self.key, "sha256"):final(id .. "." .. timestamp .. "." .. body)
  headers:upsert("webhook-id", id)
  headers:upsert("webhook-timestamp", timestamp)
  headers:upsert("webhook-signature", "v1," .. format.base64(signature))
end

-- Sends a request of these messages; returns nil or a failure.
local function send(self, headers, id, body, messages, namespace)
  if self.key then
    sign(self, headers, id, body)
  end
  for name, value in pairs(self.options.headers) do
    headers:upsert(name:lower(), value)
  end
  if self.options.sign then
    local ok
    ok, headers, body = pcall(signing.sign, self.options.sign, headers, body, messages, namespace)
    if not ok then
      return { reason = errors.text(headers), uncharged = true, down = true }
    end
  end
  headers:upsert("content-length", ("%d"):format(#body))
  local ok, answer, detail = pcall(self.exchange.send, self.exchange, headers, body)
  if ok and answer then
    return answers.judge(answer, detail)
  end
  local reason = ("%s: %s"):format(self.name, ok and detail or answer)
  return { reason = reason, uncharged = true, down = true }
end

--- Binary mode --------------------------------------------------------------------------------

local function send_one(self, message, namespace)
  local headers, id = self.target.headers:clone(), cloudevents.encode(message.id)
  local body = cloudevents.binary(message, namespace, self.options, function(name, value)
    headers:upsert(name, value)
  end)
  headers:upsert("idempotency-key", id)
  return send(self, headers, id, body, { message }, namespace)
end

-- Returns lists of the indexes of messages. The messages of one list have the same key, so they are
-- sent one after the other.
local function lines_of(messages)
  local lines, by_key = {}, {}
  for i, message in ipairs(messages) do
    local line = message.key and by_key[message.key]
    if not line then
      line = {}
      lines[#lines + 1] = line
      if message.key then
        by_key[message.key] = line
      end
    end
    line[#line + 1] = i
  end
  return lines
end

local function send_each(self, messages, namespace, failures)
  local lines, taken, stopped = lines_of(messages), 0, false
  local function send_line(line)
    local blocked = false
    for _, i in ipairs(line) do
      if stopped or blocked then
        failures[i] = UNSENT
      else
        local failure = send_one(self, messages[i], namespace)
        failures[i] = failure
        blocked = failure and (failure.down or not failure.permanent)
        stopped = stopped or failure and failure.uncharged
      end
    end
  end
  return math.min(self.options.concurrency, #lines), function()
    while taken < #lines do
      taken = taken + 1
      send_line(lines[taken])
    end
  end
end

--- Batched mode -------------------------------------------------------------------------------

-- Sends a part of the batch. If the part is refused for good, sends each half of it by itself,
-- until the refused message is found. Returns whether the rest of the batch may be sent.
local function send_part(self, batch, failures, first, last)
  local headers = self.target.headers:clone()
  headers:upsert("content-type", "application/cloudevents-batch+json; charset=UTF-8")
  local id = basexx.to_hex(digest.new("sha256"):final(table.concat(batch.ids, "\n", first, last)))
  local body = "[" .. table.concat(batch.events, ",", first, last) .. "]"
  local messages = table.move(batch.messages, first, last, 1, {})
  local failure = send(self, headers, id, body, messages, batch.namespace)
  if failure and failure.permanent and not failure.down and first < last then
    local middle = (first + last) // 2
    return send_part(self, batch, failures, first, middle)
      and send_part(self, batch, failures, middle + 1, last)
  elseif failure and first < last then -- the answer does not say which message is at fault
    failure.down, failure.uncharged, failure.permanent = true, true, false
  end
  for i = first, last do
    failures[i] = failure
  end
  return not failure or failure.permanent and not failure.down
end

local function send_batch(self, messages, namespace, failures)
  local batch = { messages = messages, namespace = namespace, events = {}, ids = {} }
  for i, message in ipairs(messages) do
    batch.events[i] = cloudevents.json(message, namespace, self.options)
    batch.ids[i], failures[i] = message.id, UNSENT
  end
  return 1, function()
    send_part(self, batch, failures, 1, #messages)
  end
end

--- The publisher ------------------------------------------------------------------------------

-- Failures of all messages, with no attempt counted, until the pause ends.
local function defer(self, count)
  local failures, failure = {}, { reason = self.reason, uncharged = true,
    retry_after = math.max(self.resume_at - cqueues.monotime(), 0) }
  for i = 1, count do
    failures[i] = failure
  end
  return failures
end

-- The failures as the processor knows them.
local function plain(failures, count)
  local list = {}
  for i = 1, count do
    local failure = failures[i]
    list[i] = failure and { reason = failure.reason, permanent = failure.permanent,
      retry_after = failure.retry_after, uncharged = failure.uncharged }
  end
  return list
end

-- Returns the failures; or nil and a reason if no answer shows that the destination is up.
local function conclude(self, failures, count)
  local pause, limited = 0, false
  for i = 1, count do
    local failure = failures[i]
    if not failure or not failure.down then
      return plain(failures, count)
    end
    pause, limited = math.max(pause, failure.retry_after or 0), limited or failure.limited
  end
  self.resume_at = cqueues.monotime() + pause
  self.reason = failures[1].reason
  if limited then
    return defer(self, count)
  end
  return nil, self.reason
end

function Http:publish(messages, namespace)
  if cqueues.monotime() < self.resume_at then
    return defer(self, #messages)
  end
  local failures, loop = {}, cqueues.new()
  local prepare = self.options.mode == "batched" and send_batch or send_each
  local workers, work = prepare(self, messages, namespace, failures)
  for _ = 1, workers do
    loop:wrap(work)
  end
  assert(loop:loop()) -- inside a cqueues loop, this yields to it
  return conclude(self, failures, #messages)
end

function Http:close()
  self.exchange:close()
end

Http.__close = Http.close

--- Returns the target of a URL, or nil if the URL has another form.
function M.target(url)
  local ok, target = pcall(request.new_from_uri, url)
  return ok and target or nil
end

--- Returns the bytes of a Standard Webhooks secret, "whsec_" and 24 to 64 bytes in base64; or nil.
function M.key(secret)
  local digits = type(secret) == "string" and secret:match("^whsec_([%w+/]+)=*$")
  local key = digits and basexx.from_base64(digits)
  return key and #key >= 24 and #key <= 64 and key or nil
end

--- Returns the proxy of a URL; nil if it cannot be one.
M.proxy = proxy.parse

--- Makes a publisher; or returns nil and a reason.
function M.new(target, options)
  local via, reason = proxy.find(options.proxy, target.tls and "https" or "http", target.host)
  if reason then
    return nil, reason
  end
  target.headers:upsert(":method", "POST")
  target.headers:upsert("user-agent", "outbox/" .. core._VERSION)
  local context
  if target.tls then
    context = tls.new_client_context()
    if options.ca_file then
      context:setStore(x509_store.new():add(options.ca_file))
    end
    if not options.verify then
      context:setVerify(ssl_context.VERIFY_NONE)
    end
  end
  local name = ("%s:%s"):format(target.host, target.port)
  return setmetatable({
    target = target, options = options, resume_at = 0,
    name = via and ("%s through the proxy %s"):format(name, via.name) or name,
    exchange = exchange.new(target, via, options.timeout, context),
    key = options.secret and M.key(options.secret),
  }, Http)
end

return M
