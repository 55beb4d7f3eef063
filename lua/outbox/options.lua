-- Options in a table: their defaults, and all that is wrong with them at once.
--
-- What is known of an option: its `default`, or whether it is `required`, and `check(value)`, which
-- returns whether the value is right, and what it must be.

local core = require("outbox.core")
local problem = require("outbox.problem")

local M = {}

function M.number(least, what)
  return function(value)
    local ok = type(value) == "number" and value >= least and value < math.huge
    return ok, ("%s, at least %g"):format(what, least)
  end
end

local some_seconds = M.number(0.001, "a number of seconds")

--- At most three centuries: what lies so far from now must still be a time that the core takes.
function M.seconds(value)
  if type(value) == "number" and value > 1e10 then
    return false, "a number of seconds, at most 1e10"
  end
  return some_seconds(value)
end

function M.integer(most)
  return function(value)
    return math.type(value) == "integer" and value >= 1 and value <= most,
      ("an integer from 1 to %d"):format(most)
  end
end

function M.string(value)
  return type(value) == "string", "a string"
end

function M.boolean(value)
  return type(value) == "boolean", "true or false"
end

function M.callback(value)
  return type(value) == "function", "a function"
end

function M.store(value)
  local ok, attached = pcall(core.is_attached, value)
  return ok and not attached, "what outbox.open returns"
end

M.count = M.integer(100000)

--- What a processor takes for its publisher.
function M.publisher(value)
  return type(value) == "function" or type(value) == "table" and type(value.publish) == "function"
    and (value.batch_size == nil or M.count(value.batch_size)),
    "a function or a table with a function 'publish', and no batch_size but a positive integer"
end

--- The size of a batch where none is set: what the publisher says that suits it, if it does.
function M.default_batch_size(publisher)
  return type(publisher) == "table" and publisher.batch_size or 20
end

--- The options with their defaults; adds what is wrong with them to the list.
function M.check(known, given, prefix, wrong)
  local options = {}
  for name in pairs(given) do
    if not known[name] then
      wrong[#wrong + 1] = ("unknown option '%s%s'"):format(prefix, problem.text(name))
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

--- Raises all that is wrong, if anything is, for the caller of the function that calls this.
function M.refuse(wrong, what)
  if #wrong > 0 then
    table.sort(wrong)
    error(("bad %s (%s)"):format(what, table.concat(wrong, "; ")), 3)
  end
end

return M
