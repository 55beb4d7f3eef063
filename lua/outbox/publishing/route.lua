-- A publisher that hands the messages of each namespace to another publisher. Without a route for
-- "*", a processor with it serves the namespaces of its routes alone. Where it serves others all
-- the same, a namespace without a route counts as one whose destination is down.

local option = require("outbox.options")

local Route = { __name = "outbox.publisher" }
Route.__index = Route

function Route:publish(messages, namespace)
  local publisher = self.routes[namespace] or self.routes["*"]
  if not publisher then
    return nil, ("there is no route for namespace '%s'"):format(namespace)
  elseif type(publisher) == "function" then
    return publisher(messages, namespace)
  end
  return publisher:publish(messages, namespace)
end

function Route:rate_of(namespace)
  return option.rate_of(self.routes[namespace] or self.routes["*"], namespace)
end

function Route:close()
  for _, publisher in pairs(self.routes) do
    if type(publisher) == "table" and publisher.close then
      publisher:close()
    end
  end
end

Route.__close = Route.close

--- Makes the publisher. `routes` has a publisher for each namespace; "*" is for all others.
return function(routes)
  local batch_size, ordered = math.huge, true
  for _, publisher in pairs(routes) do
    batch_size = math.min(batch_size, option.default_batch_size(publisher))
    ordered = ordered and option.is_ordered(publisher)
  end
  local namespaces, rate = {}, nil
  for namespace, publisher in pairs(routes) do
    namespaces[#namespaces + 1] = namespace
    rate = rate or option.rate_of(publisher, namespace)
  end
  return setmetatable({
    routes = routes, batch_size = batch_size, ordered = ordered, has_rate = rate ~= nil,
    namespaces = not routes["*"] and namespaces or nil,
  }, Route)
end
