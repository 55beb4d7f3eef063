-- Sends messages as CloudEvents over HTTP, through lua-http. The destination `http:` makes
-- publishers of it; its options are described there.

local need = require("outbox.need")

local request = need("http.request", "the http publisher needs lua-http", "http")
local basexx = require("basexx")
local client = require("http.client")
local cloudevents = require("outbox.publishing.cloudevents")
local core = require("outbox.core")
local cqueues = require("cqueues")
local digest = require("openssl.digest")
local errno = require("cqueues.errno")
local format = require("outbox.publishing.format")
local hmac = require("openssl.hmac")
local patterns = require("lpeg_patterns.http")
local phrases = require("http.h1_reason_phrases")
local MAX_RETRY_AFTER = require("outbox.retry").MAX_RETRY_AFTER
local ssl_context = require("openssl.ssl.context")
local tls = require("http.tls")
local x509_store = require("openssl.x509.store")

local M = {}

local EXCERPT = 200 -- bytes of an answer's body that a reason shows
-- Seconds to wait for the body of an answer that accepts the message. Nobody needs the body, but a
-- connection can be used again only after it was read.
local GRACE = 0.05
local MAX_LINE = 65536 -- bytes of a header: cookies and policies exceed the 4096 of cqueues
local UNSENT = { reason = "not sent, as another before it failed", uncharged = true, down = true }

-- Status codes of the class 4xx that are the fault of the options or of the destination, not of a
-- message. So are all codes of other classes: a redirect, for instance, is one of every message.
local DOWN = { ["401"] = true, ["402"] = true, ["403"] = true, ["404"] = true, ["405"] = true,
  ["407"] = true, ["410"] = true, ["421"] = true, ["426"] = true, ["429"] = true }
-- Status codes of messages that may be accepted later.
local LATER = { ["408"] = true, ["425"] = true, ["429"] = true }

local Http = { __name = "outbox.publisher", ordered = true }
Http.__index = Http

--- One request --------------------------------------------------------------------------------

-- Not by `connection:close()`, which reads the rest of an answer, and waits for ever if the answer
-- was cut off.
local function hang_up(connection)
  connection:take_socket():close()
end

-- Reads the first line of an answer. Some servers leave out the reason phrase and the space before
-- it, which lua-http takes for an error.
local function read_status_line(connection, timeout)
  local line, reason, number = connection.socket:xread("*L", timeout)
  if not line then
    return nil, reason, number
  end
  local version, status, phrase = line:match("^HTTP/1%.(%d) +(%d%d%d)%f[%s] *(.-)\r\n$")
  if not version then
    connection.socket:seterror("r", errno.EILSEQ)
    return nil, errno.strerror(errno.EILSEQ), errno.EILSEQ
  end
  return version == "0" and 1.0 or 1.1, status, phrase
end

-- Returns an idle connection that is still open and has nothing to read, or else a new one.
local function take(self, seconds)
  while self.idle[1] do
    local connection = table.remove(self.idle)
    local _, _, why = connection.socket:fill(1, 0)
    if why == errno.ETIMEDOUT then
      return connection
    end
    hang_up(connection)
  end
  local connection, reason = client.connect({
    host = self.target.host, port = self.target.port, tls = self.target.tls, ctx = self.context,
    version = 1.1,
  }, seconds)
  if connection then
    connection:setmaxline(MAX_LINE)
    connection.read_status_line = read_status_line
  end
  return connection, reason
end

