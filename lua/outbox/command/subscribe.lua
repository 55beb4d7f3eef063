-- outbox subscribe: subscriptions, by which a message goes to several destinations

local database = require("outbox.command.common.database")
local errors = require("outbox.error")
local format = require("outbox.command.common.format")

local M = {
  summary = "Send copies of messages to other namespaces.",
  description = "From now on, each message that is published to NAMESPACE becomes a copy in each "
    .. "COPY instead, with retries of its own. Whatever was published before stays as it is. "
    .. "Without NAMESPACE, lists the subscriptions.",
}

function M.define(command)
  database.define(command)
  command:argument("NAMESPACE", "Where the messages are published."):target("namespace")
    :argname("NAMESPACE"):args("?")
  command:argument("COPY", "The namespaces of the copies."):target("copies"):argname("COPY")
    :args("*")
  command:flag("--remove", "End these subscriptions. The copies that are there stay.")
  command:flag("--json", "List each subscription as a line of JSON.")
end

local function list(options)
  local store <close> = database.look(options)
  local rows = { { "NAMESPACE", "COPY" } }
  for _, subscription in ipairs(store:subscriptions()) do
    if options.json then
      format.write(format.json(subscription), "\n")
    else
      rows[#rows + 1] = { format.cell(subscription.namespace), format.cell(subscription.copy) }
    end
  end
  if rows[2] then
    format.table(rows)
  end
end

local function change(options)
  local store <close> = database.open(options)
  local status = 0
  store:transaction(function()
    for _, copy in ipairs(options.copies) do
      if not options.remove then
        store:subscribe(options.namespace, copy)
      elseif not store:unsubscribe(options.namespace, copy) then
        status = 3
        io.stderr:write(("outbox: '%s' has no subscription '%s'\n"):format(
          format.line(options.namespace), format.line(copy)))
      end
    end
  end)
  return status
end

function M.run(options)
  if not options.namespace and not options.remove then
    return list(options)
  elseif options.json or not options.copies[1] then
    error(errors.new("usage", options.json and "--json is for the list" or "COPY is missing"), 0)
  end
  return change(options)
end

return M
