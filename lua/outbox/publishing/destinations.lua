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

--- The schemes of the destinations in this rock. Those of brokers need another rock for the client.
M.SCHEMES = { "amqp", "amqps", "exec", "file", "http", "https", "kafka", "mqtt", "mqtts", "nats",
  "redis", "rediss", "stdout", "tls", "unix" }

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

--- Returns the summaries of the destinations in SCHEMES, in their order. Those of other rocks are
-- not listed.
function M.summaries()
  local seen, list = {}, {}
  for _, scheme in ipairs(M.SCHEMES) do
    local ok, module = pcall(find_summarized, scheme) -- one that raises must not hide others
    if ok and module and not seen[module] then
      seen[module] = true
      list[#list + 1] = module.summary
    end
  end
  return list
end

return M
