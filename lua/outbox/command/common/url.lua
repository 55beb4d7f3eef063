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

--- Returns the name of a database as it may be shown; and whether anything was left out.
function M.hide(name)
  if not M.is_url(name) then
    return name, false
  end
  local hidden = false
  local scheme, rest = name:match("^(%l+://)(.*)$")
  local at = find_at(rest)
  local user, password = rest:sub(1, at - 1):match("^([^:]*):(.*)$")
  if password then
    hidden = true
    rest = user .. rest:sub(at)
  end
  local place, parameters = rest:match("^([^?]*)%?(.*)$")
  if parameters then
    local kept = {}
    for parameter in parameters:gmatch("[^&]+") do
      local field = parameter:match("^([^=]*)=")
      if field and SECRET[decode(field)] then
        hidden = true
      else
        kept[#kept + 1] = parameter
      end
    end
    rest = kept[1] and place .. "?" .. table.concat(kept, "&") or place
  end
  return scheme .. rest, hidden
end

return M
