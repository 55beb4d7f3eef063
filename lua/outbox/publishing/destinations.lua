-- The destinations, found by the scheme of a URL. A destination is a module,
-- `outbox.publishers.<scheme>`, so another rock can add one by installing such a module:
--
--    summary               table: `url`, the form of its URLs; `text`, a few words about it
--    OPTIONS               table of its options, by name, in the form of outbox.options
--    parse(scheme, rest)   returns the target of the URL, or nil and what the URL should look like
--    new(target, options)  returns the publisher
--
-- The module must load without the client that it needs: `parse` or `new` loads the client. The
-- folder outbox/publishers/ has no other modules.

local M = {}

--- The schemes of the destinations in this rock.
M.SCHEMES = { "exec", "file", "http", "https", "stdout" }

--- The schemes of the destinations that have rocks of their own.
M.ROCKS = {
  amqp = "outbox-amqp",
  amqps = "outbox-amqp",
  kafka = "outbox-kafka",
  mqtt = "outbox-mqtt",
  mqtts = "outbox-mqtt",
  nats = "outbox-nats",
  redis = "outbox-redis",
  rediss = "outbox-redis",
  tls = "outbox-nats",
  unix = "outbox-redis",
}

-- No dot and no slash, because they lead to other folders. Longer schemes are not looked up. The
-- case of a scheme does not matter (RFC 3986, section 3.1), so its module has a name in lower case.
local SCHEME, MAX_LENGTH = "^%a[%w+-]*$", 64

-- Whether `require` would find the module, even if it cannot load it.
local function is_installed(name)
  if package.loaded[name] ~= nil then
    return true
  end
  for _, searcher in ipairs(package.searchers) do
    local ok, loader = pcall(searcher, name)
    if not ok or type(loader) == "function" then
      return true
    end
  end
  return false
end

local function are_options(options)
  for name, option in pairs(options) do
    if type(name) ~= "string" or type(option) ~= "table" or type(option.check) ~= "function" then
      return false
    end
  end
  return true
end

local function is_destination(module)
  return type(module) == "table" and type(module.OPTIONS) == "table" and are_options(module.OPTIONS)
    and type(module.parse) == "function" and type(module.new) == "function"
end

-- Whether `--help` can show the summary of a module, which may be of another rock.
local function is_summary(summary)
  return type(summary) == "table" and type(summary.url) == "string"
    and type(summary.text) == "string"
end

local function explain(scheme)
  local shown = #scheme > MAX_LENGTH and scheme:sub(1, MAX_LENGTH) .. "..." or scheme
  local rock = M.ROCKS[scheme:lower()]
  if rock then
    return ("unknown scheme '%s': it comes with the rock %s (luarocks --lua-version %s install %s)")
      :format(shown, rock, _VERSION:match("[%d.]+"), rock)
  end
  return ("unknown scheme '%s', not one of %s"):format(shown, table.concat(M.SCHEMES, ", "))
end

--- Returns the module of a scheme, or nil and why there is none. Raises what the module itself
-- raises when it is loaded.
function M.find(scheme)
  if #scheme <= MAX_LENGTH and scheme:find(SCHEME) then
    local name = "outbox.publishers." .. scheme:lower()
    local module = is_installed(name) and require(name)
    if is_destination(module) then
      return module
    end
  end
  return nil, explain(scheme)
end

local function find_summarized(scheme)
  local module = M.find(scheme)
  return module and is_summary(module.summary) and module
end

--- Returns the summaries of the destinations in SCHEMES, and of the installed ones in ROCKS, in the
-- order of their schemes. Other rocks are not listed.
function M.summaries()
  local schemes, seen, list = { table.unpack(M.SCHEMES) }, {}, {}
  for scheme in pairs(M.ROCKS) do
    schemes[#schemes + 1] = scheme
  end
  table.sort(schemes)
  for _, scheme in ipairs(schemes) do
    local ok, module = pcall(find_summarized, scheme) -- one that raises must not hide others
    if ok and module and not seen[module] then
      seen[module] = true
      list[#list + 1] = module.summary
    end
  end
  return list
end

return M
