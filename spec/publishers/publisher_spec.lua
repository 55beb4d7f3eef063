local cjson = require("cjson")
local outbox = require("outbox")
local process = require("process")
local socket = require("socket")
local support = require("spec.support")
local testing = require("outbox.testing")

local function read(path)
  local file <close> = assert(io.open(path))
  return file:read("a")
end

local function write(path, text)
  local file <close> = assert(io.open(path, "w"))
  file:write(text)
end

-- Decodes the messages of a file, one per line.
local function lines(text)
  local list = {}
  for line in text:gmatch("(.-)\n") do
    list[#list + 1] = cjson.decode(line)
  end
  return list
end

local function message(id)
  return { id = id, namespace = "", created_at = 1, attempts = 0 }
end

describe("outbox.publisher", function()
  after_each(support.remove)

  it("reports everything that is wrong in one error", function()
    local function refused(expected, ...)
      local problem = support.raised(outbox.publisher, ...)
      for _, part in ipairs(expected) do
        assert.matches(part, problem, 1, true)
      end
    end
    refused({ "unknown scheme 'gopher', not one of ", "file, " }, "gopher://host")
    refused({ "unknown scheme ''" }, "/var/log/events")
    refused({ "the path after 'file:' is missing", "unknown option 'synk'" }, "file:",
      { synk = true })
    refused({ "nothing may follow 'stdout:'" }, "stdout:x")
    refused({ "a URL or a table of routes expected, got nil" })
    refused({ "#2 to 'publisher' (table expected, got string)" }, "stdout:", "x")
    refused({ "there is no route" }, {})
    refused({ "route 'a': unknown scheme 'b'", "route '*': the path after 'file:' is missing",
      "route 'c': a URL, a function or a table", "route '1': a namespace must be a string",
      "options belong to a destination" },
      { a = "b:", ["*"] = "file:", c = {}, "stdout:" }, { path = "x" })
  end)

  it("loads a destination only when it is used", function()
    local output = support.run([[-e '
      local outbox = require("outbox")
      print(package.loaded["outbox.publishers.file"], package.loaded.cjson)
      outbox.publisher("stdout:")
      print(type(package.loaded["outbox.publishers.file"]))']])
    assert.equal("nil\tnil\ntable\n", output)
  end)

  it("names the rock that a destination needs", function()
    local output = support.run([[-e '
      package.preload.cjson = function() error("module \x27cjson\x27 not found") end
      print(pcall(require("outbox").publisher, "stdout:"))']])
    assert.equal("false\tJSON needs lua-cjson: "
      .. "luarocks --lua-version 5.4 install lua-cjson (Debian: lua-cjson)\n", output)
  end)
end)

describe("the file publisher", function()
  local path, store, database

  before_each(function()
    path = support.path()
    store, database = support.store({ clock = testing.clock(1700000000.123456) })
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local errors
  local function processor(publisher, options)
    errors = {}
    options = options or {}
    options.store, options.publisher = store, publisher
    function options.on_error(problem)
      errors[#errors + 1] = tostring(problem)
    end
    return outbox.processor(options)
  end

  it("appends a line of JSON for each message", function()
    store:publish(
      { id = "1", namespace = "orders", key = "k", payload = 'a "line"\nand\0one',
        headers = { ["content-type"] = "text/plain" } },
      { id = "2", namespace = "orders" })
    local publisher <close> = outbox.publisher("file:" .. path)
    processor(publisher):pump()
    assert.equal([[{"id":"1","namespace":"orders","key":"k","payload":"a \"line\"\nand\u0000one",]]
      .. [["headers":{"content-type":"text\/plain"},]]
      .. [["created_at":"2023-11-14T22:13:20.123456Z","attempts":0,"seq":1}]] .. "\n"
      .. [[{"id":"2","namespace":"orders","created_at":"2023-11-14T22:13:20.123456Z",]]
      .. [["attempts":0,"seq":2}]] .. "\n", read(path))
  end)

  it("writes the id of the message with each copy", function()
    store:subscribe("orders", "mail")
    store:publish({ id = "1", namespace = "orders" })
    local publisher <close> = outbox.publisher("file:" .. path)
    processor(publisher):pump()
    assert.matches('^{"id":"1:mail","source_id":"1","namespace":"mail",', read(path))
  end)

  it("writes each time to the microsecond", function()
    local publisher <close> = outbox.publisher("file:" .. path)
    local messages = {}
    for i, time in ipairs({ 1.000001, 1.999999, 0.5, 2.999999, 1.25 }) do
      messages[i] = { id = tostring(i), namespace = "", created_at = time, attempts = 0 }
    end
    publisher:publish(messages, "")
    local times = support.pluck(lines(read(path)), "created_at")
    assert.same({ "1970-01-01T00:00:01.000001Z", "1970-01-01T00:00:01.999999Z",
      "1970-01-01T00:00:00.500000Z", "1970-01-01T00:00:02.999999Z", "1970-01-01T00:00:01.250000Z" },
      times)
  end)

  it("writes bytes that are not UTF-8 as base64", function()
    local sqlite = support.engine == "sqlite" -- PostgreSQL takes any bytes as a payload alone
    local name = sqlite and "n\xff" or "n"
    local bytes, expected = "", { "", "/w==", "//4=", "//79", "//79/A==" }
    local list = {}
    for i = 0, 4 do
      list[i + 1] = { id = "id " .. i, namespace = name, key = "", payload = bytes }
      bytes = bytes .. string.char(255 - i)
    end
    store:publish(table.unpack(list))
    if sqlite then
      store:publish({ id = "headers", headers = { name = "\xff" } })
    end
    processor(outbox.publisher("file:" .. path)):pump()
    local found = lines(read(path))
    assert.equal("", found[1].payload)
    assert.equal("", found[1].key)
    assert.equal(sqlite and "bv8=" or nil, found[1].namespace_base64)
    assert.same({ select(2, table.unpack(expected)) }, support.pluck(
      { table.unpack(found, 2, 5) }, "payload_base64"))
    assert.is_nil(found[2].payload)
    assert.equal(sqlite and "eyJuYW1lIjoi/yJ9" or nil, sqlite and found[6].headers_base64 or nil)
  end)

  it("writes base64 as other programs do, for any length", function()
    local bytes, list = support.path(), {}
    for i, length in ipairs({ 1, 2, 3, 4, 5, 6, 3071, 3072, 3073, 6144, 100000 }) do
      local random = {}
      for j = 1, length do
        random[j] = string.char(math.random(0, 255))
      end
      random[1] = "\xff"
      list[i] = { namespace = "", created_at = 1, attempts = 0, payload = table.concat(random) }
    end
    outbox.publisher("file:" .. path):publish(list, "")
    for i, line in ipairs(lines(read(path))) do
      write(bytes, list[i].payload)
      local pipe <close> = assert(io.popen("base64 -w 0 " .. bytes))
      assert.equal(pipe:read("a"), line.payload_base64)
    end
    assert.equal(#list, #lines(read(path)))
  end)

  it("writes headers as text if lua-cjson cannot read them", function()
    support.sql(store, [[INSERT INTO outbox_entries (headers) VALUES ('{"a": "\ud800"}')]])
    processor(outbox.publisher("file:" .. path)):pump()
    assert.equal([[{"a": "\ud800"}]], lines(read(path))[1].headers)
  end)

  describe("given headers that plain SQL has published", function()
    -- The order of names, numbers of any size, empty arrays, spaces, escapes.
    local JSON = {
      '{"b":9007199254740993,"a":[],"o":{}}', '{"f":0.30000000000000004,"g":1.0,"h":1e2}',
      '{"a": [1e999, -1e999] , "n":null}', '{"a":"\\/\\u00e9","a":"é/"}', "{ }", '{"a":-0}',
      '{"id":18446744073709551615,"l":[[],[1,{}]]}',
    }

    local function insert(json)
      support.sql(store, "INSERT INTO outbox_entries (headers) VALUES (?)", json)
    end

    it("writes their very bytes", function()
      for _, json in ipairs(JSON) do
        insert(json)
      end
      local listed = support.run("bin/outbox list --json " .. database)
      processor(outbox.publisher("file:" .. path)):pump()
      for _, text in ipairs({ listed, read(path) }) do
        local found = {}
        for line in text:gmatch("[^\n]+") do
          found[#found + 1] = line:match('"headers":(.*}),"') -- no field after it has a brace
        end
        assert.same(JSON, found)
      end
    end)

    it("writes them on one line", function()
      insert('{\r\n\t"a": 1,\n\t"b": "x\\ny"\n}')
      processor(outbox.publisher("file:" .. path)):pump()
      assert.matches('"headers":{  \t"a": 1, \t"b": "x\\ny" },', read(path), 1, true)
    end)

    it("encodes them anew if they are no JSON by the standard", function()
      for _, json in ipairs({ '{"a":1.}', '{"a":-.5}', '{"a":"\1"}', '{"a":0.5,"b":2.}' }) do
        insert(json)
      end
      processor(outbox.publisher("file:" .. path)):pump()
      local found = support.pluck(lines(read(path)), "headers")
      assert.same({ { a = 1 }, { a = -0.5 }, { a = "\1" }, { a = 0.5, b = 2 } }, found)
      assert.is_nil(read(path):find("[\1]"))
    end)

    it("writes the changes that a function has made to them", function()
      local inner <close> = outbox.publisher("file:" .. path)
      local p = processor(function(messages, namespace)
        messages[2].headers.deep.x = 2
        messages[3].headers.n = 3
        messages[4].headers.gone = nil
        messages[5].headers = { a = "b" }
        return inner:publish(messages, namespace)
      end)
      for _ = 1, 5 do
        insert('{"n":9007199254740993,"deep":{},"gone":[]}')
      end
      p:pump()
      assert.matches('"headers":{"n":9007199254740993,"deep":{},"gone":[]}', read(path), 1, true)
      local found = support.pluck(lines(read(path)), "headers")
      assert.equal(2, found[2].deep.x)
      assert.equal(3, found[3].n)
      assert.is_nil(found[4].gone)
      assert.same({ a = "b" }, found[5])
      assert.equal(5, #found)
    end)
  end)

  it("writes numbers of changed headers that are too large for Lua as null", function()
    outbox.publisher("file:" .. path):publish({ { id = "1", namespace = "", created_at = 1,
      attempts = 0, headers = { a = { math.huge, -math.huge } } } }, "")
    assert.matches('"headers":{"a":[null,null]}', read(path), 1, true)
  end)

  it("ends a line that a crash has left unfinished", function()
    write(path, '{"id":"0"}\n{"id":"torn')
    local publisher = outbox.publisher("file:" .. path)
    publisher:publish({ message("1") }, "")
    publisher:publish({ message("2"), message("3") }, "")
    local found = read(path)
    assert.matches('^{"id":"0"}\n{"id":"torn\n{"id":"1",', found)
    assert.same({ "1", "2", "3" }, support.pluck(lines(found:match("torn\n(.*)")), "id"))
  end)

  it("syncs each batch, and the directory of a new file, before it is delivered", function()
    local log, directory = support.path(), support.path()
    os.remove(directory)
    assert(os.execute("mkdir " .. directory))
    local output, ok = support.run(([[-e '
      local publisher = require("outbox").publisher("file:%s/new")
      for id = 1, 2 do
        publisher:publish({ { id = "x", namespace = "", created_at = 1, attempts = 0 } }, "")
      end']]):format(directory),
      ('env LD_PRELOAD="$LD_PRELOAD build/slow_disk.so" OUTBOX_SYNCED=%s'):format(log))
    assert.is_true(ok, output)
    assert.equal(("%s/new\n%s/new\n%s\n%s/new\n"):gsub("%%s", directory), read(log))
    os.remove(directory .. "/new")
  end)

  it("follows a file that is moved away", function()
    local publisher, moved = outbox.publisher("file:" .. path), support.path()
    publisher:publish({ message("1") }, "")
    assert(os.rename(path, moved))
    publisher:publish({ message("2") }, "")
    assert.same({ "1" }, support.pluck(lines(read(moved)), "id"))
    assert.same({ "2" }, support.pluck(lines(read(path)), "id"))
  end)

  it("counts no attempt while it cannot write, and delivers later", function()
    os.remove(path)
    store:publish({ id = "1" }, { id = "2" })
    local p = processor(outbox.publisher("file:" .. path .. "/events"))
    p:pump()
    assert.matches("events: No such file or directory", errors[1], 1, true)
    assert.outbox(store).has_entry({ id = "1", attempts = 0 })
    assert.outbox(store).has_entry({ id = "2", attempts = 0 })
    assert(os.execute("mkdir " .. path))
    store:clock().advance(60)
    p:pump()
    assert.outbox(store).is_empty()
    assert.equal(2, #lines(read(path .. "/events")))
    os.remove(path .. "/events")
  end)

  it("does not count a batch as delivered if the disk is full or fails", function()
    write(path, "{}\n")
    local function reason(size, prefix)
      return (support.run(([[-e '
        local message = { id = "x", namespace = "", created_at = 1, payload = ("x"):rep(%d) }
        message.attempts = 0
        print(require("outbox").publisher("file:%s"):publish({ message }, ""))']]):format(size,
        path), prefix))
    end
    assert.equal("nil\t" .. path .. ": File too large\n",
      reason(20000000, "trap '' XFSZ; ulimit -f 20480;"))
    assert.equal("nil\t" .. path .. ": No such file or directory\n",
      reason(1, 'env LD_PRELOAD="$LD_PRELOAD build/slow_disk.so" OUTBOX_SYNCED=/nowhere/log'))
  end)

  it("refuses anything but a regular file, and writes nothing to it", function()
    local function refuse(what)
      local answer, reason = outbox.publisher("file:" .. what):publish({ message("1") }, "")
      assert.is_nil(answer)
      assert.equal(what .. " is not a regular file", (reason:gsub(" %(.*", "")))
    end
    os.remove(path)
    assert(os.execute("mkfifo " .. path))
    local fifo <close> = assert(io.open(path, "r+"))
    refuse(path)
    for _, device in ipairs({ "/dev/null", "/dev/full" }) do
      refuse(device)
    end
    fifo:write("nothing\n")
    fifo:flush()
    assert.equal("nothing", fifo:read("l"))
  end)
end)

describe("the stdout publisher", function()
  local program = [[-e '
    local outbox = require("outbox")
    local publisher <close> = outbox.publisher("stdout:")
    local message = { id = "1", namespace = "n", created_at = 1, attempts = 0 }
    local answer, reason = publisher:publish({ message }, "n")
    io.stderr:write(tostring(answer), " ", tostring(reason), "\n")
    os.exit(true, false)' ]]

  it("writes lines, and flushes them", function()
    assert.matches('^{"id":"1",.*}\ntrue nil\n$', (support.run(program)))
  end)

  it("reports the error", function()
    assert.equal("nil No space left on device\n", support.run(program .. "2>&1 >/dev/full; exec"))
  end)
end)

describe("the route publisher", function()
  it("hands each namespace to its own publisher, and the others to that of *", function()
    local a, others, called = testing.publisher(), testing.publisher(), {}
    local route = outbox.publisher({ a = a, b = function(messages, namespace)
      called[#called + 1] = { messages, namespace }
      return false
    end, ["*"] = others })
    others:fail("4", "refused")
    assert.is_nil(route:publish({ message("1") }, "a"))
    assert.is_false(route:publish({ message("2") }, "b"))
    assert.is_nil(route:publish({ message("3") }, ""))
    assert.same({ "refused" }, route:publish({ message("4") }, "c"))
    assert.same({ "1" }, support.pluck(a.messages, "id"))
    assert.same({ { { message("2") }, "b" } }, called)
    assert.same({ "", "c" }, support.pluck(others.calls, "namespace"))
  end)

  it("leaves messages without a route to other processors", function()
    local store <close> = support.store()
    store:publish({ namespace = "a" }, { namespace = "b" })
    local problems = {}
    outbox.processor({ store = store, publisher = outbox.publisher({ b = testing.publisher() }),
      on_error = function(problem)
        problems[#problems + 1] = problem.message
      end }):pump()
    assert.outbox(store).has_entry({ namespace = "a", attempts = 0 })
    assert.outbox(store).has_entries(1)
    assert.same({}, problems)
    local rest = outbox.publisher({ a = testing.publisher(), ["*"] = testing.publisher() })
    assert.equal(1, outbox.processor({ store = store, publisher = rest }):pump())
    support.remove()
  end)

  it("has the smallest batch size of its publishers", function()
    local function size(routes)
      return outbox.publisher(routes).batch_size
    end
    local function publish() end
    assert.equal(100, size({ a = "redis://localhost", b = "file:/dev/null", c = "stdout:" }))
    assert.equal(20, size({ a = "redis://localhost", b = publish }))
    assert.equal(20, size({ a = "redis://localhost", b = "http://localhost", c = "exec:cat" }))
    assert.equal(7, size({ a = "stdout:", b = { publish = publish, batch_size = 7 } }))
  end)

  it("closes all its publishers", function()
    local closed = 0
    local function publisher()
      return { publish = function() end, close = function()
        closed = closed + 1
      end }
    end
    local routes = { a = publisher(), b = publisher(), c = testing.publisher(),
      d = function() end, e = "stdout:" }
    do
      local route <close> = outbox.publisher(routes) -- luacheck: no unused
    end
    assert.equal(2, closed)
  end)
end)

describe("docs/writing-a-publisher.md", function()
  local page = read("docs/writing-a-publisher.md")

  it("shows a publisher that works as described", function()
    local listener = assert(socket.bind("127.0.0.1", 0))
    local _, port = listener:getsockname()
    local received = support.path()
    local pid = process.fork(function() -- before a store is open
      local answers = { bad = "never", busy = "not now" }
      local log <close> = assert(io.open(received, "w"))
      local connection = listener:accept()
      for line in function() return (connection:receive("*l")) end do
        log:write(line, "\n")
        connection:send((answers[line:match("%S+$")] or "ok") .. "\n")
      end
    end)
    listener:close()
    local store <close> = support.store({ id_generator = testing.ids() })
    store:publish({ namespace = "n", payload = "a" }, { namespace = "n", payload = "bad" },
      { namespace = "n", key = "k", payload = "busy" },
      { namespace = "n", key = "k", payload = "b" }, { namespace = "n", payload = "c" })
    local made
    local environment = setmetatable({ store = store, outbox = { processor = function(options)
      made = options.publisher
      function options.retry() -- the default may fall due while the spec still runs
        return 3600
      end
      return outbox.processor(options)
    end } }, { __index = _G })
    local snippet = page:match("\n```lua\n(.-)\n```"):gsub("7000", port)
      :gsub("localhost", "127.0.0.1"):gsub(":run%(%)", ":pump()")
    assert(load(snippet, "=docs/writing-a-publisher.md", "t", environment))()
    assert.outbox(store).has_dead_entry({ id = "id-2", last_error = "never" })
    assert.outbox(store).has_entry({ id = "id-3", attempts = 1, last_error = "not now" })
    assert.outbox(store).has_entry({ id = "id-4", attempts = 0 })
    made.connection:close()
    assert.equal(0, (process.wait(pid)))
    assert.equal("n id-1 a\nn id-2 bad\nn k busy\nn id-5 c\n", read(received))
    local problem = support.raised(made.publish, made, { message("1") }, "n")
    assert.matches("closed", problem)
    problem = support.raised(made.publish, made, { message("1") }, "n")
    assert.matches("connection refused", problem)
    support.remove()
  end)
end)
