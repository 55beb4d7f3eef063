-- outbox stats

local database = require("outbox.command.common.database")
local format = require("outbox.command.common.format")
local outbox = require("outbox")

local M = {
  summary = "Count the entries.",
  description = "Counts the entries by state, and shows how long the first ready entry has waited.",
}

function M.define(command)
  database.define(command)
  command:mutex(
    command:flag("--json", "As a line of JSON."),
    command:flag("--prometheus", "In the text format of Prometheus."))
end

local function text(stats, now)
  local rows = format.counts(stats, now)
  rows[#rows + 1] = { "leases", ("%10d"):format(format.live_leases(stats, now)), "" }
  format.table(rows)
end

local function json(stats)
  for _, lease in ipairs(format.array(stats.leases)) do
    format.stamp_lease(lease)
  end
  format.write(format.json(format.stamp(stats)), "\n")
end

local function prometheus(stats, now, options)
  local function quote(value)
    return '"' .. value:gsub('[\\"\n]', { ["\\"] = "\\\\", ['"'] = '\\"', ["\n"] = "\\n" }) .. '"'
  end
  local labels = ("{database=%s,prefix=%s}"):format(quote(options.database), quote(options.prefix))
  for _, metric in ipairs({
    { "ready_entries", "gauge", stats.ready, "Entries to be delivered now, claimed or not." },
    { "delayed_entries", "gauge", stats.delayed, "Entries that wait for their time." },
    { "retry_entries", "gauge", stats.retries, "Delayed entries that are to be tried again." },
    { "dead_entries", "gauge", stats.dead, "Dead letters." },
    { "oldest_age_seconds", "gauge", stats.oldest_age or 0,
      "Seconds since the first ready entry was published; 0 without one." },
    { "overdue_seconds", "gauge", math.max(0, now - (stats.due_at or now)),
      "Seconds since the first delayed entry fell due; 0 if none has." },
    { "leases", "gauge", format.live_leases(stats, now), "Leases that have not lapsed." },
    { "arrived_total", "counter", stats.last_seq, "Entries that have ever become ready." },
    { "departed_total", "counter", stats.last_seq - stats.ready - stats.retries,
      "Arrived entries that were delivered, or died." },
  }) do
    local name, kind, value, help = table.unpack(metric)
    name = "outbox_" .. name
    format.write(("# HELP %s %s\n# TYPE %s %s\n%s%s %s\n"):format(name, help, name, kind, name,
      labels, format.number(value)))
  end
end

function M.run(options)
  local store <close> = database.look(options)
  local show = options.json and json or options.prometheus and prometheus or text
  show(store:stats(), outbox.clock.now(), options)
end

return M
