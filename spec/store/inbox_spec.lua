local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")
local testing = require("outbox.testing")

local sqlite_it = support.only("sqlite", it)

describe("an inbox", function()
  local store, path, clock, inbox

  before_each(function()
    clock = testing.clock()
    store, path = support.store({ clock = clock })
    inbox = outbox.inbox({ store = store })
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function nothing() end

  local function count()
    return support.sql(store, "SELECT count(*) AS count FROM outbox_inbox")[1].count
  end

  it("runs a function once for each id, and returns what it returns", function()
    local runs = {}
    local function run(txn)
      txn:publish({ key = "k" })
      runs[#runs + 1] = true
      return "a", nil, "c"
    end
    assert.same({ n = 4, true, "a", nil, "c" }, table.pack(inbox:once("1", run)))
    assert.same({ n = 1, false }, table.pack(inbox:once("1", run)))
    assert.is_true(inbox:once("2", run))
    assert.equal(2, #runs)
    assert.outbox(store).has_entries(2)
  end)

  it("forgets an id that was rolled back, with the changes of the function", function()
    local problem = support.raised(inbox.once, inbox, "1", function(txn)
      txn:publish({})
      error({ "mine" })
    end)
    assert.same({ "mine" }, problem)
    assert.outbox(store).is_empty()
    assert.is_true(inbox:once("1", nothing))
    assert.is_false(inbox:once("1", nothing))
  end)

  it("is part of a transaction around it, the table too", function()
    pcall(store.transaction, store, function()
      assert.is_true(inbox:once("1", nothing))
      assert.is_false(inbox:once("1", nothing))
      error("no")
    end)
    assert.has_error(count)
    assert.is_true(inbox:once("1", nothing))
  end)

  it("tells ids apart byte by byte", function()
    local ids = { "", "1", "01", "a", "A", "a ", "é", "e\u{301}", "\1", "\1\1" }
    if support.engine == "sqlite" then
      table.move({ "\0", "\0\0", "a\0b", "a\0c", "\xff", "\xfe" }, 1, 6, #ids + 1, ids)
    end
    for _, id in ipairs(ids) do
      assert.is_true(inbox:once(id, nothing), id)
    end
    for _, id in ipairs(ids) do
      assert.is_false(inbox:once(id, nothing), id)
    end
  end)

  it("has its table beside those of the store, by the same prefix", function()
    local other <close> = outbox.open(path, { prefix = "other_" })
    assert.equal("other_", other:prefix())
    local second = outbox.inbox({ store = other })
    assert.is_true(inbox:once("1", nothing))
    assert.is_true(second:once("1", nothing))
    assert.is_false(second:once("1", nothing))
    assert.same({ { n = 1 } }, support.sql(store, "SELECT count(*) AS n FROM other_inbox"))
  end)

  it("needs none of the outbox's own tables", function()
    local plain <close> = outbox.open(support.database())
    assert.is_true(outbox.inbox({ store = plain }):once("1", nothing))
  end)

  it("keeps an id for the retention, then deletes some at a time", function()
    local function see(name, number)
      inbox = outbox.inbox({ store = store, retention = 100 })
      for i = 1, number do
        assert.is_true(inbox:once(name .. i, nothing))
      end
    end
    see("old", 100)
    clock.advance(100)
    see("young", 1)
    assert.is_false(inbox:once("old1", nothing))
    assert.equal(101, count())
    clock.advance(1)
    see("new", 1)
    assert.equal(101 - 32 + 1, count())
    see("newer", 16)
    assert.equal(102 - 64 + 16, count())
    see("newest", 32)
    assert.equal(1 + 1 + 16 + 32, count())
    assert.is_true(inbox:once("old1", nothing))
  end)

  it("remembers an id for a year, unless it is told otherwise", function()
    assert.is_true(inbox:once("old", nothing))
    clock.advance(365 * 86400)
    for i = 1, 40 do
      inbox:once(tostring(i), nothing)
    end
    assert.is_false(inbox:once("old", nothing))
    clock.advance(1)
    for i = 41, 80 do
      inbox:once(tostring(i), nothing)
    end
    assert.is_true(inbox:once("old", nothing))
  end)

  sqlite_it("forgets by index", function()
    inbox:once("1", nothing)
    local source <close> = assert(io.open("lua/outbox/inbox.lua"))
    local forget = source:read("a"):match("forget = %[%[(.-)%]%]"):gsub("@", "outbox_")
    local plan = support.sql(store, "EXPLAIN QUERY PLAN " .. forget, 0, 10)
    assert.same({ "SEARCH main.outbox_inbox USING PRIMARY KEY (id=?)", "LIST SUBQUERY 1",
      "SEARCH main.outbox_inbox USING COVERING INDEX outbox_inbox_seen_at (seen_at<?)" },
      support.pluck(plan, "detail"))
  end)

  it("runs a function once, even if two processes call at the same time", function()
    store:close()
    local log, gate, children = support.path(), process.gate(), {}
    for child = 1, 2 do
      children[child] = process.fork(function()
        gate:wait()
        local own <close> = outbox.open(path, { busy_timeout = 60 })
        local mine = outbox.inbox({ store = own })
        for i = 1, 100 do
          mine:once(tostring(i), function()
            local file <close> = assert(io.open(log, "a"))
            file:write(i, "\n")
          end)
        end
      end)
    end
    gate:open()
    for _, child in ipairs(children) do
      assert.equal(0, (process.wait(child)))
    end
    local runs = {}
    for line in io.lines(log) do
      runs[line] = (runs[line] or 0) + 1
    end
    for i = 1, 100 do
      assert.equal(1, runs[tostring(i)])
    end
  end)

  it("ignores a redelivery", function()
    local receiver <close> = support.store()
    support.sql(receiver, "CREATE TABLE stock (count INTEGER)")
    support.sql(receiver, "INSERT INTO stock VALUES (10)")
    local received = outbox.inbox({ store = receiver })
    store:publish({ id = "order 1" })
    local tries = 0
    local p = outbox.processor({ store = store, publisher = function(messages)
      for _, message in ipairs(messages) do
        received:once(message.id, function(txn)
          txn:execute("UPDATE stock SET count = count - 1")
        end)
      end
      tries = tries + 1
      return tries == 1 and { "the answer was lost" } or nil
    end })
    p:pump()
    clock.advance(10)
    p:pump()
    assert.equal(2, tries)
    assert.equal(9, support.sql(receiver, "SELECT count FROM stock")[1].count)
  end)

  it("raises what the database raises", function()
    support.sql(store, "CREATE TABLE outbox_inbox (id INTEGER)")
    assert.equal("error", support.raised(inbox.once, inbox, "1", nothing).code)
  end)

  it("refuses what it cannot use", function()
    local function refused(expected, fn, ...)
      assert.matches(expected, support.raised(fn, ...), 1, true)
    end
    refused("#1 to 'once' (string expected, got number)", inbox.once, inbox, 1, nothing)
    refused("#2 to 'once' (function expected, got nil)", inbox.once, inbox, "1")
    refused("bad argument #1 to 'inbox' (table expected, got nil)", outbox.inbox)
    refused("(retention must be a number of seconds, at least 0.001; store is missing; "
      .. "unknown option 'prefix')", outbox.inbox, { retention = 0, prefix = "x" })
    refused("store must be what outbox.open returns", outbox.inbox, { store = {} })
  end)
end)
