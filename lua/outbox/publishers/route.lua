-- By namespace to other publishers. A namespace without a route is as one whose destination is
-- down: its messages wait, uncharged, until there is one.

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

function Route:close()
  for _, publisher in pairs(self.routes) do
    if type(publisher) == "table" and publisher.close then
      publisher:close()
    end
  end
end

Route.__close = Route.close

return function(routes)
  return setmetatable({ routes = routes }, Route)
end
