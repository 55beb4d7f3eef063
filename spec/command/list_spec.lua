local cjson = require("cjson")
local command = require("spec.support.command")
local outbox = require("outbox")
local support = require("spec.support")

local sqlite_it = support.only("sqlite", it)

local COMMAND, json_lines, read = command.COMMAND, command.json_lines, command.read
local run, shell, succeed = command.run, command.shell, command.succeed

describe("outbox list", function()
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

  local function bury(...)
    command.bury(store, ...)
  end

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

  it("writes nothing if there are no entries", function()
    assert.equal("", succeed("list " .. path))
    assert.equal("", succeed("list " .. path .. " dead --json"))
  end)

  it("lists page after page, in both directions, and says how to go on", function()
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

  sqlite_it("writes JSON that keeps every byte", function()
    store:publish({ id = 'i"\\\1', namespace = "ö", key = "\255\0", payload = "pay\nload",
      headers = { h = "v" } })
    local entry = json_lines(succeed("list " .. path .. " --json"))[1]
    assert.matches("^%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%d%d%d%dZ$", entry.created_at)
    entry.created_at = nil
    assert.same({ seq = 1, id = 'i"\\\1', namespace = "ö", key_base64 = "/wA=",
      payload = "pay\nload", headers = { h = "v" }, attempts = 0 }, entry)
  end)

  it("shows whatever plain SQL has published", function()
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

  it("is not widened by one long cell", function()
    store:publish({ id = "long", key = ("k"):rep(100000) })
    for i = 1, 99 do
      store:publish({ id = tostring(i), key = "k" })
    end
    local text = succeed("list " .. path .. " --limit 100")
    assert.is_true(#text < 120000)
    assert.is_true(text:find(" " .. ("k"):rep(100000) .. " ", 1, true) ~= nil)
  end)

  sqlite_it("shows the beginning of a long error", function()
    for id, reason in pairs({ a = ("é"):rep(100), b = ("é"):rep(101), c = ("e"):rep(1000000),
      d = ("\255"):rep(1000) }) do
      store:publish({ id = id })
      store:bury_entry(id, reason)
    end
    local text = succeed("list " .. path .. " dead")
    assert.matches(" " .. ("é"):rep(100) .. "\n", text, 1, true)
    assert.matches(" " .. ("é"):rep(100) .. "...\n", text, 1, true)
    assert.matches(" " .. ("e"):rep(100) .. "...\n", text, 1, true)
    assert.matches(" " .. ("\\xff"):rep(25) .. "...\n", text, 1, true)
    assert.is_true(#text < 2000)
    local shown = succeed("show " .. path .. " c"):find(("e"):rep(1000000), 1, true)
    assert.is_true(shown ~= nil)
  end)

  it("shows no negative age, even if the clock was set back", function()
    support.sql(store, "INSERT INTO outbox_entries (id, created_at) VALUES ('a', ?)",
      "4102444800000000")
    assert.matches(" 0%.0 s ", succeed("list " .. path))
    assert.matches("oldest 0%.0 s", succeed("stats " .. path))
    assert.matches("outbox_oldest_age_seconds{.-} 0\n", succeed("stats --prometheus " .. path))
    assert.matches('"oldest_age":0[,}]', succeed("stats --json " .. path))
    assert.matches(" oldest=0%.0 ", succeed("top --count 1 " .. path))
    assert.equal(0, store:stats().oldest_age)
  end)

  it("escapes in JSON what would control a terminal, and changes no value", function()
    local nasty = "\27[2J\u{9b}31m\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}\127\r\n\t"
    store:publish({ id = "i" .. nasty, namespace = nasty, key = nasty, payload = nasty,
      headers = { [nasty] = nasty } })
    store:bury_entry("i" .. nasty, nasty)
    store:publish({ id = "ready" })
    local text = succeed("list " .. path .. " dead --json")
    for _, unsafe in ipairs({ "\27", "\u{9b}", "\u{202e}", "\u{2066}", "\u{200f}", "\u{61c}",
      "\u{2028}", "\127", "\r", "\t", "\n." }) do
      assert.is_nil(text:find(unsafe))
    end
    local entry = json_lines(text)[1]
    assert.same({ "i" .. nasty, nasty, nasty, nasty, { [nasty] = nasty }, nasty }, { entry.id,
      entry.namespace, entry.key, entry.payload, entry.headers, entry.last_error })
    for _, arguments in ipairs({ "list '/no/%s'", "stats '%s'", "show " .. path .. " '%s'",
      "relay " .. path .. " --to 'file:/no/%s' --once", "list '" .. path .. "' '%s'",
      "publish '/no/%s' x" }) do
      local _, status, err = run((arguments:gsub("'([^']*)%%s'", "'%1" .. nasty .. "'")))
      assert.not_equal(0, status)
      assert.is_nil(err:find("[\27\127\r]"), err)
      assert.is_nil(err:find("\u{9b}") or err:find("\u{202e}") or err:find("\u{200f}"), err)
    end
  end)

  it("ends quietly if nobody reads on, and fails if the disk is full", function()
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
