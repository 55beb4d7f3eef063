--- Messages as CloudEvents 1.0.
--
-- `id` is the message's id, and `time` is when it was published. `source` and `type` are options.
-- `subject` and `partitionkey` are both the key. `datacontenttype` is the message's header
-- content-type; without one it is JSON, text or bytes, depending on the payload. All other headers
-- become attributes, too. Their names are in lower case, without a leading "ce-" and without
-- characters that are not allowed there: `traceparent` stays `traceparent`, `X-Request-Id` becomes
-- `xrequestid`. A header named `type`, `source` or `sequence`, or `subject` where there is no key,
-- sets that attribute.
--
-- `sequence` is the message's `seq`, with leading zeros: the extension of this name orders events
-- by comparing strings.
--
-- Plain SQL may have published headers that are no strings. A boolean is a Boolean, an integer of
-- 32 bits is an Integer, and any other number is a String, its digits. null, arrays and objects
-- have no counterpart and are left out, and so are numbers from 2^53 on, which Lua does not know
-- exactly. Headers that are no JSON are the attribute `headers`, a String.
-- @module outbox.publishing.cloudevents

local format = require("outbox.publishing.format")

local M = {}

local MAX_EXACT = 2 ^ 53 -- from here on not every integer is a number of Lua's JSON
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

-- The value of an attribute: a string, a boolean or an integer of 32 bits. Nil if CloudEvents has
-- no type for the value of the header.
local function to_attribute(value)
  if type(value) == "boolean" or type(value) == "string" and value ~= "" then
    return value
  elseif type(value) ~= "number" or value ~= value or math.abs(value) >= MAX_EXACT then
    return nil
  end
  local integer = math.tointeger(value)
  if integer and integer >= -0x80000000 and integer <= 0x7fffffff then
    return integer
  elseif integer then
    return ("%d"):format(integer)
  end
  local short = ("%.15g"):format(value)
  return tonumber(short) == value and short or ("%.17g"):format(value)
end

-- The attributes that must be strings.
local STRINGS = { source = true, type = true, subject = true, partitionkey = true,
  datacontenttype = true, dataschema = true, headers = true, sequence = true, sourceid = true }

--- Returns the attributes of a message by their names: strings, booleans and integers, perhaps with
-- bytes that are not UTF-8.
function M.attributes(message, namespace, options)
  local list = {
    source = format.expand(options.source, M.encode(namespace)), -- a URI
    type = format.expand(options.type, namespace),
    sequence = message.seq and ("%019d"):format(message.seq), -- the digits of the largest integer
    sourceid = message.source_id,
  }
  local headers = message.headers or {}
  for name, value in pairs(type(headers) == "table" and headers or { headers = headers }) do
    local attribute = name:lower():gsub("^ce%-", ""):gsub("[^a-z0-9]", "")
    if attribute == "contenttype" then
      attribute = "datacontenttype"
    end
    local mapped = to_attribute(value)
    if attribute ~= "" and attribute ~= "data" and mapped ~= nil then
      if STRINGS[attribute] then
        mapped = tostring(mapped)
      end
      list[attribute] = mapped
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

--- Binary mode of HTTP: calls `set(name, value)` for each header; returns the body.
function M.binary(message, namespace, options, set)
  for name, value in pairs(M.attributes(message, namespace, options)) do
    if name == "datacontenttype" then
      set("content-type", value)
    else
      set("ce-" .. name, M.encode(tostring(value)))
    end
  end
  return message.payload or ""
end

--- Structured mode: returns one event as a JSON object.
function M.json(message, namespace, options)
  local list, payload = M.attributes(message, namespace, options), message.payload
  for name, value in pairs(list) do
    if type(value) == "string" and not utf8.len(value) then
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
