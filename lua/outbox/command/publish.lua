-- outbox migrate, outbox publish.

local outbox = require("outbox")
local database = require("outbox.command.database")
local format = require("outbox.command.format")
local problem = require("outbox.problem")

local function migrate(options)
  local store <close> = database.create(options)
  store:migrate()
end

local function read_input()
  local bytes, reason = io.read("a")
  if not bytes then
    error(problem.new("input", "cannot read standard input: " .. reason), 0)
  end
  return bytes
end

local function publish(options)
  local headers = {}
  for _, header in ipairs(options.header) do
    headers[header.name] = header.value
  end
  local payload = options.payload or read_input() -- before the database is opened, or made
  local store <close> = database.create(options)
  local id = store:publish({
    id = options.id,
    namespace = options.namespace,
    key = options.key,
    payload = payload,
    headers = next(headers) and headers,
    deliver_at = options.deliver_at or options.delay and outbox.clock.now() + options.delay,
  })
  format.write(id, "\n")
end

return function(parser, convert)
  local command = parser:command("migrate")
    :summary("Create the outbox's tables, or bring them up to date.")
    :description("Creates the outbox's tables in a database, or brings those of an older version "
      .. "up to date. Creates the database where there is none. Doing it again is harmless.")
    :action(function(options)
      options.run = migrate
    end)
  database.define(command)

  command = parser:command("publish")
    :summary("Publish a message.")
    :description("Publishes a message and prints its id. Creates the database, with the outbox's "
      .. "tables, where there is none; but no tables in one that is there: see migrate.")
    :epilog("An argument that begins with a hyphen comes after --")
    :action(function(options)
      options.run = publish
    end)
  database.define(command)
  command:argument("PAYLOAD", "The payload, default what standard input has, byte for byte.")
    :target("payload"):argname("PAYLOAD"):args("?")
  command:option("--namespace", "The stream that it belongs to, default none."):argname("NAME")
  command:option("--key", "Messages with one namespace and key keep their order."):argname("KEY")
  command:option("--id", "Its id, default a new UUID."):argname("ID")
  command:option("--header", "A header; may be repeated."):argname("NAME=VALUE"):count("*")
    :convert(convert.pair)
  command:mutex(
    command:option("--in", "Seconds until it is to be delivered."):target("delay")
      :argname("SECONDS"):convert(convert.number),
    command:option("--deliver-at", "Not to be delivered before, in seconds since the epoch.")
      :argname("TIME"):convert(convert.number))
end
