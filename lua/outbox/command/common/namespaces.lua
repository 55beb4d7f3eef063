-- What there is of each namespace, as `stats`, `top` and the relay's status lines show it.

local format = require("outbox.command.common.format")

local M = {}

--- Whether a namespace is among those of a lease or a processor: nil is all, an array those, and
-- `{ except = array }` all others.
function M.is_among(names, namespace)
  for _, name in ipairs(names and (names.except or names) or {}) do
    if name == namespace then
      return not names.except
    end
  end
  return not names or names.except ~= nil
end

-- Whether a live lease covers the namespace. A processor that stands by does not count.
local function is_served(namespace, leases, now)
  for _, lease in ipairs(leases) do
    if lease.deadline >= now and lease.classes > 0 and M.is_among(lease.namespaces, namespace) then
      return true
    end
  end
  return false
end

--- Notes in each of the namespaces of `stats` whether it is `unserved`: something is due, and no
-- processor is there to deliver it. A processor that has nothing to do has no lease.
function M.judge(stats, now)
  for _, each in ipairs(stats.namespaces) do
    local is_due = each.ready > 0 or each.due_at and each.due_at <= now
    each.unserved = is_due and not each.paused_at
      and not is_served(each.namespace, stats.leases, now)
  end
end

-- What an operator must know of a namespace.
local function state(each, now)
  local words = {}
  if each.paused_at then
    words[#words + 1] = "paused for " .. format.span(format.age(each.paused_at, now))
  end
  if each.down_since then
    words[#words + 1] = ("down for %s: %s"):format(format.span(format.age(each.down_since, now)),
      format.error_cell(each.error))
  end
  if each.unserved then
    words[#words + 1] = "no processor serves it"
  end
  return words[1] and table.concat(words, "; ") or "-"
end

--- Returns rows of a table of the namespaces, with a heading; none where there is no namespace.
function M.rows(namespaces, now)
  local rows = {}
  for i, each in ipairs(namespaces) do
    rows[i + 1] = { format.cell(each.namespace), format.number(each.ready),
      format.number(each.delayed), format.number(each.dead),
      each.oldest_age and format.span(each.oldest_age) or "-", state(each, now) }
  end
  if rows[2] then
    rows[1] = { "NAMESPACE", "READY", "DELAYED", "DEAD", "OLDEST", "STATE" }
  end
  return rows
end

return M
