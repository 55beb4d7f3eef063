--- Lines of JSON, appended to a file or written to the standard output.
--
-- `file:PATH`: each batch is on the disk before it counts as delivered; so a pipe or a device is
-- refused, nothing written. The file is opened anew for each batch, so that it may be moved away at
-- any time. `stdout:` is flushed; where nobody reads it any more, the reason is an error with the
-- code `unread`.
--
-- A line holds `id`, `namespace`, `key`, `payload`, `headers` (an object), `created_at` (RFC 3339)
-- and `attempts`; what a message does not have is left out. Bytes that are not UTF-8 are base64, in
-- a field whose name says so: `payload_base64`.
-- @module outbox.publishers.file

local core = require("outbox.core")
local format = require("outbox.publishers.format")
local problem = require("outbox.problem")

local EPIPE = 32 -- everywhere

local M = { OPTIONS = {} }

local File = { __name = "outbox.publisher", batch_size = 100 }
File.__index = File

-- Whether a crash has left a line unfinished.
local function is_torn(file)
  return file:seek("end", -1) and file:read(1) ~= "\n"
end

-- A file is on the disk only when its name is.
local function sync_directory(path)
  local directory <close> = io.open(path:match("^.*/") or ".")
  return not directory or core.sync(directory)
end

local function append(path, messages)
  local file <close>, reason = io.open(path, "a+")
  if not file then
    return nil, reason
  end
  file:setvbuf("no") -- one write, which other processes cannot interrupt
  local lines = (is_torn(file) and "\n" or "") .. format.lines(messages)
  local size, why = file:seek("end") -- which a pipe or a terminal does not have
  local is_new = size == 0
  local ok = size
  if is_new then
    ok, why = core.sync(file) -- fails with a device, which is always empty
  end
  if not ok then
    return nil, ("%s is not a regular file (%s)"):format(path, why)
  end
  ok, why = file:write(lines)
  if ok then
    ok, why = core.sync(file)
  end
  if ok and is_new then
    ok, why = sync_directory(path)
  end
  return ok and true, not ok and ("%s: %s"):format(path, why) or nil
end

local function show(messages)
  local ok, reason, number = io.stdout:write(format.lines(messages))
  if ok then
    ok, reason, number = io.stdout:flush()
  end
  return ok and true, number == EPIPE and problem.new("unread", reason) or reason
end

function File:publish(messages)
  if not self.path then
    return show(messages)
  end
  return append(self.path, messages)
end

function File.close() end

File.__close = File.close

function M.parse(scheme, rest)
  if scheme == "stdout" then
    return rest == "" and {} or nil, "nothing may follow 'stdout:'"
  end
  return rest ~= "" and { path = rest } or nil, "the path after 'file:' is missing"
end

function M.new(target)
  return setmetatable({ path = target.path }, File)
end

return M
