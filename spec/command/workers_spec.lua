local command = require("spec.support.command")
local outbox = require("outbox")
local process = require("process")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

local COMMAND, expect, fail, finish = command.COMMAND, command.expect, command.fail, command.finish
local json_lines, read, run = command.json_lines, command.read, command.run
local start, write = command.start, command.write

describe("outbox relay with several workers", function()
  local store, path, directory

  before_each(function()
    store, path = support.store()
    directory = support.path()
    os.remove(directory)
    assert(os.execute("mkdir " .. directory))
  end)

  after_each(function()
    store:close()
    os.execute("rm -r " .. directory)
    support.remove()
  end)

  local function file(name)
    return directory .. "/" .. name
  end

  local function publish(namespace, ...)
    for _, id in ipairs({ ... }) do
      store:publish({ id = id, namespace = namespace })
    end
  end

  local function ids(name)
    local list = support.pluck(json_lines(read(file(name))), "id")
    table.sort(list)
    return list
  end

  -- Starts the relay; returns its pid, and its log. `interval` is its longest sleep, in seconds.
  local function start_relay(arguments, interval)
    return start(("relay %s --process-interval %s %s 2>&1"):format(path, interval or 3600,
      arguments))
  end

  local function pid_of(started)
    return tonumber(started:match("processor=%S-%-(%d+)%-%x+ "))
  end

  -- A destination that writes what it gets to a file, and answers when the gate, a FIFO, is opened.
  local function gated(name)
    assert(os.execute(("mkfifo %s %s"):format(file(name .. ".gate"), file(name .. ".got"))))
    write(file(name .. ".sh"), ([[
      while read -r message; do
        echo "$message" >>%s
        echo got >%s
        read -r _ <%s
        echo ok
      done]]):format(file(name), file(name .. ".got"), file(name .. ".gate")))
    return ("%s='exec:sh %s'"):format(name, file(name .. ".sh"))
  end

  local function wait_for(name)
    assert.equal("got\n", read(file(name .. ".got")))
  end

  local function open(name)
    write(file(name .. ".gate"), "\n")
  end

  it("has a process for each destination, and one log", function()
    local pid, log = start_relay(("--to a=file:%s --to file:%s --verbose"):format(file("a"),
      file("others")))
    local one, other = expect(log, " started route=a database=", " started route=%* database=")
    assert.is_true(pid_of(one) ~= pid_of(other) and pid_of(one) ~= pid)
    publish("a", "1")
    publish("b", "2")
    expect(log, " delivered route=a id=1 namespace=a ", " delivered route=%* id=2 namespace=b ")
    assert.same({ { "1" }, { "2" } }, { ids("a"), ids("others") })
    process.kill(pid, 15)
    expect(log, " stopping signal=SIGTERM$", " stopped route=a delivered=1 ",
      " stopped route=%* delivered=1 ")
    expect(log, " stopped$")
    assert.same({ "", "exit 0" }, { finish(log) })
    assert.same({}, store:stats().leases)
  end)

  it("divides the messages of a destination among --workers", function()
    local pid, log = start_relay(("--to 'exec:sh -c \"while read -r m; do echo ok; done\"' "
      .. "--workers 2 --verbose --log json"):format())
    expect(log, '"event":"started".*"worker":1', '"event":"started".*"worker":2')
    for i = 1, 200 do
      store:publish({ key = "key " .. i })
    end
    expect(log, '"event":"delivered".*"route":"%*".*"worker":1',
      '"event":"delivered".*"route":"%*".*"worker":2')
    process.kill(pid, 15)
    assert.equal("exit 0", select(2, finish(log)))
  end)

  it("delivers to the others while one hangs, one is down and one crashes", function()
    local pid, log = start_relay(("--to %s --to down=file:/nowhere/at/all "
      .. "--to 'crashes=exec:sh -c \"kill -9 $$\"' --to good=file:%s --verbose"):format(
      gated("hangs"), file("good")))
    for _, namespace in ipairs({ "hangs", "down", "crashes" }) do
      publish(namespace, namespace)
    end
    wait_for("hangs")
    expect(log, " error route=down code=publisher ", " error route=crashes code=publisher ")
    local wanted = {}
    for i = 1, 100 do
      wanted[i] = ("%03d"):format(i)
      publish("good", wanted[i])
    end
    expect(log, " delivered route=good id=100 ")
    process.kill(pid, 15)
    expect(log, " stopped route=good ")
    assert.same(wanted, ids("good"))
    open("hangs")
    assert.equal("exit 0", select(2, finish(log)))
    assert.same({ "hangs" }, ids("hangs"))
    assert.outbox(store).has_entries(2)
    assert.outbox(store).has_entry({ id = "down", attempts = 0 })
    assert.outbox(store).has_entry({ id = "crashes", attempts = 0 })
  end)

  it("knows of each program how it has ended", function()
    local pid, log = start_relay("--to 'a=exec:sh -c \"read -r m; exit 3\"' --option timeout=60 "
      .. "--to 'b=exec:sh -c \"read -r m; exit 4\"' --option timeout=60")
    expect(log, " started route=a ", " started route=b ")
    publish("a", "1")
    publish("b", "2")
    for _ = 1, 3 do
      expect(log, " route=a .*status 3", " route=b .*status 4")
    end
    process.kill(pid, 15)
    assert.equal("exit 0", select(2, finish(log)))
  end)

  it("finishes the batches in hand when it is told to stop, and charges nothing", function()
    local names, routes = { "a", "b", "c", "d" }, {}
    for i, name in ipairs(names) do
      publish(name, name .. "1", name .. "2")
      routes[i] = "--to " .. gated(name)
    end
    local pid, log = start_relay("--batch-size 1 " .. table.concat(routes, " "))
    for _, name in ipairs(names) do
      wait_for(name)
    end
    process.kill(pid, 15)
    expect(log, " stopping signal=SIGTERM$")
    for _, name in ipairs(names) do
      open(name)
    end
    assert.equal("exit 0", select(2, finish(log)))
    for _, name in ipairs(names) do
      assert.same({ name .. "1" }, ids(name))
      assert.outbox(store).has_entry({ id = name .. "2", attempts = 0 })
    end
    assert.outbox(store).has_entries(4)
    assert.same({}, store:stats().leases)
  end)

  it("starts a worker again that was killed, and no other", function()
    publish("a", "1")
    local pid, log = start_relay(("--to %s --to b=file:%s --claim-duration 0.3 --verbose")
      :format(gated("a"), file("b")))
    local victim = pid_of((expect(log, " started route=a ", " started route=b ")))
    wait_for("a")
    process.kill(victim)
    open("a") -- ends the program of the worker that is gone
    expect(log, " died route=a signal=9 restart=1$")
    publish("b", "2")
    expect(log, " delivered route=b id=2 ")
    expect(log, " started route=a ")
    wait_for("a")
    assert.outbox(store).has_entry({ id = "1", attempts = 1, last_error = outbox.LAPSED })
    process.kill(pid, 15)
    open("a")
    expect(log, " stopped route=a delivered=1 ")
    assert.equal("exit 0", select(2, finish(log)))
    assert.same({ "1", "1" }, ids("a"))
    assert.outbox(store).is_empty()
  end)

  it("ends its workers if it is killed, so that another one takes over", function()
    local pid, log = start_relay(("--batch-size 1 --to %s --to b=file:%s"):format(gated("a"),
      file("b")))
    expect(log, " started route=a ", " started route=b ")
    publish("a", "1", "2")
    wait_for("a")
    process.kill(pid)
    while not process.ended(pid) do -- by then the worker has its signal
      outbox.clock.sleep(0.01)
    end
    open("a")
    assert.equal("signal 9", select(2, finish(log))) -- so nobody has its standard error open
    assert.same({ "1" }, ids("a"))
    assert.same({}, store:stats().leases)
    assert.outbox(store).has_entry({ id = "2", attempts = 0 })
    assert.equal(0, select(2, run(("relay %s --once --to a=file:%s --to b=file:%s"):format(path,
      file("a"), file("b")))))
    assert.same({ "1", "2" }, ids("a"))
  end)

  it("has the worst status of all, once", function()
    publish("a", "1")
    publish("b", "2")
    publish("c", "3")
    local out, status, log = run(("relay %s --once --workers 2 --to a=file:%s "
      .. "--to b=file:/nowhere/at/all"):format(path, file("a")))
    assert.same({ "", 4 }, { out, status }, log)
    assert.same({ "1" }, ids("a"))
    assert.outbox(store).has_entry({ id = "2", attempts = 0 })
    assert.outbox(store).has_entry({ id = "3", attempts = 0 })
    assert.equal(0, select(2, run(("relay %s --once --workers 2 --to b=file:%s --to file:%s")
      :format(path, file("b"), file("c")))))
    assert.same({ "3" }, ids("c"))
  end)

  it("leaves paused messages alone, once", function()
    publish("a", "1")
    store:pause("a")
    assert.equal(0, select(2, run(("relay %s --once --to a=file:%s --to b=stdout:"):format(path,
      file("a")))))
    assert.outbox(store).has_entry({ id = "1" })
  end)

  it("logs what is down, what is back, and what nobody serves", function()
    publish("a", "1")
    publish("lonely", "2", "3")
    local pid, log = start_relay(("--to 'a=exec:sh -c \"test -e %s && read -r m && echo ok\"' "
      .. "--to b=file:%s"):format(file("up"), file("b")), 1)
    assert.matches("route=a namespace=a seconds=%S+ next=%S+ reason=", (expect(log, " down ")))
    write(file("up"), "")
    assert.matches("route=a namespace=a seconds=%d", (expect(log, " up ")))
    assert.matches("route=a namespace=lonely ready=2 delayed=0$", (expect(log, " unserved ")))
    process.kill(pid, 15)
    local rest = finish(log)
    assert.is_nil(rest:find(" unserved ", 1, true))
  end)

  sqlite_it("ends if the database was moved", function()
    local _, log = start_relay(("--to a=file:%s --to b=file:%s"):format(file("a"), file("b")), 0.3)
    expect(log, " started route=a ", " started route=b ")
    assert(os.rename(path, path .. ".moved"))
    assert.matches("moved", (expect(log, "outbox: .*moved")))
    assert.equal("exit 5", select(2, finish(log)))
    os.remove(path .. ".moved")
  end)

  it("has one process for all routes to standard output", function()
    publish("a", "1")
    publish("b", "2")
    local out, status, log = run(("relay %s --once --to a=stdout: --to b=stdout: --to c=file:%s "
      .. "--workers 2"):format(path, file("c")))
    assert.equal(0, status, log)
    assert.same({ "1", "2" }, support.pluck(json_lines(out), "id"))
    assert.equal(4, select(2, log:gsub(" started ", ""))) -- the supervisor, stdout:, twice c
    assert.matches(" started route=a,b database=", log)
  end)

  it("hands out as many at a time as the destination's --batch-size", function()
    publish("a", "1", "2", "3")
    publish("b", "4", "5", "6")
    publish("c", "7", "8", "9")
    local _, status, log = run(("relay %s --once --verbose --batch-size 3 --to a=file:%s "
      .. "--to b=file:%s --batch-size 2 --to c=file:%s --batch-bytes 1"):format(path, file("a"),
      file("b"), file("c")))
    assert.equal(0, status, log)
    for route, sizes in pairs({ a = "3", b = "2 1", c = "1 1 1" }) do
      local seen = {}
      for size in log:gmatch("batch route=" .. route .. " size=(%d)") do
        seen[#seen + 1] = size
      end
      assert.equal(sizes, table.concat(seen, " "))
    end
  end)

  it("hands out no more in a second than the destination's --rate", function()
    for i = 1, 30 do
      store:publish({ namespace = "a", key = tostring(i) }, { namespace = "b", key = tostring(i) })
    end
    local started = outbox.clock.now()
    local _, status, log = run(("relay %s --once --to a=file:%s --to b=file:%s --rate 20"):format(
      path, file("a"), file("b")))
    assert.equal(0, status, log)
    assert.same({ 30, 30 }, { #ids("a"), #ids("b") })
    assert.is_true(outbox.clock.now() - started >= 1.4)
    fail(2, "the routes to stdout: have one process", "relay " .. path
      .. " --to b=stdout: --to c=stdout: --rate 5")
    fail(2, "'0' is not a number above 0", "relay " .. path .. " --to b=stdout: --rate 0")
  end)

  it("has a namespace of any length", function()
    local long = ("n"):rep(300)
    publish(long, "1")
    local _, status, log = run(("relay %s --once --to %s=file:%s --to b=file:%s"):format(path, long,
      file("a"), file("b")))
    assert.equal(0, status, log)
    assert.same({ "1" }, ids("a"))
  end)

  it("gives each worker a name of its own", function()
    local _, _, log = run(("relay %s --once --to stdout: --to a=file:%s --processor-id p"):format(
      path, file("a")))
    assert.matches(" processor=p%-1 ", log)
    assert.matches(" processor=p%-2 ", log)
  end)

  it("refuses wrong arguments before it starts anything", function()
    local function refuse(pattern, arguments)
      fail(2, pattern, "relay " .. path .. " --to a=stdout: " .. arguments)
    end
    refuse("unknown option 'color'\n$", "--to b=file:x --option color=red")
    refuse("batch_size must be an integer from 1 to 100000\n$", "--to file:x --batch-size 1000000")
    refuse("two destinations of 'a'", "--to a=file:x")
    refuse("'0' is not an integer above 0", "--workers 0")
    assert.matches("^outbox: ", select(3, run("relay /nowhere --to a=stdout: --to file:x")))
  end)

  it("shows the progress of each on a terminal", function()
    local pipe = command.start_on_terminal(("echo pid $$; exec %s relay %s --to a=file:%s "
      .. "--to bbb=file:%s"):format(COMMAND, path, file("a"), file("b")))
      or pending("there are no pseudo-terminals here")
    publish("a", "1")
    local text = ""
    repeat
      text = text .. pipe:read(1)
    until text:find("[\rA]a    1 delivered, %d[^\n]*\27%[K\r\nbbb  0 delivered, [^\n]*\27%[K$")
    process.kill(tonumber(text:match("^pid (%d+)")), 15)
    assert.matches("\r\27%[A\27%[J20%S+Z stopping signal=SIGTERM\r\n", (finish(pipe)))
  end)
end)
