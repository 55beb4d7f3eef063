-- The destinations of `outbox relay`: what `--to` and `--option` mean.

local destinations = require("outbox.publishing.destinations")
local errors = require("outbox.error")
local outbox = require("outbox")

local M = {}

-- The value of an argument. `@FILE` is the content of that file, because every user of the machine
-- can read the arguments of a process.
local function read_value(text)
  local path = text:match("^@(.+)$")
  if not path then
    return text
  end
  local file <close>, reason = io.open(path)
  local held, unread
  if file then
    held, unread = file:read("a") -- nil for a directory
  end
  if not held then
    error(errors.new("usage", reason or ("%s: %s"):format(path, unread)), 0)
  end
  return (held:gsub("%s+$", ""))
end

-- Whether the text as a whole is the URL of a destination, even if an `=` stands in it.
local function is_url(text)
  local scheme, rest = text:match("^(%a[%w+-]*):(.*)$")
  local destination = scheme and destinations.find(scheme)
  if not destination then
    return scheme and rest:find("^//") ~= nil -- a scheme that is not known, or not yet installed
  end
  local ok, target = pcall(destination.parse, scheme:lower(), rest)
  return not ok or target ~= nil and target ~= false
end

-- Splits NAMESPACE=URL at the first `=` after which a URL or @FILE begins, because a namespace may
-- have colons and even `=` in it. Returns nil if the text is the URL alone.
local function split(text)
  if is_url(text) then
    return nil
  end
  for from, rest in text:gmatch("()=()") do
    if text:find("^%a[%w+-]*:", rest) or text:find("^@.", rest) then
      return text:sub(1, from - 1), text:sub(rest)
    end
  end
  return text:match("^([^=:]*)=(.*)$")
end

--- Converts `--to NAMESPACE=URL`, or `--to URL` for all namespaces without a route of their own.
function M.read(text)
  local namespace, url = split(text)
  return { namespace = namespace or "*", url = read_value(url or text), options = {},
    settings = {} }
end

-- The text itself if the destination accepts a string for the option; else a number, true or false
-- if the text looks like one.
local function typed(url, name, text)
  local destination = destinations.find(url:match("^(%a[%w+-]*):") or "")
  local option = destination and destination.OPTIONS[name]
  if option and option.check(text) then
    return text
  end
  return tonumber(text) or text == "true" or text ~= "false" and text
end

--- Adds `--option NAME=VALUE`, or `--option NAME.FIELD=VALUE`, to the `--to` before it. Has the
-- parameters of an action of argparse.
function M.add_option(arguments, _, option)
  local route, value = arguments.to[#arguments.to], read_value(option.value)
  if not route then
    error(errors.new("usage", "--option comes after the --to that it belongs to"), 0)
  end
  local name, field = option.name:match("^(.-)%.(.+)$")
  if not name then
    route.options[option.name] = typed(route.url, option.name, value)
    return
  end
  local fields = route.options[name] or {}
  if type(fields) ~= "table" then
    error(errors.new("usage", ("--option %s has a value, and so no fields"):format(name)), 0)
  end
  route.options[name], fields[field] = fields, value
end

--- Keeps an option of the processor for the `--to` before it, or for all if there is none. Has the
-- parameters of an action of argparse.
function M.set(arguments, target, value)
  local route = arguments.to[#arguments.to]
  local settings = route and route.settings or arguments
  settings[target] = value
end

--- Returns the namespaces of the routes; nil for all.
function M.namespaces(routes)
  local names = {}
  for i, route in ipairs(routes) do
    if route.namespace == "*" then
      return nil
    end
    names[i] = route.namespace
  end
  return names
end

-- The namespaces of a share: the route for all others leaves those alone that other shares have.
local function namespaces_of(share, routes)
  local names = M.namespaces(share.routes)
  if names then
    return names
  end
  local others, mine = {}, {}
  for _, route in ipairs(share.routes) do
    mine[route] = true
  end
  for _, route in ipairs(routes) do
    others[#others + 1] = not mine[route] and route.namespace or nil
  end
  return others[1] and { except = others }
end

-- One share of the work for each route. Those to `stdout:` are one, because the lines of several
-- processes would mix.
local function by_route(routes)
  local shares, seen, printed = {}, {}, nil
  for _, route in ipairs(routes) do
    if seen[route.namespace] then
      error(errors.new("usage", ("two destinations of '%s'; --to NAMESPACE=URL gives each its own")
        :format(route.namespace)), 0)
    end
    seen[route.namespace] = true
    local is_printed = route.url == "stdout:"
    if is_printed and printed then
      if next(route.settings) ~= nil then
        error(errors.new("usage", "the routes to stdout: have one process: options such as --rate "
          .. "belong to the first of them"), 0)
      end
      printed.routes[#printed.routes + 1] = route
    else
      shares[#shares + 1] = { routes = { route }, settings = route.settings,
        is_printed = is_printed }
      printed = is_printed and shares[#shares] or printed
    end
  end
  return shares
end

--- Divides the work among `workers` processes for each route, and one for `stdout:`. Returns a list
-- of shares. Each has `routes`, `namespaces` and `settings`, the options of its processor; `first`
-- is true in one; `name`, `number` and `suffix` are there where there are others of which to tell
-- it.
function M.shares(routes, workers)
  local shares, all = by_route(routes), {}
  for _, share in ipairs(shares) do
    local names = {}
    for i, route in ipairs(share.routes) do
      names[i] = route.namespace
    end
    for number = 1, share.is_printed and 1 or workers do
      all[#all + 1] = {
        routes = share.routes, namespaces = namespaces_of(share, routes),
        settings = share.settings, name = table.concat(names, ","),
        number = workers > 1 and not share.is_printed and number or nil,
        suffix = "-" .. #all + 1, first = not all[1],
      }
    end
  end
  if not all[2] then
    all[1].name, all[1].number, all[1].suffix = nil, nil, nil
  end
  return all
end

--- Makes the publisher of the routes.
function M.publisher(routes)
  local publishers = {}
  for _, route in ipairs(routes) do
    publishers[route.namespace] = outbox.publisher(route.url, route.options)
  end
  return outbox.publisher(publishers)
end

--- Returns the text of `--help` about the destinations that `destinations.summaries` lists.
function M.help()
  local lines, width = { "Destinations (see docs/destinations.md):" }, 0
  local summaries = destinations.summaries()
  for _, summary in ipairs(summaries) do
    width = math.max(width, #summary.url)
  end
  for _, summary in ipairs(summaries) do
    lines[#lines + 1] = ("   %-" .. width .. "s  %s"):format(summary.url, summary.text)
  end
  lines[#lines + 1] = ""
  lines[#lines + 1] = "@FILE instead of a URL, or of a VALUE, is the content of that file."
  return table.concat(lines, "\n")
end

return M
