-- With OUTBOX_TREE another build is tested, which this check has nothing to do with.
if os.getenv("OUTBOX_TREE") then
  return
end

local support = require("spec.support")

-- Returns what the check says about a piece of Lua, and whether it accepts it.
local function check(code)
  local path = support.path()
  local file <close> = assert(io.open(path, "w"))
  file:write(code)
  file:close()
  local pipe <close> = io.popen("tools/loops " .. path .. " 2>&1")
  local output = pipe:read("a")
  return output, (pipe:close())
end

describe("the check of loop variables, which Lua 5.5 makes constant,", function()
  after_each(support.remove)

  it("refuses an assignment to one", function()
    for _, code in ipairs({
      "for i = 1, 2 do i = 3 end",
      "for k in next, t do k = 1 end",
      "for k, v in next, t do v = 1 end",
      "for k in next, t do local x x, k = 1, 2 end",
      "for k in next, t do function k() end end",
      "for k in next, t do local f = function() k = 1 end end",
      "for k in next, t do if a then k = 1 end end",
      "for k in next, t do if a then b() else k = 1 end end",
      "for k in next, t do while a do k = 1 end end",
      "for k in next, t do do local k end k = 1 end",
      "for k in next, t do repeat local k = 1 until k k = 2 end",
      "for i = 1, #(function() for q = 1, 2 do q = 1 end end)() do end",
      "t = { f = function() for i = 1, 2 do i = 3 end end }",
    }) do
      local output, ok = check("#!/usr/bin/lua\n" .. code)
      assert.is_nil(ok, code)
      assert.matches(":2: assignment to the loop variable '[ikvq]'\n", output)
    end
  end)

  it("accepts everything else", function()
    for _, code in ipairs({
      "for k in next, t do local k = 1 k = 2 end",
      "for k in next, t do local f = function(k) k = 2 end end",
      "for k in next, t do local function k() k = 1 end end",
      "for k in next, t do k.x = 1 t[k] = 2 end",
      "for k in next, t do end k = 1",
      "local k for _ in next, t do k = 1 end",
      "for k in next, t do goto done ::done:: end",
    }) do
      assert.same({ "", true }, { check(code) })
    end
  end)
end)
