-- What the publishers of brokers have in common: one connection that is kept, a batch that is sent
-- as a whole, the wait for all confirmations, and what became of each message.
--
-- A publisher of a broker is made by `broker.new(class, target, options)`. `target` has a `name`,
-- for reasons, and `tls`, whether there is any. The methods of the class:
--
--    connect(self)                  begins to connect; returns a client, or nil and why it cannot
--    greeting(self)                 optional: the items to send first; none of them may be refused
--    item(self, message, namespace) what the client sends for a message; or nil and a failure, as
--                                   a publisher returns it
--    judge(self, result, count)     the failure of a message that was refused among `count`
--                                   messages; and true if the connection must not be used again
--
-- A client is written in C, around that of the broker. Its methods never wait:
--
--    work()      reads and writes what it can; returns how much is left to do, 0 when all is
--                answered; or nil and why the connection is lost
--    send(items) takes over an array of items
--    results()   of the items sent last: true for one that is confirmed, nil for one without an
--                answer, else what `judge` gets
--    obstacle()  optional: why the broker does not answer, where it has said so
--    pollfd(), events()   the descriptor to wait for, and whether to write: "r", "w" or "rw"
--    close()     gives up whatever is not answered; does nothing the second time

local core = require("outbox.core")
local option = require("outbox.options")
local wait = require("outbox.publishing.wait")

local M = {}

local elapsed = core.elapsed

local METHODS = {}

-- Works until nothing is left. Returns nil, or why something is. `timeout` counts from the last
-- progress: a slow line may need longer for a large batch than a broker that is gone deserves.
local function await(self, client)
  local left, reason = client:work()
  local least, deadline = left, elapsed() + self.timeout
  while left and left > 0 do
    local seconds = deadline - elapsed()
    if seconds <= 0 then
      local obstacle = client.obstacle and client:obstacle()
      return ("no answer within %g s%s"):format(self.timeout, obstacle and ": " .. obstacle or "")
    end
    wait(client, seconds)
    left, reason = client:work()
    if left and left < least then
      least, deadline = left, elapsed() + self.timeout
    end
  end
  return reason
end

-- Returns nil, or why the broker does not take the greeting.
local function greet(self, client)
  local items = self.greeting and self:greeting() or {}
  if #items == 0 then
    return nil
  end
  client:send(items)
  local reason = await(self, client)
  local results = client:results()
  for i = 1, #items do
    if results[i] ~= true then
      return reason or results[i]
    end
  end
end

-- Returns the connected client; or nil and why there is none.
local function open(self)
  if self.client and self.client:work() == 0 then
    return self.client
  end
  self:close() -- the broker has closed it meanwhile, or the last call was cut off
  local client, reason = self:connect()
  if not client then
    return nil, ("%s: %s"):format(self.target.name, reason)
  end
  self.client = client
  reason = await(self, client) or greet(self, client)
  if reason then
    return nil, ("%s: %s"):format(self.target.name, reason)
  end
  return client
end

-- Returns the items of the messages that can be sent, and the places of their messages; notes the
-- failures of the others.
local function prepare(self, messages, namespace, failures)
  local items, places = {}, {}
  for i = 1, #messages do
    local item, failure = self:item(messages[i], namespace)
    if item then
      items[#items + 1], places[#places + 1] = item, i
    else
      failures[i] = failure
    end
  end
  return items, places
end

local function publish(self, messages, namespace)
  local failures = {}
  local items, places = prepare(self, messages, namespace, failures)
  if #items == 0 then
    return failures
  end
  local client, reason = open(self)
  if not client then
    return nil, reason
  end
  client:send(items)
  reason = await(self, client)
  local results, answered, spoilt = client:results(), false, reason ~= nil
  for k = 1, #items do
    local result, failure, bad = results[k], nil, false
    if result == nil then
      failure = { reason = reason, uncharged = true }
    elseif result ~= true then
      failure, bad = self:judge(result, #items)
    end
    answered, spoilt = answered or result ~= nil, spoilt or bad
    failures[places[k]] = failure
  end
  if spoilt then
    self:close()
  end
  if not answered and #items == #messages then
    return nil, reason
  end
  return failures
end

function METHODS:publish(messages, namespace)
  local ok, failures, reason = pcall(publish, self, messages, namespace)
  if not ok or not failures then
    self:close()
  end
  if not ok then
    return nil, tostring(failures)
  end
  return failures, reason
end

-- What a client needs for TLS; nil without.
function METHODS:tls()
  local options = self.options
  return self.target.tls and {
    ca_file = options.ca_file, cert_file = options.cert_file, key_file = options.key_file,
    verify = options.verify,
  } or nil
end

function METHODS:close()
  local client = self.client
  self.client = nil
  if client then
    client:close()
  end
end

--- Makes the class of a broker's publishers from its methods.
function M.class(methods)
  local class = { __name = "outbox.publisher", batch_size = 100 }
  for _, list in ipairs({ METHODS, methods }) do
    for name, method in pairs(list) do
      class[name] = method
    end
  end
  class.__index, class.__close = class, class.close
  return class
end

local function file(value)
  local handle <close> = type(value) == "string" and io.open(value) or nil
  local text = handle and handle:read("a") -- nil for a directory
  return text and text:find("-----BEGIN ", 1, true) ~= nil, "a file in PEM format"
end

local COMMON = {
  user = { check = option.string },
  password = { check = option.string },
  timeout = { default = 5, check = option.seconds },
}

local TLS = {
  ca_file = { check = file },
  cert_file = { check = file },
  key_file = { check = file },
  verify = { default = true, check = option.boolean },
}

--- Makes a publisher of a class. `target` is where to, and `options` are those of the publisher.
-- Its `user` and its `password` are those of the options, else those of the target.
-- Raises where an option is given that would do nothing: one of TLS for a target without `tls`, a
-- certificate without its key, one of CloudEvents for another mode.
function M.new(class, target, options)
  if (options.cert_file == nil) ~= (options.key_file == nil) then
    error("'cert_file' and 'key_file' need each other", 0)
  end
  for _, name in ipairs({ "source", "type" }) do
    if options.mode == "plain" and options[name] ~= M.EVENTS[name].default then
      error(('\'%s\' is for mode = "cloudevents"'):format(name), 0)
    end
  end
  for name, known in pairs(TLS) do
    if not target.tls and options[name] ~= nil and options[name] ~= known.default then
      error(("'%s' is for TLS, which is off"):format(name), 0)
    end
  end
  return setmetatable({
    target = target, options = options, timeout = options.timeout,
    user = options.user or target.user, password = options.password or target.password,
  }, class)
end

--- The options of a broker that has CloudEvents.
M.EVENTS = {
  mode = { default = "plain", check = function(value)
    return value == "plain" or value == "cloudevents", '"plain" or "cloudevents"'
  end },
  source = { default = "/outbox", check = option.string },
  type = { default = "outbox.{namespace}", check = option.string },
}

--- The options of a broker: its `own`, those that all brokers have, and those of TLS whose `names`
-- are given.
function M.options(own, names)
  local all = {}
  for _, list in ipairs({ COMMON, own }) do
    for name, known in pairs(list) do
      all[name] = known
    end
  end
  for _, name in ipairs(names) do
    all[name] = TLS[name]
  end
  return all
end

return M
