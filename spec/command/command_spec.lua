-- The command, as people run it: real processes, their output, and the status they end with.

local cjson = require("cjson")
local outbox = require("outbox")
local process = require("process")
local server = require("spec.support.server")
local support = require("spec.support")

local COMMAND = (os.getenv("OUTBOX_TREE") or "lua_modules") .. "/bin/outbox"

local function write(path, bytes)
  local file <close> = assert(io.open(path, "wb"))
  file:write(bytes)
end

local function read(path)
  local file <close> = assert(io.open(path, "rb"))
  return file:read("a")
end

-- Runs a shell's command, this on its standard input; returns what it wrote to standard output, the
-- status, and what it wrote to standard error.
local function shell(command, input)
  local given, out, err = support.path(), support.path(), support.path()
  write(given, input or "")
  local _, _, status = os.execute(("{ %s; } <%s >%s 2>%s"):format(command, given, out, err))
  return read(out), status, read(err)
end

-- Runs the command with these arguments, as a shell reads them.
local function run(arguments, input)
  return shell(COMMAND .. " " .. arguments, input)
end

-- Starts it. Returns the pid, and a pipe that gives what it writes.
local function start(arguments, before)
  local pipe = io.popen(("echo $$; %s exec %s %s"):format(before or "", COMMAND, arguments))
  return tonumber(pipe:read("l")), pipe
end

-- Reads the rest. Returns it, and how the process ended.
local function finish(pipe)
  local rest = pipe:read("a")
  local _, how, status = pipe:close()
  return rest, how .. " " .. status
end

-- On a terminal. What `script` itself leaks is its own affair.
local function start_on_terminal(command)
  if not os.execute("script -qec true /dev/null </dev/null >/dev/null 2>&1") then
    pending("there are no pseudo-terminals here")
  end
  return io.popen(("ASAN_OPTIONS=detect_leaks=0 script -qec '%s' /dev/null </dev/null"):format(
    command))
end

-- The same, which must succeed and complain of nothing.
local function succeed(arguments, input)
  local out, status, err = run(arguments, input)
  assert.same({ 0, "" }, { status, err }, arguments)
  return out
end

-- The same, which must end with this status, and a message.
local function fail(expected, pattern, arguments)
  local out, status, err = run(arguments)
  assert.same({ "", expected }, { out, status }, arguments .. "\n" .. err)
  assert.matches(pattern, err)
  assert.is_nil(err:find("traceback"), err)
end

