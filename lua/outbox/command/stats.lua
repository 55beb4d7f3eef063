-- outbox stats, outbox leases.

local outbox = require("outbox")
local database = require("outbox.command.database")
local format = require("outbox.command.format")

--- Stats --------------------------------------------------------------------------------------

local function text(stats, now)
  local rows = format.counts(stats, now)
  rows[#rows + 1] = { "leases", ("%10d"):format(format.live_leases(stats, now)), "" }
  format.table(rows)
end

local function json(stats)
  for _, lease in ipairs(format.array(stats.leases)) do
    format.stamp(lease)
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
    { "retry_entries", "gauge", stats.retries, "Of the delayed, those to be tried again." },
    { "dead_entries", "gauge", stats.dead, "Dead letters." },
    { "oldest_age_seconds", "gauge", stats.oldest_age or 0,
      "Since the first ready entry was published; 0 without one." },
    { "overdue_seconds", "gauge", math.max(0, now - (stats.due_at or now)),
      "Since the first delayed entry fell due; 0 if none has." },
    { "leases", "gauge", format.live_leases(stats, now), "Those that have not lapsed." },
    { "came_total", "counter", stats.last_seq, "Entries that have ever become ready." },
    { "went_total", "counter", stats.last_seq - stats.ready - stats.retries,
      "Those of them that were delivered, or died." },
  }) do
    local name, kind, value, help = table.unpack(metric)
    name = "outbox_" .. name
    format.write(("# HELP %s %s\n# TYPE %s %s\n%s%s %s\n"):format(name, help, name, kind, name,
      labels, format.number(value)))
  end
end

local function stats(options)
  local store <close> = database.open(options)
  local show = options.json and json or options.prometheus and prometheus or text
  show(store:stats(), outbox.clock.now(), options)
end

--- Leases -------------------------------------------------------------------------------------

local function leases(options)
  local store <close> = database.open(options)
  local now = outbox.clock.now()
  local rows = { { "PROCESSOR", "CLAIMED", "DEADLINE", "FIRST", "LAST", "IN HAND" } }
  for _, lease in ipairs(store:stats().leases) do
    if options.json then
      format.write(format.json(format.stamp(lease)), "\n")
    else
      rows[#rows + 1] = {
        format.cell(lease.processor_id), format.from_now(lease.claimed_at, now),
        format.from_now(lease.deadline, now), format.number(lease.first_seq),
        lease.last_seq == math.maxinteger and "open" or format.number(lease.last_seq),
        format.cell(lease.batch),
      }
    end
  end
  if rows[2] then
    format.table(rows)
  end
end

return function(parser)
  local command = parser:command("stats")
    :summary("Count what waits.")
    :description("Counts what waits, and tells for how long the first ready entry has waited.")
    :action(function(options)
      options.run = stats
    end)
  database.define(command)
  command:mutex(
    command:flag("--json", "As a line of JSON."),
    command:flag("--prometheus", "As Prometheus reads it."))

  command = parser:command("leases")
    :summary("List the leases of the processors.")
    :description("Lists the leases of the processors, live and lapsed, in the order of what they "
      .. "cover. LAST is open where a lease covers all that is still to come.")
    :action(function(options)
      options.run = leases
    end)
  database.define(command)
  command:flag("--json", "Each as a line of JSON.")
end
