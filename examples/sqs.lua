-- Delivers to a queue of Amazon SQS. The option `sign` of the http publisher makes each request a
-- SendMessage of SQS, and signs it.
--
--   AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=... lua5.4 examples/sqs.lua DATABASE \
--     https://sqs.eu-central-1.amazonaws.com/123456789012/orders.fifo
--
-- With temporary credentials set AWS_SESSION_TOKEN, too. AWS_REGION is needed where the name of
-- the host has no region. With a third argument, "once", the program ends when nothing is left.
--
-- It speaks the JSON protocol of SQS, not the older one with forms: nothing is to be encoded but
-- JSON, and an error has its code in front, where the reason of a failure shows it.

local cjson = require("cjson")
local outbox = require("outbox")

local aws_signature = dofile((arg[0]:gsub("[^/]*$", "aws_signature.lua"))) -- beside this file

local path, queue = assert(arg[1], "a database is missing"), assert(arg[2], "a queue is missing")
local region = os.getenv("AWS_REGION") or queue:match("^https://sqs%.([%w-]+)%.")

-- The fields of SendMessage. A FIFO queue drops an id that it has seen in the last five minutes,
-- and keeps the order of a group.
local function fields_of(message)
  local fields = { QueueUrl = queue, MessageBody = message.payload }
  if queue:find("%.fifo$") then
    fields.MessageDeduplicationId = message.id
    fields.MessageGroupId = message.key or message.id
  end
  return fields
end

local credentials = {
  key_id = assert(os.getenv("AWS_ACCESS_KEY_ID"), "AWS_ACCESS_KEY_ID is not set"),
  secret = assert(os.getenv("AWS_SECRET_ACCESS_KEY"), "AWS_SECRET_ACCESS_KEY is not set"),
  token = os.getenv("AWS_SESSION_TOKEN"),
}
assert(region, "AWS_REGION is not set")

local http = outbox.publisher(queue, {
  sign = function(request)
    request.path, request.body = "/", cjson.encode(fields_of(request.messages[1]))
    request.headers = { ["content-type"] = "application/x-amz-json-1.0",
      ["x-amz-target"] = "AmazonSQS.SendMessage" }
    aws_signature.sign(request, credentials, region, "sqs", os.time())
  end,
})

-- SQS answers 400 also where no message is at fault: when it throttles, or there is no such queue.
-- These are the errors that are a message's own; messages with any other are tried again. This
-- publisher is not `ordered`, unlike the one inside, which sends the next message of a key after
-- any 400. So a call has one message of a key.
local function is_of_message(reason)
  return reason:find("#InvalidMessageContents") or reason:find("#InvalidParameterValue")
    or reason:find("#MissingParameter") or reason:find("#MissingRequiredParameter")
end

local function publish(messages, namespace)
  local failures, reason = http:publish(messages, namespace)
  for _, failure in pairs(failures or {}) do
    if failure.permanent and not is_of_message(failure.reason) then
      failure.permanent, failure.uncharged = false, true
    end
  end
  return failures, reason
end

local store <close> = outbox.open(path)
store:migrate()
local processor = outbox.processor({
  store = store, publisher = publish,
  on_error = function(problem)
    io.stderr:write(tostring(problem), "\n")
  end,
})
if arg[3] == "once" then
  processor:pump()
else
  processor:run({ signals = true })
end
http:close()
