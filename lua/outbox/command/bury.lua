-- outbox bury: makes dead letters of entries that wait

local database = require("outbox.command.common.database")
local entries = require("outbox.command.common.entries")
local format = require("outbox.command.common.format")

return {
  summary = "Make dead letters of entries that wait.",
  description = "Makes dead letters of entries that are ready or delayed, so that they are not "
    .. "delivered any more. This is the way out for a message that makes its publisher fail while "
    .. "no other message gets through: a processor cannot tell that from an outage. `outbox dead "
    .. "requeue` puts it back.",
  define = function(command)
    database.define(command)
    command:argument("ID", "The ids of entries."):target("ids"):argname("ID"):args("+")
  end,
  run = function(options)
    local store <close> = database.open(options)
    local done, status = entries.act_on(store, options.ids, "entry that waits", function(id)
      return store:bury_entry(id)
    end)
    format.write(("buried %d\n"):format(done))
    return status
  end,
}
