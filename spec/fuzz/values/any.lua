-- Values of every kind.

local run = ...
local core = require("outbox.core")
local fuzz = require("fuzz")
local outbox = require("outbox")
local choose, one_of, rarely = run.choose, run.one_of, run.rarely
local recall, remember = run.recall, run.remember

local NUMBERS = { 0, 1, -1, 2, 3, 7, 100, 1000, 1001, 1002, math.maxinteger, math.mininteger,
  1 << 31, 1 << 32, 1 << 60, 0.0, -0.0, 0.5, 1000.5, 1e11, 1e11 + 1, -1e11, 1e15, 1e308, 2.0 ^ 53,
  2.0 ^ 63, 1e-7, math.huge, -math.huge, 0 / 0 }
local STRINGS = { "", "a", "b", "c", "p", "q", "n", "k", "key", "none", "strict", "off", "full",
  "limit", "hold", "after", "batch_bytes", "ordering", "namespace", "id", "payload",
  "headers", "deliver_at", "clock", "prefix", "outbox_", "x_", "12", "0x10", "1e3", "\0", "a\0b",
  "'", '"', "\xff\xfe", "\u{20ac}", "%s", "1-9223372036854775807", "SELECT 1", ":memory:" }
local METAMETHODS = { "__index", "__newindex", "__pairs", "__tostring", "__len", "__eq", "__call",
  "__close", "__gc", "__name", "__lt", "__concat", "__mode", "__metatable" }

local any

local function key()
  local value = any()
  return rawequal(value, value) and value or 1
end

local function with_metatable(value)
  local metatable = {}
  for _ = 0, choose(3) do
    metatable[one_of(METAMETHODS)] = rarely(8) and any() or run.callback()
  end
  return setmetatable(value, metatable)
end

local function array(of, count)
  local list = {}
  for i = 1, count do
    list[i] = of()
  end
  return remember(run.tables, list)
end

-- An array that seems to be endless, to those who ask for its length: it has its powers of two.
local function vast_array()
  local list = {}
  for i = 0, choose(63) do
    list[#list + 1] = ("[1 << %d] = 'a'"):format(i)
  end
  return load("return {" .. table.concat(list, ", ") .. "}")()
end

local function string()
  local kind = choose(64)
  if kind == 63 then
    return ("x"):rep(100000)
  elseif kind > 60 then
    return ("y"):rep(300 * choose(256))
  elseif kind > 56 then
    return fuzz.bytes(choose(32))
  end
  return one_of(STRINGS)
end

local KINDS = {
  function() return nil end,
  function() return choose(2) == 1 end,
  function() return one_of(NUMBERS) end,
  function() return choose(256) end,
  string,
  function() return remember(run.tables, {}) end,
  function() return array(any, choose(4)) end,
  function() return { [key()] = any() } end,
  function() return with_metatable({}) end,
  vast_array,
  function() return run.callback() end,
  function() return next end,
  function() return coroutine.create(run.callback()) end,
  function() return recall(run.stores) end,
  function() return recall(run.transactions) end,
  function() return recall(run.iterators) end,
  function() return recall(run.processors) end,
  function() return recall(run.connections) end,
  function() return outbox.blob(string()) end,
  function() return fuzz.userdata() end,
  function() return fuzz.pointer(choose(2)) end,
  function() return core.clock end,
}

function any()
  if run.depth > run.DEPTH then
    return nil
  end
  run.depth = run.depth + 1
  local value = one_of(KINDS)()
  run.depth = run.depth - 1
  return value
end

run.any, run.key, run.string, run.array = any, key, string, array
run.with_metatable, run.NUMBERS, run.STRINGS = with_metatable, NUMBERS, STRINGS
