-- An order and its message in one transaction on a connection of LuaDBI.
--
--   lua5.4 examples/luadbi.lua [DATABASE]

local DBI = require("DBI")
local outbox = require("outbox")

outbox.install() -- before the connection is opened

local path = arg[1] or os.tmpname()
local connection = assert(DBI.Connect("SQLite3", path))
local store = outbox.attach(connection)
store:migrate()

-- DBI.Do does the same, but leaves its statement open, and then the connection cannot be closed.
local function execute(sql, ...)
  local statement = assert(connection:prepare(sql))
  local ok, reason = statement:execute(...)
  statement:close()
  assert(ok, reason)
end

execute("CREATE TABLE orders (number INTEGER PRIMARY KEY, total REAL)")
connection:commit() -- because LuaDBI begins a transaction by itself, without autocommit(true)

execute("INSERT INTO orders VALUES (?, ?)", 1, 99.5)
store:publish({ namespace = "orders", key = "1", payload = "order 1 was placed" })
connection:commit() -- the order and its message are there now

execute("INSERT INTO orders VALUES (?, ?)", 2, 12)
store:publish({ namespace = "orders", key = "2", payload = "order 2 was placed" })
connection:rollback() -- neither of these is

connection:close()

-- A processor, usually in another process. It needs a connection of its own:
local own <close> = outbox.open(path, { synchronous = "normal" })
outbox.processor({ store = own, publisher = function(messages, namespace)
  for _, message in ipairs(messages) do
    print(namespace, message.key, message.payload)
  end
end }):pump()