local function json_lines(text)
  local values = {}
  for line in text:gmatch("[^\n]+") do
    values[#values + 1] = cjson.decode(line)
  end
  return values
end

describe("the command", function()
  local store, path

  before_each(function()
    store, path = support.store()
  end)

  after_each(function()
    store:close()
    support.remove()
  end)

  local function publish(...)
    for _, id in ipairs({ ... }) do
      store:publish({ id = id, payload = "payload of " .. id })
    end
  end

  local function bury(...)
    publish(...)
    for _, id in ipairs({ ... }) do
      store:bury_entry(id, "refused")
    end
  end

  describe("itself", function()
    it("tells its version", function()
      assert.equal("outbox " .. outbox._VERSION .. "\n", succeed("--version"))
    end)

    it("explains each subcommand and every option of it", function()
      local commands = { "migrate", "publish", "relay", "stats", "leases", "top", "list", "show",
        "dead list", "dead requeue", "dead purge", "completion" }
      for _, command in ipairs(commands) do
        local help = succeed(command .. " --help")
        assert.matches("^Usage: outbox " .. command, help)
        local usage, explained = help:match("^(.-)\n\n(.*)$")
        for name in usage:gmatch("%-%-[%l-]+") do
          assert.matches("\n   " .. name:gsub("%-", "%%-") .. "[ \n]", "\n" .. explained, command)
        end
        assert.matches("\n   " .. command:match("^%l+") .. " +%u", succeed("--help"))
      end
      assert.matches("2  wrong arguments", succeed("--help"))
    end)

    it("completes in three shells", function()
      local script = support.path()
      write(script, succeed("completion bash")
        .. 'COMP_WORDS=(outbox "$@"); COMP_CWORD=$#; _outbox; echo "${COMPREPLY[@]}"\n')
      local function complete(words)
        return (shell(("bash %s %s"):format(script, words)))
      end
      assert.equal("purge\n", complete("dead pu"))
      assert.equal("--batch-size\n", complete("relay --ba"))
      assert.matches("#compdef outbox", succeed("completion zsh"))
      assert.matches("complete %-c outbox", succeed("completion fish"))
    end)

    it("refuses wrong arguments with status 2, and says what is wrong", function()
      fail(2, "^outbox: unknown command 'lst'\nDid you mean 'list'%?\nSee outbox %-%-help\n$",
        "lst")
      fail(2, "^outbox: unknown command 'lst'\nSee outbox help %-%-help\n$", "help lst")
      fail(2, "^outbox: a command is required", "")
      fail(2, "a command is required\nSee outbox dead %-%-help", "dead")
      fail(2, "missing argument 'DB'", "stats")
      fail(2, "unknown option '%-%-jsn'", "stats " .. path .. " --jsn")
      fail(2, "must be one of 'ready', 'delayed', 'dead'", "list " .. path .. " gone")
      fail(2, "'0' is not an integer above 0", "list " .. path .. " --limit 0")
      fail(2, "'x' is not an integer\n", "list " .. path .. " --after x")
      fail(2, "'%-1' is not a number", "publish " .. path .. " x --in=-1")
      fail(2, "'0' is not a number of seconds, at least 0.001",
        "top " .. path .. " --count 2 --interval 0")
      fail(2, "'x' is not NAME=VALUE", "publish " .. path .. " x --header x")
      fail(2, "^outbox: the prefix is not a plain identifier\n$",
        "stats " .. path .. " --prefix 'no good'")
      fail(2, "can not be used together", "stats " .. path .. " --json --prometheus")
    end)

    it("fails where what it tells of itself cannot be written", function()
      for _, arguments in ipairs({ "--version", "--help", "stats --help", "help", "help stats",
        "completion bash", "completion zsh", "completion fish" }) do
        local _, status, err = run(arguments .. " >/dev/full")
        assert.same({ 1, "outbox: cannot write: No space left on device (output)\n" },
          { status, err }, arguments)
      end
    end)

    it("names the rock that it needs, and that is not there", function()
      local output, ok = support.run(
        [[-e 'package.preload.argparse = function(name)
          error(("module %q not found"):format(name):gsub("\"", "\39"))
        end' bin/outbox]])
      assert.equal("outbox: the command needs argparse: luarocks install argparse\n", output)
      assert.is_nil(ok)
    end)

    it("fails with status 1, and the code of the error", function()
      fail(1, "^outbox: /nowhere/at/all: No such file or directory %(cantopen%)\n$",
        "stats /nowhere/at/all")
      fail(1, "not a database %(notadb%)", "stats README.md")
      fail(1, "are missing; call migrate first %(schema%)", "stats " .. path .. " --prefix other_")
      publish("a")
      fail(1, "already in the outbox %(duplicate%)", "publish " .. path .. " x --id a")
    end)
  end)

  describe("migrate", function()
    it("makes a database, its tables, and does no harm to those that are there", function()
      local new = support.path()
      os.remove(new)
      local _, status, err = run("migrate " .. new)
      assert.same({ 0, "outbox: created " .. new .. "\n" }, { status, err })
      assert.matches("ready +0\n", succeed("stats " .. new))
      publish("a")
      assert.equal("", succeed("migrate " .. path))
      assert.equal(1, store:stats().ready)
      assert.equal("", succeed("migrate " .. path .. " --prefix other_"))
      assert.matches("ready +0\n", succeed("stats " .. path .. " --prefix other_"))
    end)
  end)

  describe("publish", function()
    it("publishes what comes from standard input, byte for byte, and prints the id", function()
      local bytes = {}
      for byte = 0, 255 do
        bytes[#bytes + 1] = string.char(byte)
      end
      local payload = table.concat(bytes):rep(400) .. "\r\n"
      local id = succeed("publish " .. path, payload):match("^(%x+%-[%x-]+)\n$")
      local entry = store:ready_entries()[1]
      assert.same({ id, payload, "" }, { entry.id, entry.payload, entry.namespace })
      assert.equal(payload, succeed("show --raw " .. path .. " " .. id))
      assert.equal("mine\n", succeed("publish " .. path .. " --id mine"))
      assert.equal("", store:find_entries("mine")[1].payload)
    end)

    it("takes all that a message can have", function()
      succeed("publish " .. path .. " 'the payload' --id mine --namespace orders --key 7"
        .. " --header content-type=text/plain --header 'x=y = z'")
      local entry = store:ready_entries()[1]
      assert.same({ "mine", "orders", "7", "the payload" },
        { entry.id, entry.namespace, entry.key, entry.payload })
      assert.same({ ["content-type"] = "text/plain", x = "y = z" }, entry.headers)
      succeed("publish " .. path .. " --id hyphen -- -5")
      assert.equal("-5", store:find_entries("hyphen")[1].payload)
    end)

    it("can put it off", function()
      local before = outbox.clock.now()
      succeed("publish " .. path .. " soon --id soon --in 3600.5")
      succeed("publish " .. path .. " then --id then --deliver-at 9999999999")
      local due = store:find_entries("soon")[1].due_at - 3600.5
      assert.is_true(before - 1e-6 <= due and due <= outbox.clock.now())
      assert.equal(9999999999, store:find_entries("then")[1].due_at)
    end)

    it("makes a database where there is none, but no tables in one that is there", function()
      local new = support.path() -- an empty file is none yet
      local id, status, err = run("publish " .. new .. " first")
      assert.same({ 0, "outbox: created " .. new .. "\n" }, { status, err })
      assert.equal("first", (succeed("show --raw " .. new .. " " .. id:sub(1, -2))))
      fail(1, "call migrate first %(schema%)", "publish " .. path .. " lost --prefix other_")
      os.remove(new)
      fail(1, "No such file", "relay " .. new .. " --to stdout: --once")
    end)

    it("publishes nothing when standard input cannot be read", function()
      local _, status, err = run("publish " .. path .. " </tmp")
      assert.same({ 1, "outbox: cannot read standard input: Is a directory (input)\n" },
        { status, err })
      assert.equal(0, store:stats().ready)
    end)
  end)

  describe("list", function()
    it("shows each entry in a line", function()
      store:publish({ id = "a", namespace = "orders", key = "k\27[31m", payload = "12345" })
      store:publish({ id = "b" })
      store:retry_entry("a", outbox.clock.now() + 500, "line 1\nline 2")
      bury("c")
      local lines = succeed("list " .. path)
      assert.matches("^SEQ +ID +NAMESPACE +KEY +BYTES +AGE +ATTEMPTS +LAST ERROR\n", lines)
      assert.matches('\n2 +b +"" +%- +%- +%d.%d s +0 +%-\n$', lines)
      assert.matches("\n1 +a +orders +k\\x1b%[31m +5 +%d%.%d s +in %d+ [smin]+ +1 +"
        .. "line 1\\nline 2\n$", succeed("list " .. path .. " delayed"))
      assert.matches("DIED .*\n3 +c +.* ago +1 +refused\n$", succeed("list " .. path .. " dead"))
      assert.equal(succeed("list " .. path .. " dead --json"),
        succeed("dead list " .. path .. " --json"))
    end)

    it("says nothing of nothing", function()
      assert.equal("", succeed("list " .. path))
      assert.equal("", succeed("list " .. path .. " dead --json"))
    end)

    it("gives page after page, either way, and says how to go on", function()
      for i = 1, 230 do
        publish(("%03d"):format(i))
      end
      local function pages(options, limit)
        local ids, after, count = {}, "", 0
        repeat
          local out, status, err = run(("list %s --json --limit %d %s %s"):format(path, limit,
            options, after))
          assert.equal(0, status)
          for _, entry in ipairs(json_lines(out)) do
            ids[#ids + 1] = entry.id
          end
          after, count = err:match("^more: (%-%-after %d+)\n$"), count + 1
          assert.is_truthy(after or err == "")
        until not after
        return ids, count
      end
      local ids, count = pages("", 115)
      assert.same({ 230, 2, "001", "116", "230" }, { #ids, count, ids[1], ids[116], ids[230] })
      ids, count = pages("--reverse", 100)
      assert.same({ 230, 3, "230", "001" }, { #ids, count, ids[1], ids[230] })
      local text = run("list " .. path .. " --limit 150")
      assert.equal(151, select(2, text:gsub("\n", "")))
    end)

    it("selects by namespace and key", function()
      for i = 1, 300 do
        store:publish({ id = tostring(i), namespace = i % 2 == 0 and "even" or "odd",
          key = tostring(i % 100) })
      end
      local ids = support.pluck(json_lines(succeed("list " .. path .. " --json --key 7")), "id")
      assert.same({ "7", "107", "207" }, ids)
      assert.equal("", succeed("list " .. path .. " --key 7 --namespace even"))
      local out, _, err = run("list " .. path .. " --json --key 8 --namespace even --limit 2")
      assert.same({ "8", "108" }, support.pluck(json_lines(out), "id"))
      assert.equal("more: --after 108\n", err)
    end)

    it("gives JSON that keeps every byte", function()
      store:publish({ id = 'i"\\\1', namespace = "ö", key = "\255\0", payload = "pay\nload",
        headers = { h = "v" } })
      local entry = json_lines(succeed("list " .. path .. " --json"))[1]
      assert.matches("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%d%d%d%dZ$", entry.created_at)
      entry.created_at = nil
      assert.same({ seq = 1, id = 'i"\\\1', namespace = "ö", key_base64 = "/wA=",
        payload = "pay\nload", headers = { h = "v" }, attempts = 0 }, entry)
    end)

    it("shows what plain SQL has published, whatever that is", function()
      support.sql(store, "INSERT INTO outbox_entries (id, headers) VALUES ('a', ?)",
        '{"n":1.5,"o":{"l":[1,"x"]},"z":null,"t":true}')
      support.sql(store, "INSERT INTO outbox_entries (id, headers) VALUES ('b', ?)", '{"\\ud800":}')
      local entries = json_lines(succeed("list " .. path .. " --json"))
      assert.same({ n = 1.5, o = { l = { 1, "x" } }, z = cjson.null, t = true },
        entries[1].headers)
      assert.equal('{"\\ud800":}', entries[2].headers)
      assert.matches('header +o: {"l":%[1,"x"%]}\n', succeed("show " .. path .. " a"))
      assert.matches('headers +{"\\ud800":}\n', succeed("show " .. path .. " b"))
    end)

    it("ends quietly when nobody reads on, and fails when the disk is full", function()
      local ended = support.path()
      for i = 1, 2000 do
        publish(tostring(i))
      end
      local out, _, quiet = shell(("{ trap '' PIPE; %s list %s --json --limit 2000; echo $? >%s; } "
        .. "| head -n 1"):format(COMMAND, path, ended))
      assert.same({ "1", "", "141\n" }, { cjson.decode(out).id, quiet, read(ended) })
      for _, arguments in ipairs({ "list " .. path, "stats " .. path }) do
        local _, status, err = run(arguments .. " >/dev/full")
        assert.same({ 1, "outbox: cannot write: No space left on device (output)\n" },
          { status, err })
      end
    end)
  end)

  describe("show", function()
    it("shows all there is to know of an entry, wherever it lies", function()
      store:publish({ id = "a", namespace = "orders", key = "7", payload = "line 1\nline 2",
        headers = { b = "2", a = "1" } })
      store:claim_entries("worker", outbox.clock.now() + 1000)
      local text = succeed("show " .. path .. " a")
      for _, line in ipairs({ "id          a", "state       ready", "seq         1",
        "namespace   orders", "key         7", "created     20%d%d%-.*Z, %d%.%d s ago",
        "claimed     by worker, until 20%d%d%-.*Z", "attempts    0", "last error  %-",
        "header      a: 1\nheader      b: 2", "payload     13 bytes\n\nline 1\nline 2" }) do
        assert.matches("\n" .. line .. "\n", "\n" .. text)
      end
      store:claim_entries("worker", outbox.clock.now() - 1)
      assert.is_nil(succeed("show " .. path .. " a"):find("claimed"))
      store:claim_entries("worker", outbox.clock.now() + 1000)
      store:retry_entry("a", outbox.clock.now() + 500, "busy")
      text = succeed("show " .. path .. " a")
      assert.matches("state +delayed\n.*due +20%d%d.*, in %d+ .*last error +busy\n", text)
      assert.is_nil(text:find("claimed"))
      bury("b")
      assert.matches("state +dead\n.*died +20%d%d.* ago\n", succeed("show " .. path .. " b"))
      local entry = json_lines(succeed("show " .. path .. " b --json"))[1]
      assert.same({ "b", "dead", "refused", 1 },
        { entry.id, entry.state, entry.last_error, entry.attempts })
    end)

    it("lets nothing through that a terminal would act upon", function()
      local evil = "\27]0;title\7\27[2J\r\127\xC2\x9B31m\xE2\x80\xAEtxt\xFF\xE2\x82\0tab\tok ö€\n"
      store:publish({ id = evil, namespace = evil, key = evil, payload = evil,
        headers = { [evil] = evil } })
      store:bury_entry(evil, evil)
      local shown = "\\x1b]0;title\\x07\\x1b[2J\\x0d\\x7f\\xc2\\x9b31m\\xe2\\x80\\xaetxt\\xff\\xe2"
        .. "\\x82\\x00tab"
      support.sql(store, "UPDATE outbox_dead SET id = 'a'")
      local text = succeed("show " .. path .. " a") .. succeed("list " .. path .. " dead")
      assert.is_nil(text:find("[\0-\8\11-\31\127]"), "controls")
      assert.is_truthy(utf8.len(text))
      assert.is_truthy(text:find("\n" .. shown .. "\tok ö€\n", 1, true), text)
      assert.is_truthy(text:find("namespace   " .. shown .. "\\tok ö€\\n\n", 1, true), text)
      assert.is_nil(text:find("\xC2\x9B", 1, true) or text:find("\xE2\x80\xAE", 1, true))
    end)

    it("ends with status 3 where there is no such entry", function()
      fail(3, "^outbox: no entry has the id b\n$", "show " .. path .. " b")
      fail(3, "no entry has the id", "show " .. path .. " b --raw")
    end)
  end)

  describe("dead", function()
    it("puts dead letters back by their ids", function()
      bury("a", "b", "c")
      assert.equal("requeued 2\n", succeed("dead requeue " .. path .. " a c"))
      assert.same({ "a", "c" }, support.pluck(store:ready_entries(), "id"))
      assert.same({ "b" }, support.pluck(store:dead_entries(), "id"))
    end)

    it("purges dead letters by their ids", function()
      bury("a", "b", "c")
      assert.equal("purged 2\n", succeed("dead purge " .. path .. " a c"))
      assert.same({ "b" }, support.pluck(store:dead_entries(), "id"))
      assert.equal(0, store:stats().ready)
    end)

    it("does what it can where one is not there, or in the way, and says so", function()
      bury("a", "b", "c")
      local out, status, err = run("dead requeue " .. path .. " a x b")
      assert.same({ "requeued 2\n", 3, "outbox: no dead letter has the id x\n" },
        { out, status, err })
      bury("d")
      support.sql(store, "INSERT INTO outbox_entries (id) VALUES ('c')") -- SQL looks at one table
      out, status, err = run("dead requeue " .. path .. " --all")
      assert.same({ "requeued 1\n", 1 }, { out, status })
      assert.equal(3, select(2, run("dead requeue " .. path .. " x c")))
      assert.equal("outbox: c: an entry with this id is already in the outbox (duplicate)\n", err)
      assert.same({ "c" }, support.pluck(store:dead_entries(), "id"))
    end)

    it("puts all back, or those of a namespace, however many", function()
      for i = 1, 250 do
        local id = tostring(i)
        store:publish({ id = id, namespace = i % 2 == 0 and "even" or "odd" })
        store:bury_entry(id)
      end
      assert.equal("requeued 125\n", succeed("dead requeue " .. path .. " --all --namespace even"))
      assert.same({ 125, 125 }, { store:stats().ready, store:stats().dead })
      assert.equal("requeued 125\n", succeed("dead requeue " .. path .. " --all"))
      assert.equal("requeued 0\n", succeed("dead requeue " .. path .. " --all"))
    end)

    it("leaves those alone that die meanwhile", function()
      bury("a")
      local later <close> = outbox.open(path, { clock = function()
        return outbox.clock.now() + 1000
      end })
      later:publish({ id = "b" })
      later:bury_entry("b")
      assert.equal("requeued 1\n", succeed("dead requeue " .. path .. " --all"))
      assert.same({ "b" }, support.pluck(store:dead_entries(), "id"))
    end)

    it("purges all only if that is said twice", function()
      bury("a", "b")
      fail(2, "say %-%-yes", "dead purge " .. path .. " --all")
      assert.equal(2, store:stats().dead)
      assert.equal("purged 2\n", succeed("dead purge " .. path .. " --all --yes"))
      fail(2, "name the ids", "dead purge " .. path)
      fail(2, "name the ids", "dead requeue " .. path .. " a --all")
      fail(2, "%-%-namespace needs %-%-all", "dead requeue " .. path .. " a --namespace n")
    end)
  end)

  describe("stats", function()
    before_each(function()
      publish("a", "b", "c", "d")
      store:retry_entry("a", outbox.clock.now() + 500, "busy")
      store:publish({ deliver_at = outbox.clock.now() + 400 })
      store:bury_entry("b")
      store:delete_entries("c")
      store:claim_entries("worker", outbox.clock.now() + 1000)
    end)

    it("counts for people", function()
      local text = succeed("stats " .. path)
      assert.matches("^ready +1  oldest %d%.%d s\n", text)
      assert.matches("\ndelayed +2  1 retries, next due in %d min\n", text)
      assert.matches("\ndead +1\n", text)
      assert.matches("\nleases +1\n$", text)
    end)

    it("counts in JSON", function()
      local stats = cjson.decode(succeed("stats " .. path .. " --json"))
      assert.same({ 1, 2, 1, 1, 4, "worker" }, { stats.ready, stats.delayed, stats.dead,
        stats.retries, stats.last_seq, stats.leases[1].processor_id })
      assert.matches("^20%d%d%-.*Z$", stats.due_at)
      store:release_claim("worker")
      assert.matches('"leases":%[%]', succeed("stats " .. path .. " --json"))
    end)

    it("counts for Prometheus", function()
      local text = succeed("stats " .. path .. " --prometheus")
      local values, names = {}, 0
      for line in text:gmatch("[^\n]+") do
        if not line:find("^#") then
          local name, database, value =
            line:match('^([%l_]+){database="(.-)",prefix="outbox_"} (%S+)$')
          assert.equal(path, database, line)
          values[name], names = tonumber(value), names + 1
          local kind = name:find("_total$") and "counter" or "gauge"
          assert.matches(("# HELP %s %%u[^\n]*%%.\n# TYPE %s %s\n%s{"):format(name, name, kind,
            name), text)
        end
      end
      assert.equal(names * 3, select(2, text:gsub("\n", "")))
      assert.is_true(values.outbox_oldest_age_seconds >= 0)
      values.outbox_oldest_age_seconds = nil
      assert.same({ outbox_ready_entries = 1, outbox_delayed_entries = 2, outbox_retry_entries = 1,
        outbox_dead_entries = 1, outbox_overdue_seconds = 0, outbox_leases = 1,
        outbox_came_total = 4, outbox_went_total = 2 }, values)
    end)

    it("tells Prometheus for how long nobody has fetched what is due", function()
      local earlier <close> = outbox.open(path, { clock = function()
        return outbox.clock.now() - 900
      end })
      earlier:publish({ deliver_at = outbox.clock.now() - 600 })
      local text = succeed("stats " .. path .. " --prometheus")
      assert.matches("\noutbox_overdue_seconds{[^}]+} 60%d", text)
    end)

    it("quotes what Prometheus would stumble on", function()
      local directory = support.path()
      os.remove(directory)
      assert(os.execute(("mkdir '%s'; mkdir '%s/a\"b\\\nc'"):format(directory, directory)))
      finally(function()
        os.execute(("rm -r '%s'"):format(directory))
      end)
      local name = directory .. '/a"b\\\nc/db'
      assert.equal(0, select(2, run(("migrate '%s'"):format(name))))
      assert.is_truthy(succeed(("stats '%s' --prometheus"):format(name))
        :find('/a\\"b\\\\\\nc/db",prefix="outbox_"} 0\n', 1, true))
    end)

    it("lists the leases", function()
      publish("e")
      store:claim_entries("lapsed", outbox.clock.now() - 1)
      local text = succeed("leases " .. path)
      assert.matches("^PROCESSOR +CLAIMED +DEADLINE +FIRST +LAST +IN HAND\n", text)
      assert.matches("\nworker +%d%.%d s ago +in %d+ min +4 +4 +%-\n", text)
      assert.matches("\nlapsed +%d%.%d s ago +%d.%d s ago +5 +5 +%-\n$", text)
      local leases = json_lines(succeed("leases " .. path .. " --json"))
      assert.same({ "worker", 4, 4 },
        { leases[1].processor_id, leases[1].first_seq, leases[1].last_seq })
      store:release_claim("worker")
      store:release_claim("lapsed")
      assert.equal("", succeed("leases " .. path))
      store:claim_entries("alone", outbox.clock.now() + 10, { exclusive = true })
      assert.matches(" open +%-\n$", succeed("leases " .. path))
      assert.matches('"last_seq":9223372036854775807', succeed("leases " .. path .. " --json"))
    end)
  end)

  describe("top", function()
    it("writes a line each time where there is no terminal", function()
      bury("a")
      publish("b")
      store:claim_entries("lapsed", outbox.clock.now() - 1)
      local text = succeed("top " .. path .. " --count 2 --interval 0.01")
      assert.matches("^20%d%d%-%S+Z ready=1 delayed=0 dead=1 oldest=%d%.%d came=%- went=%- "
        .. "leases=0\n20%S+ ready=1 delayed=0 dead=1 oldest=%d%.%d came=0%.0 went=0%.0 leases=0\n$",
        text)
    end)

    it("tells how much comes and goes, until it is told to end", function()
      publish("a", "b")
      local pid, pipe = start("top " .. path .. " --interval 0.01")
      assert.matches("came=%-", pipe:read("l"))
      store:transaction(function()
        publish("c", "d", "e")
        store:delete_entries("a", "b")
        store:retry_entry("c", outbox.clock.now() + 1000)
      end)
      local line
      repeat
        line = pipe:read("l")
      until not line:find("came=0.0", 1, true)
      local came, went = line:match("ready=2 delayed=1 .* came=(%S+) went=(%S+) ")
      assert.is_true(math.abs(came / went - 3 / 2) < 0.01, line)
      process.kill(pid, 15)
      assert.equal("exit 0", select(2, finish(pipe)))
    end)

    it("draws a screen on a terminal, no larger than that, and tidies up", function()
      bury("a", "b")
      publish("c", "d")
      store:retry_entry("c", outbox.clock.now() + 500, "busy\27[2J")
      store:claim_entries("worker", outbox.clock.now() + 1000)
      local pipe = start_on_terminal(("stty cols 30 rows 30; %s top %s --count 2 --interval 0.01")
        :format(COMMAND, path))
      local text = finish(pipe):gsub("\r\n", "\n")
      assert.matches("^\27%[%?25l\27%[2J\27%[H", text)
      assert.matches("\27%[%?25h$", text)
      local screen = text:match(".*\27%[H(.*)\27%[J"):gsub("\27%[K", "")
      assert.matches("\ndead +2\n", screen)
      assert.matches("\nlease of worker  deadline in ", screen)
      assert.matches("\ndelayed  1 of the last  busy\\x", screen)
      assert.matches("\ndead     2 of the last  refuse\n", screen)
      for line in screen:gmatch("[^\n]+") do
        assert.is_true(utf8.len(line) <= 30, line)
      end
      assert.is_nil(screen:find("\27"))
    end)
  end)

  describe("relay", function()
    local destination

    before_each(function()
      destination = support.path()
    end)

    local function start_relay(arguments, before)
      return start(("relay %s %s"):format(path, arguments), before)
    end

    -- Reads lines until one matches.
    local function expect(pipe, pattern)
      local lines = {}
      for line in pipe:lines() do
        if line:find(pattern) then
          return line
        end
        lines[#lines + 1] = line
      end
      error(("no line matches %s:\n%s"):format(pattern, table.concat(lines, "\n")))
    end

    local function delivered()
      return support.pluck(json_lines(read(destination)), "id")
    end

    it("delivers what a new user publishes", function()
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

    it("delivers once all that is due", function()
      publish("a", "b", "c")
      store:publish({ id = "later", deliver_at = outbox.clock.now() + 1000 })
      local out, status, err = run(("relay %s --to file:%s --once --batch-size 2"):format(path,
        destination))
      assert.same({ "", 0 }, { out, status }, err)
      assert.same({ "a", "b", "c" }, delivered())
      assert.matches("^20%S+Z started database=%S+ processor=%S+ ready=3 delayed=1 dead=0\n20%S+Z "
        .. "stopped delivered=3 retried=0 dead=0 errors=0 ready=0 delayed=1\n$", err)
      assert.same({}, store:stats().leases)
    end)

    it("ends with status 4 when something that was due is not delivered", function()
      publish("a")
      local out, status, err = run("relay " .. path .. " --to file:/nowhere/at/all --once")
      assert.same({ "", 4 }, { out, status })
      assert.matches(' error code=publisher namespace="" message="/nowhere/at/all: No such ', err)
      assert.same({ 1, 0 }, { store:stats().ready + store:stats().delayed, store:stats().dead })
    end)

    it("ends with status 4 when another processor is at work", function()
      publish("a")
      store:claim_entries("another", outbox.clock.now() + 1000)
      assert.equal(4, select(2, run("relay " .. path .. " --to stdout: --once")))
      assert.equal("another", store:stats().leases[1].processor_id)
    end)

    it("delivers what comes, and stops when it is told to", function()
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

    it("ends at once with a signal a while after the first", function()
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

    it("leaves a signal alone that it was started to ignore", function()
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
      it(("ends when nobody reads its output any more, and loses nothing %s"):format(mode),
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

    it("logs what is to be tried again, what is dead, and why", function()
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
      assert.matches(" stopped delivered=1 retried=1 dead=1 errors=0 ready=0 delayed=1\n", err)
    end)

    it("logs in JSON as well", function()
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

    it("tells on a terminal how it goes", function()
      publish("a")
      local pipe = start_on_terminal(("echo pid $$; exec %s relay %s --to file:%s"):format(COMMAND,
        path, destination))
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
      refuse('limit needs ordering = "none"', "--to stdout: --limit 10")
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
end)

describe("docs/command.md", function()
  -- Without what differs from one time to the next.
  local function essence(text)
    return (text:gsub("%x+%-%x+%-%x+%-%x+%-%x+", "ID"):gsub("processor=%S+", "processor=NAME")
      :gsub("%d%d%d%d%-%d%d%-%d%dT[%d:.]+Z", "TIME"):gsub("%d+%.%d+", "SECONDS"):gsub(" +", " "))
  end

  it("shows what the command does", function()
    local directory = support.path()
    os.remove(directory)
    assert(os.execute("mkdir " .. directory))
    finally(function()
      os.execute("rm -r " .. directory)
    end)
    local count = 0
    local function check(command, output)
      local out, status = shell(("PATH=$PWD/%s:$PATH; cd %s && { %s; } 2>&1"):format(
        COMMAND:match("^(.*)/"), directory, command))
      assert.same({ essence(output), 0 }, { essence(out), status }, command)
      count = count + 1
    end
    for block in read("docs/command.md"):gmatch("\n```console\n(.-)```\n") do
      local command, output
      for line in (block .. "$ \n"):gmatch("[^\n]*\n") do
        if line:find("^%$ ") then
          if command then
            check(command, output)
          end
          command, output = line:sub(3, -2), ""
        else
          output = output .. line
        end
      end
    end
    assert.equal(13, count)
  end)

  it("names every subcommand, metric and status, and files that are there", function()
    local page, help = read("docs/command.md"), succeed("--help")
    for name in page:gmatch("%]%(([%w_./-]+)") do
      assert.is_truthy(name:find("^http") or io.open("docs/" .. name), name)
    end
    for command in help:gmatch("\n   (%l+) +%u") do
      assert.matches("[ `]" .. command .. "[ `\n]", page)
    end
    for status in help:match("\nExit status:\n(.*)"):gmatch("   (%d)  ") do
      assert.matches("\n| " .. status .. " | ", page)
    end
    local path = support.path()
    run("migrate " .. path)
    for metric in succeed("stats " .. path .. " --prometheus"):gmatch("\n(outbox_[%l_]+){") do
      assert.matches("`" .. metric .. "`", page)
    end
    support.remove()
  end)
end)
