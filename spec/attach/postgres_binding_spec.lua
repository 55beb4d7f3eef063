-- outbox.attach on PostgreSQL: what differs from one binding to the next, functions, the examples.

local bindings = require("spec.support.postgres_bindings")
local outbox = require("outbox")
local page = require("spec.pages.page")
local postgres = require("spec.support.postgres")
local support = require("spec.support")

local ready = postgres.url() and pcall(require, "outbox.postgres")
local describe_on_server = ready and describe or pending

describe("outbox.attach", function()
  it("refuses other dialects by name", function()
    for _, dialect in ipairs({ "mysql", "SQLite", 1, false }) do
      assert.matches(("dialect must be 'sqlite' or 'postgres', not '%s'"):format(dialect),
        support.raised(outbox.attach, print, { dialect = dialect }), 1, true)
    end
    assert.matches("table expected, got string",
      support.raised(outbox.attach, { query = print }, "outbox_"), 1, true)
  end)
end)

describe("a store on a function that speaks PostgreSQL", function()
  local OPTIONS = { dialect = "postgres" }

  -- Attaches to a function that fails at the statements that the set `failing` has the numbers of,
  -- with an answer. Publishes, and returns the first words of the statements, and the problem.
  local function publish(failing, ...)
    local ran, answer = {}, table.pack(...)
    local store = outbox.attach(function(sql)
      ran[#ran + 1] = sql:match("^%u+")
      if failing[#ran] then
        return table.unpack(answer, 1, answer.n)
      end
    end, OPTIONS)
    local ok, problem = pcall(store.publish, store, {}, {})
    return table.concat(ran, " "), not ok and problem or nil
  end

  it("sets a savepoint, and rolls back to it", function()
    assert.same({ "SAVEPOINT INSERT RELEASE" }, { publish({}) })
    for failing = 2, 3 do
      local ran, problem = publish({ [failing] = true }, nil, "ERROR: full\nDETAIL: secret")
      assert.equal(failing == 2 and "SAVEPOINT INSERT ROLLBACK RELEASE"
        or "SAVEPOINT INSERT RELEASE ROLLBACK RELEASE", ran)
      assert.equal("outbox: ERROR: full (error)", tostring(problem))
      assert.equal("ERROR: full\nDETAIL: secret", problem.cause)
    end
  end)

  it("does without one where there is no transaction", function()
    assert.same({ "SAVEPOINT INSERT" }, { publish({ true }, false) })
    local ran, problem = publish({ true, true }, false)
    assert.same({ "SAVEPOINT INSERT", "the function returned false" }, { ran, problem.message })
  end)

  it("fails unless the function returns nothing or true", function()
    for _, answer in ipairs({ 0, 1, "ok", {} }) do
      local ran, problem = publish({ true }, answer)
      assert.equal("SAVEPOINT ROLLBACK RELEASE", ran)
      assert.equal("error", problem.code)
      assert.matches("it must raise when SQL fails", problem.message)
    end
    assert.same({ "SAVEPOINT INSERT RELEASE" }, { publish({ true, true, true }, true) })
  end)

  it("keeps what the function raises as the cause", function()
    local raised = setmetatable({}, { __tostring = function()
      return 'ERROR: violates unique constraint "outbox_delayed_id_key"\nDETAIL: ...'
    end })
    local store = outbox.attach(function()
      error(raised)
    end, OPTIONS)
    local problem = support.raised(store.publish, store, {})
    assert.equal("duplicate", problem.code)
    assert.equal(raised, problem.cause)
  end)
end)

describe("a store on an object with pgmoon's simple_query", function()
  it("sends all in one text", function()
    local ran, answers = {}, {}
    local store = outbox.attach({
      simple_query = print,
      query = function(_, sql)
        ran[#ran + 1] = sql:gsub("\nINSERT.-;\n", "..."):gsub("^INSERT.*", "...")
        return table.unpack(answers[#ran] or { true })
      end,
    })
    store:publish({})
    assert.same({ "SAVEPOINT outbox;...RELEASE SAVEPOINT outbox" }, ran)
    ran, answers = {}, { { nil, "ERROR: full" } }
    assert.equal("ERROR: full", support.raised(store.publish, store, {}).message)
    assert.same({ "SAVEPOINT outbox;...RELEASE SAVEPOINT outbox", "ROLLBACK TO SAVEPOINT outbox",
      "RELEASE SAVEPOINT outbox" }, ran)
    ran, answers = {}, { { nil, "no transaction" }, { nil, "no transaction" } }
    store:publish({})
    assert.same({ "SAVEPOINT outbox;...RELEASE SAVEPOINT outbox", "ROLLBACK TO SAVEPOINT outbox",
      "..." }, ran)
  end)
end)

describe_on_server("publishers of several messages at once", function()
  after_each(postgres.remove)

  -- The locks are taken in the same order, whatever the order of the messages.
  it("do not wait for each other in a circle", function()
    local url = postgres.schema()
    local own <close> = outbox.open(url)
    own:migrate()
    local process = require("process")
    local pids = {}
    for i = 1, 2 do
      pids[i] = process.fork(function()
        local connection = bindings.LuaSQL.open(url)
        local store = outbox.attach(connection)
        for _ = 1, 100 do
          local messages = {}
          for key = 1, 20 do
            messages[i == 1 and key or 21 - key] = { key = key }
          end
          store:publish(table.unpack(messages))
        end
      end)
    end
    for _, pid in ipairs(pids) do
      assert.equal(0, process.wait(pid))
    end
    assert.equal(4000, own:stats().ready)
  end)
end)

describe_on_server("a connection of LuaDBI", function()
  after_each(postgres.remove)

  it("begins transactions by itself, in which the store takes part", function()
    local url = postgres.schema()
    local own <close> = outbox.open(url)
    own:migrate()
    local connection = assert(require("DBI").Connect("PostgreSQL", url))
    local store = outbox.attach(connection)
    store:publish({}, {})
    connection:rollback()
    store:publish({})
    connection:commit()
    assert.equal(1, own:stats().ready)
    connection:close()
  end)

  it("is left with one prepared statement at most, which fails without a transaction", function()
    local url = postgres.schema()
    local own <close> = outbox.open(url)
    own:migrate()
    local connection = assert(require("DBI").Connect("PostgreSQL", url))
    connection:autocommit(true)
    local store = outbox.attach(connection)
    local function count()
      local statement = connection:prepare("SELECT count(*) FROM pg_prepared_statements")
      statement:execute()
      local number = statement:fetch()[1]
      statement:close()
      return number - 1
    end
    for _ = 1, 5 do
      store:publish({})
    end
    assert.equal(1, count())
    bindings.LuaDBI.execute(connection, "BEGIN")
    store:publish({})
    assert.equal(0, count())
    bindings.LuaDBI.execute(connection, "COMMIT")
    assert.equal(6, own:stats().ready)
    connection:close()
  end)
end)

describe_on_server("docs/publishing.md", function()
  after_each(postgres.remove)

  it("shows code that runs with each binding", function()
    local url = postgres.schema()
    local own <close> = outbox.open(url)
    own:migrate()
    postgres.sql(url, "CREATE TABLE orders (number integer, total numeric)")
    local opened = {}
    local function open(name)
      opened[#opened + 1] = bindings[name].open(url)
      return opened[#opened]
    end
    local modules = {
      ["luasql.postgres"] = { postgres = function()
        return { connect = function()
          return open("LuaSQL")
        end }
      end },
      DBI = { Connect = function()
        local connection = open("LuaDBI")
        connection:autocommit(false)
        return connection
      end },
      pgmoon = { new = function()
        local connection = open("pgmoon")
        connection.connect = function() end
        return connection
      end },
    }
    local database = open("LuaSQL")
    local environment = {
      outbox = outbox,
      database = { run = function(_, sql)
        return database:execute(sql)
      end },
      require = function(name)
        return assert(modules[name], name)
      end,
    }
    local count = 0
    local section = page.read("docs/publishing.md"):match("\n## On PostgreSQL\n(.-)\n## ")
    for snippet in page.snippets(section, "lua") do
      count = count + 1
      assert(load(snippet .. "\nreturn store", "=snippet", "t", environment))():publish({})
    end
    assert.equal(4, count)
    assert.equal("3", postgres.sql(url, "SELECT count(*) FROM orders"))
    for _, connection in ipairs(opened) do
      connection:close()
    end
    assert.is_true(own:stats().ready >= 4)
  end)
end)

describe_on_server("examples/", function()
  after_each(postgres.remove)

  for _, name in ipairs({ "luasql_postgres", "luadbi_postgres" }) do
    it(name .. ".lua commits an order and its message together", function()
      local url = postgres.schema()
      local output = support.run(("examples/%s.lua '%s'"):format(name, url))
      assert.equal("orders\t1\torder 1 was placed\n", output)
      assert.equal("1|99.5", postgres.sql(url, "SELECT * FROM orders"))
    end)
  end

  it("postgres.sql does the same in plain SQL, and with a trigger", function()
    local url = postgres.schema()
    local own <close> = outbox.open(url)
    own:migrate()
    local example <close> = assert(io.open("examples/postgres.sql"))
    postgres.sql(url, example:read("a"))
    local list = {}
    for i, entry in ipairs(own:ready_entries()) do
      list[i] = ("%s %s %s"):format(entry.namespace, entry.key, entry.payload)
    end
    assert.same({
      "orders 1 order 1 was placed",
      'totals 3 {"event" : "INSERT", "number" : 3, "total" : 5}',
      'totals 3 {"event" : "UPDATE", "number" : 3, "total" : 6}',
      'totals 3 {"event" : "DELETE", "number" : 3, "total" : 6}',
    }, list)
  end)
end)
