-- The entries of a store, as `list`, `show`, `bury` and `dead` need them.

local format = require("outbox.command.common.format")

local M = {}

--- How many entries are read, or changed in one transaction, at a time.
M.PAGE = 100

--- Returns the state of an entry: "ready", "delayed" or "dead".
function M.state_of(entry)
  return entry.died_at and "dead" or entry.due_at and "delayed" or "ready"
end

-- The codes of failures that concern one entry.
local OF_ONE = { duplicate = true, constraint = true }

--- Calls `act(id)` for each id, in one transaction. It returns whether there is such an entry. One
-- that there is not (`what` says of what kind), or that fails, does not prevent the others. Returns
-- how many there were, and the exit status.
function M.act_on(store, ids, what, act)
  local done, status = 0, 0
  store:transaction(function()
    for _, id in ipairs(ids) do
      local ok, found = pcall(act, id)
      if ok and found then
        done = done + 1
      elseif ok then
        status = 3
        io.stderr:write(("outbox: no %s has the id %s\n"):format(what, format.line(id)))
      elseif type(found) == "table" and OF_ONE[found.code] then
        status = math.max(status, 1)
        io.stderr:write(("outbox: %s: %s (%s)\n"):format(format.line(id),
          format.line(found.message), found.code))
      else
        error(found, 0)
      end
    end
  end)
  return done, status
end

--- Iterates over the entries of `options.state`, one by one; reads them a page at a time. The other
-- options are `namespace`, `key`, `after`, `reverse` and `limit`; the limit only makes pages
-- smaller.
function M.each(store, options)
  return coroutine.wrap(function()
    local after = options.after
    repeat
      local page = store[options.state .. "_entries"](store, {
        namespace = options.namespace,
        reverse = options.reverse,
        limit = math.min(M.PAGE, options.limit or M.PAGE),
        after = after,
      })
      for _, entry in ipairs(page) do
        after = entry.seq
        if not options.key or entry.key == options.key then
          coroutine.yield(entry)
        end
      end
    until #page == 0
  end)
end

return M
