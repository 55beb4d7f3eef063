-- The addresses of brokers: `//[user[:password]@]host[:port][,host[:port]]...[/path]`.

local M = {}

local function decode(text)
  return text and (text:gsub("%%(%x%x)", function(digits)
    return string.char(tonumber(digits, 16))
  end))
end

-- Returns the host and the port of `host`, `host:port`, `[address]` or `[address]:port`.
local function parse_host(text, default_port)
  local host, port = text:match("^%[([%x:.%%]+)%]:?(%d*)$")
  if not host then
    host, port = text:match("^([^:@%[%]]+):?(%d*)$")
  end
  local number = port == "" and default_port or math.tointeger(tonumber(port))
  if not host or text:find(":$") or not number or number < 1 or number > 65535 then
    return nil
  end
  return { host = host, port = number }
end

--- Returns a table with the array `hosts`, each a table with `host` and `port`; the `name`, which
-- is all of them as the text has them; and the texts `user`, `password` and `path`, which are nil
-- where the address does not have them. Returns nil if the text is no address. `%XX` is a byte in
-- these three. A password may have an "@" or a ":" in it as it is.
function M.parse(text, default_port)
  local authority, path = text:match("^//([^/?#]+)/?([^?#]*)$")
  if not authority then
    return nil
  end
  local login, list = authority:match("^(.*)@([^@]*)$")
  local address = { hosts = {}, name = list or authority }
  address.path = path ~= "" and decode(path) or nil
  if login then
    local user, password = login:match("^([^:]*):(.*)$")
    user = user or login
    address.user, address.password = user ~= "" and decode(user) or nil, decode(password)
  end
  for part in ((list or authority) .. ","):gmatch("([^,]*),") do
    local host = parse_host(part, default_port)
    if not host then
      return nil
    end
    address.hosts[#address.hosts + 1] = host
  end
  return address
end

return M
