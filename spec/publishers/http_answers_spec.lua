local outbox = require("outbox")
local server = require("spec.support.server")
local support = require("spec.support")
local webhook = require("spec.support.webhook")

local answer, events, ids_of = webhook.answer, webhook.events, webhook.ids_of
local processor, publish, reasons = webhook.processor, webhook.publish, webhook.reasons
local requests, store_with = webhook.requests, webhook.store_with

describe("the http publisher", function()
  setup(webhook.start)

  teardown(server.stop)

  before_each(webhook.reset)

  after_each(support.remove)

  describe("understands an answer:", function()
    it("refused for good is a dead letter", function()
      answer({ ["1"] = { status = 404, body = ("long "):rep(1000) }, ["2"] = { status = 410 } })
      local failures, _, made = publish(events(3), { concurrency = 1 })
      assert.same({ "404 Not Found " .. ("long "):rep(40):sub(1, -2), "410 Gone" },
        reasons(failures, "permanent"))
      assert.equal("1 2 3", ids_of(made))
    end)

    it("refused for now is a failure", function()
      for status, name in pairs({ [408] = "408 Request Timeout", [425] = "425 Unassigned" }) do
        answer({ ["*"] = { status = status, headers = { ["retry-after"] = "120" } } })
        local failures = publish(events(1))
        assert.same({ name }, reasons(failures, "retry_after"))
        assert.equal(120, failures[1].retry_after)
        assert.is_false(failures[1].permanent)
      end
    end)

    it("a 5xx is a failure if others got through", function()
      answer({ ["2"] = { status = 500, headers = { date = "Sun, 06 Nov 1994 08:49:37 GMT",
        ["retry-after"] = "Sun, 06 Nov 1994 08:50:07 GMT" } } })
      local store <close> = store_with({ id = "1" }, { id = "2" })
      local p = processor(store)
      p:pump()
      assert.outbox(store).has_entry({ id = "2", attempts = 1,
        last_error = "500 Internal Server Error" })
      assert.equal(store:clock().now() + 30, store:delayed_entries()[1].due_at)
    end)

    it("Retry-After may be a date, in any time zone, even without a Date", function()
      answer({ ["2"] = { status = 500, headers = {
        ["retry-after"] = os.date("!%a, %d %b %Y %H:%M:%S GMT", os.time() + 600) } } })
      local output = support.run(([[-e '
        local publisher = require("outbox").publisher("%s")
        local messages = { { id = "1", created_at = 1 }, { id = "2", created_at = 1 } }
        print(publisher:publish(messages, "n")[2].retry_after)']]):format(webhook.url),
        "env TZ=STD0DST,J1/0,J365/25") -- summer all the year
      assert.is_true(tonumber(output) > 0 and tonumber(output) <= 600, output)
    end)

    it("Retry-After counts up to an hour, whatever the answer; a date in the past says nothing",
      function()
        local DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
        for after, wanted in pairs({ ["99999999"] = 3600, ["3601"] = 3600, ["3600"] = 3600,
          ["99999999999999999999"] = 3600, ["Fri, 31 Dec 9999 23:59:59 GMT"] = 3600,
          ["Sun, 06 Nov 1994 08:49:30 GMT"] = "nothing", ["-1"] = "nothing", ["1"] = 1 }) do
          for _, status in ipairs({ 302, 408, 425, 429, 500, 503 }) do
            local headers = { date = DATE, ["retry-after"] = after }
            answer({ ["2"] = { status = status, headers = headers } })
            local failures = publish(events(2), { concurrency = 1 })
            assert.equal(wanted, failures[2].retry_after or "nothing")
          end
        end
      end)

    it("an answer that does not concern the message is an outage", function()
      for _, down in ipairs({ { status = 429 }, { status = 500 }, { status = 503 },
        { status = 401 }, { status = 402 }, { status = 403 }, { status = 404 }, { status = 405 },
        { status = 407 }, { status = 410 }, { status = 421 }, { status = 426 }, { status = 300 },
        { status = 301 }, { status = 302 }, { status = 304 }, { status = 307 }, { status = 308 },
        { status = 600 }, { close = true } }) do
        answer({ ["*"] = down })
        local store <close> = store_with({ id = "1", key = "a" }, { id = "2", key = "b" })
        local p, errors = processor(store)
        p:pump()
        assert.matches(down.status and tostring(down.status) or webhook.instance.authority,
          errors[1])
        assert.outbox(store).has_entry({ id = "1", attempts = 0 })
        assert.outbox(store).has_entry({ id = "2", attempts = 0 })
        answer({})
        store:clock().advance(60)
        p:pump()
        assert.outbox(store).is_empty()
      end
    end)

    it("different answers that do not concern the message are an outage together", function()
      answer({ ["1"] = { status = 301 }, ["2"] = { status = 410 }, ["3"] = { status = 404 },
        ["4"] = { status = 500 }, ["5"] = { status = 426 } })
      local failures, reason = publish(events(5), { concurrency = 1 })
      assert.is_nil(failures)
      assert.equal("301 Moved Permanently", reason)
    end)

    it("a redirect is a failure, and a wrong address a dead letter, if others got through",
      function()
        answer({ ["1"] = { status = 302 }, ["2"] = { status = 410 }, ["3"] = { status = 421 } })
        local failures = publish(events(4), { concurrency = 1 })
        assert.is_falsy(failures[1].permanent)
        assert.is_falsy(failures[1].uncharged)
        assert.is_true(failures[2].permanent)
        assert.is_true(failures[3].permanent)
        assert.is_nil(failures[4])
      end)

    it("redirects and wrong addresses make no dead letter, however long they last", function()
      for _, status in ipairs({ 301, 402, 404, 410, 421, 426 }) do
        for _, mode in ipairs({ "binary", "batched" }) do
          answer({ ["*"] = { status = status } })
          local list = {}
          for i = 1, 12 do
            list[i] = { id = tostring(i) }
          end
          local store <close> = store_with(table.unpack(list))
          local p = processor(store, { mode = mode })
          for _ = 1, 30 do
            p:pump()
            store:clock().advance(60)
          end
          assert.same({ 0, 0 }, { p:stats().dead, p:stats().retried })
          answer({})
          p:pump()
          store:clock().advance(60)
          p:pump()
          assert.outbox(store).is_empty()
        end
      end
    end)

    it("no connection, or no answer in time, is an outage", function()
      local unused = server.port()
      local nobody <close> = outbox.publisher("http://127.0.0.1:" .. unused)
      local failures, reason = nobody:publish(events(1), "")
      assert.is_nil(failures)
      assert.matches(("127.0.0.1:%d: .*Connection refused"):format(unused), reason)
      answer({ ["*"] = { hang = true } })
      failures, reason = publish(events(1), { timeout = 0.05 })
      assert.is_nil(failures)
      assert.matches("timed out", reason)
    end)

    it("messages after a request without an answer are not sent", function()
      answer({ ["2"] = { close = true } })
      local failures, _, made = publish(events(4), { concurrency = 1 })
      assert.equal("1 2", ids_of(made))
      assert.is_nil(failures[1])
      for i = 2, 4 do
        assert.is_true(failures[i].uncharged)
      end
    end)

    it("an outage delivers all in the end, and retries nothing", function()
      local list = {}
      for i = 1, 10 do
        list[i] = { id = tostring(i) }
      end
      local store <close> = store_with(table.unpack(list))
      answer({ ["4"] = { status = 429 } })
      local p = processor(store)
      p:pump()
      assert.outbox(store).has_entry({ id = "4", attempts = 0,
        last_error = "429 Too Many Requests" })
      answer({})
      store:clock().advance(60)
      p:pump()
      assert.outbox(store).is_empty()
      assert.same({ 10, 0 }, { p:stats().delivered, p:stats().retried })
    end)
  end)

  it("does not ask again before the time that Retry-After names", function()
    answer({ ["*"] = { status = 503, headers = { ["retry-after"] = "3600" } } })
    local publisher <close> = outbox.publisher(webhook.url)
    assert.same({ n = 2, nil, "503 Service Unavailable" },
      table.pack(publisher:publish(events(1), "")))
    for _ = 1, 3 do
      local failures = publisher:publish(events(2), "")
      for i = 1, 2 do
        assert.equal("503 Service Unavailable", failures[i].reason)
        assert.is_true(failures[i].uncharged)
        assert.is_true(failures[i].retry_after > 3500 and failures[i].retry_after <= 3600)
      end
    end
    assert.equal(1, #requests())
    answer({ ["*"] = { status = 503, headers = {
      ["retry-after"] = "Sun, 06 Nov 1994 08:49:37 GMT" } } })
    local another <close> = outbox.publisher(webhook.url)
    another:publish(events(1), "")
    another:publish(events(1), "")
    assert.equal(3, #requests())
  end)

  it("counts no attempt for a 429, whatever else gets through", function()
    local store <close> = store_with({ id = "1", key = "a" })
    local p = processor(store, nil, { retry = { max_attempts = 1 } })
    answer({ ["1"] = { status = 429 } })
    for i = 2, 20 do
      store:publish({ id = tostring(i), key = "b" })
      repeat
        store:clock().advance(p:step())
      until p:stats().delivered == i - 1
    end
    assert.outbox(store).has_entry({ id = "1", attempts = 0 })
  end)
end)
