-- A message's headers and fields as names and texts, for brokers whose messages have such pairs.

local format = require("outbox.publishing.format")

local OWN = { id = true, source_id = true, namespace = true, key = true, created_at = true,
  seq = true }

--- Calls `set(name, text)` for each header of the message, and for its fields `id`, `source_id`,
-- `namespace`, `key`, `created_at` (RFC 3339) and `seq`; those that it does not have are left out.
-- A field comes before a header of the same name. A header that is no string is its JSON. Headers
-- that are no JSON at all are one pair, `headers`.
return function(message, namespace, set)
  local headers = message.headers
  if type(headers) == "string" then
    set("headers", headers)
  else
    for name, value in pairs(headers or {}) do
      if not OWN[name] then
        set(name, type(value) == "string" and value or format.encode(value))
      end
    end
  end
  set("id", message.id)
  set("namespace", namespace)
  set("created_at", format.time(message.created_at))
  for _, name in ipairs({ "source_id", "key", "seq" }) do
    if message[name] ~= nil then
      set(name, tostring(message[name]))
    end
  end
end
