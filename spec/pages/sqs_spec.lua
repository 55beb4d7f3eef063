-- examples/sqs.lua, against a stand-in for Amazon SQS that checks the signatures.

local cjson = require("cjson")
local server = require("spec.support.server")
local support = require("spec.support")

describe("examples/sqs.lua", function()
  local sqs, queue

  setup(function()
    local port = server.port()
    sqs = server.new(("python3 spec/support/sqs_server.py %d $DIRECTORY"):format(port), port)
    sqs:start()
    queue = ("http://127.0.0.1:%d/123456789012/orders"):format(port)
  end)

  teardown(server.stop)

  before_each(function()
    os.remove(sqs.directory .. "/messages")
    os.remove(sqs.directory .. "/error")
  end)

  after_each(support.remove)

  local function run(path, url, secret, more)
    local output, ok = support.run(("examples/sqs.lua %s %s once"):format(path, url),
      ("timeout 60 env no_proxy=127.0.0.1 AWS_REGION=eu-central-1 AWS_ACCESS_KEY_ID=AKID "
        .. "AWS_SECRET_ACCESS_KEY=%s %s"):format(secret or "secret", more or ""))
    assert.is_true(ok, output)
    return output
  end

  local function messages()
    local list = {}
    local file <close> = io.open(sqs.directory .. "/messages")
    for line in file and file:lines() or function() end do
      list[#list + 1] = cjson.decode(line)
    end
    return list
  end

  it("sends to a FIFO queue, with the key as group and the id against duplicates", function()
    local store <close>, path = support.store()
    store:publish({ id = "a", key = "7", payload = "placed é" }, { id = "b", payload = "{}" })
    store:publish({ id = "c", key = "7", payload = "paid" })
    assert.equal("", run(path, queue .. ".fifo", nil, "AWS_SESSION_TOKEN=token"))
    assert.outbox(store).is_empty()
    local groups = {}
    for _, message in ipairs(messages()) do
      local group = message.MessageGroupId
      assert.equal(queue .. ".fifo", message.QueueUrl)
      groups[group] = groups[group] or {}
      table.insert(groups[group], message.MessageDeduplicationId .. " " .. message.MessageBody)
    end
    assert.same({ ["7"] = { "a placed é", "c paid" }, b = { "b {}" } }, groups)
  end)

  it("sends to a standard queue", function()
    local store <close>, path = support.store()
    store:publish({ id = "a", key = "7", payload = "placed" })
    run(path, queue)
    assert.same({ { QueueUrl = queue, MessageBody = "placed" } }, messages())
    assert.outbox(store).is_empty()
  end)

  it("finds the destination down with a wrong secret", function()
    local store <close>, path = support.store()
    store:publish({ id = "a", payload = "placed" })
    assert.matches("403 Forbidden .*#InvalidSignatureException", run(path, queue, "wrong"))
    assert.same({}, messages())
    assert.outbox(store).has_entry({ id = "a", attempts = 0 })
  end)

  it("makes a dead letter only of a message that is at fault", function()
    for code, is_dead in pairs({ ThrottlingException = false, QueueDoesNotExist = false,
      InvalidMessageContents = true }) do
      local file <close> = assert(io.open(sqs.directory .. "/error", "w"))
      file:write(code, "\n")
      file:close()
      local store <close>, path = support.store()
      store:publish({ id = "a", payload = "placed" })
      run(path, queue)
      if is_dead then
        assert.outbox(store).has_dead_entry({ id = "a" })
      else
        assert.outbox(store).has_entry({ id = "a", attempts = 0 })
      end
    end
  end)
end)

describe("examples/aws_signature.lua", function()
  it("signs as Amazon's test suite of Signature Version 4 does", function()
    local aws_signature = dofile("examples/aws_signature.lua")
    for method, signature in pairs({
      GET = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
      POST = "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
    }) do
      local request = { method = method, host = "example.amazonaws.com", path = "/", headers = {},
        body = "" }
      aws_signature.sign(request, { key_id = "AKIDEXAMPLE",
        secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY" }, "us-east-1", "service", 1440938160)
      assert.equal("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/"
        .. "aws4_request, SignedHeaders=host;x-amz-date, Signature=" .. signature,
        request.headers.authorization)
      assert.equal("20150830T123600Z", request.headers["x-amz-date"])
    end
  end)
end)
