-- The receiver of a webhook, for the specs: http_server.lua PORT DIRECTORY [tls]. It appends each
-- request as a line of JSON to the file `requests` in its directory. The file `answers` there holds
-- a JSON object of answers by the id of an event; "*" stands for all other events. An answer has:
--
--    status   default 204
--    headers, body
--    hang     do not answer
--    close    close the connection instead
--    crowd    answer only when this many requests are waiting

local cjson = require("cjson")
local cqueues = require("cqueues")
local condition = require("cqueues.condition")
local http_headers = require("http.headers")
local http_server = require("http.server")
local http_tls = require("http.tls")
local pkey = require("openssl.pkey")
local x509 = require("openssl.x509")

local directory = arg[2] .. "/"

local function read(name)
  local file <close> = io.open(directory .. name)
  return file and file:read("a")
end

-- Returns the answer to events with these ids.
local function find_answer(ids)
  local answers = cjson.decode(read("answers") or "{}")
  for _, id in ipairs(ids) do
    if answers[id] then
      return answers[id]
    end
  end
  return answers["*"] or {}
end

local waiting, changed = 0, condition.new()

local function wait_for_crowd(count)
  waiting = waiting + 1
  changed:signal()
  while waiting < count do
    changed:wait()
  end
end

local function reply(_, stream)
  local request = assert(stream:get_headers())
  local _, _, peer_port = stream:peername()
  local noted = { headers = {}, body = assert(stream:get_body_as_string()), peer = peer_port }
  for name, value in request:each() do
    local before = noted.headers[name]
    noted.headers[name] = before and before .. ", " .. value or value
  end
  local ids = { noted.headers["ce-id"] }
  if noted.headers["content-type"] == "application/cloudevents-batch+json; charset=UTF-8" then
    for i, event in ipairs(cjson.decode(noted.body)) do
      ids[i] = event.id
    end
  end
  local log <close> = assert(io.open(directory .. "requests", "a"))
  log:write(cjson.encode(noted), "\n")
  log:close()
  local answer = find_answer(ids)
  if answer.hang then
    cqueues.sleep(3600)
  elseif answer.close then
    stream.connection.socket:shutdown("rw")
    return
  elseif answer.crowd then
    wait_for_crowd(answer.crowd)
  end
  local headers = http_headers.new()
  headers:append(":status", ("%d"):format(answer.status or 204))
  for name, value in pairs(answer.headers or {}) do
    headers:append(name, value)
  end
  stream:write_headers(headers, answer.body == nil)
  if answer.body then
    stream:write_chunk(answer.body, true)
  end
end

local context
if arg[3] == "tls" then
  context = http_tls.new_server_context()
  context:setCertificate(x509.new(read("certificate.pem")))
  context:setPrivateKey(pkey.new(read("key.pem")))
end
local server = assert(http_server.listen({
  host = "127.0.0.1", port = tonumber(arg[1]), tls = context ~= nil, ctx = context,
  onstream = reply, onerror = function() end,
}))
assert(server:loop())
