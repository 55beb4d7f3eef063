--- Makes publishers for common destinations from URLs. This rock does not depend on the clients of
-- the destinations: a client is loaded when the first publisher that needs it is made.
-- @module outbox.publisher

local destinations = require("outbox.publishing.destinations")
local errors = require("outbox.error")
local option = require("outbox.options")
local route = require("outbox.publishing.route")

-- Makes the publisher of a URL. Adds everything that is wrong to the list `wrong`.
local function make(url, given, wrong)
  local scheme, rest = url:match("^(%a[%w+.-]*):(.*)$")
  local destination, unknown = destinations.find(scheme or "")
  if not destination then
    wrong[#wrong + 1] = unknown
    return nil
  end
  local target, reason = destination.parse(scheme:lower(), rest)
  if not target then
    wrong[#wrong + 1] = type(reason) == "string" and reason or ("a bad URL for '%s'"):format(scheme)
  end
  local options = option.check(destination.OPTIONS, given, "", wrong)
  if #wrong > 0 then
    return nil
  end
  local publisher, fault = destination.new(target, options)
  if not option.publisher(publisher) then
    wrong[1] = type(fault) == "string" and fault
      or ("the destination of '%s' made no publisher"):format(scheme)
  end
  return publisher
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
      wrong[#wrong + 1] = ("route '%s': %s"):format(errors.text(namespace), reason)
    end
  end
  if next(routes) == nil then
    wrong[1] = "there is no route"
  end
  return route(publishers)
end

--- Makes a publisher for `outbox.processor` from a URL or from a table of routes. The publisher has
-- the methods `publish(messages, namespace)` and `close()`, and can be a to-be-closed variable. Its
-- `batch_size` is 100 for brokers, `file:` and `stdout:`; for a table of routes it is the smallest
-- one of their publishers. It is `ordered` for `file:`, `stdout:` and `http:`; for a table of
-- routes if all publishers are. One error reports everything that is wrong.
--
--    outbox.publisher("file:/var/lib/shop/events.jsonl")
--    outbox.publisher("stdout:")
--    outbox.publisher({ audit = "file:/var/log/audit.jsonl", ["*"] = "stdout:" })
--
-- The options of a destination are described in its module, `outbox.publishers.file` for instance.
-- The module of a URL's scheme is `outbox.publishers.<scheme>`, so another rock can add a
-- destination. A table of routes has, for each namespace, a URL or a publisher of any kind; `"*"`
-- is for all other namespaces. Without it, a processor leaves the messages of other namespaces to
-- other processors. `close` closes all publishers of the table.
-- @function outbox.publisher
-- @tparam string|table destination
-- @tparam[opt] table options of the destination; not for a table of routes
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
