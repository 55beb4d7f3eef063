-- outbox leases

local database = require("outbox.command.common.database")
local format = require("outbox.command.common.format")

local M = {
  summary = "List the leases of the processors.",
  description = "Lists the leases of the processors, live and lapsed. SHARE is a processor's part "
    .. "of 64, which is 0 while it stands by; or the places that a claim by hand covers.",
}

function M.define(command)
  database.define(command)
  command:flag("--json", "Each lease as a line of JSON.")
end

function M.run(options)
  local store <close> = database.look(options)
  local now = store:clock().now()
  local rows = { { "PROCESSOR", "CLAIMED", "DEADLINE", "NAMESPACES", "SHARE", "IN HAND" } }
  for _, lease in ipairs(store:stats().leases) do
    if options.json then
      format.write(format.json(format.stamp_lease(lease)), "\n")
    else
      rows[#rows + 1] = {
        format.cell(lease.processor_id), format.from_now(lease.claimed_at, now),
        format.from_now(lease.deadline, now), format.namespaces(lease), format.share(lease),
        format.places(lease.held),
      }
    end
  end
  if rows[2] then
    format.table(rows)
  end
end

return M
