-- Checks options that are given in a table, and adds their defaults.
--
-- A table of known options holds for each name: the `default`, or `required = true`; and the
-- function `check(value)`, which returns whether the value is allowed, and a text that says what it
-- must be.

local core = require("outbox.core")
local errors = require("outbox.error")

local M = {}

--- Makes the check of a number that is finite and at least `least`. `what` is the text for it.
function M.number(least, what)
  return function(value)
    local ok = type(value) == "number" and value >= least and value < math.huge
    return ok, ("%s, at least %g"):format(what, least)
  end
end

local some_seconds = M.number(0.001, "a number of seconds")

--- Checks a number of seconds. At most 1e10, three centuries: a time so far from now must still be
-- one that the core takes.
function M.seconds(value)
  if type(value) == "number" and value > 1e10 then
    return false, "a number of seconds, at most 1e10"
  end
  return some_seconds(value)
end

--- Makes the check of an integer from 1 to `most`.
function M.integer(most)
  return function(value)
    return math.type(value) == "integer" and value >= 1 and value <= most,
      ("an integer from 1 to %d"):format(most)
  end
end

--- Checks a string.
function M.string(value)
  return type(value) == "string", "a string"
end

--- Checks a boolean.
function M.boolean(value)
  return type(value) == "boolean", "true or false"
end

--- Checks a function.
function M.callback(value)
  return type(value) == "function", "a function"
end

--- Checks a store. An attached store is not allowed, because the connection has transactions of its
-- own.
function M.store(value)
  local ok, attached = pcall(core.is_attached, value)
  return ok and not attached, "what outbox.open returns"
end

--- Checks a number of entries.
M.count = M.integer(100000)

--- Checks an array of names that has at least one.
function M.names(value)
  if type(value) ~= "table" or value[1] == nil then
    return false
  end
  local count = 0
  for _, name in pairs(value) do
    if type(name) ~= "string" then
      return false
    end
    count = count + 1
  end
  for i = 1, count do
    if value[i] == nil then
      return false
    end
  end
  return true
end

--- Checks the publisher of a processor.
function M.publisher(value)
  return type(value) == "function" or type(value) == "table" and type(value.publish) == "function"
    and (value.batch_size == nil or M.count(value.batch_size))
    and (value.ordered == nil or M.boolean(value.ordered))
    and (value.rate == nil or M.rate(value.rate))
    and (value.namespaces == nil or M.names(value.namespaces)),
    "a function or a table with a function 'publish'; its batch_size, if any, a positive integer, "
    .. "its ordered, if any, true or false, its namespaces, if any, an array of names, its rate, "
    .. "if any, a table { per_second = number above 0 }"
end

--- Checks a rate.
function M.rate(value)
  local per_second = type(value) == "table" and value.per_second
  return type(per_second) == "number" and per_second > 0 and per_second < math.huge
    and next(value, next(value)) == nil, "a table { per_second = number above 0 }"
end

--- How many messages of a namespace a publisher takes in a second; nil: any number.
function M.rate_of(publisher, namespace)
  if type(publisher) ~= "table" then
    return nil
  elseif type(publisher.rate_of) == "function" then
    return publisher:rate_of(namespace)
  end
  return publisher.rate and publisher.rate.per_second
end

--- The namespaces that a publisher serves, an array; nil: all.
function M.namespaces(publisher)
  return type(publisher) == "table" and publisher.namespaces or nil
end

--- Whether a publisher keeps the order of the messages of a key itself.
function M.is_ordered(publisher)
  return type(publisher) == "table" and publisher.ordered == true
end

--- The size of a batch if the option is not set: the publisher's own, or 20.
function M.default_batch_size(publisher)
  return type(publisher) == "table" and publisher.batch_size or 20
end

--- For how many seconds an inbox remembers an id unless it is told otherwise: a year.
M.RETENTION = 365 * 86400

--- Returns the options that are `given`, completed with the defaults of the `known` options. Adds a
-- text to the list `wrong` for each option that is unknown, missing or not allowed; it names the
-- option with `prefix` before its name. `gone` says of options of older versions what replaces
-- them.
function M.check(known, given, prefix, wrong, gone)
  local options = {}
  for name in pairs(given) do
    if gone and gone[name] then
      wrong[#wrong + 1] = ("there is no option '%s' any more: %s"):format(name, gone[name])
    elseif not known[name] then
      wrong[#wrong + 1] = ("unknown option '%s%s'"):format(prefix, errors.text(name))
    end
  end
  for name, option in pairs(known) do
    local value = given[name]
    if value == nil then
      options[name] = option.default
      if option.required then
        wrong[#wrong + 1] = ("%s%s is missing"):format(prefix, name)
      end
    else
      local ok, wanted = option.check(value)
      options[name] = value
      if not ok then
        wrong[#wrong + 1] = ("%s%s must be %s"):format(prefix, name, wanted)
      end
    end
  end
  return options
end

--- Raises one error with all texts of the list `wrong`, unless it is empty. The error points to the
-- caller of the function that calls this one. `what` says what was wrong, such as an argument.
function M.refuse(wrong, what)
  if #wrong > 0 then
    table.sort(wrong)
    error(("bad %s (%s)"):format(what, table.concat(wrong, "; ")), 3)
  end
end

return M