-- Sends a request. Returns the answer's headers and the beginning of its body, or nil and the
-- reason why there is no answer. A server may answer before it has read the whole request, so the
-- answer is read even if sending has failed. An answer that accepts the message counts without its
-- body.
local function exchange(self, headers, body)
  local deadline = cqueues.monotime() + self.options.timeout
  local function left()
    return math.max(deadline - cqueues.monotime(), 0)
  end
  local connection, reason = take(self, left())
  if not connection then
    return nil, reason
  end
  local stream = connection:new_stream()
  local sent, answer, excerpt, more
  sent, reason = stream:write_headers(headers, body == "", left())
  if sent and body ~= "" then
    sent, reason = stream:write_chunk(body, true, left())
  end
  repeat
    local why
    answer, why = stream:get_headers(left())
    reason = reason or why
  until not answer or answer:get(":status"):sub(1, 1) ~= "1"
  if answer then
    if answer:get(":status"):sub(1, 1) == "2" then
      deadline = math.min(deadline, cqueues.monotime() + GRACE)
    end
    excerpt = stream:get_body_chars(EXCERPT, left())
    more, reason = stream:get_next_chunk(left())
  end
  if sent and answer and not more and not reason then
    self.idle[#self.idle + 1] = connection
  else
    hang_up(connection)
  end
  if answer then
    return answer, excerpt
  end
  return nil, reason or "the connection was closed"
end

-- Seconds since an epoch. The time zone does not matter, because dates are only subtracted.
local function seconds_of(date)
  date.isdst = false
  return os.time(date)
end

-- The seconds that `Retry-After` asks to wait, at most an hour, or nil. It may be a date, which is
-- compared with the server's own clock if the answer has a `Date`.
local function retry_after(answer)
  local after = (patterns.Retry_After * -1):match(answer:get("retry-after") or "")
  if type(after) == "table" then
    local now = (patterns.Date * -1):match(answer:get("date") or "") or os.date("!*t")
    after = seconds_of(after) - seconds_of(now)
  end
  return after and after >= 0 and math.min(after, MAX_RETRY_AFTER) or nil -- not a date in the past
end

-- Returns nil if the answer accepts the message, else a failure. `down` marks a failure that may
-- affect every message.
local function judge(answer, excerpt)
  local status = answer:get(":status")
  if status:sub(1, 1) == "2" then
    return nil
  end
  return {
    reason = ("%s %s %s"):format(status, phrases[status], excerpt or ""):gsub("%s+$", ""),
    retry_after = retry_after(answer),
    permanent = status:sub(1, 1) == "4" and not LATER[status],
    uncharged = status == "429" or status == "503",
    limited = status == "429",
    down = DOWN[status] or status:sub(1, 1) ~= "4",
  }
end

local function sign(self, headers, id, body)
  local timestamp = ("%d"):format(os.time())
  id = id:gsub("%.", "%%2E") -- because a dot ends the id
  local signature = hmac.new(self.key, "sha256"):final(id .. "." .. timestamp .. "." .. body)
  headers:upsert("webhook-id", id)
  headers:upsert("webhook-timestamp", timestamp)
  headers:upsert("webhook-signature", "v1," .. format.base64(signature))
end

-- Sends a request; returns nil or a failure.
local function send(self, headers, id, body)
  headers:upsert("content-length", ("%d"):format(#body))
  if self.key then
    sign(self, headers, id, body)
  end
  for name, value in pairs(self.options.headers) do
    headers:upsert(name:lower(), value)
  end
  local ok, answer, detail = pcall(exchange, self, headers, body)
  if ok and answer then
    return judge(answer, detail)
  end
  local reason = ("%s:%s: %s"):format(self.target.host, self.target.port, ok and detail or answer)
  return { reason = reason, uncharged = true, down = true }
end

--- Binary mode --------------------------------------------------------------------------------

local function send_one(self, message, namespace)
  local headers, id = self.target.headers:clone(), cloudevents.encode(message.id)
  local body = cloudevents.binary(message, namespace, self.options, function(name, value)
    headers:upsert(name, value)
  end)
  headers:upsert("idempotency-key", id)
  return send(self, headers, id, body)
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
local function send_part(self, events, ids, failures, first, last)
  local headers = self.target.headers:clone()
  headers:upsert("content-type", "application/cloudevents-batch+json; charset=UTF-8")
  local id = basexx.to_hex(digest.new("sha256"):final(table.concat(ids, "\n", first, last)))
  local failure = send(self, headers, id, "[" .. table.concat(events, ",", first, last) .. "]")
  if failure and failure.permanent and not failure.down and first < last then
    local middle = (first + last) // 2
    return send_part(self, events, ids, failures, first, middle)
      and send_part(self, events, ids, failures, middle + 1, last)
  elseif failure and first < last then -- the answer does not say which message is at fault
    failure.down, failure.uncharged, failure.permanent = true, true, false
  end
  for i = first, last do
    failures[i] = failure
  end
  return not failure or failure.permanent and not failure.down
end

local function send_batch(self, messages, namespace, failures)
  local events, ids = {}, {}
  for i, message in ipairs(messages) do
    events[i], ids[i] = cloudevents.json(message, namespace, self.options), message.id
    failures[i] = UNSENT
  end
  return 1, function()
    send_part(self, events, ids, failures, 1, #messages)
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
  for _, connection in ipairs(self.idle) do
    hang_up(connection)
  end
  self.idle = {}
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

--- Makes a publisher.
function M.new(target, options)
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
  return setmetatable({
    target = target, options = options, context = context, idle = {}, resume_at = 0,
    key = options.secret and M.key(options.secret),
  }, Http)
end

return M
