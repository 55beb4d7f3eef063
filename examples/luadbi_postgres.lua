-- An order and its message in one transaction on a connection of LuaDBI to PostgreSQL.
--
--   lua5.4 examples/luadbi_postgres.lua 'postgresql://localhost/shop'

local DBI = require("DBI")
local outbox = require("outbox")

local url = assert(arg[1], "usage: luadbi_postgres.lua URL")

-- The store of a processor, usually in another process. It creates the outbox's tables, too.
local own <close> = outbox.open(url)
own:migrate()

local connection = assert(DBI.Connect("PostgreSQL", url))
local store = outbox.attach(connection)

local function execute(sql, ...)
  local statement = assert(connection:prepare(sql))
  assert(statement:execute(...))
  statement:close()
end

execute("CREATE TABLE orders (number integer PRIMARY KEY, total numeric)")
connection:commit() -- because LuaDBI begins a transaction by itself, without autocommit(true)

execute("INSERT INTO orders VALUES (?, ?)", 1, 99.5)
store:publish({ namespace = "orders", key = "1", payload = "order 1 was placed" })
connection:commit() -- the order and its message are there now

execute("INSERT INTO orders VALUES (?, ?)", 2, 12)
store:publish({ namespace = "orders", key = "2", payload = "order 2 was placed" })
connection:rollback() -- neither of these is

connection:close()

outbox.processor({ store = own, publisher = function(messages, namespace)
  for _, message in ipairs(messages) do
    print(namespace, message.key, message.payload)
  end
end }):pump()
