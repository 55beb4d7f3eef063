-- An order and its message in one transaction of any binding. Here it is lsqlite3complete, which
-- has an SQLite of its own. Therefore nothing else in this process may open the database. Other
-- processes create the outbox's tables and deliver the message.
--
--   lua5.4 examples/function.lua DATABASE

local lsqlite3 = require("lsqlite3complete")
local outbox = require("outbox")

local connection = assert(lsqlite3.open(arg[1]))

local function execute(sql, ...)
  local statement = assert(connection:prepare(sql), connection:errmsg())
  statement:bind_values(...)
  local result = statement:step()
  statement:finalize()
  assert(result == lsqlite3.DONE, connection:errmsg())
end

local store = outbox.attach(execute)
execute("CREATE TABLE orders (number INTEGER PRIMARY KEY, total REAL)")

execute("BEGIN IMMEDIATE")
execute("INSERT INTO orders VALUES (?, ?)", 1, 99.5)
store:publish({ namespace = "orders", key = "1", payload = "order 1 was placed" })
execute("COMMIT") -- the order and its message are there now

execute("BEGIN IMMEDIATE")
execute("INSERT INTO orders VALUES (?, ?)", 2, 12)
store:publish({ namespace = "orders", key = "2", payload = "order 2 was placed" })
execute("ROLLBACK") -- neither of these is

connection:close()
