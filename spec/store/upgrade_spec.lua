-- Databases that older versions wrote: spec/fixtures/<version>/<name>.db. spec/fixtures/make.lua
-- wrote them with the entries in contents.lua.

local contents = require("spec.fixtures.contents")
local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")

local describe = support.only("sqlite", describe)

local ALIVE = contents.LEASES[2].processor_id

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read("a")
end

local function copy(path)
  local target = support.path()
  local file <close> = assert(io.open(target, "wb"))
  file:write(read(path))
  return target
end

local function is_alive(entry)
  return entry.LEASE == ALIVE
end

local function of_id(entries)
  local result = {}
  for _, entry in ipairs(entries) do
    result[entry.id] = entry
  end
  return result
end

-- The entries of contents.lua for which `chosen` returns true, as they must be read under a new
-- claim: in their order and at their places. What was in hand is forgotten.
local function as_claimed(chosen)
  local list = {}
  for _, entry in ipairs(contents.ENTRIES) do
    if entry.seq and not entry.died_at and chosen(entry) then
      list[#list + 1] = { id = entry.id, namespace = entry.namespace, key = entry.key,
        payload = entry.payload, headers = entry.headers, created_at = entry.created_at,
        attempts = entry.attempts, last_error = entry.last_error, seq = entry.seq }
    end
  end
  return list
end

