local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

describe("store:migrate", function()
  after_each(support.remove)

  it("can be run again, and keeps the entries", function()
    local store <close> = support.store()
    store:publish({})
    store:migrate()
    assert.equal(1, store:stats().ready)
  end)

  it("can be run from several processes at once", function()
    for _ = 1, 20 do
      local path = support.database()
      local gate = process.gate()
      local children = {}
      for i = 1, 4 do
        children[i] = process.fork(function()
          gate:wait()
          local store <close> = outbox.open(path)
          store:migrate()
          store:publish({})
        end)
      end
      gate:open()
      for _, child in ipairs(children) do
        assert.equal(0, process.wait(child))
      end
      local store <close> = outbox.open(path)
      assert.equal(4, store:stats().ready)
    end
  end)

  it("must be called before everything else", function()
    local store <close> = outbox.open(support.database())
    local problem = support.raised(store.publish, store, {})
    assert.equal("schema", problem.code)
    assert.matches("call migrate first", problem.message)
  end)

  it("refuses the tables of a newer version, as does every other call", function()
    local store, path = support.store()
    store:transaction(function(txn)
      txn:execute("UPDATE outbox_schema SET version = version + 1")
    end)
    store:close()
    local again <close> = outbox.open(path)
    assert.equal("newer", support.raised(again.migrate, again).code)
    assert.equal("newer", support.raised(again.publish, again, {}).code)
    assert.equal(0, support.sql(again, "SELECT count(*) AS n FROM outbox_entries")[1].n)
  end)
end)

describe("plain SQL", function()
  after_each(support.remove)

  it("publishes, with an id and a time like the library's", function()
    local store <close> = support.store()
    local first = store:publish({ namespace = "lua" })
    local before = outbox.clock.now()
    store:transaction(function(txn)
      txn:execute("INSERT INTO outbox_entries (namespace, key, payload) VALUES ('sql', 'k', 'p')")
      txn:execute(support.portable(("INSERT INTO outbox_entries (namespace, %s) VALUES"
        .. " ('sql', ?)"):format(support.engine == "sqlite" and "payload" or "payload_bytes")),
        outbox.blob("\0\255"))
    end)
    store:claim_entries("p", outbox.clock.now() + 60)
    local entries = store:get_claimed_entries("p", 10)
    assert.same({ "lua", "sql", "sql" }, support.pluck(entries, "namespace"))
    assert.same({ "k", nil, "p" }, { entries[2].key, entries[3].key, entries[2].payload })
    assert.equal("\0\255", entries[3].payload)
    assert.matches("^%x%x%x%x%x%x%x%x%-%x%x%x%x%-7%x%x%x%-[89ab]%x%x%x%-%x+$", entries[2].id)
    assert.equal(36, #entries[2].id)
    -- SQL's clock has a resolution of milliseconds. So only these are compared with the first id.
    assert.is_true(entries[2].id:sub(1, 13) >= first:sub(1, 13))
    assert.is_true(math.abs(entries[2].created_at - before) < 5)
    assert.equal(3, store:delete_entries(table.unpack(support.pluck(entries, "id"))))
  end)

  it("may insert headers that lua-cjson refuses, which are read as text", function()
    local store <close> = support.store()
    local lone = [[{"trace":"\ud800"}]]
    support.sql(store, "INSERT INTO outbox_entries (headers) VALUES (?)", lone)
    store:publish({ headers = { a = "b" } })
    store:claim_entries("p", outbox.clock.now() + 60)
    local entries = store:get_claimed_entries("p", 10)
    assert.same({ lone, { a = "b" } }, support.pluck(entries, "headers"))
  end)

  sqlite_it("may only insert ids that are TEXT, because no others would be found again", function()
    local store <close> = support.store()
    assert.has_error(function()
      support.sql(store, "INSERT INTO outbox_entries (id) VALUES (?)", outbox.blob("id"))
    end)
  end)

  it("may only insert headers that are a JSON object", function()
    local store <close> = support.store()
    for _, headers in ipairs({ "{", "[]", "1", "null" }) do
      assert.has_error(function()
        support.sql(store, "INSERT INTO outbox_entries (headers) VALUES (?)", headers)
      end)
    end
    support.sql(store, "INSERT INTO outbox_entries (headers) VALUES (?)", '{"a":"b"}')
    assert.equal(1, store:stats().ready)
  end)
end)
