local cjson = require("cjson")
local command = require("spec.support.command")
local outbox = require("outbox")
local process = require("process")
local server = require("spec.support.server")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

local COMMAND, expect, fail, finish = command.COMMAND, command.expect, command.fail, command.finish
local json_lines, read, run, shell = command.json_lines, command.read, command.run, command.shell
local start, succeed, write = command.start, command.succeed, command.write

describe("outbox relay", function()
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

  local destination

  before_each(function()
    destination = support.path()
  end)

  local function start_relay(arguments, before)
    return start(("relay %s %s"):format(path, arguments), before)
  end

  local function delivered()
    return support.pluck(json_lines(read(destination)), "id")
  end

  sqlite_it("delivers what a new user publishes", function()
    local new = support.path()
    os.remove(new)
    local out, status = run(("publish %s 'hello' --key k && %s relay %s --to stdout: --once")
      :format(new, COMMAND, new))
    assert.equal(0, status)
    local id, line = out:match("^(.-)\n(.*)\n$")
    local message = cjson.decode(line)
    assert.same({ id, "k", "hello" }, { message.id, message.key, message.payload })
  end)

  it("delivers to Redis", function()
    local port = server.port()
    server.new(("redis-server --port %d --bind 127.0.0.1 --dir $DIRECTORY"):format(port), port)
      :start()
    finally(server.stop)
    publish("a", "b")
    write(destination, ("redis://127.0.0.1:%d/0\n"):format(port))
    -- Not by the wrapper of luarocks, which leaves out the path where Debian's lua-redis lies.
    local length = support.path()
    write(length, "10\n")
    assert(os.execute(support.command(("bin/outbox relay %s --once --to @%s --option stream=7 "
      .. "--option maxlen=@%s 2>/dev/null"):format(path, destination, length))))
    local client = require("redis").connect("127.0.0.1", port)
    assert.equal(2, client:raw_cmd("XLEN 7\r\n"))
  end)

  it("delivers all that is due, once", function()
    publish("a", "b", "c")
    store:publish({ id = "later", deliver_at = outbox.clock.now() + 1000 })
    local out, status, err = run(("relay %s --to file:%s --once --batch-size 2"):format(path,
      destination))
    assert.same({ "", 0 }, { out, status }, err)
    assert.same({ "a", "b", "c" }, delivered())
    assert.matches("^20%S+Z started database=%S+ processor=%S+ ready=3 delayed=1 dead=0\n20%S+Z "
      .. "stopped delivered=3 retried=0 deferred=0 dead=0 errors=0 ready=0 delayed=1\n$", err)
    assert.same({}, store:stats().leases)
  end)

  it("hands out at most --batch-bytes at a time", function()
    publish("a", "b", "c")
    local _, status, err = run(("relay %s --to file:%s --once --verbose --batch-bytes 1")
      :format(path, destination))
    assert.equal(0, status, err)
    assert.same({ "a", "b", "c" }, delivered())
    assert.equal(3, select(2, err:gsub("size=1 ", "")), err)
  end)

  it("takes its time, once, where there is a rate", function()
    for i = 1, 30 do
      publish(("%02d"):format(i))
    end
    local _, status, err = run(("relay %s --to file:%s --once --rate 20"):format(path, destination))
    assert.equal(0, status, err)
    assert.equal(30, #delivered())
  end)

  it("ends with status 4 if something that was due is not delivered", function()
    publish("a")
    local out, status, err = run("relay " .. path .. " --to file:/nowhere/at/all --once")
    assert.same({ "", 4 }, { out, status })
    assert.matches(' error code=publisher namespace="" id=a message="/nowhere/at/all: No ', err)
    assert.same({ 1, 0 }, { store:stats().ready + store:stats().delayed, store:stats().dead })
  end)

  it("ends with status 4 if another processor is at work", function()
    publish("a")
    store:claim_entries("another", outbox.clock.now() + 1000)
    assert.equal(4, select(2, run("relay " .. path .. " --to stdout: --once")))
    assert.equal("another", store:stats().leases[1].processor_id)
  end)

  it("leaves the namespaces alone that it has no route for", function()
    store:publish({ namespace = "a" }, { namespace = "b" })
    assert.equal(0, select(2, run(("relay %s --to a=file:%s --once"):format(path, destination))))
    assert.outbox(store).has_entry({ namespace = "b", attempts = 0 })
    assert.outbox(store).has_entries(1)
  end)

  it("delivers what is published later, and stops at a signal", function()
    for signal, number in pairs({ SIGTERM = 15, SIGINT = 2, SIGHUP = 1 }) do
      local pid, pipe = start_relay(("--to file:%s --process-interval 3600 --verbose 2>&1")
        :format(destination))
      expect(pipe, " started ")
      publish(signal)
      expect(pipe, " delivered id=" .. signal .. ' namespace="" latency=%d')
      process.kill(pid, number)
      expect(pipe, " stopping signal=" .. signal .. "$")
      expect(pipe, " stopped delivered=1 ")
      assert.same({ "", "exit 0" }, { finish(pipe) })
      assert.same({}, store:stats().leases)
    end
  end)

  for mode, status in pairs({ [""] = 0, ["--once"] = 4 }) do
    it(("finishes the batch in hand, and gives the rest back %s"):format(mode), function()
      -- The pipe has no room for it: the relay is stuck in the midst of it.
      store:publish({ payload = ("x"):rep(1000000) }, { id = "next" })
      local pid, pipe = start_relay("--to stdout: --batch-size 1 2>/dev/null " .. mode)
      local first = pipe:read(1)
      process.kill(pid, 15)
      assert.equal(1000000, #cjson.decode(first .. pipe:read("l")).payload)
      assert.same({ "", "exit " .. status }, { finish(pipe) })
      assert.same({ "next" }, support.pluck(store:ready_entries(), "id"))
      assert.same({}, store:stats().leases)
    end)
  end

  it("misses no signal that comes before it sleeps", function()
    local core = require("outbox.core")
    local pid = process.fork(function()
      core.catch_signals()
      process.kill(process.pid(), 15)
      assert(core.await_signal(3600) == "SIGTERM")
    end)
    assert.equal(0, process.wait(pid))
  end)

  it("ends at once at a signal a while after the first", function()
    store:publish({ payload = ("x"):rep(1000000) })
    local pid, pipe = start_relay("--to stdout: 2>/dev/null")
    pipe:read(1)
    repeat
      process.kill(pid, 15)
      outbox.clock.sleep(0.01)
    until process.ended(pid)
    assert.equal("signal 15", select(2, finish(pipe)))
    assert.equal(1, store:stats().ready)
  end)

  it("keeps ignoring a signal that it was started to ignore", function()
    local pid, pipe = start_relay("--verbose --to file:" .. destination .. " 2>&1",
      "trap '' HUP;")
    expect(pipe, " started ")
    process.kill(pid, 1)
    publish("a")
    expect(pipe, " delivered id=a ")
    process.kill(pid, 15)
    expect(pipe, " stopping signal=SIGTERM$")
    assert.equal("exit 0", select(2, finish(pipe)))
  end)

  for _, mode in ipairs({ "", "--once" }) do
    it(("ends if nobody reads its output any more, and loses nothing %s"):format(mode),
      function()
        publish("a", "b")
        local gone, ended = support.path(), support.path()
        os.remove(gone)
        assert(os.execute("mkfifo " .. gone))
        local _, _, log = shell(("{ read _ <%s; timeout 30 %s relay %s --to stdout: %s; "
          .. "echo $? >%s; } | { exec <&-; echo >%s; }"):format(gone, COMMAND, path, mode, ended,
          gone))
        assert.equal("141\n", read(ended))
        assert.matches("Broken pipe.* stopped delivered=0 .* ready=2 ", log)
        assert.same({ "a", "b" }, support.pluck(store:ready_entries(), "id"))
        assert.same({}, store:stats().leases)
      end)
  end

  it("delivers each namespace to its own destination", function()
    local others = support.path()
    for _, namespace in ipairs({ "orders", "audit", "" }) do
      store:publish({ id = "of " .. namespace, namespace = namespace })
    end
    succeed(("relay %s --once --to orders=file:%s --to file:%s 2>/dev/null"):format(path,
      destination, others))
    assert.same({ "of orders" }, delivered())
    assert.same({ "of audit", "of " }, support.pluck(json_lines(read(others)), "id"))
  end)

  it("delivers a namespace with colons to its own destination", function()
    for i, namespace in ipairs({ "shop:orders", "a:b=c", "redis:events", "other" }) do
      store:publish({ id = tostring(i), namespace = namespace })
    end
    local other = support.path()
    succeed(("relay %s --once --to shop:orders=file:%s --to 'a:b=c=file:%s' "
      .. "--to redis:events=file:%s --to file:%s 2>/dev/null"):format(path, destination,
      destination, destination, other))
    local ids = delivered()
    table.sort(ids)
    assert.same({ "1", "2", "3" }, ids)
    assert.same({ "4" }, support.pluck(json_lines(read(other)), "id"))
  end)

  it("tells a namespace with colons from a URL with an equals sign", function()
    local read_route = require("outbox.command.relay.routes").read
    for text, wanted in pairs({
      ["http://host/?to=http://other"] = { "*", "http://host/?to=http://other" },
      ["HTTPS://host/?a=@b"] = { "*", "HTTPS://host/?a=@b" },
      ["gopher://host/?a=file:b"] = { "*", "gopher://host/?a=file:b" },
      ["exec:A=b:c sh -c 'x=file:y'"] = { "*", "exec:A=b:c sh -c 'x=file:y'" },
      ["file:a=file:b"] = { "*", "file:a=file:b" },
      ["redis://:a=b@host"] = { "*", "redis://:a=b@host" },
      ["a=exec:B=c:d e"] = { "a", "exec:B=c:d e" },
      ["=stdout:"] = { "", "stdout:" },
      ["a=stdout"] = { "a", "stdout" },
      ["a:b:c=gopher:x=y:z"] = { "a:b:c", "gopher:x=y:z" },
      ["a:=http://host/?x=y:z"] = { "a:", "http://host/?x=y:z" },
      ["stdout:a=stdout:"] = { "stdout:a", "stdout:" },
      ["stdout:"] = { "*", "stdout:" },
    }) do
      local route = read_route(text)
      assert.same({ text, table.unpack(wanted) }, { text, route.namespace, route.url })
    end
  end)

  it("logs retries and dead letters, with the reason", function()
    store:publish({ id = "a", namespace = "orders", key = "7" }, { id = "b" }, { id = "c" })
    write(destination, [[
      while read -r message; do
        case $message in
          *'"id":"a"'*) echo 'error "busy" now' ;;
          *'"id":"b"'*) echo '{"reason": "refused", "permanent": true}' ;;
          *) echo ok ;;
        esac
      done]])
    local _, status, err = run(("relay %s --to 'exec:sh %s' --once --retry-base 500"):format(path,
      destination))
    assert.equal(4, status)
    assert.matches(" retry id=a namespace=orders key=7 attempts=1 delay=%d[%d.]+ "
      .. [[reason="\"busy\" now"]] .. "\n", err)
    assert.matches(' dead id=b namespace="" reason=refused\n', err)
    assert.matches(" stopped delivered=1 retried=1 deferred=0 dead=1 errors=0 ready=0 delayed=1\n",
      err)
  end)

  sqlite_it("logs in JSON as well", function()
    store:publish({ id = "a", namespace = "n", key = "\255" }, { id = "b" })
    local _, _, err = run(("relay %s --to file:%s --once --verbose --log json"):format(path,
      destination))
    local events = json_lines(err)
    assert.same({ "started", "delivered", "delivered", "batch", "stopped" },
      support.pluck(events, "event"))
    assert.same({ "a", "n", "/w==" },
      { events[2].id, events[2].namespace, events[2].key_base64 })
    assert.same({ 2, 2, 0, 0 },
      { events[4].size, events[4].delivered, events[4].retried, events[4].dead })
    assert.matches("^20%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%dZ$", events[5].time)
  end)

  it("shows its progress on a terminal", function()
    publish("a")
    local pipe = command.start_on_terminal(("echo pid $$; exec %s relay %s --to file:%s")
      :format(COMMAND, path, destination)) or pending("there are no pseudo-terminals here")
    local text = ""
    repeat
      text = text .. pipe:read(1)
    until text:find("\r1 delivered, %d+%.%d/s, 0 retried, 0 dead; 0 ready, 0 delayed\27%[K$")
    process.kill(tonumber(text:match("^pid (%d+)")), 15)
    assert.matches("\r\27%[K20%S+Z stopping signal=SIGTERM\r\n", (finish(pipe)))
  end)

  it("refuses wrong arguments", function()
    local function refuse(pattern, arguments)
      fail(2, pattern, "relay " .. path .. " " .. arguments)
    end
    refuse("missing option '%-%-to'", "")
    refuse("^outbox: unknown scheme 'gopher', not one of ", "--to gopher:x")
    refuse("unknown option 'color'\n$", "--to stdout: --option color=red")
    refuse("^outbox: batch_size must be an integer from 1 to 100000\n$",
      "--to stdout: --batch-size 1000000")
    refuse("no option %-%-limit any more: processors .- share", "--to stdout: --limit 10")
    refuse("retry.factor must be a number, at least 1", "--to stdout: --retry-factor 0.5")
    refuse("%-%-option comes after the %-%-to that it belongs to", "--option a=b --to stdout:")
    refuse("unknown option 'headers'", "--to stdout: --option headers.a=b")
    refuse("/nowhere: No such file", "--to @/nowhere")
    refuse("/nowhere: No such file", "--to stdout: --option secret=@/nowhere")
    refuse("^outbox: /tmp: Is a directory\n", "--to @/tmp")
    refuse("^outbox: /tmp: Is a directory\n", "--to stdout: --option secret=@/tmp")
    refuse("^outbox: %-%-option headers has a value, and so no fields\n$",
      "--to stdout: --option headers=5 --option headers.X=1")
    refuse("^outbox: timeout must be a number", "--to exec:cat --option timeout=false")
    refuse("two destinations of 'n'", "--to n=stdout: --to n=stdout:")
    refuse("must be one of 'key', 'none', 'strict'", "--to stdout: --ordering best")
  end)
end)
