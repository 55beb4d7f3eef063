-- What operators see of a destination that is down.

local outbox = require("outbox")
local shared = require("spec.processor.support")
local support = require("spec.support")
local testing = require("outbox.testing")

describe("a destination that is down", function()
  local store, path, clock, down, errors, p

  before_each(function()
    clock = testing.clock()
    store, path = support.store({ clock = clock, synchronous = "off" })
    down, errors = { a = true }, {}
    p = shared.processor(store, function(_, namespace)
      if down[namespace] then
        error(down[namespace] == true and "no route" or down[namespace], 0)
      end
    end, {}, errors)
    for _, namespace in ipairs({ "a", "b", "c" }) do
      store:publish({ namespace = namespace })
    end
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  -- Steps through so many seconds.
  local function run_for(seconds)
    local ends = clock.time + seconds
    repeat
      local left = ends - clock.time
      local wait = p:step()
      clock.advance(math.min(math.max(wait, 0.001), left))
    until clock.time >= ends
  end

  local function summary_of(namespace, of)
    for _, each in ipairs((of or store):stats({ by_namespace = true }).namespaces) do
      if each.namespace == namespace then
        return each
      end
    end
  end

  local function rows()
    return support.sql(store, "SELECT namespace, down_since FROM outbox_outages ORDER BY namespace")
  end

  it("is among the statistics of the processor, with the next try", function()
    assert.same({}, p:stats().down)
    run_for(60)
    local found = p:stats().down
    assert.equal(1, #found)
    assert.same({ "a", "no route" }, { found[1].namespace, found[1].error })
    assert.is_true(found[1].down_since >= 1000 and found[1].down_since < 1010)
    assert.is_true(found[1].probe_at >= clock.time and found[1].probe_at <= clock.time + 30)
    down = {}
    run_for(31)
    assert.same({}, p:stats().down)
    assert.outbox(store).is_empty()
  end)

  it("is written for others after five seconds, and no more when it is back", function()
    while not p:stats().down[1] do
      run_for(0.01)
    end
    local since = p:stats().down[1].down_since
    run_for(since + 4.9 - clock.time)
    assert.same({}, rows())
    run_for(0.2)
    assert.same({ { namespace = "a", down_since = math.floor(since * 1e6 + 0.5) } }, rows())
    local each = summary_of("a")
    assert.equal("no route", each.error)
    assert.is_true(math.abs(each.down_since - since) < 1e-5)
    assert.is_nil(summary_of("b"))
    down = {}
    run_for(32)
    assert.same({}, rows())
  end)

  it("is written with the reason of the last failure", function()
    run_for(10)
    assert.equal("no route", summary_of("a").error)
    down.a = "no answer"
    run_for(60)
    assert.equal("no answer", summary_of("a").error)
  end)

  it("is not written if it is back before that", function()
    local written = 0
    for _ = 1, 40 do
      run_for(0.1)
      written = written + #rows()
    end
    down = {}
    run_for(60)
    assert.equal(0, written + #rows())
    assert.outbox(store).is_empty()
  end)

  it("is written at most once a second, however many come and go", function()
    local writes = 0
    local note = store.note_outages
    getmetatable(store).__index.note_outages = function(...)
      writes = writes + 1
      return note(...)
    end
    finally(function()
      getmetatable(store).__index.note_outages = note
    end)
    for i = 1, 20 do
      down["n" .. i] = true
      store:publish({ namespace = "n" .. i })
    end
    run_for(60)
    assert.equal(21, #rows())
    local before = writes
    for i = 1, 20 do
      down["n" .. i] = nil
      run_for(0.1)
    end
    assert.is_true(writes - before <= 3, writes - before)
    run_for(40)
    assert.equal(1, #rows())
  end)

  it("is no longer down for others once the processor is gone", function()
    run_for(20)
    assert.is_truthy(summary_of("a").down_since)
    p:stop()
    assert.is_nil(p:step())
    assert.is_nil(summary_of("a").down_since)
    run_for(40) -- it has a claim again from the next try on
    assert.is_truthy(summary_of("a").down_since)
    clock.advance(100) -- as if it had been killed
    local other <close> = outbox.open(path, { clock = clock })
    assert.is_nil(summary_of("a", other).down_since)
    assert.equal(1, #rows())
    down = { b = "broken" }
    local next_one = shared.processor(other, function(_, namespace)
      error(down[namespace] or "still down", 0)
    end, {}, errors)
    other:publish({ namespace = "b" })
    p = next_one
    run_for(60)
    assert.same({ "still down", "broken" }, { summary_of("a").error, summary_of("b").error })
    assert.equal(2, #rows())
    p:stop()
    p:step()
  end)

  it("is not one that fails one message among others", function()
    down = { a = nil }
    for i = 1, 100 do
      store:publish({ namespace = "a", key = tostring(i) })
    end
    local calls = 0
    p = shared.processor(store, function(messages)
      calls = calls + 1
      for _, message in ipairs(messages) do
        if message.key == "1" then
          error("poison")
        end
      end
    end, {}, errors)
    run_for(4)
    assert.same({}, rows())
    assert.is_true(calls > 3)
  end)
end)
