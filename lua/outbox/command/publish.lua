-- outbox publish

local convert = require("outbox.command.common.convert")
local database = require("outbox.command.common.database")
local errors = require("outbox.error")
local format = require("outbox.command.common.format")

local M = {
  summary = "Publish a message.",
  description = "Publishes a message and prints its id. Creates the database, with the outbox's "
    .. "tables, if there is none. Creates no tables in an existing database: `migrate` does.",
  epilog = "Put -- before an argument that begins with a hyphen.",
}

function M.define(command)
  database.define(command)
  command:argument("PAYLOAD", "The payload. The default is standard input, byte for byte.")
    :target("payload"):argname("PAYLOAD"):args("?")
  command:option("--namespace", "The message's namespace, default empty."):argname("NAME")
  command:option("--key", "Messages with the same namespace and key keep their order.")
    :argname("KEY")
  command:option("--id", "The message's id, default a new UUID."):argname("ID")
  command:option("--header", "A header; may be repeated."):argname("NAME=VALUE"):count("*")
    :convert(convert.pair)
  command:mutex(
    command:option("--in", "Deliver it after this many seconds."):target("delay")
      :argname("SECONDS"):convert(convert.number),
    command:option("--deliver-at", "Deliver it at this time or later, in seconds since the epoch.")
      :argname("TIME"):convert(convert.number))
end

local function read_input()
  local bytes, reason = io.read("a")
  if not bytes then
    error(errors.new("input", "cannot read standard input: " .. reason), 0)
  end
  return bytes
end

function M.run(options)
  local headers = {}
  for _, header in ipairs(options.header) do
    headers[header.name] = header.value
  end
  local payload = options.payload or read_input() -- before the database is opened or created
  local store <close> = database.create(options)
  local id = store:publish({
    id = options.id,
    namespace = options.namespace,
    key = options.key,
    payload = payload,
    headers = next(headers) and headers,
    deliver_at = options.deliver_at or options.delay and store:clock().now() + options.delay,
  })
  format.write(id, "\n")
end

return M
