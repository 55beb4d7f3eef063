-- The URL of a database, and how it is shown: without its password.

local M = {}

--- Whether the name of a database is a URL of PostgreSQL.
function M.is_url(name)
  return name:find("^postgresql://") ~= nil or name:find("^postgres://") ~= nil
end

-- Parameters of a URL that are secrets.
local SECRET = { password = true, sslpassword = true }

local function decode(text)
  return (text:gsub("%%(%x%x)", function(digits)
    return string.char(tonumber(digits, 16))
  end))
end

-- Where the part ends that may hold a name and a password: at the last "@" before the parameters.
-- 1: there is none. libpq ends it at the first "@", but a password in which an "@" or a "/" was not
-- escaped must not be shown either.
local function find_at(rest)
  local first = rest:match("^[^/@]*()@")
  local last = rest:match("^[^?]*()@")
  return math.max(first or 1, last or 1)
end

--- Returns the name of a database as it may be shown; and the secrets that were left out, as they
-- stand in it.
function M.hide(name)
  if not M.is_url(name) then
    return name, {}
  end
  local secrets = {}
  local scheme, rest = name:match("^(%l+://)(.*)$")
  local at = find_at(rest)
  local user, password = rest:sub(1, at - 1):match("^([^:]*):(.*)$")
  if password then
    secrets[1] = password
    rest = user .. rest:sub(at)
  end
  local place, parameters = rest:match("^([^?]*)%?(.*)$")
  if parameters then
    local kept = {}
    for parameter in parameters:gmatch("[^&]+") do
      local field, value = parameter:match("^([^=]*)=(.*)$")
      if field and SECRET[decode(field)] then
        secrets[#secrets + 1] = value
      else
        kept[#kept + 1] = parameter
      end
    end
    rest = kept[1] and place .. "?" .. table.concat(kept, "&") or place
  end
  return scheme .. rest, secrets
end

--- Removes the secrets of a name from a message: libpq quotes what it cannot read.
function M.clean(message, name)
  local shown, secrets = M.hide(name)
  for _, secret in ipairs(secrets) do
    message = message:gsub('"([^"]*)"', function(quoted)
      if quoted == name then
        return '"' .. shown .. '"'
      elseif secret ~= "" and (quoted:find(secret, 1, true) or secret:find(quoted, 1, true)) then
        return '"..."'
      end
    end)
  end
  return message
end

return M
