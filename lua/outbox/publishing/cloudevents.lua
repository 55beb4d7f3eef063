--- Messages as CloudEvents 1.0, in the two forms that HTTP has for them.
--
-- `id` is the message's id, and `time` is when it was published. `source` and `type` are options.
-- `subject` and `partitionkey` are both the key. `datacontenttype` is the message's header
-- content-type; without one it is JSON, text or bytes, depending on the payload. All other headers
-- become attributes, too. Their names are in lower case, without a leading "ce-" and without
-- characters that are not allowed there: `traceparent` stays `traceparent`, `X-Request-Id` becomes
-- `xrequestid`. A header named `type` or `source`, or `subject` where there is no key, sets that
-- attribute.
-- @module outbox.publishing.cloudevents

local format = require("outbox.publishing.format")

local M = {}

local CONTENT_TYPE = "^[%g ]+$" -- the characters that are allowed in a header

--- Encodes a value for a header: space, quotes, percent and all that is not ASCII as %XX.
function M.encode(value)
  return (value:gsub("[^!#$&-~]", function(byte)
    return ("%%%02X"):format(byte:byte())
  end))
end

local function looks_like(payload)
  if payload:find("^%s*[{[]") and format.is_json(payload) then
    return "application/json"
  end
  return utf8.len(payload) and "text/plain; charset=utf-8" or "application/octet-stream"
end

local function attributes(message, namespace, options)
  local list = {
    source = format.expand(options.source, M.encode(namespace)), -- a URI
    type = format.expand(options.type, namespace),
  }
  local headers = type(message.headers) == "table" and message.headers or {}
  for name, value in pairs(headers) do
    local attribute = name:lower():gsub("^ce%-", ""):gsub("[^a-z0-9]", "")
    if attribute == "contenttype" then
      attribute = "datacontenttype"
    end
    if attribute ~= "" and attribute ~= "data" and type(value) == "string" and value ~= "" then
      list[attribute] = value
    end
  end
  if message.key and message.key ~= "" then
    list.subject, list.partitionkey = message.key, message.key
  end
  list.specversion, list.id, list.time = "1.0", message.id, format.time(message.created_at)
  local content_type = list.datacontenttype
  if not content_type or not content_type:find(CONTENT_TYPE) then
    list.datacontenttype = message.payload and looks_like(message.payload)
  end
  return list
end

--- Binary mode: calls `set(name, value)` for each header; returns the body.
function M.binary(message, namespace, options, set)
  for name, value in pairs(attributes(message, namespace, options)) do
    if name == "datacontenttype" then
      set("content-type", value)
    else
      set("ce-" .. name, M.encode(value))
    end
  end
  return message.payload or ""
end

--- Batched mode: returns one event as a JSON object.
function M.json(message, namespace, options)
  local list, payload = attributes(message, namespace, options), message.payload
  for name, value in pairs(list) do
    if not utf8.len(value) then
      list[name] = M.encode(value)
    end
  end
  local event = format.encode(list)
  if not payload then
    return event
  end
  local media_type, data = list.datacontenttype:match("^[^;]*"):lower(), nil
  if media_type:find("[/+]json%s*$") then
    data = format.is_json(payload) and payload
  elseif utf8.len(payload) then
    data = format.encode(payload)
  end
  local member = data and '"data":' .. data or '"data_base64":"' .. format.base64(payload) .. '"'
  return event:sub(1, -2) .. "," .. member .. "}"
end

return M
