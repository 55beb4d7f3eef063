local outbox = require("outbox")
local server = require("spec.support.server")
local support = require("spec.support")
local webhook = require("spec.support.webhook")

local answer, events, requests = webhook.answer, webhook.events, webhook.requests

local LOGIN = "Basic bWU6cEBzcw==" -- me:p@ss

describe("the http publisher behind a proxy", function()
  local proxy

  -- Sets the answer of the proxy to all requests; nil: it does its work.
  local function refuse(bytes)
    os.remove(proxy.directory .. "/refusal")
    if bytes then
      local file <close> = assert(io.open(proxy.directory .. "/refusal", "w"))
      file:write(bytes)
    end
  end

  local function options(more)
    local list = { proxy = ("http://me:p%%40ss@127.0.0.1:%d"):format(proxy.port), concurrency = 1 }
    for name, value in pairs(more or {}) do
      list[name] = value
    end
    return list
  end

  setup(function()
    webhook.start()
    local port = server.port()
    proxy = server.new(support.command(("spec/support/proxy.lua %d $DIRECTORY"):format(port)), port)
    proxy:start()
  end)

  teardown(server.stop)

  before_each(function()
    webhook.reset()
    refuse(nil)
    os.remove(proxy.directory .. "/requests")
  end)

  after_each(support.remove)

  it("asks it for a page of another server, and keeps the connection", function()
    local publisher <close> = outbox.publisher(webhook.url, options())
    for _ = 1, 2 do
      assert.same({}, publisher:publish(events(2, { payload = "text" }), "orders"))
    end
    local asked, made = requests(proxy), requests()
    assert.equal(("POST %s HTTP/1.1"):format(webhook.url), asked[1].line)
    assert.equal(webhook.instance.authority, asked[1].headers.host)
    assert.equal(LOGIN, asked[1].headers["proxy-authorization"])
    for i = 2, 4 do
      assert.equal(asked[1].connection, asked[i].connection)
    end
    assert.equal("1 2 1 2", webhook.ids_of(made))
    assert.same({ "text", "/hook?a=b" }, { made[4].body, made[4].headers[":path"] })
    assert.is_nil(made[1].headers["proxy-authorization"])
  end)

  it("takes the answer of the server as it is", function()
    answer({ ["2"] = { status = 408 }, ["3"] = { status = 422 } })
    local publisher <close> = outbox.publisher(webhook.url, options())
    local failures = publisher:publish(events(3), "orders")
    assert.is_nil(failures[1])
    assert.equal("408 Request Timeout", failures[2].reason)
    assert.is_true(failures[3].permanent)
  end)

  it("opens a tunnel to a server with TLS, and keeps it", function()
    local secure = webhook.new_server("tls")
    local file = webhook.certify(secure, "IP:127.0.0.1")
    local url = ("https://%s/hook"):format(secure.authority)
    local publisher <close> = outbox.publisher(url, options({ ca_file = file }))
    for _ = 1, 2 do
      assert.same({}, publisher:publish(events(2), "orders"))
    end
    local asked, made = requests(proxy), requests(secure)
    assert.equal(1, #asked)
    assert.equal(("CONNECT %s HTTP/1.1"):format(secure.authority), asked[1].line)
    assert.same({ host = secure.authority, ["proxy-authorization"] = LOGIN }, asked[1].headers)
    assert.equal("1 2 1 2", webhook.ids_of(made))
    assert.is_nil(made[1].headers["proxy-authorization"])
    local distrusting <close> = outbox.publisher(url, options())
    local _, reason = distrusting:publish(events(1), "orders")
    assert.matches("certificate", reason)
    secure:kill()
    webhook.certify(secure, "DNS:example.com")
    local mistaken <close> = outbox.publisher(url, options({ ca_file = file }))
    _, reason = mistaken:publish(events(1), "orders")
    assert.matches("mismatch", reason)
    secure:kill()
  end)

  it("takes its refusals for an outage, names it, and tells no password", function()
    local prefix = ("^127%%.0%%.0%%.1:%%d+ through the proxy 127%%.0%%.0%%.1:%d: ")
      :format(proxy.port)
    local secure = "https://127.0.0.1:" .. server.port()
    local function refused(url, bytes, wanted)
      refuse(bytes)
      local publisher <close> = outbox.publisher(url, options())
      local failures, reason = publisher:publish(events(2), "orders")
      assert.is_nil(failures)
      assert.matches(prefix .. wanted .. "$", reason)
    end
    for status, wanted in pairs({ [407] = "407 Proxy Authentication Required",
      [403] = "403 Forbidden", [502] = "502 Bad Gateway", [503] = "503 Service Unavailable" }) do
      local bytes = ("HTTP/1.1 %d No\r\ncontent-length: 3\r\n\r\nbad"):format(status)
      refused(secure, bytes, wanted)
      if status == 407 then
        refused(webhook.url, bytes, wanted)
      end
    end
    for _, url in ipairs({ secure, webhook.url }) do
      refused(url, "", ".+") -- it hangs up
      refused(url, "HTTP/1.1 200 OK\r\ncontent-le", ".+")
    end
  end)

  it("charges no message for a 407, and makes none a dead letter", function()
    answer({ ["2"] = { status = 407 } })
    local publisher <close> = outbox.publisher(webhook.url, options())
    local failures = publisher:publish(events(3), "orders")
    assert.is_nil(failures[1])
    for i = 2, 3 do
      assert.same({ true, nil }, { failures[i].uncharged, failures[i].permanent })
    end
  end)

  it("names a proxy that is not there", function()
    local port = server.port()
    for _, url in ipairs({ webhook.url, "https://" .. webhook.instance.authority }) do
      local publisher <close> = outbox.publisher(url, { proxy = "http://127.0.0.1:" .. port })
      local failures, reason = publisher:publish(events(1), "orders")
      assert.is_nil(failures)
      assert.matches(("through the proxy 127.0.0.1:%d: .*Connection refused"):format(port), reason)
    end
  end)

  it("asks it for another server, whose name it need not know", function()
    refuse("HTTP/1.1 204 No Content\r\n\r\n")
    local publisher <close> = outbox.publisher("http://user:secret@nowhere.invalid/hook", options())
    assert.same({}, publisher:publish(events(1), "orders"))
    assert.equal("POST http://nowhere.invalid/hook HTTP/1.1", requests(proxy)[1].line)
  end)

  it("finds it in the environment, unless the option says otherwise", function()
    local function deliver(environment, more)
      os.remove(proxy.directory .. "/requests")
      local output = support.run(([[-e '
        local publisher = require("outbox").publisher("%s", { %s })
        local failures, reason = publisher:publish({ { id = "1", created_at = 1 } }, "")
        print(reason or next(failures) or "delivered")']]):format(webhook.url, more or ""),
        "env no_proxy= " .. environment)
      return output:gsub("\n$", ""), #requests(proxy)
    end
    local authority = "127.0.0.1:" .. proxy.port
    local here, nowhere = "http_proxy=http://" .. authority, "http_proxy=http://127.0.0.1:1"
    for _, case in ipairs({
      { 1, here }, { 1, "all_proxy=" .. authority }, { 0, "https_proxy=http://" .. authority },
      { 0, here .. " no_proxy=127.0.0.1" }, { 0, here .. " no_proxy='a, 127.0.0.1'" },
      { 0, here .. " no_proxy='*'" }, { 0, "http_proxy=" }, { 0, nowhere, [[proxy = ""]] },
      { 1, nowhere, ([[proxy = "http://%s"]]):format(authority) },
      { 1, nowhere, ([[proxy = "HTTP://me:word@%s/"]]):format(authority) },
    }) do
      local output, count = deliver(case[2], case[3])
      assert.same({ "delivered", case[1] }, { output, count }, case[2])
    end
    local output = deliver("all_proxy=socks5://me:word@h:1")
    assert.matches([[the environment's proxy for http is not http://host:port, as it must be ]]
      .. [[here; the option proxy = "" uses none]], output, 1, true)
    assert.not_matches("word", output)
  end)

  it("needs the URL of one", function()
    for _, url in ipairs({ "https://h:1", "socks5://h:1", "h:1", "http://", "http://h:x",
      "http://a,b", "http://h/path", 7, true }) do
      assert.matches('(proxy must be a URL such as http://host:port, or "")',
        support.raised(outbox.publisher, webhook.url, { proxy = url }), 1, true)
    end
  end)
end)
