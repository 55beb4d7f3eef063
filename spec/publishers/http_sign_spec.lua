local cqueues = require("cqueues")
local outbox = require("outbox")
local server = require("spec.support.server")
local support = require("spec.support")
local webhook = require("spec.support.webhook")

local answer, event, events = webhook.answer, webhook.event, webhook.events
local publish, requests = webhook.publish, webhook.requests

describe("the option sign of the http publisher", function()
  setup(webhook.start)

  teardown(server.stop)

  before_each(webhook.reset)

  after_each(support.remove)

  it("sees each request as it is about to be sent", function()
    local seen = {}
    local message = event("1", { payload = "text", key = "k" })
    local failures, _, made = publish({ message }, {
      headers = { Authorization = "token" }, secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3",
      sign = function(request)
        seen[#seen + 1] = request
      end,
    })
    assert.same({}, failures)
    local request = seen[1]
    assert.same({ "POST", webhook.instance.authority, "/hook?a=b", "text", "orders", 1 },
      { request.method, request.host, request.path, request.body, request.namespace, #seen })
    assert.equal(message, request.messages[1])
    assert.is_nil(request.headers["content-length"])
    for name, value in pairs(request.headers) do
      assert.equal(value, made[1].headers[name])
    end
    for _, name in ipairs({ "authorization", "webhook-signature", "ce-id", "idempotency-key" }) do
      assert.is_string(request.headers[name])
    end
  end)

  it("may change the headers, the path and the body", function()
    local _, _, made = publish({ event("1", { payload = "text" }) }, { sign = function(request)
      request.path, request.body = "/other?x=%20", request.body .. " and more"
      request.headers["ce-subject"], request.headers["X-Signature"] = nil, "s;é"
      request.headers.host = "example.org"
    end })
    local headers = made[1].headers
    assert.same({ "/other?x=%20", "text and more", "13", "s;é", "example.org", "1" },
      { headers[":path"], made[1].body, headers["content-length"], headers["x-signature"],
        headers[":authority"], headers["ce-id"] })
    _, _, made = publish({ event("2") }, { sign = function(request)
      request.headers, request.body = { a = "b" }, ""
    end })
    assert.same({ "b", nil, "0" }, { made[2].headers.a, made[2].headers["ce-id"],
      made[2].headers["content-length"] })
  end)

  it("is called again for each request that is sent again", function()
    answer({ ["3"] = { status = 422 } })
    local seen = {}
    local failures = publish(events(4), { mode = "batched", sign = function(request)
      local ids = {}
      for i, message in ipairs(request.messages) do
        ids[i] = message.id
      end
      seen[#seen + 1] = table.concat(ids, " ")
      request.headers.attempt = tostring(#seen)
    end })
    assert.is_true(failures[3].permanent)
    assert.same({ "1 2 3 4", "1 2", "3 4", "3", "4" }, seen)
    for i, request in ipairs(requests()) do
      assert.equal(tostring(i), request.headers.attempt)
    end
  end)

  it("may yield", function()
    local loop, order = cqueues.new(), {}
    loop:wrap(function()
      assert.same({}, (publish(events(2), { concurrency = 2, sign = function()
        order[#order + 1] = "asks"
        cqueues.sleep(0.01)
        order[#order + 1] = "has"
      end })))
    end)
    assert(loop:loop())
    assert.same({ "asks", "asks", "has", "has" }, order)
  end)

  it("makes the destination count as down if it raises", function()
    for _, mode in ipairs({ "binary", "batched" }) do
      for _, raised in ipairs({ "no token", { message = "no token" } }) do
        local failures, reason, made = publish(events(3), { mode = mode, sign = function()
          error(raised, 0)
        end })
        assert.same({ nil, "no token", 0 }, { failures, reason, #made })
      end
    end
    local count = 0
    local failures = publish(events(3), { concurrency = 1, sign = function()
      count = count + 1
      if count == 2 then
        error("the token has expired", 0)
      end
    end })
    assert.is_nil(failures[1])
    assert.same({ "the token has expired", true, nil },
      { failures[2].reason, failures[2].uncharged, failures[2].permanent })
    assert.is_true(failures[3].uncharged)
  end)

  it("must leave a request that can be sent", function()
    for wanted, change in pairs({
      ["no string as the body"] = { body = 7 }, ["no table of headers"] = { headers = "a: b" },
      ["a path that is not allowed"] = { path = "/a b" },
      ["a header 'a b' that is not allowed"] = { headers = { ["a b"] = "" } },
      ["a header 'a' that is not allowed"] = { headers = { a = "b\r\nc: d" } },
      ["a header 'n' that is not allowed"] = { headers = { n = 1 } },
    }) do
      local _, reason, made = publish(events(1), { sign = function(request)
        for name, value in pairs(change) do
          request[name] = value
        end
      end })
      assert.same({ "'sign' left " .. wanted, 0 }, { reason, #made })
    end
  end)

  it("goes through a proxy as it was signed", function()
    local publisher <close> = outbox.publisher("http://nowhere.invalid/", {
      proxy = "http://" .. webhook.instance.authority, sign = function(request)
        request.path = "/signed"
      end })
    assert.same({}, publisher:publish(events(1), ""))
    assert.equal("http://nowhere.invalid/signed", requests()[1].headers[":path"])
  end)

  it("cannot be given on the command line", function()
    local store <close>, path = support.store()
    assert.is_not_nil(store)
    local output, ok = support.run(("bin/outbox relay %s --once --to %s --option sign=x")
      :format(path, webhook.url))
    assert.is_falsy(ok)
    assert.matches("sign must be a function, which the command line cannot give", output, 1, true)
  end)
end)
