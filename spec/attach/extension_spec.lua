-- Publishing in SQL: with the loadable extension, in the sqlite3 shell and in Python, and with
-- plain SQL.

local outbox = require("outbox")
local support = require("spec.support")

-- Found as the documentation says, without the suffix, which SQLite adds itself.
local EXTENSION = assert(package.searchpath("outbox_sqlite", package.cpath)):gsub("%.so$", "")
-- Debian's Python, because others are built without extensions. It leaks at its exit.
local PYTHON = "env ASAN_OPTIONS=detect_leaks=0 /usr/bin/python3"

local function shell(path, sql, options)
  local name = os.tmpname()
  local file <close> = assert(io.open(name, "w"))
  file:write(sql)
  file:flush()
  local pipe = assert(io.popen(("sqlite3 %s %s < %s 2>&1"):format(options or "", path, name)))
  local output = pipe:read("a")
  local ok = pipe:close()
  os.remove(name)
  return output, ok
end

describe("the loadable extension", function()
  local path

  before_each(function()
    path = support.path()
  end)

  after_each(support.remove)

  local function run(sql)
    return shell(path, (".load %s\n.timeout 5000\n%s"):format(EXTENSION, sql))
  end

  local function python(program)
    local name = support.path()
    local file = assert(io.open(name, "w"))
    file:write(program)
    file:close()
    local pipe = assert(io.popen(PYTHON .. " " .. name .. " 2>&1"))
    local output = pipe:read("a")
    assert.is_true(pipe:close(), output)
    return output
  end

  local function entries()
    local store <close> = outbox.open(path)
    return store:ready_entries()
  end

  it("is found by load_extension, and migrates any number of times", function()
    local output, ok = shell(path, ([[
      SELECT load_extension('%s');
      SELECT outbox_migrate();
      SELECT outbox_migrate();
      SELECT count(*) FROM outbox_entries;]]):format(EXTENSION))
    assert.is_true(ok, output)
    assert.equal("\n\n\n0\n", output)
  end)

  it("is not a module that require takes for outbox", function()
    local output = support.run([[-e 'print(pcall(require, "outbox_sqlite"))']])
    assert.matches("false.*luaopen_outbox_sqlite", output)
    assert.is_nil(package.searchpath("outbox", package.cpath))
  end)

  it("publishes, and returns the id", function()
    local output, ok = run([[
      SELECT outbox_migrate();
      SELECT outbox_publish('orders', 'k', 'text');
      SELECT outbox_publish('orders', 9223372036854775807, x'00ff00');
      SELECT outbox_publish(NULL, NULL, NULL, NULL);
      SELECT outbox_publish('', '', '', '{"a": "b"}');
      SELECT outbox_publish('n' || char(0), 'k' || char(0), 'p' || char(0));]])
    assert.is_true(ok, output)
    local ids = {}
    for id in output:gmatch("%x+%-%x+%-7%x+%-%x+%-%x+") do
      ids[#ids + 1] = id
    end
    local list = entries()
    assert.same(support.pluck(list, "id"), ids)
    local function fields(i)
      return { list[i].namespace, list[i].key, list[i].payload }
    end
    assert.equal(5, #list)
    assert.same({ "orders", "k", "text" }, fields(1))
    assert.same({ "orders", "9223372036854775807", "\0\255\0" }, fields(2))
    assert.same({ "" }, fields(3))
    assert.same({ "", "", "" }, fields(4))
    assert.same({ "n\0", "k\0", "p\0" }, fields(5))
    assert.same({ a = "b" }, list[4].headers)
  end)

  it("takes part in transactions and savepoints", function()
    local output, ok = run([[
      SELECT outbox_migrate();
      CREATE TABLE orders (number);
      BEGIN;
      INSERT INTO orders VALUES (1);
      SELECT outbox_publish('', 'kept', '');
      SAVEPOINT inner;
      SELECT outbox_publish('', 'undone', '');
      ROLLBACK TO inner;
      COMMIT;
      BEGIN;
      SELECT outbox_publish('', 'undone', '');
      ROLLBACK;
      INSERT INTO orders SELECT length(outbox_publish('', 'from a query', number)) FROM
        (SELECT CAST(number AS TEXT) AS number FROM orders);
      SELECT outbox_publish('', 'row ' || value, '') FROM json_each('[1,2]');]])
    assert.is_true(ok, output)
    assert.same({ "kept", "from a query", "row 1", "row 2" }, support.pluck(entries(), "key"))
  end)

  it("works in main, beside TEMP tables and an attached file of the same names", function()
    local output, ok = run(([[
      ATTACH '%s' AS other;
      CREATE TABLE other.outbox_entries (id);
      CREATE TABLE other.outbox_schema AS SELECT 1 AS version;
      CREATE TEMP TABLE outbox_entries (id);
      CREATE TEMP TABLE outbox_schema AS SELECT 1 AS version;
      SELECT outbox_migrate();
      SELECT length(outbox_publish('', 'k', 'mine'));
      SELECT count(*) FROM
        (SELECT id FROM temp.outbox_entries UNION ALL SELECT id FROM other.outbox_entries);
    ]]):format(support.path()))
    assert.is_true(ok, output)
    assert.equal("\n36\n0\n", output)
    assert.same({ "k" }, support.pluck(entries(), "key"))
  end)

  it("finds an entry by its id", function()
    local output = run([[
      SELECT outbox_migrate();
      SELECT outbox_publish('', 'k', 'one') IS NULL;
      INSERT INTO outbox_entries (id, payload) VALUES ('mine', 'two');
      SELECT payload FROM outbox_entries WHERE seq = outbox_find('mine');
      SELECT count(*) FROM outbox_entries WHERE seq = outbox_find(id);
      SELECT outbox_find('none') IS NULL, outbox_find(NULL) IS NULL, outbox_find(1) IS NULL;]])
    assert.equal("\n0\ntwo\n2\n1|1|1\n", output)
  end)

  it("says which constraint of the application's own a message violates", function()
    local output = run([[
      SELECT outbox_migrate();
      CREATE TABLE audit (key UNIQUE);
      CREATE TRIGGER t AFTER INSERT ON outbox_ready BEGIN INSERT INTO audit VALUES (new.key); END;
      SELECT length(outbox_publish('', 'k', ''));
      SELECT length(outbox_publish('', 'k', ''));]])
    assert.matches("^\n36\n", output)
    assert.matches("outbox_publish: UNIQUE constraint failed: audit.key %(constraint%)", output)
    assert.is_nil(output:find("already in the outbox", 1, true))
    assert.equal(1, #entries())
  end)

  it("reports wrong arguments, and leaves the transaction usable", function()
    local output = run([[
      BEGIN;
      SELECT outbox_publish('', '', '');
      SELECT outbox_migrate();
      SELECT outbox_publish(1, '', '');
      SELECT outbox_publish('', 1.5, '');
      SELECT outbox_publish('', x'00', '');
      SELECT outbox_publish('', '', 17);
      SELECT outbox_publish('', '', '', '[]');
      SELECT outbox_publish('', '', '', '{no json}');
      SELECT outbox_publish('', '', '', '{}' || char(0) || '}');
      SELECT outbox_publish('', '', '', 1);
      SELECT outbox_publish('', '');
      SELECT outbox_migrate(1);
      SELECT outbox_publish('', 'after', '');
      COMMIT;]])
    for _, message in ipairs({
      "outbox_publish: the tables outbox_... are missing; call migrate first (schema)",
      "outbox_publish: the namespace must be TEXT or NULL, not an INTEGER",
      "outbox_publish: the key must be TEXT, an INTEGER or NULL, not a REAL",
      "outbox_publish: the key must be TEXT, an INTEGER or NULL, not a BLOB",
      "outbox_publish: the payload must be TEXT, a BLOB or NULL, not an INTEGER",
      "outbox_publish: the headers must be a JSON object or NULL, not an INTEGER",
      "outbox_publish: the headers must be a JSON object\n",
      "wrong number of arguments to function outbox_publish()",
      "wrong number of arguments to function outbox_migrate()",
    }) do
      assert.matches(message, output, 1, true)
    end
    assert.same({ "after" }, support.pluck(entries(), "key"))
  end)

  it("reports SQLite's message with its code", function()
    outbox.open(path):migrate()
    local sql = (".load %s\nSELECT outbox_publish('', '', '');"):format(EXTENSION)
    assert.matches("outbox_publish: attempt to write a readonly database (readonly)",
      shell(path, sql, "-readonly"), 1, true)
  end)

  it("fails when SQLite's JSON functions cannot be called", function()
    local output = python(([[
import sqlite3
connection = sqlite3.connect("%s")
connection.enable_load_extension(True)
connection.load_extension("%s")
connection.execute("SELECT outbox_migrate()")
connection.set_authorizer(lambda action, first, second, *_:
    sqlite3.SQLITE_DENY if second == "json_valid" else sqlite3.SQLITE_OK)
for headers in None, "{}":
    try:
        connection.execute("SELECT outbox_publish('', '', '', ?)", (headers,))
    except sqlite3.DatabaseError as error:
        print(headers, error)
]]):format(path, EXTENSION))
    assert.equal("{} not authorized to use function: json_valid\n", output)
  end)

  it("keeps the rowid of the last insert, and reports why it cannot be loaded now", function()
    local output = run(([[
      SELECT outbox_migrate();
      CREATE TABLE orders (number INTEGER PRIMARY KEY);
      INSERT INTO orders VALUES (17);
      SELECT outbox_publish('', '', '') IS NULL;
      SELECT last_insert_rowid();
      SELECT load_extension('%s');]]):format(EXTENSION))
    assert.matches("17", output)
    assert.matches("outbox: unable to delete/modify user-function", output, 1, true)
  end)

  it("cannot be called by triggers and views, which can use plain SQL", function()
    local output = run([[
      SELECT outbox_migrate();
      CREATE TABLE t (x);
      CREATE TRIGGER tt AFTER INSERT ON t BEGIN SELECT outbox_publish('', '', ''); END;
      INSERT INTO t VALUES (1);
      SELECT count(*) FROM t;]])
    assert.matches("unsafe use of outbox_publish()", output, 1, true)
    assert.equal(0, #entries())
  end)

  it("refuses a database whose text is in UTF-16", function()
    local output, ok = shell(path, ([[
      PRAGMA encoding = 'UTF-16le';
      CREATE TABLE t (x);
      SELECT load_extension('%s');]]):format(EXTENSION))
    assert.is_not_true(ok)
    assert.matches("UTF-16", output, 1, true)
  end)

  it("wakes a processor, can be closed in Python, and can be loaded again", function()
    outbox.open(path):migrate()
    local woken_by = support.sleeping_processor(path)
    local output = python(([[
import gc, sqlite3
for _ in range(3):
    connection = sqlite3.connect("%s", isolation_level=None, timeout=60)
    connection.enable_load_extension(True)
    connection.load_extension("%s")
    connection.load_extension("%s")
    try:
        connection.execute("SELECT outbox_publish(1, 2, 3)")
    except sqlite3.OperationalError as error:
        print(error)
    connection.close()
connection = sqlite3.connect("%s", timeout=60)
connection.enable_load_extension(True)
connection.load_extension("%s")
connection.execute("SELECT outbox_publish('n', 'k', ?)", (b"from\0Python",)).fetchone()
connection.commit()
connection.close()
gc.collect()
]]):format(path, EXTENSION, EXTENSION, path, EXTENSION))
    assert.equal(("outbox_publish: the namespace must be TEXT or NULL, not an INTEGER\n"):rep(3),
      output)
    assert.equal("from\0Python", woken_by())
  end)
end)

describe("examples/", function()
  local path

  before_each(function()
    path = support.path()
  end)

  after_each(support.remove)

  -- The messages that an example has published, in one text.
  local function placed()
    local store <close> = outbox.open(path)
    local list = {}
    for i, entry in ipairs(store:ready_entries()) do
      list[i] = ("%s\t%s\t%s"):format(entry.namespace, entry.key, entry.payload)
    end
    return table.concat(list, "\n")
  end
  local ONE = "orders\t1\torder 1 was placed"

  for name, module in pairs({ luasql = "luasql.sqlite3", luadbi = "DBI", lsqlite3 = "lsqlite3" }) do
    it(name .. ".lua commits an order and its message together", function()
      if not pcall(require, module) then
        pending(module .. " cannot be had")
        return
      end
      local output = support.run(("examples/%s.lua %s"):format(name, path))
      assert.equal(ONE .. "\n", output)
    end)
  end

  it("function.lua does the same with its own SQLite", function()
    if not pcall(require, "lsqlite3complete") then
      pending("lsqlite3complete cannot be had")
      return
    end
    local store = outbox.open(path)
    store:migrate()
    store:close()
    assert.same({ "", true }, { support.run("examples/function.lua " .. path) })
    assert.equal(ONE, placed())
  end)

  it("extension.sql does the same in the sqlite3 shell", function()
    local example = assert(io.open("examples/extension.sql")):read("a")
    local output, ok = shell(path, (example:gsub("build/outbox_sqlite", EXTENSION)))
    assert.is_true(ok, output)
    assert.equal(ONE, placed())
  end)

  it("extension.py does the same in Python", function()
    local pipe = assert(io.popen(("%s examples/extension.py %s %s 2>&1"):format(PYTHON, path,
      EXTENSION)))
    assert.equal("", pipe:read("a"))
    assert.is_true(pipe:close())
    assert.equal(ONE, placed())
  end)

  it("extension.php does the same in PHP", function()
    -- PHP does not run with sanitizers, so it gets the rock that was built without them.
    local pipe = assert(io.popen(("env -u LD_PRELOAD php "
      .. "-d sqlite3.extension_dir=$PWD/lua_modules/lib/lua/5.4 "
      .. "examples/extension.php %s 2>&1"):format(path)))
    assert.equal("", pipe:read("a"))
    assert.is_true(pipe:close())
    assert.equal(ONE, placed())
  end)

  it("trigger.sql says which changes make no message", function()
    local store <close> = outbox.open(path)
    store:migrate()
    local example = assert(io.open("examples/trigger.sql")):read("a")
    local function events(sql)
      local output, ok = shell(path, sql .. [[;
        SELECT json_extract(payload, '$.event'), key FROM outbox_entries ORDER BY seq;
        DELETE FROM outbox_entries;]])
      assert.is_true(ok, output)
      return output
    end
    events(example)
    events("CREATE UNIQUE INDEX total ON orders (total); DELETE FROM orders")
    assert.equal("inserted|1\n", events("INSERT INTO orders VALUES (1, 5)"))
    assert.equal("inserted|2\n", events("REPLACE INTO orders VALUES (2, 5)")) -- and 1 is gone
    assert.equal("deleted|2\ninserted|3\n",
      events("PRAGMA recursive_triggers = ON; REPLACE INTO orders VALUES (3, 5)"))
    assert.equal("updated|3\n", events(
      "INSERT INTO orders VALUES (3, 6) ON CONFLICT DO UPDATE SET total = excluded.total"))
    local check = example:match("\n%-%-   (SELECT name.-;)")
    assert.equal("orders_inserted\norders_updated\norders_deleted\n", shell(path, check))
    assert.equal("", events("CREATE TABLE new (number INTEGER PRIMARY KEY, total REAL); "
      .. "INSERT INTO new SELECT * FROM orders; DROP TABLE orders; "
      .. "ALTER TABLE new RENAME TO orders; INSERT INTO orders VALUES (4, 7)"))
    assert.equal("", shell(path, check))
  end)

  it("trigger.sql publishes a message for each of these changes, in plain SQL", function()
    local store = outbox.open(path)
    store:migrate()
    store:close()
    local output, ok = shell(path, assert(io.open("examples/trigger.sql")):read("a"))
    assert.is_true(ok, output)
    assert.equal(table.concat({
      'orders\t1\t{"event":"inserted","number":1,"total":99.5}',
      'orders\t2\t{"event":"inserted","number":2,"total":12.0}',
      'orders\t1\t{"event":"updated","number":1,"total":100.0,"was":99.5}',
      'orders\t2\t{"event":"deleted","number":2}',
    }, "\n"), placed())
  end)
end)
