-- Strings from outside stay strings. Errors, files and the extension reveal and reach no more than
-- they have to.

local outbox = require("outbox")
local support = require("spec.support")

local describe = support.only("sqlite", describe)

local EXTENSION = assert(package.searchpath("outbox_sqlite", package.cpath)):gsub("%.so$", "")

-- Each would do harm or be changed if it became part of SQL.
local NASTY = {
  "'; DROP TABLE orders; --",
  "\"); DELETE FROM orders; --",
  "x' OR '1'='1",
  "%", "_", "*", "?", "?1", ":a", "@", "@entries", "$1",
  "a\0b", "\0", "", " ", "\xff\xfe", ("n"):rep(5000), "NULL", "1", "1.0",
}

local function all(store, table)
  return support.sql(store, ("SELECT * FROM %s"):format(table))
end

describe("a string from outside", function()
  local store, path

  before_each(function()
    store, path = support.store({ synchronous = "off" })
    store:transaction(function(txn)
      txn:execute("CREATE TABLE orders (number INTEGER PRIMARY KEY, total REAL)")
      txn:execute("INSERT INTO orders VALUES (1, 99.5)")
    end)
  end)

  after_each(function()
    assert.same({ { number = 1, total = 99.5 } }, all(store, "orders"))
    store:close()
    support.remove()
  end)

  it("is kept unchanged as an id, a namespace, a key, a payload or a header", function()
    for _, nasty in ipairs(NASTY) do
      local message = { id = nasty, namespace = nasty, key = nasty, payload = nasty }
      message.headers = nasty ~= "\xff\xfe" and { [nasty] = nasty } or nil
      assert.equal(nasty, store:publish(message))
    end
    for _, nasty in ipairs(NASTY) do
      local found = store:ready_entries({ namespace = nasty })
      assert.same({ nasty }, support.pluck(found, "id"))
      assert.same({ nasty, nasty, nasty },
        { found[1].namespace, found[1].key, found[1].payload })
      assert.equal(nasty, (found[1].headers or { [nasty] = nasty })[nasty])
      assert.is_true(store:retry_entry(nasty, 1e9, nasty))
      assert.same({ nasty }, support.pluck(store:delayed_entries({ namespace = nasty }), "id"))
    end
    store:claim_entries("p", outbox.clock.now() + 100)
    for _, nasty in ipairs(NASTY) do
      assert.is_true(store:bury_entry(nasty, nasty))
      assert.equal(nasty, store:dead_entries({ namespace = nasty })[1].last_error)
      assert.equal(1, store:requeue_entries(nasty))
      assert.equal(1, store:delete_entries(nasty))
    end
    assert.outbox(store).is_empty()
  end)

  it("is kept unchanged as the id of a processor, and matches no other", function()
    for _, nasty in ipairs(NASTY) do
      store:publish({ id = "one" })
      assert.is_true(store:claim_entries(nasty, outbox.clock.now() + 100))
      assert.equal(nasty, store:stats().leases[1].processor_id)
      for _, other in ipairs(NASTY) do
        local claimed = store:get_claimed_entries(other, 10, { hold = true })
        assert.equal(other == nasty and 1 or 0, #claimed)
        assert.equal(other == nasty, store:renew_claim(other, outbox.clock.now() + 100))
      end
      store:start_heartbeat(nasty, 100, 100)
      store:stop_heartbeat()
      store:release_claim(nasty)
      assert.equal(1, store:delete_entries("one"))
    end
  end)

  it("is refused as a prefix unless it is a plain identifier", function()
    for _, nasty in ipairs(NASTY) do
      for _, prefix in ipairs({ nasty, "outbox_" .. nasty, nasty .. "outbox_" }) do
        if not prefix:find("^[%a_][%w_]*$") then
          for _, make in ipairs({ outbox.open, outbox.attach }) do
            local first = make == outbox.open and path or function()
              error("reached")
            end
            assert.matches("plain identifier", support.raised(make, first, { prefix = prefix }))
          end
        end
      end
    end
    assert.same({}, support.sql(store, "SELECT name FROM sqlite_master WHERE name LIKE '%DROP%'"))
  end)

  it("is kept unchanged as an argument of outbox_publish", function()
    for _, nasty in ipairs(NASTY) do
      local hex = nasty:gsub(".", function(byte)
        return ("%02x"):format(byte:byte())
      end)
      local program = os.tmpname()
      local file = assert(io.open(program, "w"))
      file:write(([[
.load %s
SELECT length(outbox_publish(CAST(x'%s' AS TEXT), CAST(x'%s' AS TEXT), x'%s'));
]]):format(EXTENSION, hex, hex, hex))
      file:close()
      local pipe = assert(io.popen(("sqlite3 %s < %s 2>&1"):format(path, program)))
      assert.equal("36\n", pipe:read("a"))
      pipe:close()
      os.remove(program)
      local entry = store:ready_entries()[1]
      assert.same({ nasty, nasty, nasty }, { entry.namespace, entry.key, entry.payload })
      store:delete_entries(entry.id)
    end
  end)
end)

describe("an error", function()
  after_each(support.remove)

  it("contains neither payloads nor values of headers", function()
    local secret = "sesame" .. ("x"):rep(200)
    local store <close>, path = support.store({ busy_timeout = 0 })
    local said = {}
    local function raises(fn, ...)
      local problem = support.raised(fn, ...)
      said[#said + 1] = tostring(problem)
      said[#said + 1] = type(problem) == "table" and problem.message or nil
    end
    local message = { id = "one", payload = secret, headers = { a = secret } }
    store:publish(message)
    raises(store.publish, store, message)
    raises(store.publish, store, { payload = secret, deliver_at = 0 / 0 })
    raises(store.publish, store, { payload = secret, wrong = secret })
    raises(store.publish, store, { payload = { secret } })
    raises(store.publish, store, { headers = { secret } })
    raises(store.publish, store, { headers = { a = { secret } } })
    raises(store.publish, store, secret)
    raises(store.transaction, store, function(txn)
      txn:execute("INSERT INTO outbox_entries (id, payload, headers) VALUES ('one', ?, ?)", secret,
        secret)
    end)
    raises(store.transaction, store, function(txn)
      txn:execute("INSERT INTO nowhere VALUES (?)", secret)
    end)
    support.sql(store, "PRAGMA max_page_count = 1")
    raises(store.publish, store, { payload = secret:rep(1000) })
    do
      local other <close> = outbox.open(path)
      other:transaction(function()
        raises(store.publish, store, { payload = secret })
      end)
    end
    local attached = outbox.attach(function()
      return nil, "no"
    end)
    raises(attached.publish, attached, { payload = secret, headers = { a = secret } })
    support.sql(store, "DROP TABLE outbox_ready")
    raises(store.publish, store, { payload = secret })
    store:close()
    raises(store.publish, store, { payload = secret })
    assert.is_true(#said > 20)
    for _, text in ipairs(said) do
      assert.is_nil(text:find("sesame", 1, true), text)
    end
  end)
end)

describe("a new database", function()
  after_each(support.remove)

  for umask, mode in pairs({ ["022"] = "644", ["077"] = "600", ["027"] = "640" }) do
    it("and the files beside it have the mode that the umask " .. umask .. " gives", function()
      local path = support.path()
      os.remove(path)
      local output = support.run(([[-e '
        local store = require("outbox").open("%s")
        store:migrate()
        store:publish({})
        os.execute("stat -c %%a %s %s-wal %s-shm")']]):format(path, path, path, path),
        ("umask %s;"):format(umask))
      assert.equal(("%s\n"):format(mode):rep(3), output)
    end)
  end
end)

describe("the loadable extension", function()
  after_each(support.remove)

  it("adds three functions that no schema can call, and writes only to the outbox", function()
    local store, path = support.store()
    store:close()
    local function shell(sql)
      local pipe = assert(io.popen(("sqlite3 %s \"%s\" 2>&1"):format(path, sql)))
      local output = pipe:read("a")
      pipe:close()
      return output
    end
    local load = ("SELECT load_extension('%s');"):format(EXTENSION)
    local counts = "SELECT (SELECT count(*) FROM orders), count(*) FROM outbox_entries"
    local others = "SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'outbox%' "
      .. "AND tbl_name NOT LIKE 'outbox%';"
    local names = "SELECT DISTINCT name FROM pragma_function_list WHERE name LIKE '%outbox%' "
      .. "ORDER BY name;"
    shell("CREATE TABLE orders (number INTEGER PRIMARY KEY);")
    local before = shell(others)
    assert.equal("\noutbox_find\noutbox_migrate\noutbox_publish\n", shell(load .. names))
    shell(load .. "SELECT outbox_migrate(); SELECT outbox_publish('orders', 'k', 'p');")
    assert.equal(before, shell(others))
    assert.equal("0|1\n", shell(counts))

    shell("CREATE TRIGGER tell AFTER INSERT ON orders BEGIN "
      .. "SELECT outbox_publish('orders', new.number, NULL); END;"
      .. "CREATE VIEW told AS SELECT outbox_publish('orders', NULL, NULL) AS id;")
    assert.matches("unsafe use of outbox_publish", shell(load .. "INSERT INTO orders VALUES (1);"))
    assert.matches("unsafe use of outbox_publish", shell(load .. "SELECT * FROM told;"))
    assert.equal("0|1\n", shell(counts))
  end)
end)
