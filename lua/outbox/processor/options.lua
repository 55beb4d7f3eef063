-- The options of a processor, and the settings that are made of them. Nobody changes the settings
-- afterwards.

local core = require("outbox.core")
local hooks = require("outbox.processor.hooks")
local option = require("outbox.options")

local M = {}

local ORDERINGS = { key = true, none = true, strict = true }

local seconds, integer = option.seconds, option.count

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
  limit = { check = integer },
  retry = { default = {}, check = function(value)
    return type(value) == "table" or type(value) == "function", "a table or a function"
  end },
  on_delivered = { check = option.callback },
  on_retry = { check = option.callback },
  on_dead = { check = option.callback },
  on_batch = { check = option.callback },
  on_error = { default = hooks.write_to_stderr, check = option.callback },
}

-- The function that publishes, whether the publisher is a function or a table.
local function publish_of(publisher)
  return type(publisher) == "function" and publisher or function(messages, namespace)
    return publisher:publish(messages, namespace)
  end
end

--- Makes the settings: the options with their defaults, also those that depend on others;
-- `publish`, a function in any case; `ordered`, whether it keeps the order itself; and `backoff`,
-- which is the table `retry` with its defaults, or the defaults alone where `retry` is a function.
-- If anything is wrong, the settings are not complete. The second result is the list of all that is
-- wrong.
function M.read(given)
  local wrong = {}
  local settings = option.check(M.OPTIONS, given, "", wrong)
  local retry = type(given.retry) == "table" and given.retry or {}
  settings.backoff = option.check(M.RETRY, retry, "retry.", wrong)
  if settings.limit and settings.ordering ~= "none" then
    wrong[#wrong + 1] = 'limit needs ordering = "none"'
  end
  if wrong[1] then
    return settings, wrong
  end
  settings.processor_id = settings.processor_id
    or ("%s-%s"):format(core.process_name(), core.uuid_v4():sub(1, 8))
  settings.batch_size = settings.batch_size or option.default_batch_size(settings.publisher)
  if settings.ordering == "none" then
    settings.limit = settings.limit or 10 * settings.batch_size
  end
  settings.publish = publish_of(settings.publisher)
  settings.ordered = option.is_ordered(settings.publisher)
  return settings, wrong
end

return M
