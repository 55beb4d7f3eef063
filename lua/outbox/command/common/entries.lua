-- The entries of a store, as `list`, `show` and `dead` need them.

local M = {}

--- How many entries are read, or changed in one transaction, at a time.
M.PAGE = 100

--- Returns the state of an entry: "ready", "delayed" or "dead".
function M.state_of(entry)
  return entry.died_at and "dead" or entry.due_at and "delayed" or "ready"
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
