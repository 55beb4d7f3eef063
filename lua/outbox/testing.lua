--- Helpers for tests: a clock that the test sets, ids that it knows, a publisher that records the
-- messages, and assertions for busted.
--
--    local testing = require("outbox.testing")
--    local clock = testing.clock()
--    local store = outbox.open(":memory:", { clock = clock, id_generator = testing.ids() })
--    assert.outbox(store).has_entry({ key = "7" })
--
-- The assertions exist if luassert is installed, as it is with busted. After `assert.outbox(store)`
-- follows `is_empty()` (no ready, delayed or dead entry), `has_entries(count)`, `has_entry(fields)`
-- (a ready or delayed entry) or `has_dead_entry(fields)`. Their negations are `is_not_empty()`,
-- `has_no_entry(fields)` and so on. Each takes a text for the case of its failure as its last
-- argument. A check that could never fail, because it asks for a field that no entry has or for a
-- value of the wrong type, is an error.
-- @module outbox.testing

local core = require("outbox.core")

local M = {}

--- Makes a clock that only the test moves. `advance(seconds)` and `sleep(seconds)` both advance it
-- and return at once; `now()` returns its time. All are plain functions. The field `time` is the
-- time, and may be set.
---@param start? number seconds since the epoch, default 1000
---@return outbox.testing.clock
function M.clock(start)
  local clock = { time = start or 1000 }
  function clock.now()
    return clock.time
  end
  function clock.advance(seconds)
    clock.time = clock.time + seconds
  end
  clock.sleep = clock.advance
  return clock
end

--- Makes an ID generator that counts: "id-1", "id-2" and so on.
---@param prefix? string default "id-"
---@return outbox.id_generator
function M.ids(prefix)
  local count = 0
  return function()
    count = count + 1
    return (prefix or "id-") .. count
  end
end

local Publisher = {}
Publisher.__index = Publisher

-- Returns the first rule that matches the message, and uses it once; a rule that is used up goes.
local function find(rules, message)
  for i, rule in ipairs(rules) do
    if message == nil or rule.match == message.id
      or type(rule.match) == "function" and rule.match(message) then
      rule.times = rule.times - 1
      if rule.times <= 0 then
        table.remove(rules, i)
      end
      return rule
    end
  end
end

