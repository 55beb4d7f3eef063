-- outbox pause: keeps the messages of namespaces back

local database = require("outbox.command.common.database")
local format = require("outbox.command.common.format")

local M = {
  summary = "Hand out nothing of a namespace, until it is resumed.",
  description = "From now on no processor hands out anything of these namespaces: their messages "
    .. "wait, uncharged, until `outbox resume`. What is in hand is finished. Without --namespace, "
    .. "lists the namespaces that are paused.",
}

function M.define(command)
  database.define(command)
  command:option("--namespace", "The namespace. May be repeated."):target("namespaces")
    :argname("NAME"):count("*")
  command:flag("--json", "List each namespace as a line of JSON.")
end

local function list(options)
  local store <close> = database.look(options)
  local now, rows = store:clock().now(), { { "NAMESPACE", "PAUSED" } }
  for _, paused in ipairs(store:paused()) do
    if options.json then
      paused.paused_at = format.time(paused.paused_at)
      format.write(format.json(paused), "\n")
    else
      rows[#rows + 1] = { format.cell(paused.namespace), format.from_now(paused.paused_at, now) }
    end
  end
  if rows[2] then
    format.table(rows)
  end
end

function M.run(options)
  if not options.namespaces[1] then
    return list(options)
  end
  local store <close> = database.open(options)
  store:transaction(function()
    for _, namespace in ipairs(options.namespaces) do
      store:pause(namespace)
    end
  end)
end

return M
