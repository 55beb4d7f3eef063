local cjson = require("cjson")
local command = require("spec.support.command")
local outbox = require("outbox")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

local json_lines, run, succeed = command.json_lines, command.run, command.succeed

describe("outbox stats", function()
  local store, path

  before_each(function()
    store, path = support.store()
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function publish(...)
    command.publish(store, ...)
  end

  before_each(function()
    publish("a", "b", "c", "d")
    store:retry_entry("a", outbox.clock.now() + 500, "busy")
    store:publish({ deliver_at = outbox.clock.now() + 400 })
    store:bury_entry("b")
    store:delete_entries("c")
    store:claim_entries("worker", outbox.clock.now() + 1000)
  end)

  it("counts for people", function()
    local text = succeed("stats " .. path)
    assert.matches("^ready +1  oldest %d%.%d s\n", text)
    assert.matches("\ndelayed +2  1 retries, next due in %d min\n", text)
    assert.matches("\ndead +1\n", text)
    assert.matches("\nleases +1\n\nNAMESPACE +READY +DELAYED +DEAD +OLDEST +STATE\n", text)
    assert.matches('\n"" +1 +2 +1 +%d%.%d s +%-\n$', text)
  end)

  it("counts in JSON", function()
    local stats = cjson.decode(succeed("stats " .. path .. " --json"))
    assert.same({ 1, 2, 1, 1, store:stats().last_seq, "worker" }, { stats.ready,
      stats.delayed, stats.dead, stats.retries, stats.last_seq, stats.leases[1].processor_id })
    assert.matches("^20%d%d%-.*Z$", stats.due_at)
    store:release_claim("worker")
    assert.matches('"leases":%[%]', succeed("stats " .. path .. " --json"))
  end)

  it("counts for Prometheus", function()
    local text = succeed("stats " .. path .. " --prometheus")
    local values, names, arrived = {}, 0, store:stats().last_seq
    for line in text:gmatch("[^\n]+") do
      if not line:find("^#") and not line:find("namespace=", 1, true) then
        local name, database, value =
          line:match('^([%l_]+){database="(.-)",prefix="outbox_"} (%S+)$')
        assert.equal(path, database, line)
        values[name], names = tonumber(value), names + 1
        local kind = name:find("_total$") and "counter" or "gauge"
        assert.matches(("# HELP %s %%u[^\n]*%%.\n# TYPE %s %s\n%s{"):format(name, name, kind,
          name), text)
      end
    end
    assert.equal((names + 7) * 3, select(2, text:gsub("\n", "")))
    assert.is_true(values.outbox_oldest_age_seconds >= 0)
    values.outbox_oldest_age_seconds = nil
    assert.same({ outbox_ready_entries = 1, outbox_delayed_entries = 2, outbox_retry_entries = 1,
      outbox_dead_entries = 1, outbox_overdue_seconds = 0, outbox_leases = 1,
      outbox_arrived_total = arrived, outbox_departed_total = arrived - 2 }, values)
  end)

  it("tells Prometheus how long a due entry has waited for a processor", function()
    local earlier <close> = outbox.open(path, { clock = function()
      return outbox.clock.now() - 900
    end })
    earlier:publish({ deliver_at = outbox.clock.now() - 600 })
    local text = succeed("stats " .. path .. " --prometheus")
    assert.matches("\noutbox_overdue_seconds{[^}]+} 60%d", text)
  end)

  -- Namespaces in all states: what is down was written by a processor.
  local function fill_namespaces()
    store:release_claim("worker")
    for _, namespace in ipairs({ "down", "paused", "alone", "well", 'odd"\n' }) do
      store:publish({ namespace = namespace }, { namespace = namespace })
    end
    store:pause("paused")
    store:pause("empty")
    local lane = outbox.open(path)
    lane:serve({ processor_id = "lane", namespaces = { "down", "well", 'odd"\n', "" },
      ordering = "key", duration = 60 })
    lane:advance(nil, { batch_size = 1 })
    lane:note_outages({ { namespace = "down", down_since = outbox.clock.now() - 300,
      error = "refused\n" } })
    return lane
  end

  it("counts by namespace for people, and says what is wrong", function()
    local lane <close> = fill_namespaces() -- luacheck: no unused
    local lines = {}
    for line in succeed("stats " .. path):match("\nNAMESPACE.-\n(.*)"):gmatch("[^\n]+") do
      lines[#lines + 1] = line:gsub(" %d%.%d s", " N"):gsub(" +", " ")
    end
    assert.same({
      '"" 1 2 1 N -',
      "alone 2 0 0 N no processor serves it",
      "down 2 0 0 N down for 5 min: refused\\n",
      "empty 0 0 0 - paused for N",
      'odd"\\n 2 0 0 N -',
      "paused 2 0 0 - paused for N",
      "well 2 0 0 N -",
    }, lines)
    store:resume("paused")
    assert.matches("\npaused .* no processor serves it\n", succeed("stats " .. path))
  end)

  it("counts by namespace in JSON", function()
    local lane <close> = fill_namespaces() -- luacheck: no unused
    local found = cjson.decode(succeed("stats " .. path .. " --json")).namespaces
    local of = {}
    for _, each in ipairs(found) do
      of[each.namespace] = each
    end
    assert.same({ "", "alone", "down", "empty", 'odd"\n', "paused", "well" },
      support.pluck(found, "namespace"))
    assert.same({ 1, 2, 1, false }, { of[""].ready, of[""].delayed, of[""].dead, of[""].unserved })
    assert.matches("^20%d%d%-.*Z$", of.down.down_since)
    assert.equal("refused\n", of.down.error)
    assert.matches("^20%d%d%-.*Z$", of.paused.paused_at)
    assert.is_true(of.alone.unserved)
    assert.is_true(of.well.oldest_age < 60)
  end)

  it("counts by namespace for Prometheus", function()
    local lane <close> = fill_namespaces() -- luacheck: no unused
    local text = succeed("stats " .. path .. " --prometheus")
    for line, value in pairs({
      ['namespace_ready_entries{namespace=""}'] = 1,
      ['namespace_delayed_entries{namespace=""}'] = 2,
      ['namespace_dead_entries{namespace=""}'] = 1,
      ['namespace_oldest_age_seconds{namespace="empty"}'] = 0,
      ['namespace_paused{namespace="paused"}'] = 1,
      ['namespace_paused{namespace="well"}'] = 0,
      ['namespace_unserved{namespace="alone"}'] = 1,
      ['namespace_unserved{namespace="odd\\"\\n"}'] = 0,
      ['destination_down{namespace="down"}'] = 1,
      ['destination_down{namespace="well"}'] = 0,
    }) do
      local labels = ('{database="%s",prefix="outbox_",'):format(path):gsub("%%", "%%%%")
      local wanted = ("\noutbox_%s %d\n"):format((line:gsub("{", labels)), value)
      assert.is_truthy(text:find(wanted, 1, true), wanted .. text)
    end
    for name in text:gmatch("# TYPE (%S+)") do
      assert.equal(1, select(2, text:gsub("# HELP " .. name .. " ", "")))
    end
  end)

  sqlite_it("quotes the labels for Prometheus", function()
    local directory = support.path()
    os.remove(directory)
    assert(os.execute(("mkdir '%s'; mkdir '%s/a\"b\\\nc'"):format(directory, directory)))
    finally(function()
      os.execute(("rm -r '%s'"):format(directory))
    end)
    local name = directory .. '/a"b\\\nc/db'
    assert.equal(0, select(2, run(("migrate '%s'"):format(name))))
    assert.is_truthy(succeed(("stats '%s' --prometheus"):format(name))
      :find('/a\\"b\\\\\\nc/db",prefix="outbox_"} 0\n', 1, true))
  end)

  it("calls a namespace unserved only if something of it is due", function()
    store:release_claim("worker")
    store:publish({ namespace = "later", deliver_at = outbox.clock.now() + 1000 },
      { namespace = "now", deliver_at = outbox.clock.now() - 1000 })
    support.sql(store, "INSERT INTO outbox_delayed (id, namespace, created_at, due_at)"
      .. " VALUES ('x', 'past', 1, 2)")
    local text = succeed("stats " .. path)
    assert.matches("\nlater .* %-\n", text)
    assert.matches("\nnow .* no processor serves it\n", text)
    assert.matches("\npast .* no processor serves it\n?", text)
  end)

  sqlite_it("writes metrics in UTF-8 whatever the names are", function()
    store:publish({ namespace = "\xFF\xFE" })
    local text = succeed("stats " .. path .. " --prometheus")
    assert.is_truthy(utf8.len(text))
    assert.is_truthy(text:find([[namespace="\\xff\\xfe"} 1]], 1, true))
  end)

  sqlite_it("lists the leases", function()
    publish("e")
    store:claim_entries("lapsed", outbox.clock.now() - 1)
    local text = succeed("leases " .. path)
    assert.matches("^PROCESSOR +CLAIMED +DEADLINE +NAMESPACES +SHARE +IN HAND\n", text)
    assert.matches("\nworker +%d%.%d s ago +in %d+ min +all +1%-4 +%-\n", text)
    assert.matches("\nlapsed +%d%.%d s ago +%d.%d s ago +all +5%-5 +%-\n$", text)
    local leases = json_lines(succeed("leases " .. path .. " --json"))
    assert.same({ 1, "worker", 1, 4, 64 }, { leases[1].lease, leases[1].processor_id,
      leases[1].first_seq, leases[1].last_seq, leases[1].classes })
    store:get_claimed_entries("worker", 2, { hold = true })
    assert.matches(" 4\n", succeed("leases " .. path))
    store:release_claim("worker")
    store:release_claim("lapsed")
    assert.equal("", succeed("leases " .. path))
  end)

  it("lists the shares of processors, and what they have in hand", function()
    local names = { { "a", "b\n" }, { "c" } }
    store:release_claim("worker")
    for i = 1, 2 do
      store:publish({ namespace = names[i][1] }, { namespace = "a" }, { namespace = "d" })
      local lane <close> = outbox.open(path)
      lane:serve({ processor_id = "lane" .. i, namespaces = i == 1 and names[1]
        or { "a", "b\n", "c" }, except = i == 2, ordering = "key", duration = 60 })
      lane:advance(nil, { batch_size = 2 })
    end
    local text = succeed("leases " .. path)
    assert.matches("\nlane1 .- a,b\\n +64/64 +%d%-%d\n", text)
    assert.matches("\nlane2 .- all but a,b\\n,c +64/64 +%d+,%d+\n", text)
    local leases = json_lines(succeed("leases " .. path .. " --json"))
    assert.same({ "a", "b\n" }, leases[1].namespaces)
    assert.same({ except = { "a", "b\n", "c" } }, leases[2].namespaces)
  end)
end)
