-- An order and its message in one transaction on a connection of lsqlite3.
--
--   lua5.4 examples/lsqlite3.lua [DATABASE]

local lsqlite3 = require("lsqlite3")
local outbox = require("outbox")

local path = arg[1] or os.tmpname()
local connection = assert(lsqlite3.open(path))
local store = outbox.attach(connection)
store:migrate()

local function execute(sql)
  assert(connection:exec(sql) == lsqlite3.OK, connection:errmsg())
end

execute("CREATE TABLE orders (number INTEGER PRIMARY KEY, total REAL)")

execute("BEGIN IMMEDIATE; INSERT INTO orders VALUES (1, 99.5)")
store:publish({ namespace = "orders", key = "1", payload = "order 1 was placed" })
execute("COMMIT") -- the order and its message are there now

execute("BEGIN IMMEDIATE; INSERT INTO orders VALUES (2, 12)")
store:publish({ namespace = "orders", key = "2", payload = "order 2 was placed" })
execute("ROLLBACK") -- neither of these is

connection:close()

-- A processor, usually in another process. It needs a connection of its own:
local own <close> = outbox.open(path, { synchronous = "normal" })
outbox.processor({ store = own, publisher = function(messages, namespace)
  for _, message in ipairs(messages) do
    print(namespace, message.key, message.payload)
  end
end }):pump()
