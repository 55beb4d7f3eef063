-- outbox dead list, outbox dead requeue, outbox dead purge

local database = require("outbox.command.common.database")
local entries = require("outbox.command.common.entries")
local errors = require("outbox.error")
local format = require("outbox.command.common.format")
local list = require("outbox.command.list")
local option = require("outbox.options")

-- Whether a dead letter is so old that receivers may have forgotten its id.
local function is_forgotten(store, id)
  for _, entry in ipairs(store:find_entries(id)) do
    if entry.died_at then
      return entry.created_at < store:clock().now() - option.RETENTION
    end
  end
end

-- Requeues or purges dead letters in one transaction, and adds to the result.
local function move(store, method, ids, result)
  local old = 0
  local done, status = entries.act_on(store, ids, "dead letter", function(id)
    local is_old = method == "requeue_entries" and is_forgotten(store, id)
    local found = store[method](store, id) == 1
    old = old + (found and is_old and 1 or 0)
    return found
  end)
  result.done, result.old = result.done + done, result.old + old
  result.status = math.max(result.status, status)
end

-- Moves all dead letters, but not the ones that die after this has started.
local function move_all(store, method, options, result)
  local ids, now = {}, store:clock().now()
  for entry in entries.each(store, { state = "dead", namespace = options.namespace }) do
    if entry.died_at <= now then
      ids[#ids + 1] = entry.id
    end
    if #ids == entries.PAGE then
      move(store, method, ids, result)
      ids = {}
    end
  end
  move(store, method, ids, result)
end

local function run(method, done, options)
  local wrong
  if options.all == (options.ids[1] ~= nil) then
    wrong = "name the ids of dead letters, or say --all"
  elseif options.namespace and not options.all then
    wrong = "--namespace needs --all"
  elseif options.all and options.yes == false then
    wrong = "this deletes dead letters for good: say --yes as well"
  end
  if wrong then
    error(errors.new("usage", wrong), 0)
  end
  local store <close> = database.open(options)
  local result = { done = 0, old = 0, status = 0 }
  if options.all then
    move_all(store, method, options, result)
  else
    move(store, method, options.ids, result)
  end
  format.write(("%s %d\n"):format(done, result.done))
  if result.old > 0 then
    io.stderr:write(("outbox: %d of them published more than a year ago: a receiver that has "
      .. "forgotten their ids handles them again\n"):format(result.old))
  end
  return result.status
end

local function define(command, verb)
  database.define(command)
  command:argument("ID", "The ids of dead letters."):target("ids"):argname("ID"):args("*")
  command:flag("--all", verb .. " all dead letters."):init(false)
  command:option("--namespace", "With --all: only dead letters of this namespace."):argname("NAME")
end

return {
  summary = "List, requeue or purge dead letters.",
  description = "Lists, requeues or purges dead letters: entries that failed too often, or for "
    .. "good.",
  commands = {
    {
      name = "list",
      summary = "List dead letters.",
      description = "Lists dead letters, as `outbox list DB dead` does.",
      define = function(command)
        database.define(command)
        list.define_options(command)
      end,
      run = function(options)
        options.state = "dead"
        return list.run(options)
      end,
    },
    {
      name = "requeue",
      summary = "Put dead letters back, to be delivered again.",
      description = "Puts dead letters back at the end of the outbox, with the same id, a new seq "
        .. "and no attempts counted.",
      define = function(command)
        define(command, "Put back")
      end,
      run = function(options)
        return run("requeue_entries", "requeued", options)
      end,
    },
    {
      name = "purge",
      summary = "Delete dead letters for good.",
      description = "Deletes dead letters for good.",
      define = function(command)
        define(command, "Delete")
        command:flag("--yes", "With --all: confirms that all are to be deleted."):init(false)
      end,
      run = function(options)
        return run("purge_entries", "purged", options)
      end,
    },
  },
}
