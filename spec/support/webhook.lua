-- A receiver of webhooks for the specs of the http publisher, one for each spec file. It is a
-- process of its own; see spec/support/http_server.lua.

local assert = require("luassert")
local cjson = require("cjson")
local outbox = require("outbox")
local server = require("spec.support.server")
local support = require("spec.support")
local testing = require("outbox.testing")

local M = {}

--- Makes a receiver, which is not started yet; `options` is "tls" or nothing.
function M.new_server(options)
  local port = server.port()
  local instance = server.new(
    support.command(("spec/support/http_server.lua %d $DIRECTORY %s"):format(port, options or "")),
    port)
  instance.authority = "127.0.0.1:" .. port
  return instance
end

--- Gives a receiver with TLS, which is not running, a new certificate for a name such as
-- "IP:127.0.0.1", and starts it. Returns the file of the certificate.
function M.certify(instance, name)
  local directory = instance.directory
  assert(os.execute(("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
    .. "-keyout %s/key.pem -out %s/certificate.pem -subj /CN=test -days 2 "
    .. "-addext subjectAltName=%s 2>/dev/null"):format(directory, directory, name)))
  instance:start()
  return directory .. "/certificate.pem"
end

--- Starts the receiver of this spec file, `instance`; its URL is `url`.
function M.start()
  M.instance = M.new_server()
  M.instance:start()
  M.url = ("http://%s/hook?a=b"):format(M.instance.authority)
end

--- Sets the answers to events, by their ids or "*".
function M.answer(answers)
  local file <close> = assert(io.open(M.instance.directory .. "/answers", "w"))
  file:write(cjson.encode(answers))
end

--- Forgets the requests that were received.
function M.forget_requests()
  os.remove(M.instance.directory .. "/requests")
end

--- Accepts all events from now on, and forgets the requests.
function M.reset()
  M.answer({})
  M.forget_requests()
end

--- Returns the requests that were received, by this receiver or by another server that notes them.
function M.requests(instance)
  local list = {}
  local file <close> = io.open((instance or M.instance).directory .. "/requests")
  for line in file and file:lines() or function() end do
    list[#list + 1] = cjson.decode(line)
  end
  return list
end

--- Returns the ids of the events of requests, in one string.
function M.ids_of(list)
  local ids = {}
  for i, request in ipairs(list) do
    ids[i] = request.headers["ce-id"]
  end
  return table.concat(ids, " ")
end

--- A message with the fields that the publisher reads.
function M.event(id, fields)
  local message = { id = id, namespace = "orders", created_at = 1700000000.5, attempts = 0 }
  for name, value in pairs(fields or {}) do
    message[name] = value
  end
  return message
end

--- Messages with the ids "1", "2" and so on.
function M.events(count, fields)
  local list = {}
  for i = 1, count do
    list[i] = M.event(tostring(i), fields)
  end
  return list
end

--- Publishes once; returns the publisher's answer and the requests that were received.
function M.publish(messages, options)
  local publisher <close> = outbox.publisher(M.url, options)
  local failures, reason = publisher:publish(messages, messages[1].namespace)
  return failures, reason, M.requests()
end

--- Returns the reasons of failures, all of which must have the field `kind`.
function M.reasons(failures, kind)
  local list = {}
  for i, failure in pairs(failures) do
    assert.is_truthy(failure[kind])
    list[i] = failure.reason
  end
  return list
end

--- A store with these messages.
function M.store_with(...)
  local store = support.store({ clock = testing.clock(), synchronous = "off" })
  store:publish(...)
  return store
end

--- A processor that delivers to the receiver, and the list of the errors that it will report.
function M.processor(store, options, own)
  local errors = {}
  own = own or {}
  own.store, own.publisher = store, outbox.publisher(M.url, options)
  function own.on_error(raised)
    errors[#errors + 1] = tostring(raised)
  end
  return outbox.processor(own), errors
end

return M
