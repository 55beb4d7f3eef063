local cjson = require("cjson")
local command = require("spec.support.command")
local outbox = require("outbox")
local support = require("spec.support")

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
    assert.matches("\nleases +1\n$", text)
  end)

  it("counts in JSON", function()
    local stats = cjson.decode(succeed("stats " .. path .. " --json"))
    assert.same({ 1, 2, 1, 1, 4, "worker" }, { stats.ready, stats.delayed, stats.dead,
      stats.retries, stats.last_seq, stats.leases[1].processor_id })
    assert.matches("^20%d%d%-.*Z$", stats.due_at)
    store:release_claim("worker")
    assert.matches('"leases":%[%]', succeed("stats " .. path .. " --json"))
  end)

  it("counts for Prometheus", function()
    local text = succeed("stats " .. path .. " --prometheus")
    local values, names = {}, 0
    for line in text:gmatch("[^\n]+") do
      if not line:find("^#") then
        local name, database, value =
          line:match('^([%l_]+){database="(.-)",prefix="outbox_"} (%S+)$')
        assert.equal(path, database, line)
        values[name], names = tonumber(value), names + 1
        local kind = name:find("_total$") and "counter" or "gauge"
        assert.matches(("# HELP %s %%u[^\n]*%%.\n# TYPE %s %s\n%s{"):format(name, name, kind,
          name), text)
      end
    end
    assert.equal(names * 3, select(2, text:gsub("\n", "")))
    assert.is_true(values.outbox_oldest_age_seconds >= 0)
    values.outbox_oldest_age_seconds = nil
    assert.same({ outbox_ready_entries = 1, outbox_delayed_entries = 2, outbox_retry_entries = 1,
      outbox_dead_entries = 1, outbox_overdue_seconds = 0, outbox_leases = 1,
      outbox_arrived_total = 4, outbox_departed_total = 2 }, values)
  end)

  it("tells Prometheus how long a due entry has waited for a processor", function()
    local earlier <close> = outbox.open(path, { clock = function()
      return outbox.clock.now() - 900
    end })
    earlier:publish({ deliver_at = outbox.clock.now() - 600 })
    local text = succeed("stats " .. path .. " --prometheus")
    assert.matches("\noutbox_overdue_seconds{[^}]+} 60%d", text)
  end)

  it("quotes the labels for Prometheus", function()
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

  it("lists the leases", function()
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
    assert.matches("\nlane1 .- a,b\\n +64/64 +5%-6\n", text)
    assert.matches("\nlane2 .- all but a,b\\n,c +64/64 +%d+,%d+\n", text)
    local leases = json_lines(succeed("leases " .. path .. " --json"))
    assert.same({ "a", "b\n" }, leases[1].namespaces)
    assert.same({ except = { "a", "b\n", "c" } }, leases[2].namespaces)
  end)
end)
