--- Lines of JSON, appended to a file or written to standard output: `file:PATH`, `stdout:`.
--
-- `file:PATH`: a batch counts as delivered only after it was synced to the disk. A pipe or a device
-- cannot be synced, so it is refused and nothing is written to it. Each batch opens the file again,
-- so the file may be moved away at any time. `stdout:` is flushed after each batch. If nobody reads
-- standard output any more, the reason of the failure is an error with the code `unread`.
--
-- A line has the fields `id`, `namespace`, `key`, `payload`, `headers` (an object), `created_at`
-- (RFC 3339), `attempts` and `seq`. A field that the message does not have is left out. Bytes that
-- are not UTF-8 are written as base64, in a field named `payload_base64` instead of `payload`, and
-- so on.
-- @module outbox.publishers.file

local core = require("outbox.core")
local errors = require("outbox.error")

local format -- needs lua-cjson, so `new` loads it

local EPIPE = 32 -- on every system

local M = {
  summary = { url = "file:PATH, stdout:", text = "lines of JSON" },
  OPTIONS = {},
}

local File = { __name = "outbox.publisher", batch_size = 100, ordered = true }
File.__index = File

-- Whether the last line is unfinished, because of a crash.
local function is_torn(file)
  return file:seek("end", -1) and file:read(1) ~= "\n"
end

-- A new file survives a power cut only if its directory is synced too.
local function sync_directory(path)
  local directory <close> = io.open(path:match("^.*/") or ".")
  return not directory or core.sync(directory)
end

local function append(path, messages)
  local file <close>, reason = io.open(path, "a+")
  if not file then
    return nil, reason
  end
  file:setvbuf("no") -- one write for the whole batch, so other processes cannot write into it
  local lines = (is_torn(file) and "\n" or "") .. format.lines(messages)
  local size, why = file:seek("end") -- fails for a pipe or a terminal
  local is_new = size == 0
  local ok = size
  if is_new then
    ok, why = core.sync(file) -- fails for a device, whose size is always 0
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
  return ok and true, number == EPIPE and errors.new("unread", reason) or reason
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
  format = require("outbox.publishing.format")
  return setmetatable({ path = target.path }, File)
end

return M
