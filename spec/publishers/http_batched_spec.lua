local basexx = require("basexx")
local cjson = require("cjson")
local server = require("spec.support.server")
local support = require("spec.support")
local webhook = require("spec.support.webhook")

local answer, event, events = webhook.answer, webhook.event, webhook.events
local forget_requests, processor = webhook.forget_requests, webhook.processor
local publish, reasons, store_with = webhook.publish, webhook.reasons, webhook.store_with

describe("the http publisher in batched mode", function()
  setup(webhook.start)

  teardown(server.stop)

  before_each(webhook.reset)

  after_each(support.remove)

  local function batch(list, options)
    options = options or {}
    options.mode = "batched"
    local failures, reason, made = publish(list, options)
    return failures, reason, made
  end

  it("makes the batch a JSON array", function()
    local failures, _, made = batch({
      event("1", { payload = '{"n": 12345678901234567890}' }),
      event("2", { payload = "text é" }),
      event("3", { payload = "\0\xff" }),
      event("4", { payload = "{", headers = { ["content-type"] = "application/x+json; a=b" } }),
      event("5\xff", { key = "k", headers = { a = "é" } }),
      event("6", { payload = "1", headers = { ["content-type"] = "Application/JSON" } }),
    })
    assert.same({}, failures)
    assert.equal(1, #made)
    assert.equal("application/cloudevents-batch+json; charset=UTF-8",
      made[1].headers["content-type"])
    assert.matches('"data":{"n": 12345678901234567890}', made[1].body, 1, true)
    local list = cjson.decode(made[1].body)
    assert.equal("text é", list[2].data)
    assert.equal("AP8=", list[3].data_base64)
    assert.equal("ew==", list[4].data_base64)
    assert.same({ specversion = "1.0", id = "5%FF", source = "/outbox", type = "outbox.orders",
      time = "2023-11-14T22:13:20.500000Z", subject = "k", partitionkey = "k", a = "é" }, list[5])
    assert.equal(1, list[6].data)
  end)

  it("accepts as JSON only what the standard allows", function()
    local list, odd = {}, { '["a\nb"]', '["\\\\","\1"]', "[1]\0", "[1.]", "[-.5]", "[1.e5]",
      "[01]", "[0x1]", "[NaN]", "[-Infinity]", "[1,]", "[1]//", "[1] 2", "['a']" }
    for i, payload in ipairs(odd) do
      list[i] = event(tostring(i), { payload = payload })
      list[#odd + i] = event("json", { payload = payload,
        headers = { ["content-type"] = "application/json" } })
    end
    local json = '{"1.\\"":\t"\\\\\127é",\r\n"-.5": [-1.5E+3, 0.25]}'
    list[#list + 1] = event("last", { payload = json })
    local _, _, made = batch(list)
    assert.matches('"data":' .. json .. "}]", made[1].body, 1, true)
    local found = cjson.decode(made[1].body)
    for i, payload in ipairs(odd) do
      assert.equal(payload, found[i].data)
      assert.equal(basexx.to_base64(payload), found[#odd + i].data_base64)
    end
  end)

  it("finds a refused message by halves, and charges no other", function()
    answer({ ["3"] = { status = 422, body = "no such order" }, ["8"] = { status = 400 } })
    local failures, _, made = batch(events(16))
    assert.same({ [3] = "422 Unprocessable Entity no such order", [8] = "400 Bad Request" },
      reasons(failures, "permanent"))
    assert.is_true(#made <= 13, #made)
    local delivered = {}
    for _, request in ipairs(made) do
      if not request.body:find('"id":"[38]"') then
        for _, one in ipairs(cjson.decode(request.body)) do
          delivered[#delivered + 1] = one.id
        end
      end
    end
    assert.equal("1 2 4 5 6 7 9 10 11 12 13 14 15 16", table.concat(delivered, " "))
  end)

  it("keeps the types of headers that CloudEvents has", function()
    local _, _, made = batch({ event("1", { headers = {
      tenant = 7.0, flag = true, large = 2147483648, text = "7", subject = 8, list = { 1 },
    } }), event("2", { headers = '{"a":}' }) })
    local first, second = table.unpack(cjson.decode(made[1].body))
    assert.same({ 7, true, "2147483648", "7", "8", nil },
      { first.tenant, first.flag, first.large, first.text, first.subject, first.list })
    assert.matches('"tenant":7[,}]', made[1].body)
    assert.equal('{"a":}', second.headers)
  end)

  it("reports any other failure as an outage if nothing got through", function()
    for status, name in pairs({ [503] = "503 Service Unavailable", [408] = "408 Request Timeout",
      [500] = "500 Internal Server Error", [301] = "301 Moved Permanently",
      [404] = "404 Not Found" }) do
      answer({ ["*"] = { status = status } })
      forget_requests()
      local failures, reason, made = batch(events(4))
      assert.same({ nil, name, 1 }, { failures, reason, #made })
    end
  end)

  it("counts no attempt for messages that were not sent", function()
    for _, status in ipairs({ 404, 503 }) do
      answer({ ["1"] = { status = 400 }, ["3"] = { status = status } })
      local failures = batch(events(8))
      assert.is_true(failures[1].permanent)
      assert.is_nil(failures[2])
      for i = 3, 8 do
        assert.is_true(failures[i].uncharged)
        assert.is_falsy(failures[i].permanent)
      end
    end
  end)

  it("delivers, buries and charges as it should", function()
    local store <close> = store_with({ id = "1" }, { id = "2" }, { id = "3" })
    answer({ ["2"] = { status = 400 } })
    processor(store, { mode = "batched" }):pump()
    assert.outbox(store).has_dead_entry({ id = "2", last_error = "400 Bad Request" })
    assert.outbox(store).has_entries(0)
    answer({ ["4"] = { status = 425 } })
    store:publish({ id = "4" })
    processor(store, { mode = "batched" }):pump()
    assert.outbox(store).has_entry({ id = "4", attempts = 1 })
  end)
end)
