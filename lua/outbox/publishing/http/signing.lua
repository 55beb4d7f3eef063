-- The application's hook `sign`, which sees each request last and may change it.

local new_headers = require("http.headers").new

local M = {}

-- Raises an error if lua-http could not send what the hook has left.
local function check(request)
  local wrong
  if type(request.body) ~= "string" then
    wrong = "no string as the body"
  elseif type(request.path) ~= "string" or not request.path:find("^/[!-~]*$") then
    wrong = "a path that is not allowed"
  elseif type(request.headers) ~= "table" then
    wrong = "no table of headers"
  else
    for name, value in pairs(request.headers) do
      if type(name) ~= "string" or not name:find("^[%w!#$%%&'*+.^_`|~-]+$")
        or type(value) ~= "string" or value:find("%c") then
        wrong = ("a header '%s' that is not allowed"):format(tostring(name))
      end
    end
  end
  if wrong then
    error("'sign' left " .. wrong, 0)
  end
end

--- Calls the hook with a request of these messages. Returns the headers and the body as it left
-- them. Raises what the hook raises.
function M.sign(hook, headers, body, messages, namespace)
  local request = {
    method = headers:get(":method"), host = headers:get(":authority"), path = headers:get(":path"),
    headers = {}, body = body, messages = messages, namespace = namespace,
  }
  local signed = new_headers()
  for name, value in headers:each() do
    if name:find("^:") then
      signed:append(name, value)
    else
      request.headers[name] = value
    end
  end
  hook(request)
  check(request)
  signed:upsert(":path", request.path)
  for name, value in pairs(request.headers) do
    local lower = name:lower()
    signed:upsert(lower == "host" and ":authority" or lower, value)
  end
  return signed, request.body
end

return M
