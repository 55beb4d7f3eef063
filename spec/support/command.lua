-- Runs the command for the specs, as people run it: real processes, their output, and the status
-- that they end with.

local assert = require("luassert")
local cjson = require("cjson")
local support = require("spec.support")

local M = {}

M.COMMAND = (os.getenv("OUTBOX_TREE") or "lua_modules") .. "/bin/outbox"

function M.write(path, bytes)
  local file <close> = assert(io.open(path, "wb"))
  file:write(bytes)
end

function M.read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read("a")
end

--- Runs a shell command with this input; returns its standard output, its status, and its standard
-- error.
function M.shell(command, input)
  local given, out, err = support.path(), support.path(), support.path()
  M.write(given, input or "")
  local _, _, status = os.execute(("{ %s; } <%s >%s 2>%s"):format(command, given, out, err))
  return M.read(out), status, M.read(err)
end

--- Runs the command with these arguments, as a shell reads them; returns the same.
function M.run(arguments, input)
  return M.shell(M.COMMAND .. " " .. arguments, input)
end

--- Starts the command. Returns its pid, and a pipe to read its standard output.
function M.start(arguments, before)
  local pipe = io.popen(("echo $$; %s exec %s %s"):format(before or "", M.COMMAND, arguments))
  return tonumber(pipe:read("l")), pipe
end

--- Reads the rest of a pipe. Returns it, and how the process ended.
function M.finish(pipe)
  local rest = pipe:read("a")
  local _, how, status = pipe:close()
  return rest, how .. " " .. status
end

--- Reads lines from a pipe until there was one for each pattern; returns these lines.
function M.expect(pipe, ...)
  local wanted, found, missing, all = { ... }, {}, select("#", ...), {}
  for line in pipe:lines() do
    all[#all + 1] = line
    for i, pattern in ipairs(wanted) do
      if not found[i] and line:find(pattern) then
        found[i], missing = line, missing - 1
      end
    end
    if missing == 0 then
      return table.unpack(found)
    end
  end
  error(("no line matches %s:\n%s"):format(table.concat(wanted, " or "), table.concat(all, "\n")))
end

--- Starts a shell command on a terminal; returns a pipe, or nil if there are no pseudo-terminals
-- here. Leaks of `script` itself are ignored.
function M.start_on_terminal(command)
  if not os.execute("script -qec true /dev/null </dev/null >/dev/null 2>&1") then
    return nil
  end
  return io.popen(("ASAN_OPTIONS=detect_leaks=0 script -qec '%s' /dev/null </dev/null"):format(
    command))
end

--- Runs the command, which must succeed and write nothing to standard error; returns its output.
function M.succeed(arguments, input)
  local out, status, err = M.run(arguments, input)
  assert.same({ 0, "" }, { status, err }, arguments)
  return out
end

--- Runs the command, which must end with this status and a message.
function M.fail(expected, pattern, arguments)
  local out, status, err = M.run(arguments)
  assert.same({ "", expected }, { out, status }, arguments .. "\n" .. err)
  assert.matches(pattern, err)
  assert.is_nil(err:find("traceback"), err)
end

--- Decodes lines of JSON.
function M.json_lines(text)
  local values = {}
  for line in text:gmatch("[^\n]+") do
    values[#values + 1] = cjson.decode(line)
  end
  return values
end

--- Publishes messages with these ids.
function M.publish(store, ...)
  for _, id in ipairs({ ... }) do
    store:publish({ id = id, payload = "payload of " .. id })
  end
end

--- Publishes messages with these ids, and makes them dead letters.
function M.bury(store, ...)
  M.publish(store, ...)
  for _, id in ipairs({ ... }) do
    store:bury_entry(id, "refused")
  end
end

return M
