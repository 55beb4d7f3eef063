-- The options of a processor, and the settings that are made of them. Nobody changes the settings
-- afterwards.

local core = require("outbox.core")
local errors = require("outbox.error")
local hooks = require("outbox.processor.hooks")
local option = require("outbox.options")

local M = {}

local ORDERINGS = { key = true, none = true, strict = true }

local seconds, integer = option.seconds, option.count

local function are_namespaces(value)
  local names = value
  if type(value) == "table" and value.except ~= nil and next(value, next(value)) == nil then
    names = value.except
  end
  return option.names(names), "an array of names, or { except = an array of names }"
end

--- The options in the table `retry`: their defaults and checks, as outbox.options takes them.
M.RETRY = {
  base = { default = 1, check = seconds },
  factor = { default = 2, check = option.number(1, "a number") },
  cap = { default = 300, check = seconds },
  max_attempts = { default = 10, check = integer },
}

--- The options of a processor.
M.OPTIONS = {
  store = { required = true, check = option.store },
  publisher = { required = true, check = option.publisher },
  processor_id = { check = option.string },
  batch_size = { check = integer },
  batch_bytes = { default = 8388608, check = option.integer(math.maxinteger) },
  claim_duration = { default = 2, check = seconds },
  publish_timeout = { default = 60, check = seconds },
  process_interval = { default = 10, check = seconds },
  ordering = { default = "key", check = function(value)
    return ORDERINGS[value] ~= nil, '"key", "none" or "strict"'
  end },
  namespaces = { check = are_namespaces },
  rate = { check = option.rate },
  retry = { default = {}, check = function(value)
    return type(value) == "table" or type(value) == "function", "a table or a function"
  end },
  on_delivered = { check = option.callback },
  on_retry = { check = option.callback },
  on_dead = { check = option.callback },
  on_batch = { check = option.callback },
  on_error = { default = hooks.write_to_stderr, check = option.callback },
}

-- The options of older versions, and what replaces them.
local GONE = { limit = "processors of the same namespaces share the work without it" }

-- The function that publishes, whether the publisher is a function or a table.
local function publish_of(publisher)
  return type(publisher) == "function" and publisher or function(messages, namespace)
    return publisher:publish(messages, namespace)
  end
end

-- Refuses namespaces that the publisher does not serve: they would be as good as down.
local function check_namespaces(names, served, wrong)
  local is_served = {}
  for _, name in ipairs(served or {}) do
    is_served[name] = true
  end
  for _, name in ipairs(served and names or {}) do
    if not is_served[name] then
      wrong[#wrong + 1] = ("the publisher does not serve the namespace '%s'"):format(
        errors.text(name))
    end
  end
end

-- The function that says how many messages of a namespace may be handed out in a second; nil if
-- any number of all.
local function rate_of(rate, publisher)
  if rate then
    return function()
      return rate.per_second
    end
  elseif type(publisher) == "table" and (publisher.rate or publisher.has_rate) then
    return function(namespace)
      return option.rate_of(publisher, namespace)
    end
  end
  return nil
end

--- Makes the settings: the options with their defaults, also those that depend on others;
-- `publish`, a function in any case; `ordered`, whether it keeps the order itself; `rate_of`, a
-- function that returns the rate of a namespace, nil where there is none; and `backoff`,
-- which is the table `retry` with its defaults, or the defaults alone where `retry` is a function.
-- If anything is wrong, the settings are not complete. The second result is the list of all that is
-- wrong.
function M.read(given)
  local wrong = {}
  local settings = option.check(M.OPTIONS, given, "", wrong, GONE)
  local retry = type(given.retry) == "table" and given.retry or {}
  settings.backoff = option.check(M.RETRY, retry, "retry.", wrong)
  if not wrong[1] then
    check_namespaces(given.namespaces, option.namespaces(settings.publisher), wrong)
  end
  if wrong[1] then
    return settings, wrong
  end
  settings.processor_id = settings.processor_id
    or ("%s-%s"):format(core.process_name(), core.uuid_v4():sub(1, 8))
  settings.batch_size = settings.batch_size or option.default_batch_size(settings.publisher)
  local namespaces = settings.namespaces or option.namespaces(settings.publisher)
  settings.except = namespaces and namespaces.except ~= nil or nil
  settings.names = namespaces and (namespaces.except or namespaces)
  settings.publish = publish_of(settings.publisher)
  settings.ordered = option.is_ordered(settings.publisher)
  settings.rate_of = rate_of(settings.rate, settings.publisher)
  return settings, wrong
end

return M
