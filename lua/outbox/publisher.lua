--- Publishers for common destinations, by URL. Each loads the client that it needs, which is no
-- dependency of this rock, when it is made.
-- @module outbox.publisher

local option = require("outbox.options")
local problem = require("outbox.problem")
local route = require("outbox.publishers.route")

-- The module of each scheme: `parse(scheme, rest)`, which returns a target, or nil and the reason;
-- `OPTIONS`; and `new(target, options)`.
local DESTINATIONS = {
  exec = "exec",
  file = "file",
  http = "http",
  https = "http",
  redis = "redis",
  stdout = "file",
}

local function schemes()
  local list = {}
  for scheme in pairs(DESTINATIONS) do
    list[#list + 1] = scheme
  end
  table.sort(list)
  return table.concat(list, ", ")
end

-- Adds what is wrong to the list.
local function make(url, given, wrong)
  local scheme, rest = url:match("^(%a[%w+.-]*):(.*)$")
  local name = DESTINATIONS[scheme]
  if not name then
    wrong[#wrong + 1] = ("unknown scheme '%s', not one of %s"):format(scheme or "", schemes())
    return nil
  end
  local destination = require("outbox.publishers." .. name)
  local target, reason = destination.parse(scheme, rest)
  if not target then
    wrong[#wrong + 1] = reason
  end
  local options = option.check(destination.OPTIONS, given, "", wrong)
  return #wrong == 0 and destination.new(target, options) or nil
end

local function make_route(routes, wrong)
  local publishers = {}
  for namespace, destination in pairs(routes) do
    local mine = {}
    if type(namespace) ~= "string" then
      mine[1] = "a namespace must be a string"
    elseif type(destination) == "string" then
      publishers[namespace] = make(destination, {}, mine)
    elseif option.publisher(destination) then
      publishers[namespace] = destination
    else
      mine[1] = "a URL, a function or a table with a function 'publish' expected"
    end
    for _, reason in ipairs(mine) do
      wrong[#wrong + 1] = ("route '%s': %s"):format(problem.text(namespace), reason)
    end
  end
  if next(routes) == nil then
    wrong[1] = "there is no route"
  end
  return route(publishers)
end

--- Makes a publisher for `outbox.processor`, of a URL or of routes. It has the methods
-- `publish(messages, namespace)` and `close()`, and can be a to-be-closed variable. The
-- `batch_size` of `redis:`, `file:` and `stdout:` is 100, that of routes the smallest of those they
-- lead to. All that is wrong is told in one error.
--
--    outbox.publisher("file:/var/lib/shop/events.jsonl")
--    outbox.publisher("stdout:")
--    outbox.publisher({ audit = "file:/var/log/audit.jsonl", ["*"] = "stdout:" })
--
-- The options of a destination stand in its module, `outbox.publishers.file` for instance. A table
-- names for each namespace a URL, or a publisher of whatever kind; `"*"` is for all others. Its
-- `close` closes all of them.
-- @function outbox.publisher
-- @tparam string|table destination
-- @tparam[opt] table options
-- @treturn outbox.publisher
local function new(destination, options)
  local wrong, publisher = {}, nil
  if options ~= nil and type(options) ~= "table" then
    error(("bad argument #2 to 'publisher' (table expected, got %s)"):format(type(options)), 2)
  elseif type(destination) == "table" then
    if options and next(options) ~= nil then
      wrong[1] = "options belong to a destination, not to its routes"
    end
    publisher = make_route(destination, wrong)
  elseif type(destination) == "string" then
    publisher = make(destination, options or {}, wrong)
  else
    error(("bad argument #1 to 'publisher' (a URL or a table of routes expected, got %s)")
      :format(type(destination)), 2)
  end
  option.refuse(wrong, "arguments to 'publisher'")
  return publisher
end

return new
