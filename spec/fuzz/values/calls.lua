-- Calls of public functions, and what is checked of each: how it fails.

local run = ...
local fuzz = require("fuzz")
local any, choose, rarely, remember = run.any, run.choose, run.rarely, run.remember
local unpack = table.unpack

-- An error is a string, a table with a code and a message, or what a callback has raised.
local function check_error(problem)
  if type(problem) == "string" then
    if problem == "error in error handling" then
      fuzz.fail("error: " .. problem)
    end
  elseif problem ~= nil and rawequal(problem, problem) and not run.raised[problem] then
    if type(problem) ~= "table" or type(rawget(problem, "code")) ~= "string"
      or type(rawget(problem, "message")) ~= "string" then
      fuzz.fail("error: a " .. type(problem))
    end
  end
end

local function note(ok, ...)
  run.failed = not ok
  if run.failed then
    check_error((...))
  end
  return ok, ...
end

local function resume(thread, ...)
  local before = run.depth
  local results = table.pack(coroutine.resume(thread, ...))
  run.depth = before
  return note(unpack(results, 1, results.n))
end

-- Calls now and then in a coroutine, which may yield and be resumed later.
local function call(fn, ...)
  run.calls = run.calls + 1
  if rarely(8) then
    local thread = remember(run.threads, coroutine.create(fn))
    run.started[thread] = true
    return resume(thread, ...)
  end
  return note(pcall(fn, ...))
end

-- The arguments that a function takes, but now and then others, more or fewer. The last of the
-- generators may give many.
local function arguments(generators)
  local list, count = {}, #generators
  for i = 1, count do
    if rarely(24) then
      list[i] = any()
    elseif i < #generators then
      list[i] = generators[i]()
    else
      local last = table.pack(generators[i]())
      table.move(last, 1, last.n, i, list)
      count = i - 1 + last.n
    end
  end
  if rarely(32) then
    count = choose(count + 2)
    list[count] = any()
  end
  return unpack(list, 1, count)
end

run.call, run.note, run.resume, run.arguments = call, note, resume, arguments
