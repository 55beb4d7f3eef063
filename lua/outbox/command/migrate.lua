-- outbox migrate

local database = require("outbox.command.common.database")

return {
  summary = "Create the outbox's tables, or bring them up to date.",
  description = "Creates the outbox's tables in a database, or brings those of an older version up "
    .. "to date. Creates the database if there is none. Running it again does no harm.",
  define = database.define,
  run = function(options)
    local store <close> = database.create(options)
    store:migrate()
  end,
}
