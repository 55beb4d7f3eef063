-- On PostgreSQL the order of a key is the order of commits, as the write-ahead log has it, and a
-- reader skips nothing that is committed late.

local outbox = require("outbox")
local postgres = require("spec.support.postgres")
local process = require("process")
local support = require("spec.support")
local torture = require("spec.support.torture")

local describe = support.only("postgres", describe)

local PUBLISHERS = 4
local TRANSACTIONS = torture.long and 2000 or 150 -- of each publisher
local KEYS = 4
local PLAIN = "INSERT INTO outbox_entries (key, payload) VALUES ($1, $2)"

describe("the order of commits on PostgreSQL", function()
  local server

  setup(function()
    -- Without autovacuum nobody but the specs draws a number of a transaction.
    server = postgres.server({ wal_level = "logical", autovacuum = "off" })
  end)

  teardown(postgres.stop)

  before_each(function()
    postgres.sql(server.url, "DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    local store <close> = outbox.open(server.url)
    store:migrate()
  end)

  after_each(function()
    torture.kill_all()
    support.remove()
  end)

  local function set_ordering(ordering)
    postgres.sql(server.url, ("UPDATE outbox_schema SET ordering = '%s'"):format(ordering))
  end

  describe("within a key", function()
    before_each(function()
      postgres.sql(server.url, "SELECT pg_create_logical_replication_slot('commits',"
        .. " 'test_decoding')")
    end)

    after_each(function()
      postgres.sql(server.url, "SELECT pg_drop_replication_slot('commits')")
    end)

    -- Publishes in the middle of transactions that last up to 3 ms.
    local function publish(go)
      go:wait()
      local store <close> = outbox.open(server.url)
      local sleep, random = outbox.clock.sleep, math.random
      for _ = 1, TRANSACTIONS do
        store:transaction(function(txn)
          sleep(0.001 * random())
          local key = "key-" .. random(KEYS)
          if random(2) == 1 then
            txn:publish({ key = key, payload = "" }, { key = key, payload = "" })
          else
            txn:execute(PLAIN, key, "")
          end
          sleep(0.002 * random())
        end)
      end
    end

    local function publish_at_once()
      local go, pids = process.gate(), {}
      for i = 1, PUBLISHERS do
        pids[i] = torture.fork(function()
          publish(go)
        end)
      end
      go:open()
      for _, pid in ipairs(pids) do
        assert.equal(0, torture.wait(pid))
      end
    end

    -- Returns how many entries the log has, and how many of them have a lower seq than one of
    -- their key that was committed before.
    local function read_log()
      local data = postgres.sql(server.url, "SELECT data FROM"
        .. " pg_logical_slot_get_changes('commits', NULL, NULL)"
        .. " WHERE data LIKE 'table public.outbox_entries: INSERT:%'")
      local last, count, late = {}, 0, 0
      for number, key in data:gmatch("seq%[bigint%]:(%d+).-key%[text%]:'([^']*)'") do
        local seq = tonumber(number)
        count = count + 1
        if seq < (last[key] or 0) then
          late = late + 1
        else
          last[key] = seq
        end
      end
      return count, late
    end

    it("is the order of seq, through the library and through plain SQL", function()
      publish_at_once()
      local count, late = read_log()
      torture.tally("PostgreSQL: order", count, 0, 0)
      assert.is_true(count >= PUBLISHERS * TRANSACTIONS)
      assert.equal(0, late)
    end)

    it("would be another without the lock of the key", function()
      set_ordering("none")
      publish_at_once()
      local first <close> = outbox.open(server.url)
      local second <close> = outbox.open(server.url)
      first:transaction(function(txn)
        txn:publish({ key = "key", payload = "" })
        second:publish({ key = "key", payload = "" })
      end)
      local _, late = read_log()
      assert.is_true(late > 0)
    end)
  end)

  describe("behind the cursor", function()
    local store, publisher

    before_each(function()
      store, publisher = outbox.open(server.url), outbox.open(server.url)
      store:serve({ processor_id = "reader", duration = 60 })
    end)

    after_each(function()
      store:close()
      publisher:close()
    end)

    -- Settles what is in hand as delivered, reads on, and returns what was read.
    local function go_on(batch_size)
      local verdicts = {}
      for i = 1, #store:batch() do
        verdicts[i] = { outcome = "delivered" }
      end
      store:advance(verdicts, { batch_size = batch_size or 10, join = true })
      return support.pluck(store:batch(), "payload")
    end

    local function number_of(expression)
      return support.sql(publisher, ("SELECT %s::text AS number"):format(expression))[1].number
    end

    -- A transaction publishes, and stays open while the reader passes its place, until it has
    -- nothing else to do.
    local function publish_late()
      publisher:publish({ key = "first", payload = "first" })
      assert.same({ "first" }, go_on())
      local late <close> = outbox.open(server.url)
      late:transaction(function(txn)
        txn:publish({ key = "late", payload = "late" })
        for _ = 1, 3 do
          assert.same({}, go_on())
        end
      end)
    end

    it("nothing is left that is committed after later ones were read", function()
      publish_late()
      assert.same({ "late" }, go_on())
    end)

    it("nothing is left if a batch was settled without a reading in between", function()
      publish_late()
      assert.same({}, go_on(0))
      assert.same({ "late" }, go_on())
    end)

    it("nothing is left if other partitions fill the batches in between", function()
      publish_late()
      local others = {}
      for i = 1, 200 do -- so that every partition has some
        others[i] = { key = "other-" .. i, payload = "other" }
      end
      publisher:publish(table.unpack(others))
      local found = 0
      repeat
        local batch = go_on(100)
        for _, payload in ipairs(batch) do
          found = found + (payload == "late" and 1 or 0)
        end
      until #batch == 0
      assert.equal(1, found)
    end)

    it("nothing is overtaken by one of its key while an older transaction stays open", function()
      local writer <close> = outbox.open(server.url)
      local late <close> = outbox.open(server.url)
      for _ = 1, 3 do -- so that the cursor has a place
        publisher:publish({ payload = "" })
        assert.same({ "" }, go_on())
      end
      assert.same({}, go_on())
      writer:transaction(function(txn)
        txn:publish({ payload = "of the writer" })
        local many = {}
        for i = 1, 3000 do
          many[i] = { payload = "" }
        end
        publisher:publish(table.unpack(many))
        repeat until #go_on(1000) == 0
        for i = 1, 20 do
          local all = {}
          late:transaction(function(inner)
            inner:publish({ key = "key " .. i, payload = "first" })
            publisher:publish({ payload = "another" })
            assert.same({ "another" }, go_on())
            assert.same({}, go_on())
          end)
          publisher:publish({ key = "key " .. i, payload = "second" })
          repeat
            local batch = go_on()
            table.move(batch, 1, #batch, #all + 1, all)
          until #all == 2
          assert.same({ "first", "second" }, all)
        end
      end)
      assert.same({ "of the writer" }, go_on())
    end)

    it("nothing is left of many transactions that end in another order", function()
      local function nest(depth)
        local session <close> = outbox.open(server.url)
        session:transaction(function(txn)
          txn:publish({ payload = "late" }) -- without a key, so that none waits for another
          assert.same({}, go_on())
          if depth < 20 then
            nest(depth + 1)
            assert.same({ "late" }, go_on())
          end
          assert.same({}, go_on())
        end)
      end
      nest(1)
      assert.same({ "late" }, go_on())
      assert.same({}, go_on())
    end)

    -- Why the reader draws a number of its own. What it would compare without is the number after
    -- the last transaction that has ended: a younger one may be active, and have published.
    it("the snapshot's end would say too early that nothing is left", function()
      local late <close> = outbox.open(server.url)
      local xmin = "pg_snapshot_xmin(pg_current_snapshot())"
      late:transaction(function(txn)
        txn:publish({ key = "late", payload = "late" })
        local wrong = number_of("pg_snapshot_xmax(pg_current_snapshot())")
        local right = number_of("pg_current_xact_id()")
        assert.is_true(tonumber(number_of(xmin)) >= tonumber(wrong))
        assert.is_true(tonumber(number_of(xmin)) < tonumber(right))
      end)
      number_of("pg_current_xact_id()")
    end)
  end)
end)
