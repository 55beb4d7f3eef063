-- What publishing in Lua has in common with publishing in C: the checks of options and messages,
-- the time, the ids. The errors have the same words, and point to the caller of `attach` or
-- `publish`.

local core = require("outbox.core")
local errors = require("outbox.error")

local M = {}

--- Options ------------------------------------------------------------------------------------

-- An option that is a function, or a table that has the function as `method`.
local function callback(options, name, method, default)
  local value = options[name]
  if value == nil then
    return default
  elseif type(value) == "function" then
    return { [method] = value }
  elseif type(value) == "table" and type(value[method]) == "function" then
    return value
  end
  error(("bad argument #2 to 'attach' (%s must be a function, or a table with a function '%s')")
    :format(name, method), 4)
end

local function check_identifier(name, value)
  if not core.is_prefix(value) then
    local reason = type(value) == "string" and ("the %s is not a plain identifier"):format(name)
      or name .. " must be a string"
    error(("bad argument #2 to 'attach' (%s)"):format(reason), 4)
  end
end

--- Makes a store, without its methods, of options; the set `known` has their names.
function M.store(options, known)
  options = options or {}
  for name in next, options do
    if not known[name] then
      error(("bad argument #2 to 'attach' (unknown option '%s')"):format(tostring(name)), 3)
    end
  end
  local prefix = options.prefix == nil and "outbox_" or options.prefix
  check_identifier("prefix", prefix)
  if options.schema ~= nil then
    check_identifier("schema", options.schema)
  end
  local generator = callback(options, "id_generator", "generate_id", { generate_id = core.uuid_v7 })
  return {
    prefix = prefix,
    unique = options.id_generator == nil,
    clock = callback(options, "clock", "now", core.clock),
    generate_id = function(...)
      return generator.generate_id(...)
    end,
  }
end

--- Messages -----------------------------------------------------------------------------------

--- Raises the same argument errors as a store's own publish. `messages` is a packed table.
function M.check_messages(messages)
  local i, reason = 1, messages.n == 0 and core.check_message() or nil
  while i <= messages.n and not reason do
    reason = core.check_message(messages[i])
    i = reason and i or i + 1
  end
  if reason then
    error(("bad argument #%d to 'publish' (%s)"):format(i, reason), 3)
  end
end

--- Returns the time by the store's clock, in seconds.
function M.now(store)
  local now = store.clock.now()
  if type(now) ~= "number" then
    error(("the clock's now() must return a time in seconds, not %s"):format(errors.text(now)))
  end
  return now
end

--- Returns the id of a message, its own or a new one.
function M.id(store, message)
  local id = message.id or store.generate_id(store.clock, message)
  if type(id) ~= "string" then
    error(("the ID generator must return a string, not a %s"):format(type(id)))
  end
  return id
end

--- Whether the id of a message may be in the outbox already.
function M.is_known(store, message)
  return message.id ~= nil or not store.unique
end

--- Returns the headers of a message as JSON, or nil.
function M.headers(message)
  return message.headers and require("outbox.headers").encode(message.headers)
end

--- Returns a time in microseconds, as the tables have it.
function M.microseconds(time)
  return math.floor(time * 1e6 + 0.5)
end

--- Answers ------------------------------------------------------------------------------------

--- Judges what a function that runs SQL has returned. Returns nothing if the SQL has succeeded,
-- else the reason as text. Refuses numbers, because with some bindings they are a count, with
-- others an error's code.
function M.refusal(result, reason)
  if result == true or result == nil and reason == nil then
    return nil
  elseif result then
    return ("the function returned %s: it must raise when SQL fails, and return nothing or true "
      .. "when it does not"):format(errors.text(result))
  end
  return reason == nil and "the function returned false" or errors.text(reason)
end

return M
