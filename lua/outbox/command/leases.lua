-- outbox leases

local database = require("outbox.command.common.database")
local format = require("outbox.command.common.format")
local outbox = require("outbox")

local M = {
  summary = "List the leases of the processors.",
  description = "Lists the leases of the processors, live and lapsed, in the order of the entries "
    .. "that they cover. LAST is \"open\" if a lease covers all entries that are still to come.",
}

function M.define(command)
  database.define(command)
  command:flag("--json", "Each lease as a line of JSON.")
end

function M.run(options)
  local store <close> = database.look(options)
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

return M
