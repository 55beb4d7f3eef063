-- The script of the target `values`, run once for each input: it calls the public functions with
-- values of every kind. Among these are functions and finalizers that call them again. Only the
-- bytes of the input, which values.c gives, decide what happens, in the order in which they are
-- taken. A change of that order changes what the seeds mean.

local fuzz = require("fuzz")
local outbox = require("outbox")

-- A part is loaded once, and run anew for each input.
local function part(name, run)
  local path = ("spec/fuzz/values/%s.lua"):format(name)
  local chunk = package.loaded[path]
  if not chunk then
    chunk = assert(loadfile(path))
    package.loaded[path] = chunk
  end
  return chunk(run)
end

local run = part("input")
part("any", run)
part("callbacks", run)
part("calls", run)
run.given = part("arguments", run)
part("actions", run)

local function is_anything_suspended()
  for thread in pairs(run.started) do
    if coroutine.status(thread) == "suspended" then
      return true
    end
  end
  return false
end

-- Between two actions no transaction is open, and one call that failed has changed nothing.
local function act(compares)
  local store = run.stores[1]
  local before, count = compares and fuzz.contents(store), run.calls
  run.note(pcall(run.act))
  if is_anything_suspended() then
    return
  end
  if fuzz.in_transaction(store) then
    fuzz.fail("transaction: left open")
  end
  local after = run.failed and run.calls == count + 1 and before and fuzz.contents(store)
  if after and after ~= before then
    fuzz.fail("contents: changed by a call that failed")
  end
end

local function main()
  local compares, checks = run.rarely(4), run.rarely(8)
  local gc = run.choose(4)
  if gc > 1 then
    run.tune(gc - 2)
  end
  local ok, store = pcall(outbox.open, ":memory:", run.given.open_options())
  if not ok then
    store = outbox.open(":memory:")
  end
  fuzz.fill(store)
  run.stores[1] = store
  while fuzz.left() and run.steps > 0 do
    act(compares and run.stores[1])
  end
  run.steps = 0
  for thread in pairs(run.started) do
    if coroutine.status(thread) == "suspended" then
      run.note(coroutine.close(thread))
    end
  end
  for _, open_store in ipairs(run.stores) do
    if fuzz.in_transaction(open_store) then
      fuzz.fail("transaction: left open at the end")
    end
    if checks then
      fuzz.check(open_store)
    end
  end
  if run.tuned then
    collectgarbage("generational", 20, 100)
    collectgarbage("incremental", 200, 100, 13)
  end
end

main()
