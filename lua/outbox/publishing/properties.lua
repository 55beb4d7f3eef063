-- A message's headers and fields as names and texts, for brokers whose messages have such pairs.

local format = require("outbox.publishing.format")

local OWN = { id = true, source_id = true, namespace = true, key = true, created_at = true,
  seq = true }

--- Calls `set(name, text)` for each header of the message, and for its fields `id`, `source_id`,
-- `namespace`, `key`, `created_at` (RFC 3339) and `seq`; those that it does not have are left out.
-- A field comes before a header of the same name. A header that is no string is its JSON. Headers
-- that are no JSON at all are one pair, `headers`. The third argument of `set` is true for a field.
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
  set("id", message.id, true)
  set("namespace", namespace, true)
  set("created_at", format.time(message.created_at), true)
  if message.source_id then
    set("source_id", message.source_id, true)
  end
  if message.key then
    set("key", message.key, true)
  end
  if message.seq then
    set("seq", tostring(message.seq), true)
  end
end
