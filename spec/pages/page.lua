-- What the specs of the pages share: reading a page, and running what it shows.

local outbox = require("outbox")
local support = require("spec.support")

local M = {}

function M.read(path)
  local file <close> = assert(io.open(path))
  return file:read("a")
end

--- The blocks of code in a language.
function M.snippets(text, language)
  return text:gmatch("\n```" .. language .. "\n(.-)\n```")
end

--- The rows of the first table after some text, each an array of its cells.
function M.rows(text, after)
  local rows = {}
  local _, from = text:find(after, 1, true)
  assert(from, after)
  local _, start = text:find("\n|[ |-]+|\n", from)
  for line in text:sub(start + 1):gmatch("([^\n]*)\n") do
    local inner = line:match("^| (.*) |$")
    if not inner then
      break
    end
    local cells = {}
    for cell in (inner .. " | "):gmatch("(.-) | ") do
      cells[#cells + 1] = cell
    end
    rows[#rows + 1] = cells
  end
  return rows
end

local MODULES = { outbox = true, ["outbox.testing"] = true, ["luasql.sqlite3"] = true }

--- Runs the snippets of a page one after the other, on a database of their own. The variables
-- `outbox` and `store` of one snippet are those of the next ones too. Returns how many ran, what
-- they printed, and their environment, whose `store` is to be closed.
function M.run(path)
  local database = support.path()
  local printed, count = {}, 0
  local environment = setmetatable({
    print = function(...)
      printed[#printed + 1] = table.concat({ tostring((...)), select(2, ...) }, "\t")
    end,
    require = function(module)
      assert(MODULES[module], module)
      if module == "luasql.sqlite3" then
        return { sqlite3 = function()
          local connection = require(module).sqlite3():connect(database)
          return { connect = function()
            return connection
          end }
        end }
      elseif module == "outbox" then
        return setmetatable({
          open = function(name, options)
            return outbox.open(name == ":memory:" and name or database, options)
          end,
        }, { __index = outbox })
      end
      return require(module)
    end,
  }, { __index = _G })
  for snippet in M.snippets(M.read(path), "lua") do
    count = count + 1
    local code = ("\n" .. snippet):gsub("\nlocal (outbox) =", "\n%1 =")
      :gsub("\nlocal (store) =", "\n%1 ="):sub(2)
    assert(load(code, ("=%s, snippet %d"):format(path, count), "t", environment))()
  end
  return count, printed, environment
end

return M
