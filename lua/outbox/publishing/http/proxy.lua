-- HTTP proxies: which one is used, and how a tunnel through it begins.

local address = require("outbox.publishing.address")
local format = require("outbox.publishing.format")
local phrases = require("http.h1_reason_phrases")
local proxies = require("http.proxies")
local util = require("http.util")

local M = {}

--- Returns the proxy of a URL `http://[user:password@]host[:port]`: its `host` and `port`, both of
-- them as its `name`, and perhaps its `authorization`. Returns nil if the URL has another form.
function M.parse(url)
  local rest = type(url) == "string" and url:match("^[Hh][Tt][Tt][Pp]:(.*)$")
  local parsed = rest and address.parse(rest, util.scheme_to_port.http)
  if not parsed or parsed.hosts[2] or parsed.path then
    return nil
  end
  local host, port = parsed.hosts[1].host, parsed.hosts[1].port
  local login = (parsed.user or "") .. ":" .. (parsed.password or "")
  return {
    host = host, port = port, name = util.to_authority(host, port),
    authorization = login ~= ":" and "Basic " .. format.base64(login) or nil,
  }
end

-- A variable of the environment; nil if it is empty. Some people write spaces into `no_proxy`.
local function getenv(name)
  local value = (os.getenv(name) or ""):gsub("%s", "")
  return value ~= "" and value or nil
end

--- Returns the proxy for a host, or nil for none. `url` is that of the option; without one the
-- environment decides. Returns nil and a reason if that names a proxy that cannot be used.
function M.find(url, scheme, host)
  url = url or proxies.new():update(getenv):choose(scheme, host:lower())
  if not url or url == "" then
    return nil
  end
  local found = M.parse(url:find("://", 1, true) and url or "http://" .. url)
  return found, not found and ("the environment's proxy for %s is not http://host:port, as it must "
    .. 'be here; the option proxy = "" uses none'):format(scheme) or nil
end

-- Reads the head of an answer. Returns the status, or nil and the reason.
local function read_status(connection, left)
  local version, status = connection:read_status_line(left())
  if not version then
    return nil, status
  end
  local name, reason, done
  repeat
    name, reason = connection:read_header(left())
  until not name
  if not reason then
    done, reason = connection:read_headers_done(left())
  end
  return done and status, reason
end

--- Asks the proxy at the other end of a connection for a tunnel to an authority, `host:port`.
-- Returns true, or nil and the reason. `left` returns the seconds that are left.
--
-- This is not a stream of lua-http, because such a one closes the connection if the answer has a
-- length of 0, as the answers of some proxies do.
function M.open_tunnel(connection, proxy, authority, left)
  local lines = { ("CONNECT %s HTTP/1.1"):format(authority), "host: " .. authority }
  if proxy.authorization then
    lines[#lines + 1] = "proxy-authorization: " .. proxy.authorization
  end
  local sent, reason = connection.socket:xwrite(table.concat(lines, "\r\n") .. "\r\n\r\n", "n",
    left())
  if not sent then
    return nil, reason
  end
  local status
  repeat
    status, reason = read_status(connection, left)
  until not status or status:sub(1, 1) ~= "1"
  if not status then
    return nil, reason or "the connection was closed"
  elseif status:sub(1, 1) ~= "2" then
    return nil, ("%s %s"):format(status, phrases[status])
  end
  return true
end

return M
