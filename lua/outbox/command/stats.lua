-- outbox stats

local database = require("outbox.command.common.database")
local format = require("outbox.command.common.format")
local namespaces = require("outbox.command.common.namespaces")

local M = {
  summary = "Count the entries.",
  description = "Counts the entries by state, and by namespace, and shows how long the first ready "
    .. "entry of each has waited; what is paused, what is down, and what no processor serves.",
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
  rows = namespaces.rows(stats.namespaces, now)
  if rows[1] then
    format.write("\n")
    format.table(rows)
  end
end

local function json(stats)
  for _, lease in ipairs(format.array(stats.leases)) do
    format.stamp_lease(lease)
  end
  for _, each in ipairs(format.array(stats.namespaces)) do
    format.stamp(each)
  end
  format.write(format.json(format.stamp(stats)), "\n")
end

-- Writes a metric: its help, its type, and a value for each set of labels.
local function write_metric(name, kind, help, values)
  format.write(("# HELP outbox_%s %s\n# TYPE outbox_%s %s\n"):format(name, help, name, kind))
  for _, value in ipairs(values) do
    format.write(("outbox_%s{%s} %s\n"):format(name, value[1], format.number(value[2])))
  end
end

-- A label must be UTF-8: else nobody could read any of the metrics.
local function label(name, value)
  value = utf8.len(value) and value or format.line(value)
  return ('%s="%s"'):format(name,
    value:gsub('[\\"\n]', { ["\\"] = "\\\\", ['"'] = '\\"', ["\n"] = "\\n" }))
end

-- The metrics of each namespace: their names, their help, and how a value is read.
local OF_NAMESPACES = {
  { "namespace_ready_entries", "Entries to be delivered now, claimed or not.", function(each)
    return each.ready
  end },
  { "namespace_delayed_entries", "Entries that wait for their time.", function(each)
    return each.delayed
  end },
  { "namespace_dead_entries", "Dead letters.", function(each)
    return each.dead
  end },
  { "namespace_oldest_age_seconds",
    "Seconds since the first ready entry was published; 0 without one.", function(each)
      return each.oldest_age or 0
    end },
  { "namespace_paused", "Whether nothing is handed out until it is resumed.", function(each)
    return each.paused_at and 1 or 0
  end },
  { "namespace_unserved", "Whether something waits, and no processor serves it.", function(each)
    return each.unserved and 1 or 0
  end },
  { "destination_down", "Whether a processor has found its destination down.", function(each)
    return each.down_since and 1 or 0
  end },
}

local function prometheus(stats, now, options)
  local common = label("database", database.shown(options.database)) .. ","
    .. label("prefix", options.prefix)
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
    write_metric(name, kind, help, { { common, value } })
  end
  for _, metric in ipairs(stats.namespaces[1] and OF_NAMESPACES or {}) do
    local name, help, read = table.unpack(metric)
    local values = {}
    for i, each in ipairs(stats.namespaces) do
      values[i] = { common .. "," .. label("namespace", each.namespace), read(each) }
    end
    write_metric(name, "gauge", help, values)
  end
end

function M.run(options)
  local store <close> = database.look(options)
  local show = options.json and json or options.prometheus and prometheus or text
  local stats, now = store:stats({ by_namespace = true }), store:clock().now()
  namespaces.judge(stats, now)
  show(stats, now, options)
end

return M