local function describe_file(file, version, name)
  local prefix, exclusive = contents.PREFIXES[name], name == "exclusive"

  -- Waits for a retry of its key.
  local WAITS = { ["id-9"] = true, ["id-10"] = true, ["id-17"] = true }

  describe("the database " .. file .. ", when it is migrated,", function()
    local path, clock, store

    -- Three processes migrate the database at once; then this one does again.
    before_each(function()
      path, clock = copy(file), support.clock(contents.NOW)
      local gate, children = process.gate(), {}
      for i = 1, 2 do
        children[i] = process.fork(function()
          gate:wait()
          local other <close> = outbox.open(path, { prefix = prefix })
          other:migrate()
        end)
      end
      gate:open()
      store = outbox.open(path, { prefix = prefix, clock = clock })
      store:migrate()
      for _, child in ipairs(children) do
        assert.equal(0, process.wait(child))
      end
      store:migrate()
    end)

    after_each(function()
      store:close()
      support.remove()
    end)

    local function check_contents(expected)
      assert.same(expected.ready, store:ready_entries())
      assert.same(expected.delayed, store:delayed_entries())
      assert.same(expected.dead, store:dead_entries())
    end

    it("keeps every entry, its state and its place, byte for byte", function()
      local expected = contents.expected(version, name)
      check_contents(expected)
      local stats, retries = store:stats(), 0
      for _, entry in ipairs(contents.ENTRIES) do
        retries = retries + (entry.seq and entry.due_at and 1 or 0)
      end
      assert.same({ #expected.ready, #expected.delayed, #expected.dead, retries,
        contents.LAST_SEQ }, { stats.ready, stats.delayed, stats.dead, stats.retries,
        stats.last_seq })
    end)

    it("keeps the leases, and forgets what they name as in hand", function()
      local expected, leases = contents.expected(version, name).leases, store:stats().leases
      assert.equal(#expected, #leases)
      for i, lease in ipairs(expected) do
        for field, value in pairs(lease) do
          assert.equal(value, leases[i][field])
        end
        assert.is_nil(leases[i].held)
      end
    end)

    it("finds each entry by its id, the twin of a dead letter too", function()
      for _, entry in ipairs(contents.ENTRIES) do
        local found = store:find_entries(entry.id)
        assert.equal(entry.id == "twin" and 2 or 1, #found)
        for _, each in ipairs(found) do
          assert.equal(entry.id, each.id)
        end
      end
    end)

    it("refuses each of its ids when it is published again", function()
      local expected = contents.expected(version, name)
      for _, entry in ipairs(contents.ENTRIES) do
        local problem = support.raised(store.publish, store, { id = entry.id })
        assert.equal("duplicate", problem.code)
      end
      check_contents(expected)
    end)

    it("gives no place in the order twice", function()
      store:publish({ id = "new" })
      assert.equal(contents.LAST_SEQ + 1, store:find_entries("new")[1].seq)
    end)

    local function describe_exclusive_claim()
      it("keeps everything from others, even later entries, until the deadline", function()
        local expected = contents.ids(function(entry)
          return not entry.due_at and not WAITS[entry.id]
        end)
        store:publish({ id = "later" })
        expected[#expected + 1] = "later"
        for _, time in ipairs({ contents.NOW, contents.NOW + 100 }) do
          clock.time = time
          assert.is_false(store:claim_entries("other", time + 60))
          assert.same({}, store:get_claimed_entries("other", 100))
          assert.same(expected, support.pluck(store:get_claimed_entries(ALIVE, 100), "id"))
        end
      end)

      it("gives everything to others when the exclusive claim has lapsed", function()
        clock.time = contents.FOREVER + 1
        assert.same({}, store:get_claimed_entries(ALIVE, 100))
        assert.is_true(store:claim_entries("other", clock.time + 60))
        local entries = of_id(store:get_claimed_entries("other", 100))
        for _, entry in ipairs(contents.ENTRIES) do
          if not entry.died_at then
            assert.equal(entry.attempts, entries[entry.id].attempts)
          end
        end
      end)
    end

    local function describe_claims()
      it("keeps the entries of the live lease from others until its deadline has passed", function()
        for _, time in ipairs({ contents.NOW, contents.FOREVER }) do
          clock.time = time
          store:claim_entries("other", time + 60)
          for _, entry in ipairs(store:get_claimed_entries("other", 100)) do
            assert.not_equal("alive", entry.namespace)
            assert.not_equal("Größe", entry.namespace)
          end
          local own = support.pluck(store:get_claimed_entries(ALIVE, 100), "id")
          assert.same(contents.ids(function(entry)
            return is_alive(entry) and (entry.seq ~= 9 or time > contents.DUE)
              or entry.seq == 8 and time > contents.DUE
          end), own)
        end
        clock.time = contents.FOREVER + 1
        assert.same({}, store:get_claimed_entries(ALIVE, 100))
        assert.is_true(store:claim_entries("other", clock.time + 60))
        local entries = of_id(store:get_claimed_entries("other", 100))
        for _, entry in ipairs(as_claimed(is_alive)) do
          assert.same(entry, entries[entry.id])
        end
      end)

      it("lets the holder of the live lease go on, and renew it", function()
        local entries = store:get_claimed_entries(ALIVE, 100)
        assert.same({ 6, 7 }, support.pluck(entries, "seq"))
        assert.same({ 0, 3 }, support.pluck(entries, "attempts"))
        assert.is_true(store:renew_claim(ALIVE, contents.FOREVER + 10))
        clock.time = contents.FOREVER + 10
        assert.same({ 6, 7, 8, 9 }, support.pluck(store:get_claimed_entries(ALIVE, 100), "seq"))
      end)

      it("gives what lies under the lapsed lease to others, uncharged", function()
        assert.is_true(store:claim_entries("other", contents.NOW + 60))
        assert.same(as_claimed(function(entry)
          return not is_alive(entry) and not entry.due_at and not WAITS[entry.id]
        end), store:get_claimed_entries("other", 100))
      end)

      it("gives out retries at their places and puts scheduled messages last", function()
        clock.time = contents.DUE
        store:claim_entries("other", clock.time + 60)
        local expected = contents.ids(function(entry)
          return not is_alive(entry) and entry.seq ~= 8 and entry.seq ~= 10
        end)
        expected[#expected + 1] = "id-s2"
        assert.same(expected, support.pluck(store:get_claimed_entries("other", 100), "id"))
        local first = store:find_entries("id-2")[1] -- id-10 and id-s1 wait for it
        assert.same(contents.ids(function(entry)
          return is_alive(entry) or entry.seq == 8
        end), support.pluck(store:get_claimed_entries(ALIVE, 100), "id"))
        local before = of_id(contents.expected(version, name).delayed)
        for _, processor_id in ipairs({ "other", ALIVE }) do
          for _, entry in ipairs(store:get_claimed_entries(processor_id, 100)) do
            local delayed = before[entry.id]
            if delayed then
              entry.due_at, entry.seq = delayed.due_at, delayed.seq
              assert.same(delayed, entry)
            end
          end
        end
        assert.is_true(store:bury_entry(first.id))
        local left = support.pluck(store:get_claimed_entries("other", 100), "id")
        assert.same({ "id-s2", "id-s1" }, { table.unpack(left, #left - 1) })
      end)
    end

    it("lets dead letters be requeued, and purged", function()
      local dead = contents.expected(version, name).dead
      assert.equal("duplicate", support.raised(store.requeue_entries, store, "twin").code)
      store:delete_entries("twin") -- the ready entry with this id
      assert.equal(2, store:requeue_entries("twin", "id-14"))
      for i = 1, 2 do
        dead[i].seq, dead[i].attempts, dead[i].died_at = contents.LAST_SEQ + i, 0, nil
        assert.same({ dead[i] }, store:find_entries(dead[i].id))
      end
      assert.equal(1, store:purge_entries("id-15"))
      assert.same({}, store:dead_entries())
    end)

    -- Delivers everything that a processor can claim and that is due. Returns the messages.
    local function deliver(ordering)
      local messages = {}
      local processor = outbox.processor({ store = store, ordering = ordering,
        publisher = function(batch)
          table.move(batch, 1, #batch, #messages + 1, messages)
        end })
      processor:pump()
      return messages
    end

    local function check_delivered(expected, messages)
      local ids = support.pluck(messages, "id")
      table.sort(ids)
      table.sort(expected)
      assert.same(expected, ids)
    end

    -- Checks that everything was delivered unchanged and, if `ordered`, messages with a key in
    -- their order.
    local function check_all_delivered(messages, ordered)
      local places, last, delivered = { ["id-s2"] = 101, ["id-s1"] = 102 }, {}, of_id(messages)
      for _, entry in ipairs(contents.ENTRIES) do
        if not entry.died_at then
          places[entry.id] = entry.seq or places[entry.id]
          local message = delivered[entry.id]
          assert.same({ entry.namespace, entry.key, entry.payload, entry.headers },
            { message.namespace, message.key, message.payload, message.headers })
        end
      end
      for _, message in ipairs(messages) do
        if message.key and ordered then
          local line = ("%s\0\0%s"):format(message.namespace, message.key)
          assert.is_true(places[message.id] > (last[line] or 0))
          last[line] = places[message.id]
        end
      end
      assert.equal(#contents.ENTRIES - 3, #messages)
      assert.same({ 0, 0 }, { store:stats().ready, store:stats().delayed })
      assert.same(contents.expected(version, name).dead, store:dead_entries())
    end

    if exclusive then
      describe_exclusive_claim()
    else
      describe_claims()

      it("is delivered by no processor while the live lease lasts", function()
        assert.same({}, deliver("none"))
        check_contents(contents.expected(version, name))
      end)
    end

    it("is delivered in order per key as entries fall due", function()
      store:release_claim(ALIVE)
      local messages = deliver()
      check_delivered(contents.ids(function(entry)
        return not entry.due_at and not WAITS[entry.id]
      end), messages)
      clock.time = contents.DUE
      table.move(deliver(), 1, 100, #messages + 1, messages)
      check_all_delivered(messages, true)
    end)

    it("is delivered in order when the live lease has lapsed, too", function()
      clock.time = contents.FOREVER + 1
      check_all_delivered(deliver(), true)
    end)
  end)

  it("the database " .. file .. " is left unchanged after a newer version migrated it", function()
    local path = copy(file)
    local store = outbox.open(path, { prefix = prefix })
    support.sql(store, ("UPDATE %sschema SET version = 1000"):format(prefix))
    store:close()
    local before = read(path)
    store = outbox.open(path, { prefix = prefix })
    for _ = 1, 2 do
      assert.equal("newer", support.raised(store.migrate, store).code)
    end
    assert.equal("newer", support.raised(store.publish, store, {}).code)
    assert.equal("newer", support.raised(store.claim_entries, store, "p", contents.NOW).code)
    store:close()
    assert.is_true(before == read(path))
    support.remove()
  end)
end

local pipe = assert(io.popen("ls spec/fixtures/*/*.db"))
for file in pipe:lines() do
  local version, name = file:match("([^/]+)/([^/]+)%.db$")
  assert(contents.PREFIXES[name], file)
  describe_file(file, version, name)
end
pipe:close()
