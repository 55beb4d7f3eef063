-- The log of `outbox relay`, on standard error: a line for each event, and on a terminal, below
-- them, one that tells how it goes.

local core = require("outbox.core")
local format = require("outbox.command.format")

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

--- Writes an event, and what there is to know of it: names, each with a value or nil.
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

--- Says how it goes, in place of what it said before.
function Log:say(line) -- luacheck: no self
  local columns = core.terminal_size(io.stderr)
  io.stderr:write("\r", line:sub(1, columns and columns > 0 and columns - 1 or nil), "\27[K")
end

--- A log in JSON or in words. Where messages go to the standard output, no line is in their way.
return function(json, routes)
  local terminal = core.terminal_size(io.stderr) ~= nil
  for _, route in ipairs(routes) do
    terminal = terminal and route.url ~= "stdout:"
  end
  return setmetatable({ json = json, terminal = terminal }, Log)
end
