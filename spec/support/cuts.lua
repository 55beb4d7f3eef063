-- Plays scenarios on a PostgreSQL server while the connection to it is lost at one point after
-- another: before a statement, after it, in the middle of its answer, at the end of a round trip
-- that the server completes, or because the server's process is ended. See spec/support/cut.c.

local cut = require("cut")
local outbox = require("outbox")
local postgres = require("spec.support.postgres")
local process = require("process")
local support = require("spec.support")
local torture = require("spec.support.torture")

local assert = require("luassert")

--- `cases` counts what was tried; `where` names the case; `again`: it loses its connection twice.
local M = { ways = { "before", "after", "half", "leave", "kill" }, cases = 0, where = nil }

-- All that there is; not the seqs, which have gaps.
local STATE = [[
  SELECT string_agg(line, E'\n' ORDER BY line COLLATE "C") AS state FROM (
    SELECT 'order ' || name AS line FROM orders
    UNION ALL SELECT concat_ws(' ', 'ready', nullif(namespace, ''), payload, attempts, last_error)
      FROM outbox_entries
    UNION ALL SELECT concat_ws(' ', 'delayed', nullif(namespace, ''), payload, attempts, last_error)
      FROM outbox_delayed
    UNION ALL SELECT concat_ws(' ', 'dead', nullif(namespace, ''), payload, attempts, last_error)
      FROM outbox_dead
    UNION ALL SELECT concat_ws(' ', 'subscription', namespace, copy) FROM outbox_subscriptions
    UNION ALL SELECT 'pause ' || namespace FROM outbox_pauses
    UNION ALL SELECT 'claim ' || processor_id FROM outbox_claims
    UNION ALL SELECT 'batch ' || places::text FROM outbox_batches) AS t]]
local PATIENCE = 10
local CLEAN = [[
  DO $$ BEGIN
    DELETE FROM orders; DELETE FROM outbox_entries; DELETE FROM outbox_delayed;
    DELETE FROM outbox_dead; DELETE FROM outbox_subscriptions; DELETE FROM outbox_pauses;
    DELETE FROM outbox_claims; DELETE FROM outbox_batches;
    DROP SCHEMA IF EXISTS fresh CASCADE; CREATE SCHEMA fresh;
  END $$]]

local server, proxy, clock, lost, losses

--- Starts a server with the outbox and a table `orders`. `direct` is a store whose connection is
-- never lost, `url` that of the proxy.
function M.start()
  server = postgres.server()
  M.url = server.url:gsub(":5432", ":5433")
  M.direct = outbox.open(server.url, { clock = { sleep = outbox.clock.sleep, now = function()
    return clock.now()
  end } })
  clock = support.clock()
  M.direct:migrate()
  support.sql(M.direct, "CREATE TABLE orders (name text PRIMARY KEY)")
  proxy = cut.proxy(server.folder .. "/.s.PGSQL.5433", server.folder .. "/.s.PGSQL.5432")
end

function M.stop()
  process.kill(proxy)
  process.wait(proxy)
  M.direct:close()
  postgres.stop()
end

-- Notes that the connection was lost. Nothing else may fail, and nothing a second time.
local function lose(problem, opens)
  local code = type(problem) == "table" and problem.code
  assert.is_true(code == "disconnected" or opens and code == "cantopen",
    ("%s: %s"):format(M.where, problem))
  lost, losses = problem, losses - 1
  assert.is_true(losses >= 0, ("%s: another call has failed: %s"):format(M.where, problem))
end

--- If it was not lost yet, the connection is lost at the n-th point from here; below 0, at the n-th
-- end of a round trip.
function M.arm(way, n)
  if not lost then
    M.where = ("%s, at point %d from there"):format(way, n)
    cut.arm(way, n)
  end
end

