-- Signature Version 4 of Amazon's services, for the option `sign` of the http publisher. sqs.lua
-- uses it.

local digest = require("openssl.digest")
local hmac = require("openssl.hmac")

local M = {}

local function to_hex(bytes)
  return (bytes:gsub(".", function(byte)
    return ("%02x"):format(byte:byte())
  end))
end

local function sha256(text)
  return to_hex(digest.new("sha256"):final(text))
end

local function keyed(key, text)
  return hmac.new(key, "sha256"):final(text)
end

--- Signs a request, with all headers that it has. `credentials` has `key_id`, `secret` and perhaps
-- `token`, `now` is in seconds since the epoch. Not for a path with a query, or with characters
-- that must be encoded.
function M.sign(request, credentials, region, service, now)
  local time = os.date("!%Y%m%dT%H%M%SZ", now)
  local headers = request.headers
  headers.host, headers["x-amz-date"] = request.host, time
  headers["x-amz-security-token"] = credentials.token
  local names, lines = {}, {}
  for name in pairs(headers) do
    names[#names + 1] = name
  end
  table.sort(names)
  for i, name in ipairs(names) do
    lines[i] = ("%s:%s\n"):format(name, headers[name])
  end
  local signed = table.concat(names, ";")
  local canonical = table.concat({ request.method, request.path, "", table.concat(lines), signed,
    sha256(request.body) }, "\n")
  local scope = ("%s/%s/%s/aws4_request"):format(time:sub(1, 8), region, service)
  local key = "AWS4" .. credentials.secret
  for part in scope:gmatch("[^/]+") do
    key = keyed(key, part)
  end
  local text = ("AWS4-HMAC-SHA256\n%s\n%s\n%s"):format(time, scope, sha256(canonical))
  headers.authorization = ("AWS4-HMAC-SHA256 Credential=%s/%s, SignedHeaders=%s, Signature=%s")
    :format(credentials.key_id, scope, signed, to_hex(keyed(key, text)))
end

return M
