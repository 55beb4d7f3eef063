-- outbox resume: ends pauses

local database = require("outbox.command.common.database")
local errors = require("outbox.error")
local format = require("outbox.command.common.format")

local M = {
  summary = "Hand out again what was paused.",
  description = "Ends the pauses of namespaces. Processors that run go on with what waited, in "
    .. "order, at once.",
}

function M.define(command)
  database.define(command)
  command:option("--namespace", "The namespace. May be repeated."):target("namespaces")
    :argname("NAME"):count("*")
  command:flag("--all", "All that are paused.")
end

function M.run(options)
  if (options.all ~= nil) == (options.namespaces[1] ~= nil) then
    error(errors.new("usage", "either --namespace or --all"), 0)
  end
  local store <close> = database.open(options)
  local status = 0
  store:transaction(function()
    for _, paused in ipairs(options.all and store:paused() or {}) do
      store:resume(paused.namespace)
    end
    for _, namespace in ipairs(options.namespaces) do
      if not store:resume(namespace) then
        status = 3
        io.stderr:write(("outbox: '%s' is not paused\n"):format(format.line(namespace)))
      end
    end
  end)
  return status
end

return M