--- Waits until the server is done with what it got before the connection was lost. Returns whether
-- it was lost, and the number of round trips.
function M.calm_down()
  local latest = outbox.clock.now() + PATIENCE
  while true do
    local was_cut, ends, left = cut.look()
    if not left then
      return was_cut, ends
    end
    assert.is_true(outbox.clock.now() < latest, M.where .. ": the server does not end")
  end
end

--- Calls a function until it succeeds, as an application does. Where its connection was lost,
-- `is_done(problem)` may tell that it need not be called again, because only the answer was lost;
-- the server is not busy with it any more. Or the next call finds that out: it knows the id.
function M.persist(is_done, fn, ...)
  local results = table.pack(pcall(fn, ...))
  if results[1] then
    return table.unpack(results, 2, results.n)
  elseif lost and type(results[2]) == "table" and results[2].code == "duplicate" then
    return
  end
  lose(results[2])
  if is_done then
    M.calm_down()
  end
  if not (is_done and is_done(results[2])) then
    return M.persist(is_done, fn, ...)
  end
end

local function open(url)
  local ok, store = pcall(outbox.open, url, { clock = clock })
  if ok then
    return store
  end
  lose(store, true)
  return open(url)
end

--- Plays a scenario on a store that loses its connection at the n-th point, and perhaps again so
-- many points later: `play(store, clock)` returns a text. With what is in the tables then, that is
-- what is expected, as if nothing had been lost. Returns whether it was, and the number of round
-- trips. `play` may call `arm` itself.
function M.try(expected, play, url, way, n, again)
  M.where = ("%s, at point %d%s"):format(way, n, again and (" and %d later"):format(again) or "")
  M.cases, M.again, clock = M.cases + 1, again ~= nil, support.clock(1700000000)
  lost, losses = nil, again and 2 or 1
  support.sql(M.direct, CLEAN)
  cut.arm(way, n, again)
  local store <close> = open(url)
  local log = play(store, clock) or ""
  local was_cut, ends = M.calm_down()
  cut.arm("pass", 0)
  assert.equal(expected, log .. (support.sql(M.direct, STATE)[1].state or ""), M.where)
  return was_cut, ends
end

-- Tries every point; after each third one the connection is lost again while the store recovers.
local function try_each(try, way)
  local n, sign = 1, way == "leave" and -1 or 1 -- the server is left at ends alone
  while try(way, sign * n) do
    if n % 3 == 0 then
      try(way, sign * n, n // 3 % 17 + 1)
    end
    n = n + 1
  end
end

--- Tries all points in all ways. A short run tries ten ends of round trips that are spread over the
-- scenario, two in each way.
function M.try_all(expected, play, url)
  local function try(...)
    return M.try(expected, play, url or M.url, ...)
  end
  local _, ends = try("pass", 0)
  for i, way in ipairs(M.ways) do
    if torture.long then
      try_each(try, way)
    else
      local n = 1 + (i - 1) * ends // 10
      try(way, -n)
      try(way, -n - ends // 2, 3 * i)
    end
  end
end

--- Starts a process that keeps the rows of ready entries locked until two connections wait. Returns
-- its pid when they are locked.
function M.hold_entries()
  local pid = torture.fork(function()
    local store <close> = outbox.open(server.url)
    local latest = outbox.clock.now() + PATIENCE
    store:transaction(function(txn)
      txn:rows("SELECT FROM outbox_entries FOR UPDATE")
      repeat
        local waiting = txn:rows("SELECT count(*) AS n FROM pg_locks WHERE NOT granted")()
        assert.is_true(outbox.clock.now() < latest)
      until waiting.n >= 2
    end)
  end)
  repeat
    local free = support.sql(M.direct, "SELECT FROM outbox_entries FOR UPDATE SKIP LOCKED")
  until #free == 0
  return pid
end

--- Counts the rows of a table, or those with a condition.
function M.count(what)
  return support.sql(M.direct, "SELECT count(*) AS n FROM " .. what)[1].n
end

return M