--- Records messages, or fails or raises as it was told. The processor calls it.
---@param messages outbox.entry[]
---@param namespace string
---@return table<integer, any>?
function Publisher:publish(messages, namespace)
  self.calls[#self.calls + 1] = { namespace = namespace, messages = messages }
  local raise = find(self.raises)
  if raise then
    error(raise.value, 0)
  end
  local failures
  for i, message in ipairs(messages) do
    local failure = find(self.failures, message)
    if failure then
      failures = failures or {}
      failures[i] = failure.reason
    else
      self.messages[#self.messages + 1] = message
    end
  end
  return failures
end

local function check_times(times, index, name)
  if times ~= nil and not (math.type(times) == "integer" and times > 0) then
    error(("bad argument #%d to '%s' (a positive integer expected)"):format(index, name), 3)
  end
end

--- From now on some messages fail.
---@param match string|fun(message: outbox.entry): boolean an id, or a function that selects
---@param reason any given to the processor; `{ reason =, permanent = true }` for instance
---@param times? integer how many failures, default no limit
function Publisher:fail(match, reason, times)
  if type(match) ~= "string" and type(match) ~= "function" then
    error(("bad argument #1 to 'fail' (an id or a function expected, got %s)"):format(type(match)),
      2)
  elseif not reason then
    error("bad argument #2 to 'fail' (a reason expected: nil and false mean delivered)", 2)
  end
  check_times(times, 3, "fail")
  self.failures[#self.failures + 1] = { match = match, reason = reason, times = times or math.huge }
end

--- From now on every call raises.
---@param value any the error
---@param times? integer how many calls, default no limit
function Publisher:raise(value, times)
  check_times(times, 2, "raise")
  self.raises[#self.raises + 1] = { value = value, times = times or math.huge }
end

--- From now on no message fails and no call raises.
function Publisher:recover()
  self.failures, self.raises = {}, {}
end

--- Makes a publisher that records. Its field `messages` has all messages that it accepted, in
-- order; `calls` has its calls, each with `namespace` and `messages`. Set its field `ordered` to
-- true for a publisher that keeps the order itself.
---@return outbox.testing.publisher
function M.publisher()
  return setmetatable({ messages = {}, calls = {}, failures = {}, raises = {} }, Publisher)
end

-- Returns all entries of one kind; reads them a page at a time.
local function list(store, method)
  local entries, after = {}, nil
  repeat
    local page = store[method](store, { after = after })
    table.move(page, 1, #page, #entries + 1, entries)
    after = page[1] and page[#page].seq
  until not after
  return entries
end

local function waiting(store)
  local entries, delayed = list(store, "ready_entries"), list(store, "delayed_entries")
  return table.move(delayed, 1, #delayed, #entries + 1, entries)
end

local function show(kind, entries)
  local lines = {}
  for i, entry in ipairs(entries) do
    lines[i] = ("  %s %s: namespace %q, key %s, payload %s"):format(kind, entry.id, entry.namespace,
      entry.key and ("%q"):format(entry.key) or "none",
      entry.payload and ("%q"):format(entry.payload) or "none")
  end
  return table.concat(lines, "\n")
end

local function show_wanted(wanted)
  if type(wanted) ~= "table" then
    return tostring(wanted or "")
  end
  local fields = {}
  for field, value in pairs(wanted) do
    fields[#fields + 1] = ("%s = %s"):format(field, tostring(value))
  end
  table.sort(fields)
  return table.concat(fields, ", ")
end

-- The fields of an entry, and the types of their values.
local FIELDS = {
  id = "string", namespace = "string", key = "string", payload = "string", headers = "table",
  seq = "number", created_at = "number", attempts = "number", last_error = "string",
  source_id = "string",
}
local OWN_FIELDS = { entry = { due_at = "number" }, dead_entry = { died_at = "number" } }

-- Returns what is wrong with the fields that are asked for, nil if nothing is: no entry could have
-- them.
local function find_fault(name, fields)
  if type(fields) ~= "table" then
    return ("a table of fields expected, got %s"):format(type(fields))
  end
  for field, value in pairs(fields) do
    local wanted = FIELDS[field] or OWN_FIELDS[name][field]
    if not wanted then
      return ("unknown field '%s'"):format(tostring(field))
    elseif type(value) ~= wanted and not (field == "key" and math.type(value) == "integer") then
      return ("field '%s' must be a %s, not a %s"):format(field, wanted, type(value))
    end
  end
end

local function register(assert, util, namespaces)
  local KEY = "outbox.store"

  -- `find_wrong(argument)` returns why the assertion could not be meant; nil where it takes none.
  local function assertion(name, holds, wording, find_wrong)
    local function check(state, arguments)
      local store, last = rawget(state, KEY), find_wrong and 2 or 1
      if store == nil then
        error(("assert.%s needs a store: assert.outbox(store).%s"):format(name, name), 2)
      end
      local wrong, note = find_wrong and find_wrong(arguments[1]), arguments[last]
      if not wrong and (arguments.n > last or note ~= nil and type(note) ~= "string") then
        wrong = ("at most %d argument%s, and a text for the failure, expected"):format(last - 1,
          last == 2 and "" or "s")
      end
      if wrong then
        error(("bad argument to 'assert.outbox(store).%s' (%s)"):format(name, wrong), 2)
      end
      local ok = holds(store, arguments[1])
      state.failure_message = ("%s%s %s; it has\n%s\n%s"):format(note and note .. "\n" or "",
        wording, find_wrong and show_wanted(arguments[1]) or "", show("waiting", waiting(store)),
        show("dead", list(store, "dead_entries")))
      return ok
    end
    assert:register("assertion", name, check)
  end

  local function any(entries, fields)
    for _, entry in ipairs(entries) do
      local fits = true
      for field, value in pairs(fields) do
        local wanted = field == "key" and tostring(value) or value
        fits = fits and util.deepcompare(entry[field], wanted)
      end
      if fits then
        return true
      end
    end
    return false
  end

  assert:register("modifier", "outbox", function(state, arguments)
    local store = arguments and arguments[1]
    if not pcall(core.is_attached, store) then
      error(("bad argument to 'assert.outbox' (a store of the outbox expected, got %s)"):format(
        type(store)), 2)
    end
    rawset(state, KEY, store)
    return state
  end)

  -- luassert's own modifier takes a text and checks nothing, so `has_message(...)` would pass.
  local set_message = namespaces.modifier.message
  if set_message then
    assert:register("modifier", "message", function(state, arguments, level)
      if rawget(state, KEY) ~= nil then
        error("assert.outbox(store) has no assertion 'message': say has_entry(fields)", 2)
      end
      return set_message.callback(state, arguments, level)
    end)
  end

  assertion("empty", function(store)
    return #waiting(store) == 0 and #list(store, "dead_entries") == 0
  end, "expected of the outbox: to be empty")
  assertion("entries", function(store, count)
    return #waiting(store) == count
  end, "expected of the outbox: the number of entries,", function(count)
    return (type(count) ~= "number" or count < 0 or count % 1 ~= 0)
      and "a number of entries expected" or nil
  end)
  assertion("entry", function(store, fields)
    return any(waiting(store), fields)
  end, "expected of the outbox: an entry,", function(fields)
    return find_fault("entry", fields)
  end)
  assertion("dead_entry", function(store, fields)
    return any(list(store, "dead_entries"), fields)
  end, "expected of the outbox: a dead letter,", function(fields)
    return find_fault("dead_entry", fields)
  end)
end

local ok, luassert = pcall(require, "luassert")
if ok then
  register(luassert, require("luassert.util"), require("luassert.namespaces"))
end

return M
