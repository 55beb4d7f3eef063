-- The log of `outbox relay`, on standard error: one line for each event. On a terminal, a status
-- line stands below them.

local core = require("outbox.core")
local format = require("outbox.command.common.format")

local Log = {}
Log.__index = Log

local function text(value)
  if type(value) ~= "string" then
    return format.number(value)
  end
  value = format.line(value)
  return value:find('^[^%s"=]+$') and value or '"' .. value:gsub('["\\]', "\\%0") .. '"'
end

local function time()
  local now = core.clock.now()
  return os.date("!%Y-%m-%dT%H:%M:%S", math.floor(now)) .. (".%03dZ"):format(now % 1 * 1000 // 1)
end

--- Writes an event with its fields: names, each followed by a value. A field that is nil is left
-- out.
function Log:write(event, ...)
  local now = time()
  local fields, words = { time = now, event = event }, { now, event }
  for i = 1, select("#", ...), 2 do
    local name, value = select(i, ...)
    if value ~= nil then
      fields[name] = value
      words[#words + 1] = name .. "=" .. text(value)
    end
  end
  io.stderr:write(self.terminal and "\r\27[K" or "",
    self.json and format.json(fields) or table.concat(words, " "), "\n")
end

--- Replaces the status line.
function Log:show_status(line) -- luacheck: no self
  local columns = core.terminal_size(io.stderr)
  io.stderr:write("\r", line:sub(1, columns and columns > 0 and columns - 1 or nil), "\27[K")
end

--- Adds hooks to the options of a processor, so that its events are logged; with `verbose`, each
-- delivery, too.
function Log:add_hooks(options, verbose)
  function options.on_retry(entry, reason, delay)
    self:write("retry", "id", entry.id, "namespace", entry.namespace, "key", entry.key,
      "attempts", entry.attempts + 1, "delay", delay, "reason", reason)
  end
  function options.on_dead(entry, reason)
    self:write("dead", "id", entry.id, "namespace", entry.namespace, "key", entry.key,
      "reason", reason)
  end
  function options.on_error(raised)
    self:write("error", "code", raised.code, "namespace", raised.namespace,
      "id", raised.id, "message", raised.message)
  end
  if verbose then
    function options.on_delivered(entry)
      self:write("delivered", "id", entry.id, "namespace", entry.namespace, "key", entry.key,
        "latency", core.clock.now() - entry.created_at)
    end
  end
end

--- Makes a log, in JSON or in words. It shows no status line if a route leads to `stdout:`, because
-- the line would stand among the messages.
return function(json, routes)
  local terminal = core.terminal_size(io.stderr) ~= nil
  for _, route in ipairs(routes) do
    terminal = terminal and route.url ~= "stdout:"
  end
  return setmetatable({ json = json, terminal = terminal }, Log)
end
