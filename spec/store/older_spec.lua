-- A process that has loaded outbox 0.1.0 goes on running while the tables are migrated: it looked
-- at their version when it began. Its publishers go on, its processors are told to restart.

local outbox = require("outbox")
local support = require("spec.support")

local describe = support.only("sqlite", describe)

local NEWER = "these tables are from a newer outbox: restart this process with it"

-- The SQL of 0.1.0, word for word.
local COLUMNS = "id, namespace, key, payload, headers, created_at"
local ENTRY = COLUMNS .. ", attempts, last_error"
local PUBLISH = "INSERT INTO outbox_entries (" .. COLUMNS .. ") VALUES (?, ?, ?, ?, ?, ?)"
local SCHEDULE = "INSERT INTO outbox_delayed (" .. COLUMNS .. ", due_at) VALUES (?1, ?2, ?3, ?4,"
  .. " ?5, ?6, ?7)"
local FIND_ID = "SELECT EXISTS (SELECT 1 FROM outbox_entries WHERE id = ?1) OR EXISTS (SELECT 1"
  .. " FROM outbox_delayed WHERE id = ?1) OR EXISTS (SELECT 1 FROM outbox_dead WHERE id = ?1)"
  .. " AS found"
local FIND_WORK = "SELECT EXISTS (SELECT 1 FROM outbox_entries) OR EXISTS (SELECT 1 FROM"
  .. " outbox_leases) OR EXISTS (SELECT 1 FROM outbox_delayed WHERE due_at <= ?1) AS work"
local SELECT_DUE = "SELECT seq, position FROM outbox_delayed WHERE due_at <= ?1 ORDER BY due_at,"
  .. " seq LIMIT ?2"
local RESTORE_DUE = "INSERT OR IGNORE INTO outbox_entries (seq, " .. ENTRY .. ") SELECT position,"
  .. " CASE WHEN EXISTS (SELECT 1 FROM outbox_entries WHERE id = d.id) THEN d.id || '~' ||"
  .. " coalesce(position, seq) ELSE d.id END, namespace, key, payload, headers, created_at,"
  .. " attempts, last_error FROM outbox_delayed AS d WHERE seq = ?1"
local DELETE_DUE = "DELETE FROM outbox_delayed WHERE seq = ?1"
local SELECT_LEASES = "SELECT first_seq, last_seq, processor_id, deadline, claimed_at, batch FROM"
  .. " outbox_leases ORDER BY first_seq"
local INSERT_LEASE = "INSERT INTO outbox_leases (first_seq, last_seq, processor_id, deadline,"
  .. " claimed_at) VALUES (?1, ?2, ?3, ?4, ?5)"
local RENEW = "UPDATE outbox_leases SET deadline = ?2, claimed_at = ?3, batch = NULL WHERE"
  .. " processor_id = ?1"
local BEAT = "UPDATE outbox_leases SET deadline = deadline + ?2, claimed_at = claimed_at + ?2 WHERE"
  .. " processor_id = ?1"
local HOLD = "UPDATE outbox_leases SET batch = ?2 WHERE processor_id = ?1"
local RELEASE = "DELETE FROM outbox_leases WHERE processor_id = ?1"
local SELECT_CLAIMED = "SELECT seq, " .. ENTRY .. ", 0, 0, 0 FROM outbox_leases AS l CROSS JOIN"
  .. " outbox_entries AS e ON e.seq BETWEEN l.first_seq AND l.last_seq WHERE l.processor_id = ?1"
  .. " AND l.deadline >= ?2 ORDER BY l.first_seq, e.seq LIMIT ?3"
local DELETE_READY = "DELETE FROM outbox_entries WHERE id = ?1"
local DELAY = "INSERT INTO outbox_delayed (" .. ENTRY .. ", due_at, position) SELECT CASE WHEN"
  .. " EXISTS (SELECT 1 FROM outbox_delayed WHERE id = ?1) THEN id || '~' || seq ELSE id END,"
  .. " namespace, key, payload, headers, created_at, attempts + (?2 IS NOT NULL), coalesce(?2,"
  .. " last_error), ?3, seq FROM outbox_entries WHERE id = ?1"

describe("a process of 0.1.0 on tables that were migrated", function()
  local store, path, other, clock

  before_each(function()
    path = support.path()
    local from <close> = assert(io.open("spec/fixtures/0.1.0/default.db", "rb"))
    local to <close> = assert(io.open(path, "wb"))
    to:write(from:read("a"))
    to:close()
    clock = support.clock(5000000000) -- its leases have lapsed, and everything is due
    store = outbox.open(path, { clock = clock })
    store:migrate()
    other = outbox.open(path)
  end)

  after_each(function()
    other:close()
    store:close()
    support.remove()
  end)

  local function run(sql, ...)
    local values = table.pack(...)
    return other:transaction(function(txn)
      return txn:execute(sql, table.unpack(values, 1, values.n))
    end)
  end

  it("publishes, and schedules", function()
    assert.equal(0, support.sql(other, FIND_ID, "new")[1].found)
    run(PUBLISH, "new", "n", "k", outbox.blob("p"), nil, 1)
    run(SCHEDULE, "later", "n", nil, outbox.blob("p"), '{"h":"1"}', 1, 2)
    assert.equal(1, support.sql(other, FIND_ID, "later")[1].found)
    assert.equal(1, #store:find_entries("new"))
    assert.is_true(store:claim_entries("p", clock.time + 10))
    assert.equal("1", store:find_entries("later")[1].headers.h)
  end)

  it("is told to restart when it claims, and changes nothing", function()
    local before = store:stats()
    assert.equal(1, support.sql(other, FIND_WORK, 5e15)[1].work)
    local ok, problem = pcall(other.transaction, other, function(txn)
      for row in txn:rows(SELECT_LEASES) do
        error(row)
      end
      local due = {}
      for row in txn:rows(SELECT_DUE, 5e15, 1000) do
        due[#due + 1] = row.seq
      end
      assert.is_true(#due > 0)
      for _, seq in ipairs(due) do
        txn:execute(RESTORE_DUE, seq)
        txn:execute(DELETE_DUE, seq)
      end
      txn:execute(INSERT_LEASE, 1, math.maxinteger, "old", math.maxinteger, 1)
    end)
    assert.is_false(ok)
    assert.matches(NEWER, problem.message, 1, true)
    assert.equal("constraint", problem.code)
    assert.same(before, store:stats())
  end)

  it("finds that it has lost the claim that it had, and settles what was in hand", function()
    assert.equal(0, run(RENEW, "al\0ive", 6e15, 1))
    assert.equal(0, run(BEAT, "al\0ive", 1000))
    assert.equal(0, run(HOLD, "al\0ive", "6-6"))
    assert.equal(0, run(RELEASE, "al\0ive"))
    assert.same({}, support.sql(other, SELECT_CLAIMED, "al\0ive", 1, 100))
    run(DELETE_READY, "Größe-6 'quoted'") -- of a view now, so SQLite does not count it
    run(DELAY, "id-7", "no", 6e15)
    run(DELETE_READY, "id-7")
    assert.same({}, store:find_entries("Größe-6 'quoted'"))
    assert.equal(6e9, store:find_entries("id-7")[1].due_at)
    assert.is_true(store:claim_entries("p", clock.time + 10)) -- takes over what lapsed
  end)
end)
