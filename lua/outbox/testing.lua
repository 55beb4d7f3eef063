--- Helpers for tests: a clock that the test moves, ids that it knows, a publisher that records, and
-- assertions for busted.
--
--    local testing = require("outbox.testing")
--    local clock = testing.clock()
--    local store = outbox.open(":memory:", { clock = clock, id_generator = testing.ids() })
--    assert.outbox(store).has_entry({ key = "7" })
--
-- The assertions are there when luassert is, as in busted: `assert.outbox(store)` followed by
-- `is_empty()` (nothing ready, delayed or dead), `has_entries(count)`, `has_entry(fields)` (ready
-- or delayed) and `has_dead_entry(fields)`, or their negations `is_not_empty()`,
-- `has_no_entry(fields)` and so on.
-- @module outbox.testing

local M = {}

--- A clock that stands still but for `advance(seconds)` and `sleep(seconds)`, which advances it and
-- returns at once. All are plain functions; `time` may be set too.
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

--- An ID generator that counts: "id-1", "id-2" and so on.
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

-- The first rule that fits and is not used up; uses it.
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

--- What the processor calls.
---@param messages outbox.entry[]
---@param namespace string
---@return table<integer, any>?
function Publisher:publish(messages, namespace)
  self.calls[#self.calls + 1] = { namespace = namespace, messages = messages }
  local raise = find(self.raises)
  if raise then
    error(raise.problem, 0)
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

--- From now on some messages fail.
---@param match string|fun(message: outbox.entry): boolean an id, or a function that tells
---@param reason any what the processor is told, `{ reason =, permanent = true }` for instance
---@param times? integer how often, default always
function Publisher:fail(match, reason, times)
  self.failures[#self.failures + 1] = { match = match, reason = reason, times = times or math.huge }
end

--- From now on every call raises.
---@param problem any
---@param times? integer how often, default always
function Publisher:raise(problem, times)
  self.raises[#self.raises + 1] = { problem = problem, times = times or math.huge }
end

--- Nothing fails or raises any more.
function Publisher:recover()
  self.failures, self.raises = {}, {}
end

--- A publisher that records: `messages`, all that it accepted, in order; `calls`, each with
-- `namespace` and `messages`.
---@return outbox.testing.publisher
function M.publisher()
  return setmetatable({ messages = {}, calls = {}, failures = {}, raises = {} }, Publisher)
end

-- All entries of one kind, page by page.
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

local function register(assert, util)
  local KEY = "outbox.store"

  local function assertion(name, holds, wording)
    local function check(state, arguments)
      local store = rawget(state, KEY)
      if store == nil then
        error(("assert.%s needs a store: assert.outbox(store).%s"):format(name, name), 2)
      end
      local ok = holds(store, arguments[1])
      state.failure_message = ("%s %s; it has\n%s\n%s"):format(wording, show_wanted(arguments[1]),
        show("waiting", waiting(store)), show("dead", list(store, "dead_entries")))
      return ok
    end
    assert:register("assertion", name, check)
  end

  local function any(entries, fields)
    for _, entry in ipairs(entries) do
      local fits = true
      for field, value in pairs(fields) do
        fits = fits and util.deepcompare(entry[field], value)
      end
      if fits then
        return true
      end
    end
    return false
  end

  assert:register("modifier", "outbox", function(state, arguments)
    rawset(state, KEY, arguments[1])
    return state
  end)
  assertion("empty", function(store)
    return #waiting(store) == 0 and #list(store, "dead_entries") == 0
  end, "asked of the outbox: to be empty")
  assertion("entries", function(store, count)
    return #waiting(store) == count
  end, "asked of the outbox: how many entries,")
  assertion("entry", function(store, fields)
    return any(waiting(store), fields)
  end, "asked of the outbox: an entry,")
  assertion("dead_entry", function(store, fields)
    return any(list(store, "dead_entries"), fields)
  end, "asked of the outbox: a dead letter,")
end

local ok, luassert = pcall(require, "luassert")
if ok then
  register(luassert, require("luassert.util"))
end

return M
