-- outbox top

local convert = require("outbox.command.common.convert")
local core = require("outbox.core")
local database = require("outbox.command.common.database")
local format = require("outbox.command.common.format")
local namespaces = require("outbox.command.common.namespaces")

local M = {
  summary = "Watch an outbox.",
  description = "Shows the number of entries by state and by namespace, how many arrive and depart "
    .. "each second, the leases, and the errors of the last entries that failed. Draws a screen on "
    .. "a terminal, else writes one line each time. Ends with Ctrl-C.",
}

local MAX_READ = 20 -- how many of the last delayed and of the last dead entries are read
-- Counting by namespace takes longer the more entries there are; it may take this share of the
-- time.
local MAX_SHARE = 1 / 20

function M.define(command)
  database.define(command)
  command:option("--interval", "Seconds between two updates."):argname("SECONDS"):default("1")
    :convert(convert.seconds)
  command:option("--count", "End after this many updates."):argname("COUNT"):convert(convert.count)
end

-- Reads the counts. Adds how many entries arrived and departed per second since the sample before.
local function take(store, before)
  local sample = store:stats()
  sample.time = store:clock().now()
  if before and sample.time > before.time then
    local arrived = sample.last_seq - before.last_seq
    local grew = sample.ready + sample.retries - before.ready - before.retries
    local seconds = sample.time - before.time
    sample.arrived, sample.departed = arrived / seconds, (arrived - grew) / seconds
  end
  return sample
end

-- Keeps the counts by namespace of the sample before until it is time for new ones.
local function take_namespaces(store, sample, before)
  local next_at = before and before.counted_at + before.counting / MAX_SHARE
  if next_at and sample.time < next_at and sample.time >= before.counted_at then
    sample.namespaces, sample.counted_at, sample.counting = before.namespaces, before.counted_at,
      before.counting
    return
  end
  local counted = store:stats({ by_namespace = true })
  namespaces.judge(counted, sample.time)
  sample.namespaces, sample.counted_at = counted.namespaces, sample.time
  sample.counting = store:clock().now() - sample.time
end

local function rate(value)
  return value and ("%.1f"):format(value) or "-"
end

--- Lines --------------------------------------------------------------------------------------

local function print_line(_, _, sample)
  format.write(("%s ready=%d delayed=%d dead=%d oldest=%s arrived=%s departed=%s leases=%d\n")
    :format(format.time(sample.time), sample.ready, sample.delayed, sample.dead,
      sample.oldest_age and ("%.1f"):format(sample.oldest_age) or "-", rate(sample.arrived),
      rate(sample.departed), format.live_leases(sample, sample.time)))
end

--- The screen ---------------------------------------------------------------------------------

-- Adds the errors of the last entries of a kind: each error once, with the number of its entries.
local function add_errors(rows, store, kind)
  local counts, found = {}, {}
  for _, entry in ipairs(store[kind .. "_entries"](store, { reverse = true, limit = MAX_READ })) do
    local reason = entry.last_error
    if reason then
      if not counts[reason] then
        found[#found + 1] = reason
      end
      counts[reason] = (counts[reason] or 0) + 1
    end
  end
  for _, reason in ipairs(found) do
    rows[#rows + 1] = { kind, ("%d of the last"):format(counts[reason]), format.error_cell(reason) }
  end
end

local function screen(store, options, sample)
  local now = sample.time
  local name = format.line(database.shown(options.database))
  local lines = { ("outbox %s   %s"):format(name, format.time(now)), "" }
  local function add(rows)
    if rows[1] then
      table.move(format.columns(rows), 1, #rows, #lines + 1, lines)
      lines[#lines + 1] = ""
    end
  end
  local rows = format.counts(sample, now)
  rows[#rows + 1] = { "arrived", ("%10s"):format(rate(sample.arrived)), "a second" }
  rows[#rows + 1] = { "departed", ("%10s"):format(rate(sample.departed)), "a second" }
  add(rows)
  rows = namespaces.rows(sample.namespaces, now)
  if rows[1] and sample.counted_at < now then
    rows[1][#rows[1]] = "STATE " .. format.from_now(sample.counted_at, now)
  end
  add(rows)
  rows = {}
  for _, lease in ipairs(sample.leases) do
    rows[#rows + 1] = { "lease of " .. format.line(lease.processor_id),
      "deadline " .. format.from_now(lease.deadline, now), "share " .. format.share(lease),
      "in hand " .. format.places(lease.held) }
  end
  add(rows)
  rows = {}
  add_errors(rows, store, "delayed")
  add_errors(rows, store, "dead")
  add(rows)
  return lines
end

-- Draws the part of the lines that fits the terminal.
local function draw(lines, columns, rows)
  if not columns or columns == 0 then
    columns, rows = 80, 24
  end
  local parts = { "\27[H" }
  for i = 1, math.min(#lines, rows - 1) do
    local cut = utf8.offset(lines[i], columns + 1)
    parts[#parts + 1] = lines[i]:sub(1, cut and cut - 1) .. "\27[K\n"
  end
  format.write(table.concat(parts), "\27[J")
end

local function print_screen(store, options, sample)
  draw(screen(store, options, sample), core.terminal_size(io.stdout))
end

-- The cursor is hidden until the screen is closed.
local Screen = {
  __close = function()
    io.stdout:write("\27[?25h")
  end,
}

local function open_screen()
  format.write("\27[?25l\27[2J")
  return setmetatable({}, Screen)
end

function M.run(options)
  local store <close> = database.look(options)
  local terminal = core.terminal_size(io.stdout) ~= nil
  local show = terminal and print_screen or print_line
  core.catch_signals()
  local screen_open <close> = terminal and open_screen() or nil -- luacheck: no unused
  local sample
  local left = options.count or math.huge
  repeat
    local before = sample
    sample = take(store, before)
    if terminal then
      take_namespaces(store, sample, before)
    end
    show(store, options, sample)
    format.flush()
    left = left - 1
  until left == 0 or core.await_signal(options.interval)
end

return M
