-- A Kafka cluster for the specs: see spec/support/kafka.c.

local M = {}

local Cluster = {}
Cluster.__index = Cluster

--- Gives a command; returns the lines of the answer.
function Cluster:tell(command, ...)
  self.input:write(command:format(...), "\n")
  self.input:flush()
  local lines = {}
  for line in self.output:lines() do
    if line == "ok" then
      return lines
    end
    lines[#lines + 1] = line
  end
  error("the cluster has ended")
end

-- Nil where there is none.
local function decode(digits)
  return digits ~= "-" and digits:gsub("%x%x", function(pair)
    return string.char(tonumber(pair, 16))
  end) or nil
end

--- Returns the records of a topic, in the order of each partition: tables with `partition`, `time`
-- in milliseconds, `key`, `value`, and `headers`, a table by name.
function Cluster:read(topic)
  local records = {}
  for i, line in ipairs(self:tell("read %s", topic)) do
    local partition, time, key, value, headers = line:match("^(%d+) (%-?%d+) ([^ ]*) ([^ ]*)(.*)$")
    local record = { partition = tonumber(partition), time = tonumber(time), key = decode(key),
      value = decode(value), headers = {} }
    for name, text in headers:gmatch("(%x+)=(%S*)") do
      record.headers[decode(name)] = decode(text)
    end
    records[i] = record
  end
  return records
end

function Cluster:close()
  self.input:close() -- waits for its end
  self.output:close()
end

--- Starts a cluster of so many brokers, by default one: its `servers` are their addresses, its
-- `port` is that of the first, and its `pid` that of its process.
function M.start(brokers)
  local path = os.tmpname()
  os.remove(path)
  assert(os.execute("mkfifo " .. path))
  local input = assert(io.popen(("exec build/kafka %d >%s"):format(brokers or 1, path), "w"))
  local output = assert(io.open(path))
  os.remove(path)
  local pid, servers = output:read("l"):match("^(%d+) (.*)$")
  return setmetatable({ input = input, output = output, pid = math.tointeger(tonumber(pid)),
    servers = servers, port = math.tointeger(tonumber(servers:match(":(%d+)"))) }, Cluster)
end

return M
