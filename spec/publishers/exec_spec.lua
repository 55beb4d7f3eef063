local cjson = require("cjson")
local outbox = require("outbox")
local support = require("spec.support")
local testing = require("outbox.testing")
local uv = require("luv")

local OK = "while read -r line; do echo ok; done"

local function messages(count, payload)
  local list = {}
  for i = 1, count do
    list[i] = { id = tostring(i), namespace = "n", payload = payload, created_at = 1, attempts = 0 }
  end
  return list
end

local function read(path)
  local file <close> = assert(io.open(path))
  return file:read("a")
end

-- Waits until a condition holds that another process brings about.
local function eventually(condition, ...)
  local deadline = outbox.clock.now() + 30
  while not condition(...) do
    assert(outbox.clock.now() < deadline, "it did not happen")
    outbox.clock.sleep(0.005)
  end
end

-- The status of a process in /proc; nil if there is no such process, not even a zombie.
local function status(pid)
  local file <close> = io.open(("/proc/%d/stat"):format(tonumber(pid)))
  return file and file:read("a")
end

-- Whether a process has ended, even if it still is a zombie.
local function has_ended(pid)
  local text = status(pid)
  return not text or text:find("%) Z ") ~= nil
end

-- A program that runs these commands for some ids, and answers "ok" to all others.
local function answering(cases)
  local list = {}
  for _, case in ipairs(cases) do
    list[#list + 1] = ([[*\"id\":\"%s\"*) %s;;]]):format(case[1], case[2])
  end
  return ("while read -r line; do case $line in %s *) echo ok;; esac; done")
    :format(table.concat(list, " "))
end

describe("the exec publisher", function()
  local publisher

  after_each(function()
    if publisher then
      publisher:close()
    end
    support.remove()
  end)

  local function new(command, options)
    publisher = outbox.publisher("exec:" .. command, options)
    return publisher
  end

  local errors
  local function processor(store, options)
    errors = {}
    options = options or {}
    options.store, options.publisher = store, publisher
    function options.on_error(problem)
      errors[#errors + 1] = tostring(problem)
    end
    return outbox.processor(options)
  end

  local function uncharged(reason)
    return { reason = reason, uncharged = true }
  end

  it("hands a program each message as a line of JSON, in order", function()
    local path = support.path()
    new(([[while read -r line; do printf '%%s\n' "$line" >> %s; echo ok; done]]):format(path))
    assert.same({}, publisher:publish(messages(3, 'a "line"\nand another'), "n"))
    assert.same({}, publisher:publish(messages(1, "\xff"), "n"))
    local ids, lines = {}, {}
    for line in io.lines(path) do
      lines[#lines + 1] = cjson.decode(line)
      ids[#ids + 1] = lines[#lines].id
    end
    assert.equal("1 2 3 1", table.concat(ids, " "))
    assert.equal('a "line"\nand another', lines[1].payload)
    assert.equal("/w==", lines[4].payload_base64)
  end)

  it("understands the answers of the program", function()
    new(answering({ { 2, "echo error no such order" }, { 3, "echo error" },
      { 4, [[echo '{"reason": "gone", "permanent": true}']] },
      { 5, [[echo '{"reason": null, "retry_after": 30}']] },
      { 6, [[printf 'ok\r\n']] } }))
    assert.same({
      [2] = "no such order", [3] = "",
      [4] = { reason = "gone", permanent = true },
      [5] = { reason = '{"reason": null, "retry_after": 30}', permanent = false, retry_after = 30 },
    }, publisher:publish(messages(7), "n"))
  end)

  it("does not block on full pipes, whichever fills first", function()
    new([[lua5.4 -e 'io.stdout:setvbuf("line")
      for line in io.lines() do io.write("error ", line, "\n") end']])
    local failures = publisher:publish(messages(300, ("x"):rep(10000)), "n")
    assert.equal(300, #failures)
    assert.matches('"id":"300"', failures[300], 1, true)
  end)

  for name, case in pairs({
    ["ends"] = { "exit 3", "the program ended with status 3" },
    ["is killed"] = { "kill -9 $$", "the program was killed by signal 9" },
    ["answers nonsense"] = { "echo yes; cat", "the program answered 'yes'" },
    ["answers JSON that is no failure"] = { "echo 1; cat", "the program answered '1'" },
    ["cannot be found"] = { "2>&- no-such-program", "the program ended with status 127" },
  }) do
    it("counts no attempt if the program " .. name, function()
      new(case[1])
      for _ = 1, 2 do
        local failures = publisher:publish(messages(1000, ("x"):rep(1000)), "n")
        assert.same({ uncharged(case[2]), uncharged(case[2]) },
          { failures[1], failures[1000] })
      end
    end)
  end

  it("loses no answer of a program that ends after it", function()
    for _ = 1, 20 do
      new("head -n 3 | sed s/.*/ok/")
      assert.same({}, publisher:publish(messages(3), "n"))
      publisher:close()
    end
  end)

  it("starts the program again, for the messages without an answer", function()
    local path = support.path()
    new(([[read -r line; printf '%%s\n' "$line" >> %s; echo ok; read -r line; exit 1]])
      :format(path))
    local store <close> = support.store({ clock = testing.clock(), synchronous = "off" })
    store:publish({ id = "1" }, { id = "2" }, { id = "3" })
    local p = processor(store)
    for _ = 1, 10 do -- those without an answer are tried alone, after a moment
      p:pump()
      store:clock().advance(30)
    end
    assert.outbox(store).is_empty()
    assert.equal(0, p:stats().retried)
    local ids = {}
    for line in io.lines(path) do
      ids[#ids + 1] = cjson.decode(line).id
    end
    table.sort(ids)
    assert.equal("1 2 3", table.concat(ids, " "))
  end)

  it("finds out the message that kills the program", function()
    new(answering({ { "killer", "exit 1" } }))
    local clock = testing.clock()
    local store <close> = support.store({ clock = clock, synchronous = "off" })
    store:publish({ id = "a", key = "a" }, { id = "killer", key = "k" }, { id = "b", key = "b" })
    local p = processor(store, { retry = { max_attempts = 2 }, batch_size = 1 })
    for i = 1, 20 do
      p:pump()
      clock.advance(60)
      for j = 1, 4 do -- one gets through before it, and two after it
        store:publish({ id = ("more %d %d"):format(i, j), key = "more" })
      end
    end
    p:pump()
    assert.outbox(store).has_dead_entry({ id = "killer",
      last_error = "the program ended with status 1" })
    assert.outbox(store).has_entries(0)
  end)

  it("kills a program that does not answer in time, and the processes it has started", function()
    local path = support.path()
    new(("sleep 3600 & echo $! > %s; cat > /dev/null"):format(path), { timeout = 0.1 })
    assert.same({ uncharged("the program has not answered in time") },
      publisher:publish(messages(1), "n"))
    eventually(has_ended, read(path))
  end)

  it("starts a program again that has ended between two batches", function()
    local path = support.path()
    new(("echo $$ > %s; read -r line; echo ok"):format(path))
    for _ = 1, 2 do
      assert.same({}, publisher:publish(messages(1), "n"))
      eventually(has_ended, read(path))
    end
  end)

  it("gives each answer its time", function()
    new("while read -r line; do sleep 0.5; echo ok; done", { timeout = 1.5 })
    assert.same({}, publisher:publish(messages(4), "n"))
  end)

  it("keeps the program over a pause that is longer than the timeout of an answer", function()
    local path = support.path()
    new(("echo $$ >> %s; %s"):format(path, OK), { timeout = 1 })
    for _ = 1, 2 do
      assert.same({}, publisher:publish(messages(1), "n"))
      outbox.clock.sleep(1.1)
    end
    assert.matches("^%d+\n$", read(path))
  end)

  it("does not use a surplus answer for the next message", function()
    local path, list = support.path(), messages(2)
    new(("echo $$ >> %s; %s"):format(path,
      answering({ { 1, [[printf 'ok\nok\n']] }, { 2, "echo error no" } })))
    assert.same({}, publisher:publish({ list[1] }, "n"))
    assert.same({ "no" }, publisher:publish({ list[2] }, "n"))
    assert.matches("^%d+\n%d+\n$", read(path)) -- another one
  end)

  it("ends the program when it is closed, and can be used again", function()
    local path = support.path()
    new(("%s; echo end >> %s"):format(OK, path))
    for i = 1, 2 do
      assert.same({}, publisher:publish(messages(1), "n"))
      publisher:close()
      publisher:close()
      assert.equal(("end\n"):rep(i), read(path))
    end
  end)

  it("leaves no process behind, not even a zombie, whatever the program does", function()
    local path = support.path()
    for i, command in ipairs({ OK, "trap '' PIPE; while :; do echo ok; sleep 0.01; done 2>&-",
      "cat > /dev/null", "exit 1" }) do
      new(("echo $$ >> %s; %s"):format(path, command), { timeout = 0.5 })
      publisher:publish(messages(1), "n")
      publisher:publish(messages(1), "n")
      publisher:close()
      local started = read(path)
      assert.truthy(#started > 0)
      for pid in started:gmatch("%d+") do
        assert.is_nil(status(pid), ("%d: %s"):format(i, command))
      end
    end
  end)

  it("leaves standard error to the program", function()
    local output = support.run([[-e '
      local command = "exec:read -r line; echo $line >&2; cat"
      local publisher <close> = require("outbox").publisher(command, { timeout = 0.1 })
      publisher:publish({ { id = "seen", created_at = 1, attempts = 0 } }, "n")']])
    assert.matches('"id":"seen"', output, 1, true)
  end)

  describe("in a loop of luv", function()
    it("yields until all messages are answered, and does not keep the loop running", function()
      new(OK)
      local answer, ticks = nil, 0
      local timer = uv.new_timer()
      timer:start(0, 1, function()
        ticks = ticks + 1
        if answer then
          timer:close()
        end
      end)
      uv.new_timer():start(0, 0, coroutine.wrap(function()
        assert(publisher:publish(messages(1000), "n"))
        answer = publisher:publish(messages(1000), "n")
      end))
      uv.run()
      assert.same({}, answer)
      assert.is_true(ticks > 0)
    end)

    it("does not use the answers to a call that was cut off for the next call", function()
      new(answering({ { 1, "sleep 0.2; echo error late" } }))
      local list, answer = messages(2), nil
      local timer = uv.new_timer()
      timer:start(0, 0, coroutine.wrap(function()
        local first = coroutine.create(publisher.publish)
        assert(coroutine.resume(first, publisher, { list[1] }, "n"))
        coroutine.close(first)
        answer = publisher:publish({ list[2] }, "n")
        timer:close()
      end))
      uv.run()
      assert.same({}, answer)
    end)

    it("is refused if it cannot yield", function()
      new(OK)
      local answer, reason = true, nil
      local timer = uv.new_timer()
      timer:start(0, 0, function()
        answer, reason = publisher:publish(messages(1), "n")
        timer:close()
      end)
      uv.run()
      assert.same({ nil, "the exec publisher, in a loop of luv, must be called in a coroutine" },
        { answer, reason })
    end)

    it("lets a processor step in a coroutine", function()
      new(answering({ { 2, "exit 1" } }))
      local store <close> = support.store({ synchronous = "off" })
      store:publish({ id = "1" }, { id = "3" })
      local p = processor(store)
      local timer = uv.new_timer()
      local step
      step = function()
        local seconds = p:step()
        if seconds and store:stats().ready == 0 then
          p:stop()
          seconds = p:step()
        end
        if seconds then
          timer:start(math.ceil(seconds * 1000), 0, coroutine.wrap(step))
        else
          timer:close()
        end
      end
      timer:start(0, 0, coroutine.wrap(step))
      uv.run()
      assert.same({}, errors)
      assert.outbox(store).is_empty()
    end)
  end)

  it("needs a command and options that make sense", function()
    local function refused(expected, ...)
      assert.matches(expected, support.raised(outbox.publisher, ...), 1, true)
    end
    refused("the command after 'exec:' is missing", "exec: ")
    refused("(timeout must be a number of seconds, at least 0.001; unknown option 'shell')",
      "exec:cat", { timeout = 0, shell = "zsh" })
  end)

  it("names the rock that it needs", function()
    local output = support.run([[-e '
      package.preload.luv = function() error("module \x27luv\x27 not found") end
      print(pcall(require("outbox").publisher, "exec:cat"))']])
    assert.equal("false\tthe exec publisher needs luv: "
      .. "luarocks --lua-version 5.4 install luv (Debian: lua-luv)\n", output)
  end)
end)
