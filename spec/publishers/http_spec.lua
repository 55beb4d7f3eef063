local basexx = require("basexx")
local cjson = require("cjson")
local cqueues = require("cqueues")
local outbox = require("outbox")
local process = require("process")
local server = require("spec.support.server")
local socket = require("socket")
local support = require("spec.support")
local testing = require("outbox.testing")

local function new_server(options)
  local port = server.port()
  local instance = server.new(
    support.command(("spec/support/http_server.lua %d $DIRECTORY %s"):format(port, options or "")),
    port)
  instance.authority = "127.0.0.1:" .. port
  return instance
end

-- Only what the specs look at.
local function event(id, fields)
  local message = { id = id, namespace = "orders", created_at = 1700000000.5, attempts = 0 }
  for name, value in pairs(fields or {}) do
    message[name] = value
  end
  return message
end

local function events(count, fields)
  local list = {}
  for i = 1, count do
    list[i] = event(tostring(i), fields)
  end
  return list
end

describe("the http publisher", function()
  local instance, url

  setup(function()
    instance = new_server()
    instance:start()
    url = ("http://%s/hook?a=b"):format(instance.authority)
  end)

  teardown(server.stop)

  local function answer(answers)
    local file <close> = assert(io.open(instance.directory .. "/answers", "w"))
    file:write(cjson.encode(answers))
  end

  before_each(function()
    answer({})
    os.remove(instance.directory .. "/requests")
  end)

  after_each(support.remove)

  local function requests()
    local list = {}
    local file <close> = io.open(instance.directory .. "/requests")
    for line in file and file:lines() or function() end do
      list[#list + 1] = cjson.decode(line)
    end
    return list
  end

  local function ids_of(list)
    local ids = {}
    for i, request in ipairs(list) do
      ids[i] = request.headers["ce-id"]
    end
    return table.concat(ids, " ")
  end

  -- Publishes once; returns the answer and the requests that were made.
  local function publish(messages, options)
    local publisher <close> = outbox.publisher(url, options)
    local failures, reason = publisher:publish(messages, messages[1].namespace)
    return failures, reason, requests()
  end

  -- The URL of a server that gives each of these answers to a request of its own, and hangs up.
  local function serve(answers)
    local listener = assert(socket.bind("127.0.0.1", 0))
    local _, port = listener:getsockname()
    local pid = process.fork(function()
      for _, bytes in ipairs(answers) do
        local connection = listener:accept()
        repeat
          local line = connection:receive("*l")
        until line == ""
        connection:send(bytes)
        connection:close()
      end
    end)
    listener:close()
    finally(function()
      process.kill(pid)
      process.wait(pid)
    end)
    return "http://127.0.0.1:" .. port
  end

  -- The reasons of failures, all of which must be of a kind.
  local function reasons(failures, kind)
    local list = {}
    for i, failure in pairs(failures) do
      assert.is_truthy(failure[kind])
      list[i] = failure.reason
    end
    return list
  end

  local function store_with(...)
    local store = support.store({ clock = testing.clock(), synchronous = "off" })
    store:publish(...)
    return store
  end

  local errors
  local function processor(store, options, own)
    errors = {}
    own = own or {}
    own.store, own.publisher = store, outbox.publisher(url, options)
    function own.on_error(problem)
      errors[#errors + 1] = tostring(problem)
    end
    return outbox.processor(own)
  end

  describe("in binary mode", function()
    it("makes each message an event, in headers and body", function()
      local payload = "\0 all the bytes\r\n\xff"
      local failures, _, made = publish({ event('id "1"', { key = "naïve%", payload = payload }) })
      assert.same({}, failures)
      assert.equal(1, #made)
      assert.same({
        [":method"] = "POST", [":path"] = "/hook?a=b", [":scheme"] = "http",
        [":authority"] = instance.authority, ["user-agent"] = "outbox/" .. outbox._VERSION,
        ["content-length"] = tostring(#payload), ["content-type"] = "application/octet-stream",
        ["ce-specversion"] = "1.0", ["ce-id"] = "id%20%221%22", ["ce-source"] = "/outbox",
        ["ce-type"] = "outbox.orders", ["ce-time"] = "2023-11-14T22:13:20.500000Z",
        ["ce-subject"] = "na%C3%AFve%25", ["ce-partitionkey"] = "na%C3%AFve%25",
        ["idempotency-key"] = "id%20%221%22",
      }, made[1].headers)
    end)

    it("keeps the body byte for byte", function()
      local bytes = {}
      for i = 0, 255 do
        bytes[i + 1] = string.char(i)
      end
      local payload = table.concat(bytes):rep(1000)
      local file <close> = assert(io.tmpfile())
      local listener = assert(socket.bind("127.0.0.1", 0))
      local _, port = listener:getsockname()
      local pid = process.fork(function()
        local connection = listener:accept()
        local length
        repeat
          local line = connection:receive("*l")
          length = tonumber(line:match("^content%-length: (%d+)")) or length
        until line == ""
        file:write((connection:receive(length)))
        file:flush()
        connection:send("HTTP/1.1 204 No Content\r\n\r\n")
      end)
      listener:close()
      local publisher <close> = outbox.publisher("http://127.0.0.1:" .. port)
      assert.same({}, publisher:publish({ event("1", { payload = payload }) }, ""))
      assert.equal(0, (process.wait(pid)))
      file:seek("set")
      assert.is_true(file:read("a") == payload)
    end)

    it("tells the type of the payload by its header, else by its looks", function()
      local function type_of(fields)
        os.remove(instance.directory .. "/requests")
        local _, _, made = publish({ event("1", fields) })
        return made[1].headers["content-type"]
      end
      assert.equal("application/json", type_of({ payload = ' {"a":1}' }))
      assert.equal("application/json", type_of({ payload = "[]" }))
      assert.equal("text/plain; charset=utf-8", type_of({ payload = "{a}" }))
      assert.equal("text/plain; charset=utf-8", type_of({ payload = "1" }))
      assert.equal("application/octet-stream", type_of({ payload = '["\xff"]' }))
      assert.equal("image/png", type_of({ payload = "{}",
        headers = { ["Content-Type"] = "image/png" } }))
      assert.equal("application/json", type_of({ payload = "{}",
        headers = { ["content-type"] = "a\r\nevil: header" } }))
      assert.is_nil(type_of({}))
    end)

    it("makes attributes of headers", function()
      local _, _, made = publish({ event("1", { headers = {
        ["X-Request-Id"] = "7 8", traceparent = "00-1", ["ce-type"] = "com.shop.placed",
        source = "/shop", ["ce-id"] = "another", specversion = "2", time = "now", data = "x",
        ["---"] = "x", empty = "",
      } }) })
      local found = {}
      for name, value in pairs(made[1].headers) do
        if name:find("^ce%-") then
          found[name] = value
        end
      end
      assert.same({ ["ce-id"] = "1", ["ce-specversion"] = "1.0", ["ce-source"] = "/shop",
        ["ce-time"] = "2023-11-14T22:13:20.500000Z", ["ce-type"] = "com.shop.placed",
        ["ce-xrequestid"] = "7%208", ["ce-traceparent"] = "00-1" }, found)
    end)

    it("takes source and type from the options, and more headers", function()
      local _, _, made = publish({ event("1", { namespace = "a b" }) }, {
        source = "https://shop/{namespace}", type = "shop.{namespace}",
        headers = { Authorization = "Bearer token" } })
      assert.equal("https://shop/a%2520b", made[1].headers["ce-source"])
      assert.equal("shop.a%20b", made[1].headers["ce-type"])
      assert.equal("Bearer token", made[1].headers.authorization)
      _, _, made = publish({ event("2", { namespace = "" }) }, { type = "{namespace}" })
      assert.equal("outbox", made[2].headers["ce-type"])
    end)

    it("logs in with the name and the password of the URL", function()
      local publisher <close> = outbox.publisher(("http://me:p%%40ss@%s/")
        :format(instance.authority))
      assert.same({}, publisher:publish(events(1), "orders"))
      assert.equal("basic bWU6cEBzcw==", requests()[1].headers.authorization)
    end)

    it("sends those of a key one after the other, and as many keys at a time as it may", function()
      answer({ ["*"] = { crowd = 3 } })
      local list = {}
      for i = 1, 9 do
        list[i] = event(tostring(i), { key = "key " .. i % 3 })
      end
      local failures, _, made = publish(list, { concurrency = 3 })
      assert.same({}, failures)
      local last = {}
      for _, request in ipairs(made) do
        local id, key = tonumber(request.headers["ce-id"]), request.headers["ce-subject"]
        assert.equal((last[key] or id % 3 - (id % 3 == 0 and 0 or 3)) + 3, id)
        last[key] = id
      end
      assert.equal(9, #made)
    end)

    it("sends one after the other where that is wanted, on one connection", function()
      local publisher <close> = outbox.publisher(url, { concurrency = 1 })
      publisher:publish(events(5), "orders")
      publisher:publish(events(5), "orders")
      local made = requests()
      assert.equal("1 2 3 4 5 1 2 3 4 5", ids_of(made))
      for _, request in ipairs(made) do
        assert.equal(made[1].peer, request.peer)
      end
    end)
  end)

  describe("in batched mode", function()
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

    it("takes for JSON only what everybody does", function()
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

    it("finds out by halves what is refused, and charges nothing else", function()
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

    it("takes anything else for an outage, where nothing got through", function()
      for status, name in pairs({ [503] = "503 Service Unavailable", [408] = "408 Request Timeout",
        [500] = "500 Internal Server Error", [301] = "301 Moved Permanently",
        [404] = "404 Not Found" }) do
        answer({ ["*"] = { status = status } })
        os.remove(instance.directory .. "/requests")
        local failures, reason, made = batch(events(4))
        assert.same({ nil, name, 1 }, { failures, reason, #made })
      end
    end)

    it("charges nobody for what was not sent any more", function()
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

  describe("takes for", function()
    it("a dead letter what is refused for good", function()
      answer({ ["1"] = { status = 404, body = ("long "):rep(1000) }, ["2"] = { status = 410 } })
      local failures, _, made = publish(events(3), { concurrency = 1 })
      assert.same({ "404 Not Found " .. ("long "):rep(40):sub(1, -2), "410 Gone" },
        reasons(failures, "permanent"))
      assert.equal("1 2 3", ids_of(made))
    end)

    it("a failure what may be accepted later", function()
      for status, name in pairs({ [408] = "408 Request Timeout", [425] = "425 Unassigned",
        [302] = "302 Found" }) do
        answer({ ["*"] = { status = status, headers = { ["retry-after"] = "120" } } })
        local failures = publish(events(1))
        assert.same({ name }, reasons(failures, "retry_after"))
        assert.equal(120, failures[1].retry_after)
        assert.is_false(failures[1].permanent)
      end
    end)

    it("a failure a 5xx, once others got through", function()
      answer({ ["2"] = { status = 500, headers = { date = "Sun, 06 Nov 1994 08:49:37 GMT",
        ["retry-after"] = "Sun, 06 Nov 1994 08:50:07 GMT" } } })
      local store <close> = store_with({ id = "1" }, { id = "2" })
      local p = processor(store)
      p:pump()
      assert.outbox(store).has_entry({ id = "2", attempts = 1,
        last_error = "500 Internal Server Error" })
      assert.equal(store:clock().now() + 30, store:delayed_entries()[1].due_at)
    end)

    it("a time to wait a date, in whatever zone, though the server tells no date", function()
      answer({ ["2"] = { status = 500, headers = {
        ["retry-after"] = os.date("!%a, %d %b %Y %H:%M:%S GMT", os.time() + 600) } } })
      local output = support.run(([[-e '
        local publisher = require("outbox").publisher("%s")
        local messages = { { id = "1", created_at = 1 }, { id = "2", created_at = 1 } }
        print(publisher:publish(messages, "n")[2].retry_after)']]):format(url),
        "env TZ=STD0DST,J1/0,J365/25") -- summer all the year
      assert.is_true(tonumber(output) > 0 and tonumber(output) <= 600, output)
    end)

    it("an outage what says nothing of the message", function()
      for _, down in ipairs({ { status = 429 }, { status = 500 }, { status = 503 },
        { status = 401 }, { status = 403 }, { status = 404 }, { status = 405 }, { status = 407 },
        { close = true } }) do
        answer({ ["*"] = down })
        local store <close> = store_with({ id = "1", key = "a" }, { id = "2", key = "b" })
        local p = processor(store)
        p:pump()
        assert.matches(down.status and tostring(down.status) or instance.authority, errors[1])
        assert.outbox(store).has_entry({ id = "1", attempts = 0 })
        assert.outbox(store).has_entry({ id = "2", attempts = 0 })
        answer({})
        store:clock().advance(60)
        p:pump()
        assert.outbox(store).is_empty()
      end
    end)

    it("an outage that nobody listens, or answers in time", function()
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

    it("unsent what comes after a request that nobody answered", function()
      answer({ ["2"] = { close = true } })
      local failures, _, made = publish(events(4), { concurrency = 1 })
      assert.equal("1 2", ids_of(made))
      assert.is_nil(failures[1])
      for i = 2, 4 do
        assert.is_true(failures[i].uncharged)
      end
    end)

    it("the same what went through, in the end", function()
      local list = {}
      for i = 1, 10 do
        list[i] = { id = tostring(i) }
      end
      local store <close> = store_with(table.unpack(list))
      answer({ ["4"] = { status = 429 } })
      local p = processor(store)
      p:pump()
      assert.matches("429", errors[1])
      answer({})
      store:clock().advance(60)
      p:pump()
      assert.outbox(store).is_empty()
      assert.same({ 10, 0 }, { p:stats().delivered, p:stats().retried })
    end)
  end)

  describe("keeps the order of a key", function()
    local function keyed(...)
      local list = {}
      for i, key in ipairs({ ... }) do
        list[i] = { id = tostring(i), key = key }
      end
      return store_with(table.unpack(list))
    end

    it("by sending no more of one whose first failed, and charging the first alone", function()
      answer({ ["1"] = { status = 408 } })
      local store <close> = keyed("a", "a", "b")
      processor(store, { concurrency = 1 }):pump()
      assert.equal("1 3", ids_of(requests()))
      assert.outbox(store).has_entry({ id = "1", attempts = 1 })
      assert.outbox(store).has_entry({ id = "2", attempts = 0 })
      answer({})
      store:clock().advance(60)
      processor(store, { concurrency = 1 }):pump()
      assert.equal("1 3 1 2", ids_of(requests()))
    end)

    it("and goes on after a dead letter, of whichever kind", function()
      answer({ ["1"] = { status = 400 }, ["3"] = { status = 408 } })
      local store <close> = keyed("a", "a", "b", "b")
      processor(store, { concurrency = 1 }, { retry = { max_attempts = 1 } }):pump()
      assert.equal("1 2 3 4", ids_of(requests()))
      assert.outbox(store).has_dead_entry({ id = "1", attempts = 1 })
      assert.outbox(store).has_dead_entry({ id = "3", attempts = 1 })
      assert.outbox(store).has_entries(0)
    end)
  end)

  it("does not ask again before the time that Retry-After names", function()
    answer({ ["*"] = { status = 503, headers = { ["retry-after"] = "3600" } } })
    local publisher <close> = outbox.publisher(url)
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
    local another <close> = outbox.publisher(url)
    another:publish(events(1), "")
    another:publish(events(1), "")
    assert.equal(3, #requests())
  end)

  it("holds 429 against no message, whatever else gets through", function()
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

  it("connects again where the server has closed the connection meanwhile", function()
    local publisher <close> = outbox.publisher(url)
    assert.same({}, publisher:publish(events(1), "orders"))
    instance:kill()
    instance:start()
    assert.same({}, publisher:publish(events(1), "orders"))
    answer({ ["*"] = { status = 200, headers = { connection = "close" }, body = "ok" } })
    assert.same({}, publisher:publish(events(1), "orders"))
    assert.same({}, publisher:publish(events(1), "orders"))
    assert.equal(4, #requests())
  end)

  it("hangs up, and goes on, where an answer is cut off", function()
    local cut_off = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
    local output = support.run(([[-e '
      local publisher <close> = require("outbox").publisher("%s")
      for id = 1, 2 do
        local failures = publisher:publish({ { id = tostring(id), created_at = 1 } }, "n")
        print(next(failures))
      end']]):format(serve({ cut_off, cut_off })), "timeout 30")
    assert.equal("nil\nnil\n", output)
  end)

  it("reads headers as long as servers send them", function()
    local publisher <close> = outbox.publisher(serve({ ("HTTP/1.1 200 OK\r\nset-cookie: %s\r\n"
      .. "content-length: 0\r\n\r\n"):format(("x"):rep(60000)) }))
    assert.same({}, publisher:publish(events(1), "orders"))
  end)

  it("signs as Standard Webhooks does", function()
    local key, id = "0123456789abcdef01234567", "id.1"
    local secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"
    local before = os.time()
    publish({ event(id, { payload = "the body" }) }, { secret = secret })
    local list = events(2)
    publish(list, { secret = secret, mode = "batched" })
    publish(list, { secret = secret, mode = "batched" })
    publish({ list[1] }, { secret = secret, mode = "batched" })
    local made = requests()
    for _, request in ipairs(made) do
      local headers, path = request.headers, support.path()
      local file <close> = assert(io.open(path, "w"))
      file:write(headers["webhook-id"], ".", headers["webhook-timestamp"], ".", request.body)
      file:close()
      local openssl <close> = assert(io.popen(("openssl dgst -sha256 -hmac %s -binary %s | "
        .. "openssl base64"):format(key, path)))
      assert.equal("v1," .. openssl:read("l"), headers["webhook-signature"])
      local timestamp = tonumber(headers["webhook-timestamp"])
      assert.is_true(timestamp >= before and timestamp <= os.time())
    end
    assert.equal("id%2E1", made[1].headers["webhook-id"])
    assert.equal(made[2].headers["webhook-id"], made[3].headers["webhook-id"])
    assert.not_equal(made[2].headers["webhook-id"], made[4].headers["webhook-id"])
  end)

  it("yields to the loop of cqueues that it is called in", function()
    answer({ ["*"] = { crowd = 2 } })
    local loop, done = cqueues.new(), {}
    for i = 1, 2 do
      loop:wrap(function()
        local publisher <close> = outbox.publisher(url)
        done[i] = publisher:publish(events(1), "orders")
      end)
    end
    assert(loop:loop())
    assert.same({ {}, {} }, done)
  end)

  it("verifies whom it talks to", function()
    local secure = new_server("tls")
    local function certificate(name)
      assert(os.execute(("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 "
        .. "-nodes -keyout %s/key.pem -out %s/certificate.pem -subj /CN=test -days 2 "
        .. "-addext subjectAltName=%s 2>/dev/null"):format(secure.directory, secure.directory,
        name)))
      secure:start()
    end
    certificate("IP:127.0.0.1")
    local target = "https://" .. secure.authority
    local trusted = { ca_file = secure.directory .. "/certificate.pem" }
    local function reason_for(options)
      local publisher <close> = outbox.publisher(target, options)
      local failures, reason = publisher:publish(events(1), "")
      return failures and "delivered" or reason
    end
    assert.matches("certificate", reason_for({}))
    assert.equal("delivered", reason_for(trusted))
    assert.equal("delivered", reason_for({ verify = false }))
    secure:kill()
    certificate("DNS:example.com")
    assert.matches("mismatch", reason_for(trusted))
    assert.equal("delivered", reason_for({ verify = false }))
  end)

  it("needs a URL and options that make sense", function()
    local function refused(expected, ...)
      assert.matches(expected, support.raised(outbox.publisher, ...), 1, true)
    end
    refused("a URL such as https://host/path expected", "http:host")
    refused("a URL such as https://host/path expected", "https://")
    refused("(ca_file must be a file of certificates; concurrency must be an integer from 1 to "
      .. '1000; headers must be a table of strings; mode must be "binary" or "batched"; secret '
      .. 'must be "whsec_" and 24 to 64 bytes in base64; timeout must be a number of seconds, at '
      .. "least 0.001; verify must be true or false)", url, {
        ca_file = "/nowhere", concurrency = 0, headers = { a = "b\nc" }, mode = "b",
        secret = "whsec_MDEyMw==", timeout = -1, verify = 0 })
    for _, path in ipairs({ "/tmp", "/etc/passwd" }) do
      refused("(ca_file must be a file of certificates)", url, { ca_file = path })
    end
  end)

  it("names the rock that it needs", function()
    local output = support.run([[-e '
      package.preload["http.request"] = function()
        error("module \x27http.request\x27 not found")
      end
      print(pcall(require("outbox").publisher, "http://x"))']])
    assert.equal("false\tthe http publisher needs lua-http: luarocks install http\n", output)
  end)
end)
