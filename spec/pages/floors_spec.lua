-- With OUTBOX_TREE another build is tested, which this check has nothing to do with.
if os.getenv("OUTBOX_TREE") then
  return
end

local support = require("spec.support")

local function shell(command)
  local pipe <close> = io.popen(("sh -c '%s' 2>&1"):format(command))
  local output = pipe:read("a")
  return output, (pipe:close())
end

describe("the floors of the house", function()
  local house

  setup(function()
    local output, ok = shell("make --silent lint-floors")
    assert.is_true(ok, output)
  end)

  before_each(function()
    house = support.path()
    os.remove(house)
    assert(select(2, shell(("mkdir -p %s/build && cp -r src lua bench %s && "
      .. "cp -r build/floors %s/build"):format(house, house, house))))
  end)

  after_each(function()
    assert(select(2, shell("rm -r " .. house)))
  end)

  -- Adds code to a source, compiles it, and returns what the check says.
  local function check_with(path, code)
    local file <close> = assert(io.open(house .. "/" .. path, "a"))
    file:write(code, "\n")
    file:close()
    if path:find("%.c$") then
      local object = path:gsub("%.c$", ".o")
      local output, ok = shell(("cd %s && cc -std=c11 -O0 -MD -I/usr/include/lua5.4 -c %s -o %s")
        :format(house, path, "build/floors/" .. object))
      assert.is_true(ok, output)
    end
    return shell("tools/floors " .. house)
  end

  local function assert_refused(message, path, code)
    local output, ok = check_with(path, code)
    assert.is_nil(ok)
    assert.is_truthy(output:find(message, 1, true), output)
  end

  it("hold today", function()
    local output, ok = shell("tools/floors " .. house)
    assert.is_true(ok)
    assert.equal("", output)
  end)

  it("break when two files call each other in a circle", function()
    local _, ok = check_with("src/sqlite/list.c",
      "void over(void); void over(void) { outbox_leases(NULL); }")
    assert.is_true(ok) -- a neighbour's public face may be called
    assert_refused("a circle: ", "src/sqlite/keep.c",
      "void back(void); void back(void) { outbox_find_entries(NULL, (outbox_bytes){NULL, 0}); }")
  end)

  it("break when the ground floor calls an operation", function()
    assert_refused("a circle: ", "src/sqlite/store.c",
      "void up(void); void up(void) { outbox_publish(NULL, NULL, 0); }")
  end)

  it("break when what every engine wants calls an engine", function()
    assert_refused("src/bytes calls up: outbox_migrate of src/", "src/bytes.c",
      "void up(void); void up(void) { outbox_migrate(NULL); }")
  end)

  it("break when the shim uses SQLite", function()
    assert_refused("src/lua/module uses sqlite3_free", "src/lua/module.c",
      "void sqlite3_free(void *); void use(void); void use(void) { sqlite3_free(NULL); }")
    for _, header in ipairs({ "<sqlite3.h>", '"../sqlite/store.h"', "<sqlite3ext.h>" }) do
      assert_refused("src/lua/module includes sqlite3", "src/lua/module.c", "#include " .. header)
    end
    assert_refused("src/lua/check uses sqlite3_sleep", "src/lua/check.c",
      "__attribute__((weak)) int sqlite3_sleep(int); int use(void); int use(void) { "
      .. "return sqlite3_sleep != 0; }")
  end)

  it("break when the shim uses a private function of the core", function()
    assert_refused("src/lua/module calls clock_later of src/clock, which is not public",
      "src/lua/module.c",
      "int clock_later(void); void use(void); void use(void) { clock_later(); }")
  end)

  it("break when the shim uses libpq, or calls an operation not through an engine", function()
    assert_refused("src/lua/sql uses PQexec", "src/lua/sql.c",
      "void PQexec(void *); void use(void); void use(void) { PQexec(NULL); }")
    assert_refused("src/lua/check calls outbox_migrate itself, not through the engine of the store",
      "src/lua/check.c", "void use(void); void use(void) { outbox_migrate(NULL); }")
    assert_refused("src/lua/store calls up: outbox_postgres of src/postgres/engine",
      "src/lua/store.c",
      "const void *use(void); const void *use(void) { return &outbox_postgres; }")
  end)

  it("break when the module of an engine uses the rest of the shim", function()
    assert_refused("src/lua/postgres calls up: shim_pipe of src/lua/files", "src/lua/postgres.c",
      "int shim_pipe(int *); void use(void); void use(void) { shim_pipe(NULL); }")
  end)

  it("break when the core uses Lua", function()
    assert_refused("src/sqlite/stats uses lua_gettop", "src/sqlite/stats.c",
      "int lua_gettop(void *); void use(void); void use(void) { lua_gettop(NULL); }")
    assert_refused("src/sqlite/dead includes lua.h", "src/sqlite/dead.c", "#include <lua5.4/lua.h>")
    assert_refused("src/sqlite/list includes lua.h", "src/sqlite/list.c",
      "#define H <lua.h>\n#include H")
  end)

  it("break when a source is in no known room, or has no object", function()
    assert(select(2, shell(("mkdir %s/src/cellar && touch %s/src/cellar/wine.c %s/src/new.c")
      :format(house, house, house))))
    local output, ok = shell("tools/floors " .. house)
    assert.is_nil(ok)
    assert.matches("src/cellar/wine.c is in a room that tools/floors does not know", output, 1,
      true)
    assert.matches("src/new has no object", output, 1, true)
  end)

  it("break when a file grows above 450 lines", function()
    assert_refused("lua/outbox.lua: ", "lua/outbox.lua", ("\n"):rep(450))
  end)
end)
