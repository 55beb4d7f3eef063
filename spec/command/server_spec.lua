-- The command on a PostgreSQL server: what only a URL has. The other specs of the command run on
-- both engines.

local command = require("spec.support.command")
local outbox = require("outbox")
local postgres = require("spec.support.postgres")
local support = require("spec.support")
local url = require("outbox.command.common.url")

local run = command.run

describe("the URL of a database", function()
  it("is shown without its password", function()
    for name, shown in pairs({
      ["postgresql://app:secret@host:5432/shop"] = "postgresql://app@host:5432/shop",
      ["postgres://app:secret@/shop"] = "postgres://app@/shop",
      ["postgresql://:secret@host"] = "postgresql://@host",
      ["postgresql://app:se?cret@host"] = "postgresql://app@host",
      ["postgresql://app:s/e@cret@host/shop"] = "postgresql://app@host/shop",
      ["postgresql://host/shop?password=secret"] = "postgresql://host/shop",
      ["postgresql://host/shop?a=b&p%61ssword=secret&c=d"] = "postgresql://host/shop?a=b&c=d",
      ["postgresql://app:secret@host?sslpassword=secret&c=d"] = "postgresql://app@host?c=d",
      ["postgresql://app@host:5432/shop?application_name=a:b@c"] =
        "postgresql://app@host:5432/shop?application_name=a:b@c",
      ["postgresql://host:5432/shop"] = "postgresql://host:5432/shop",
      ["postgresql://host1:1,host2:2/shop"] = "postgresql://host1:1,host2:2/shop",
      ["app:secret@host.db"] = "app:secret@host.db",
    }) do
      assert.equal(shown, (url.hide(name)))
    end
  end)

  local it = pcall(require, "outbox.postgres") and it or pending -- not in each build of the rock
  it("is not repeated by an error, whatever is wrong with it", function()
    for _, name in ipairs({ "postgresql://app:secret@127.0.0.1:1/shop",
      "postgresql://app:secret%zz@127.0.0.1/shop", "postgresql://app:secret/x@127.0.0.1/shop",
      "postgresql://app:secret@[::1/shop", "postgresql://app:secret@127.0.0.1:x/shop",
      "postgresql://127.0.0.1:1/shop?password=secret&x", "postgresql://app:a secret@127.0.0.1:1/x",
    }) do
      local out, status, err = run(("stats '%s'"):format(name))
      assert.same({ "", 1 }, { out, status }, name)
      local warning, message = err:match("^([^\n]*)\n(.*)$")
      assert.matches("^outbox: every user of this machine can see the password", warning)
      assert.matches("^outbox: .* %(cantopen%)\n$", message)
      assert.is_nil(err:find("secret", 1, true), err)
      local raised = support.raised(outbox.open, name)
      assert.equal("cantopen", raised.code)
      assert.is_nil(raised.message:find("secret", 1, true), raised.message)
    end
  end)
end)

local describe_server = postgres.where_there_is(describe)

describe_server("the command on a server", function()
  local path

  before_each(function()
    path = postgres.schema()
  end)

  after_each(postgres.remove)

  local function quoted(arguments)
    return (arguments:gsub("DB", function()
      return "'" .. path .. "'"
    end))
  end

  local function succeed(arguments)
    return command.succeed(quoted(arguments))
  end

  it("creates no tables but with migrate", function()
    command.fail(1, "call migrate first.*%(schema%)\n$", quoted("publish DB x"))
    succeed("migrate DB")
    assert.matches("^%x+%-%x+", succeed("publish DB x --namespace orders"))
  end)

  it("shows, pauses, subscribes, delivers", function()
    succeed("migrate DB")
    succeed("publish DB 'order 1' --namespace orders --key 1 --id order-1 --header a=b")
    succeed("publish DB later --id later --in 3600")
    assert.matches("ready +1 .*delayed +1 .*in 60 min.*dead +0\n", succeed("stats DB"))
    assert.matches('{database="' .. path:gsub("%p", "%%%0") .. '",prefix="outbox_"} 1\n',
      succeed("stats DB --prometheus"))
    assert.matches("\n1 +order%-1 +orders +1 +7 ", succeed("list DB"))
    assert.matches("\nheader +a: b\n.*\norder 1\n$", succeed("show DB order-1"))
    assert.matches("^[^\n]* ready=1 delayed=1 ", succeed("top DB --count 1"))
    succeed("pause DB --namespace orders")
    assert.matches("\norders +%d", succeed("pause DB"))
    succeed("resume DB --all")
    succeed("subscribe DB orders mail")
    assert.equal("NAMESPACE  COPY\norders     mail\n", succeed("subscribe DB"))
    assert.equal("buried 1\n", succeed("bury DB later"))
    assert.matches("\n%d+ +later ", succeed("dead list DB"))
    assert.equal("requeued 1\n", succeed("dead requeue DB later"))
    local out, status = run(quoted("relay DB --to stdout: --once"))
    assert.same({ 0, "order-1", "later" }, { status, out:match('"id":"(.-)".*\n.*"id":"(.-)"') })
    assert.equal("", succeed("leases DB"))
    local store <close> = outbox.open(path)
    assert.equal(0, store:stats().ready)
  end)

  it("never logs the password, of no worker either", function()
    succeed("migrate DB")
    succeed("publish DB x --namespace orders")
    local secret = path:gsub("postgres@", "postgres:secret@")
    for _, more in ipairs({ "", "--to file:/dev/null" }) do
      local _, status, err = run(("relay '%s' --once --log json --to orders=stdout: %s"):format(
        secret, more))
      assert.equal(0, status, err)
      local _, warnings = err:gsub("can see the password", "")
      assert.equal(1, warnings)
      assert.matches('"database":"postgresql:\\/\\/postgres@', err)
      assert.is_nil(err:find("secret", 1, true), err)
    end
    for _, arguments in ipairs({ "stats '%s' --prometheus", "top '%s' --count 1" }) do
      local out, status, err = run(arguments:format(secret))
      assert.equal(0, status)
      assert.is_nil((out .. err):find("secret", 1, true))
    end
  end)
end)

after_each(support.remove)
