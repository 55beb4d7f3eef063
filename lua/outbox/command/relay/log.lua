-- The log of `outbox relay`, on standard error: one line for each event. On a terminal, status
-- lines stand below them. A worker's log goes to its supervisor, through a pipe.

local core = require("outbox.core")
local format = require("outbox.command.common.format")

local Log = {}
Log.__index = Log

-- A worker's status line begins with this.
local STATUS = "\r"

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

-- Adds names, each followed by a value, to the fields of an event.
local function add(fields, words, ...)
  for i = 1, select("#", ...), 2 do
    local name, value = select(i, ...)
    if value ~= nil then
      fields[name] = value
      words[#words + 1] = name .. "=" .. text(value)
    end
  end
end

--- Writes an event with its fields: names, each followed by a value. A field that is nil is left
-- out.
function Log:write(event, ...)
  local now = time()
  local fields, words = { time = now, event = event }, { now, event }
  add(fields, words, "route", self.route, "worker", self.worker)
  add(fields, words, ...)
  self:print(self.json and format.json(fields) or table.concat(words, " "))
end

-- What moves the cursor to the beginning of the status lines.
local function back(self)
  return "\r" .. ("\27[A"):rep(self.shown - 1)
end

-- What draws the status lines, each within one row, and as many as there are rows for. More would
-- push the log away with each update.
local function drawn(self)
  local columns, rows = core.terminal_size(io.stderr)
  local width = columns and columns > 0 and columns - 1 or nil
  local lines = {}
  for i = 1, math.min(self.statuses, rows and rows > 1 and rows - 1 or math.huge) do
    local line = self[i] or ""
    lines[i] = line:sub(1, width) .. "\27[K"
  end
  self.shown = #lines
  return table.concat(lines, "\n")
end

--- Writes a line of the log.
function Log:print(line)
  if self.pipe then
    self.pipe:write(line .. "\n")
  elseif self.terminal then
    io.stderr:write(back(self), self.shown > 1 and "\27[J" or "\27[K", line, "\n", drawn(self))
  else
    io.stderr:write(line, "\n")
  end
end

--- Replaces a status line, by default the first.
function Log:show_status(line, index)
  if self.pipe then
    self.pipe:write(STATUS .. line .. "\n")
    return
  end
  self[index or 1] = line
  self.statuses = math.max(self.statuses, index or 1)
  io.stderr:write(back(self), drawn(self))
end

--- Shows no status line any more.
function Log:hide_status()
  self.statuses = 0
end

--- Shows a line that a worker has written to its pipe; its status is the one with this index.
function Log:show(line, index, name)
  if line:sub(1, #STATUS) ~= STATUS then
    self:print(line)
  elseif self.terminal then
    self:show_status(name .. line:sub(#STATUS + 1), index)
  end
end

--- The log of a worker: each event has its route and, where the route has several, its number.
function Log:of_worker(pipe, route, worker)
  return setmetatable({ json = self.json, terminal = self.terminal, pipe = pipe, route = route,
    worker = worker }, Log)
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
        "latency", options.store:clock().now() - entry.created_at)
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
  return setmetatable({ json = json, terminal = terminal, shown = 0, statuses = 0 }, Log)
end
