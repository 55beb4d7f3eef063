-- An order and its message in one transaction on a connection of LuaSQL.
--
--   lua5.4 examples/luasql.lua [DATABASE]

local outbox = require("outbox")
local luasql = require("luasql.sqlite3")

outbox.install() -- before the connection is opened

local path = arg[1] or os.tmpname()
local environment = luasql.sqlite3()
local connection = assert(environment:connect(path))
-- A PRAGMA returns a row, so a cursor. Left open, it keeps the connection from being closed.
assert(connection:execute("PRAGMA busy_timeout = 5000")):close()
local store = outbox.attach(connection)
store:migrate()
assert(connection:execute("CREATE TABLE orders (number INTEGER PRIMARY KEY, total REAL)"))
connection:setautocommit(false)

assert(connection:execute("INSERT INTO orders VALUES (1, 99.5)"))
store:publish({ namespace = "orders", key = "1", payload = "order 1 was placed" })
connection:commit() -- the order and its message are there now

assert(connection:execute("INSERT INTO orders VALUES (2, 12)"))
store:publish({ namespace = "orders", key = "2", payload = "order 2 was placed" })
connection:rollback() -- neither of these is

connection:close()
environment:close()

-- A processor, usually in another process. It needs a connection of its own:
local own <close> = outbox.open(path, { synchronous = "normal" })
outbox.processor({ store = own, publisher = function(messages, namespace)
  for _, message in ipairs(messages) do
    print(namespace, message.key, message.payload)
  end
end }):pump()
