-- Destinations are found by the scheme of a URL, in this rock and in others.

local destinations = require("outbox.publishing.destinations")
local outbox = require("outbox")
local process = require("process")
local socket = require("socket")
local support = require("spec.support")

local function read(path)
  local file <close> = assert(io.open(path))
  return file:read("a")
end

-- A destination that another rock might install: it hands messages to a function.
local MODULE = [[
  local option = require("outbox.options")
  return {
    summary = { url = "pigeon:NAME", text = "a pigeon" },
    OPTIONS = { speed = { default = 7, check = option.count } },
    parse = function(scheme, rest)
      return rest ~= "" and { scheme = scheme, name = rest } or nil, "pigeon:NAME expected"
    end,
    new = function(target, options)
      return { publish = function(_, messages)
        print(target.scheme, target.name, options.speed, #messages)
      end }
    end,
  }]]

describe("a destination", function()
  local root

  before_each(function()
    root = support.path()
    os.remove(root)
    assert(os.execute(("mkdir -p %s/outbox/publishers"):format(root)))
  end)

  after_each(function()
    os.execute("rm -r " .. root)
    support.remove()
  end)

  local function install(scheme, text)
    local file <close> = assert(io.open(("%s/outbox/publishers/%s.lua"):format(root, scheme), "w"))
    file:write(text)
  end

  -- Runs Lua code with what was installed; returns the output.
  local function run(code, prefix)
    local program = [[-e 'package.path = "%s/?.lua;" .. package.path; %s']]
    return (support.run(program:format(root, code), prefix))
  end

  -- What making a publisher of a URL raises there.
  local function refusal(url)
    return (run(([[print(select(2, pcall(require("outbox").publisher, %s)))]])
      :format(url:gsub("'", "\\39"))))
  end

  local function unknown(scheme)
    return ("bad arguments to 'publisher' (unknown scheme '%s', not one of %s)")
      :format(scheme, table.concat(destinations.SCHEMES, ", "))
  end

  it("of another rock is found by its scheme", function()
    install("pigeon", MODULE)
    assert.equal("pigeon\thome\t9\t2\n", run([[
      local publisher = require("outbox").publisher("pigeon:home", { speed = 9 })
      publisher:publish({ {}, {} }, "")]]))
    assert.equal("bad arguments to 'publisher' (pigeon:NAME expected; speed must be an integer "
      .. "from 1 to 100000; unknown option 'hight')\n", (run([[print(select(2, pcall(
      require("outbox").publisher, "pigeon:", { speed = 0, hight = 1 })))]])))
  end)

  it("of another rock can be used by the relay", function()
    install("pigeon", MODULE)
    local store <close>, path = support.store()
    store:publish({}, {})
    local output = support.run(("bin/outbox relay %s --once --to pigeon:home --option speed=8")
      :format(path), ([[env LUA_INIT='package.path = package.path .. ";%s/?.lua"']]):format(root))
    assert.matches("\npigeon\thome\t8\t2\n", output)
  end)

  it("may have a hyphen, a plus or digits in its scheme", function()
    for _, scheme in ipairs({ "pigeon-2", "pigeon+post" }) do
      install(scheme, MODULE)
      assert.equal(scheme .. "\thome\t7\t0\n", run(
        ([[require("outbox").publisher("%s:home"):publish({}, "")]]):format(scheme)))
    end
  end)

  it("is found by package.preload and any other searcher", function()
    install("pigeon", MODULE)
    assert.equal("sparrow\thome\t7\t0\n", run([[
      package.preload["outbox.publishers.sparrow"] = function()
        return require("outbox.publishers.pigeon")
      end
      require("outbox").publisher("sparrow:home"):publish({}, "")]]))
    assert.equal("swift\thome\t7\t0\n", run([[
      table.insert(package.searchers, function(name)
        return name == "outbox.publishers.swift" and function()
          return require("outbox.publishers.pigeon")
        end or "no swift"
      end)
      require("outbox").publisher("swift:home"):publish({}, "")]]))
  end)

  it("is found whatever the case of its scheme", function()
    local path = support.path()
    local publisher <close> = outbox.publisher("File:" .. path)
    local message = { id = "a", namespace = "", created_at = 0, attempts = 0 }
    assert.is_true(publisher:publish({ message }))
    local reason = support.raised(outbox.publisher, "REDIS:x")
    assert.matches("redis://[user:password@]host", reason, 1, true)
  end)

  it("is unknown if its module has no parse, OPTIONS or new", function()
    for _, text in ipairs({ "return function() end", "return true", "return 'pigeon'", "",
      "return { OPTIONS = {}, new = function() end }",
      "return { parse = function() end, new = function() end }",
      "return { OPTIONS = {}, parse = function() end }" }) do
      install("pigeon", text)
      assert.equal(unknown("pigeon") .. "\n", refusal('"pigeon:home"'), text)
    end
  end)

  it("is refused if its module makes no publisher, or gives no reason", function()
    local function module(parse, new, options)
      install("pigeon", ("return { OPTIONS = %s, parse = function() return %s end, "
        .. "new = function() return %s end }"):format(options or "{}", parse, new))
      return refusal('"pigeon:home"')
    end
    for _, new in ipairs({ "nil", "'text'", "{}", "{ publish = 1 }" }) do
      assert.equal("bad arguments to 'publisher' (the destination of 'pigeon' made no publisher)\n",
        module("1", new))
    end
    assert.equal("bad arguments to 'publisher' (no room)\n", module("1", "nil, [[no room]]"))
    for _, parse in ipairs({ "nil", "nil, {}", "false, 7" }) do
      assert.equal("bad arguments to 'publisher' (a bad URL for 'pigeon')\n",
        module(parse, "function() end"))
    end
    for _, options in ipairs({ "{ a = true }", "{ {} }", "{ a = {} }" }) do
      assert.equal(unknown("pigeon") .. "\n", module("1", "function() end", options))
    end
  end)

  it("is unknown if it is a helper of the destinations", function()
    for _, name in ipairs({ "route", "format", "cloudevents", "destinations", "publisher" }) do
      assert.matches(unknown(name), support.raised(outbox.publisher, name .. ":x"), 1, true)
    end
  end)

  it("is refused if its scheme is none, and leads to no other folder", function()
    assert(os.execute(("mkdir %s/outbox/publishers/deep"):format(root)))
    install("deep/pigeon", MODULE)
    install("../pigeon", MODULE)
    for url, scheme in pairs({ [""] = "", ["pigeon"] = "", [":"] = "", ["://x"] = "",
      ["..:x"] = "", ["../pigeon:x"] = "", ["..pigeon:x"] = "", ["deep/pigeon:x"] = "",
      ["deep.pigeon:x"] = "deep.pigeon", ["a..:x"] = "a..",
      ["PLANE:/tmp/x"] = "PLANE", ["1a:x"] = "", ["-a:x"] = "", ["a b:x"] = "", [" file:x"] = "",
      ["file\\0:x"] = "", ["file%s:x"] = "", ["file?:x"] = "", ["file\\n:x"] = "",
      ["f\\xe9e:x"] = "", ["a.lua:x"] = "a.lua" }) do
      assert.equal(unknown(scheme) .. "\n", refusal(('"%s"'):format(url)), url)
    end
  end)

  it("is refused with a part of its scheme if that is long", function()
    for _, length in ipairs({ 65, 255, 4096, 1000000 }) do
      local scheme = ("a"):rep(length)
      assert.matches(unknown(("a"):rep(64) .. "..."),
        support.raised(outbox.publisher, scheme .. ":x"), 1, true)
    end
  end)

  it("that does not load says why", function()
    install("kafka", "error('the broker is a lie', 0)")
    assert.equal("the broker is a lie\n", refusal('"kafka:x"'))
    install("kafka", "return {")
    assert.matches("^error loading module 'outbox.publishers.kafka' from file .*kafka.lua:1: ",
      refusal('"kafka:x"'))
    install("kafka", "return require('no.such.client')")
    assert.matches("kafka.lua:1: module 'no.such.client' not found:", refusal('"kafka:x"'))
    install("kafka",
      "return require('outbox.need')('no.such.client', 'kafka needs a client', 'client')")
    assert.equal("kafka needs a client: luarocks --lua-version 5.4 install client\n",
      refusal('"kafka:x"'))
  end)

  it("is shown by docs/writing-a-publisher.md", function()
    local snippet
    for found in read("docs/writing-a-publisher.md"):gmatch("\n```lua\n(.-)\n```") do
      snippet = found
    end
    install("lines", snippet)
    local listener = assert(socket.bind("127.0.0.1", 0))
    local _, port = listener:getsockname()
    local received = support.path()
    local pid = process.fork(function()
      local file <close> = assert(io.open(received, "w"))
      local connection = listener:accept()
      for _ = 1, 2 do
        file:write(connection:receive("*l"), "\n")
        connection:send("ok\n")
      end
    end)
    listener:close()
    assert.equal("ok\n", run(([[
      local publisher = require("outbox").publisher("lines://127.0.0.1:%s", { timeout = 9 })
      publisher:publish({ { payload = "a" }, { payload = "b" } }, "")
      print("ok")]]):format(port)))
    assert.equal(0, (process.wait(pid)))
    assert.equal("a\nb\n", read(received))
    assert.matches("(lines://host:port expected; timeout must be a number of seconds",
      run([[print(pcall(require("outbox").publisher, "lines:x", { timeout = 0 }))]]), 1, true)
  end)

  describe("in relay --help", function()
    local function help(prefix)
      local output = run([[require("outbox.command")({ "relay", "--help" })]], prefix)
      return output:match("\nDestinations %b():\n(.-)\n\n")
    end

    it("is listed by its summary", function()
      for _, summary in ipairs(destinations.summaries()) do
        assert.matches("   " .. summary.url .. " ", help(), 1, true)
        assert.matches("  " .. summary.text, help(), 1, true)
      end
      assert.is_true(#destinations.summaries() >= 4)
    end)

    it("hides no other if it does not load, or has no summary", function()
      install("exec", "error('no')")
      install("file", "return {")
      install("http", "return { OPTIONS = {}, parse = print, new = print, summary = { url = 7 } }")
      assert.is_nil(help():find("exec:", 1, true))
      assert.is_nil(help():find("http:", 1, true))
      assert.matches("\n   redis://", "\n" .. help(), 1, true)
    end)

    it("is listed without its client", function()
      local expected = help()
      install("../../without", [[
        local function missing(name)
          error(("module '%s' not found"):format(name))
        end
        for _, name in ipairs({ "outbox.destinations.mqtt", "outbox.destinations.redis", "cjson",
          "luv", "http.request", "basexx", "cqueues", "openssl.hmac", "lpeg_patterns.http" }) do
          package.preload[name] = missing
        end]])
      local without = ([[env LUA_INIT=@%s/without.lua]]):format(root)
      assert.equal("the client is missing\n", run(
        [[print(pcall(require, "outbox.destinations.redis") and "" or "the client is missing")]],
        without))
      assert.equal(expected, help(without))
    end)
  end)
end)

describe("docs/destinations.md", function()
  local page = read("docs/destinations.md")

  it("makes publishers that there are", function()
    local snippet = page:match("\n```lua\n(.-)\n```") .. "; return publisher"
    local made = assert(load(snippet, "=docs/destinations.md", "t", { outbox = outbox }))()
    assert.equal(20, made.batch_size)
    made:close()
  end)

  it("lists every destination as relay --help does, and no other", function()
    local listed = {}
    local rows = page:match("\n| URL | destination | batch | needs |\n[| -]+\n(.-)\n\n")
    for url, title in rows:gmatch("| (`[^|]*) | (%b[])") do
      listed[url:gsub("`", "")] = title:sub(2, -2)
    end
    for _, summary in ipairs(destinations.summaries()) do
      assert.equal(summary.text, listed[summary.url])
      listed[summary.url] = nil
    end
    assert.same({}, listed)
  end)

  it("names every scheme, and the batch that suits it", function()
    local targets = { exec = "cat", file = "/dev/null", stdout = "", unix = "/socket" }
    -- These have the module of another scheme, and need TLS, which not every client has.
    local secure = { amqps = true, https = true, mqtts = true, rediss = true, tls = true }
    local count = 0
    for scheme in support.raised(outbox.publisher, "no:"):match("one of ([%w, ]+)"):gmatch("%w+") do
      local batch = assert(page:match("`" .. scheme .. ":[^|]*|[^|]*| (%d+) |"), scheme)
      -- In a process of its own, because luv crashes if it is loaded again, as busted does.
      local program = [[-e 'print(require("outbox").publisher("%s:%s").batch_size or 20)']]
      if not secure[scheme] then
        local size = support.run(program:format(scheme, targets[scheme] or "//localhost"))
        assert.equal(size, batch .. "\n", scheme)
      end
      count = count + 1
    end
    assert.equal(#destinations.SCHEMES, count)
  end)

  it("lists every option of a destination, with its default, and no other", function()
    local titles = { redis = "Redis Streams", nats = "NATS JetStream", amqp = "RabbitMQ",
      mqtt = "MQTT", kafka = "Kafka", http = "Webhooks", exec = "A program",
      file = "Lines of JSON" }
    for scheme in pairs(titles) do
      local section = (page .. "\n## "):match("\n## " .. titles[scheme] .. "\n(.-)\n## ")
      local rows = section:match("\n| option | default | |\n[| -]+\n(.-)\n\n") or ""
      local listed = {}
      for option, default in rows:gmatch("| `([%l_]+)` | ([^|]-) |") do
        listed[option] = default
      end
      for option, known in pairs(destinations.find(scheme).OPTIONS) do
        local default = listed[option]
        assert.is_string(default, scheme .. ": " .. option)
        if type(known.default) ~= "table" and known.default ~= nil then
          assert.equal(tostring(known.default), (default:gsub(" s$", ""):gsub('"', "")))
        else
          assert.is_nil(default:find('[%d"]'), scheme .. ": " .. option)
        end
        listed[option] = nil
      end
      assert.same({}, listed, scheme)
    end
  end)

  it("shows the line that a message becomes", function()
    local line = page:match('\n({"id":"order%-2".-})\n')
    assert.equal(line, require("outbox.publishing.format").line({ id = "order-2",
      namespace = "orders", key = "7", payload = "placed", headers = { source = "shell" },
      created_at = 1737892800.123456, attempts = 0, seq = 2 }))
  end)
end)
