local outbox = require("outbox")
local support = require("spec.support")
local fixture = require("spec.processor.support")

describe("a processor", function()
  local store, path, clock, errors

  before_each(function()
    clock = support.clock(1000)
    store, path = support.store({ clock = clock })
    errors = {}
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  -- How a publisher answers for messages of which the second is bad.
  local ANSWERS = {
    ["was delivered"] = function() end,
    ["failed"] = function()
      return { [2] = "refused" }
    end,
    ["failed for good"] = function()
      return { [2] = { reason = "refused", permanent = true } }
    end,
    ["was put off"] = function()
      return { [2] = { reason = "later", uncharged = true, retry_after = 60 } }
    end,
  }

  for what, answer in pairs(ANSWERS) do
    it("leaves alone what took the id of an entry that " .. what, function()
      store:publish({ id = "1" }, { id = "2", payload = "old" }, { id = "3" })
      local got = {}
      local p = fixture.processor(store, function(messages)
        for _, message in ipairs(messages) do
          got[#got + 1] = message.payload
        end
        if #got == 1 then
          local other <close> = outbox.open(path)
          support.sql(other, "DELETE FROM outbox_entries WHERE id = '2'")
          support.sql(other, "INSERT INTO outbox_entries (id, payload) VALUES ('2', 'new')")
          return answer()
        end
      end, {}, errors)
      p:pump()
      assert.same({ "old", "new" }, got)
      assert.same({}, errors)
      local stats = store:stats()
      assert.same({ 0, 0, 0 }, { stats.ready, stats.delayed, stats.dead })
    end)
  end

  it("does not suspect what took the id of an entry that made the publisher raise", function()
    store:publish({ id = "1" })
    local p = fixture.processor(store, function(messages)
      for _, message in ipairs(messages) do
        if message.id == "1" then
          error("no")
        end
      end
    end, {}, errors)
    p:pump()
    assert.equal(1, store:stats().delayed)
    support.sql(store, "DELETE FROM outbox_delayed")
    store:publish({ id = "0" }, { id = "1" })
    for _ = 1, 3 do -- both are tried together, and each alone; three failures take a rest
      clock.time = clock.time + 60
      p:pump()
    end
    assert.equal(1, p:stats().delivered)
    assert.equal(0, store:find_entries("1")[1].attempts)
    assert.equal(0, p:stats().retried)
  end)
end)
