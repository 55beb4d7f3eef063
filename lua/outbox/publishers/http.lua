--- Webhooks: CloudEvents 1.0 over HTTP, through lua-http: `http://host/path`, `https://...`.
--
-- In the mode "binary" each message is a request: the payload is the body, and everything else is
-- in headers. The header `Idempotency-Key` is the id. In the mode "batched" all messages of a batch
-- are one request, a JSON array. `outbox.publishing.cloudevents` describes the attributes of an
-- event.
--
-- Options:
--
-- - `mode`: "binary", the default, or "batched".
-- - `source`: the event's source, default "/outbox".
-- - `type`: the event's type, default "outbox.{namespace}".
-- - `headers`: a table of more headers, such as `authorization`.
-- - `secret`: "whsec_..." as in Standard Webhooks. It signs each request with the headers
--   `webhook-id`, `webhook-timestamp` and `webhook-signature`.
-- - `timeout`: seconds for each request, default 10.
-- - `concurrency`: how many requests are sent at a time in the mode "binary", default 8. The
--   requests of one key are sent one after the other.
-- - `ca_file`: a file of certificates; no others are trusted.
-- - `verify`: false accepts any certificate.
-- - `proxy`: the URL of a proxy, `http://[user:password@]host:port`; "" uses none. By default the
--   variables `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy` of the environment decide.
--   Requests to `https:` go through a tunnel, so the proxy reads nothing of them. A failure that
--   the proxy answers itself, a 407 or a tunnel that it refuses, is no answer of the destination.
-- - `sign`: a function `(request)` that is called last, for each request, also when a message is
--   sent again. The fields of `request` are `method`, `host`, perhaps with a port, `path` with the
--   query, `headers`, a table with names in lower case, `body`, `messages`, the array of those in
--   this request, and `namespace`. The function may change `headers`, `path` and `body`;
--   `content-length` is set after it. It may yield to the loop of cqueues, and then it is called
--   for other requests meanwhile. If it raises an error, the destination counts as down, and the
--   error is the reason.
--
-- A message *got through* if its answer shows that the destination works: 2xx, 408, 425 or a 4xx of
-- the last row. *Down* means that the destination is down: no attempt is counted for any
-- message.
--
-- | answer | alone | among others that got through |
-- | --- | --- | --- |
-- | 2xx | delivered | delivered |
-- | 408, 425 | tried again | tried again |
-- | 429 | tried again, no attempt counted | tried again, no attempt counted |
-- | 401, 402, 403, 404, 405, 407, 410, 421, 426 | down | dead letter |
-- | 503, or none within `timeout` | down | tried again, no attempt counted |
-- | 3xx (redirects are not followed), any other 5xx | down | tried again |
-- | any other 4xx | dead letter | dead letter |
--
-- If a request of several messages gets a 4xx of the last row, each half of it is sent by itself,
-- until the refused message is found. Any other failure of such a request counts as a 503, except
-- 429. `Retry-After` is obeyed, up to an hour.
-- @module outbox.publishers.http

local option = require("outbox.options")

local MODES = { binary = true, batched = true }

-- Loaded by `parse`, because it needs lua-http.
local function sender()
  return require("outbox.publishing.http")
end

local function are_headers(value)
  local ok = type(value) == "table"
  for name, text in pairs(ok and value or {}) do
    ok = ok and type(name) == "string" and name:find("^[%w_-]+$") and type(text) == "string"
      and text:find("^[%g ]*$")
  end
  return ok, "a table of strings"
end

local M = {
  summary = { url = "http://host/path, https://...", text = "webhooks" },
  OPTIONS = {
    mode = { default = "binary", check = function(value)
      return MODES[value] ~= nil, '"binary" or "batched"'
    end },
    source = { default = "/outbox", check = option.string },
    type = { default = "outbox.{namespace}", check = option.string },
    headers = { default = {}, check = are_headers },
    secret = { check = function(value)
      return sender().key(value), '"whsec_" and 24 to 64 bytes in base64'
    end },
    timeout = { default = 10, check = option.seconds },
    concurrency = { default = 8, check = option.integer(1000) },
    ca_file = { check = function(value)
      local file <close> = type(value) == "string" and io.open(value) or nil
      local text = file and file:read("a") -- nil for a directory
      return text and text:find("-----BEGIN ", 1, true), "a file of certificates"
    end },
    verify = { default = true, check = option.boolean },
    proxy = { check = function(value)
      return value == "" or sender().proxy(value), 'a URL such as http://host:port, or ""'
    end },
    sign = { check = function(value)
      return type(value) == "function", "a function, which the command line cannot give"
    end },
  },
}

function M.parse(scheme, rest)
  return sender().target(scheme .. ":" .. rest), "a URL such as https://host/path expected"
end

function M.new(target, options)
  return sender().new(target, options)
end

return M
