-- The promise of an outbox, shown on 2,400 orders: a committed message is delivered, and one that
-- was rolled back is not. This process imports the orders. A second process delivers their messages
-- at the same time.
--
--   lua5.4 examples/orders.lua [postgresql://...]
--
-- Without a URL it uses an SQLite file, which it removes.

local outbox = require("outbox")

-- The processor: claims, delivers and deletes, until a message says that the import is over.
local function deliver(database, destination)
  local store <close> = outbox.open(database, { synchronous = "normal" })
  local file <close> = assert(io.open(destination, "a"))
  local finished = false
  repeat
    store:claim_entries("processor-1", outbox.clock.now() + 5)
    local entries = store:get_claimed_entries("processor-1", 100)
    local delivered = {}
    for i, entry in ipairs(entries) do
      if entry.namespace == "import" then
        finished = true
      else
        file:write(entry.id, "\t", entry.key, "\t", entry.payload, "\n")
      end
      delivered[i] = entry.id
    end
    assert(file:flush())
    store:delete_entries(table.unpack(delivered))
    if #entries == 0 then
      outbox.clock.sleep(0.005)
    end
  until finished
end

-- Imports each order with its message: both or neither. The message is published first, to show
-- that it is rolled back with the order.
local function import(store, csv)
  local committed, rolled_back, reasons = {}, {}, {}
  for line in csv:lines() do
    local number, customer, product, quantity, price =
      line:match("^(%d+),([^,]*),([^,]*),([^,]*),([^,]*)$")
    if number then
      local id
      local ok, problem = pcall(store.transaction, store, function(txn)
        id = txn:publish({ namespace = "orders", key = number, payload = line })
        txn:execute(
          "INSERT INTO orders (number, customer, product, quantity, price)"
            .. " VALUES ($1, $2, $3, $4, $5)",
          tonumber(number), customer, product, tonumber(quantity), tonumber(price)
        )
      end)
      if ok then
        committed[id] = number
      elseif problem.code == "constraint" then
        rolled_back[id] = number
        local reason = problem.message
        if not reasons[reason] then
          reasons[#reasons + 1], reasons[reason] = reason, 0
        end
        reasons[reason] = reasons[reason] + 1
      else
        error(problem)
      end
    end
  end
  return committed, rolled_back, reasons
end

local function count(set)
  local n = 0
  for _ in pairs(set) do
    n = n + 1
  end
  return n
end

local function main()
  local directory = os.tmpname()
  os.remove(directory)
  local database, destination = arg[1] or directory .. ".db", directory .. ".delivered"
  local store <close> = outbox.open(database)
  store:migrate()
  store:transaction(function(txn)
    txn:execute([[CREATE TABLE orders (
      number INTEGER PRIMARY KEY,
      customer TEXT NOT NULL CHECK (customer <> ''),
      product TEXT NOT NULL,
      quantity INTEGER NOT NULL CHECK (quantity > 0),
      price REAL NOT NULL)]])
  end)

  local start = outbox.clock.now()
  local csv <close> = assert(io.open((arg[0]:gsub("%.lua$", ".csv"))))
  local processor =
    assert(io.popen(("%q %q deliver %q %q"):format(arg[-1], arg[0], database, destination)))
  local ok, committed, rolled_back, reasons = pcall(import, store, csv)
  store:publish({ namespace = "import", payload = "finished" })
  local exited = processor:close()
  assert(ok, committed)
  assert(exited, "the processor failed")
  local seconds = outbox.clock.now() - start

  local delivered, twice, phantom = {}, 0, 0
  for line in io.lines(destination) do
    local id = line:match("^[^\t]+")
    twice = twice + (delivered[id] and 1 or 0)
    phantom = phantom + (committed[id] and 0 or 1)
    delivered[id] = true
  end
  local missing = 0
  for id in pairs(committed) do
    missing = missing + (delivered[id] and 0 or 1)
  end
  local stats = store:stats()
  local left = stats.ready + stats.delayed + stats.dead

  print(("%5d orders committed, each with its message"):format(count(committed)))
  print(("%5d orders rolled back after their message was published"):format(count(rolled_back)))
  table.sort(reasons)
  for _, reason in ipairs(reasons) do
    print(("        %3d  %s"):format(reasons[reason], reason))
  end
  print(("%5d messages delivered by another process, meanwhile (%.1f s in all)"):format(
    count(delivered), seconds))
  print(("%5d committed but not delivered"):format(missing))
  print(("%5d delivered but not committed"):format(phantom))
  print(("%5d delivered twice"):format(twice))
  print(("%5d left in the outbox"):format(left))
  for _, suffix in ipairs({ ".db", ".db-wal", ".db-shm", ".delivered" }) do
    os.remove(directory .. suffix)
  end
  local kept = missing == 0 and phantom == 0 and left == 0
  print(kept and "Both or neither: the promise is kept." or "THE PROMISE IS BROKEN.")
  os.exit(kept, true)
end

if arg[1] == "deliver" then
  deliver(arg[2], arg[3])
else
  main()
end
