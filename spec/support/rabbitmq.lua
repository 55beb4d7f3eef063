-- A RabbitMQ server for the specs, as a process of this user, with a directory and an Erlang port
-- mapper of its own. It starts in some ten seconds.

local cjson = require("cjson")
local server = require("spec.support.server")

local M = {}

local function write(path, text)
  local file <close> = assert(io.open(path, "w"))
  assert(file:write(text))
end

local function programs()
  local pipe <close> = assert(io.popen("ls -d /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin"))
  return assert(pipe:read("l"), "RabbitMQ is not installed")
end

-- Makes NAME.pem, a certificate that an authority has signed or that is one, and NAME.key.
local function certify(directory, name, options)
  assert(os.execute(("cd %s && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 "
    .. "-nodes -keyout %s.key -out %s.pem -subj /CN=%s -days 2 %s 2>/dev/null")
    :format(directory, name, name, name, options)))
end

--- Returns a server that is not started yet, as `server.new` does. Its `port` has TLS, its
-- `plain_port` has not. In its `directory` are the certificates of its authority, `ca.pem`, and of
-- a client, `client.pem`, and their keys. `control(command)` runs rabbitmqctl. `settings` are lines
-- of rabbitmq.conf, and `definitions` is what it has from the beginning: users, queues and so on.
function M.new(settings, definitions)
  local mapper_port = server.port()
  local mapper = server.new(("epmd -address 127.0.0.1 -port %d"):format(mapper_port), mapper_port)
  mapper:start()
  local plain_port, tls_port, node_port = server.port(), server.port(), server.port()
  local folder = programs()
  local environment = ("env -u LD_PRELOAD HOME=$DIRECTORY ERL_EPMD_PORT=%d "
    .. "ERL_ZFLAGS='-start_epmd false' RABBITMQ_CONF_ENV_FILE=/dev/null "
    .. "RABBITMQ_CONFIG_FILE=$DIRECTORY/rabbitmq RABBITMQ_MNESIA_BASE=$DIRECTORY/mnesia "
    .. "RABBITMQ_ENABLED_PLUGINS_FILE=$DIRECTORY/plugins RABBITMQ_LOG_BASE=$DIRECTORY/logs "
    .. "RABBITMQ_NODENAME=outbox%d@localhost RABBITMQ_DIST_PORT=%d RABBITMQ_LOGS=-")
    :format(mapper_port, plain_port, node_port)
  -- The script becomes the server where it takes itself for a service; else it would stay beside.
  local instance = server.new(("%s RUNNING_UNDER_SYSTEMD=1 %s/rabbitmq-server")
    :format(environment, folder), tls_port) -- it listens there last
  local directory = instance.directory
  instance.plain_port = plain_port
  certify(directory, "ca", "")
  certify(directory, "server", "-CA ca.pem -CAkey ca.key -addext subjectAltName=DNS:localhost")
  certify(directory, "client", "-CA ca.pem -CAkey ca.key")
  write(directory .. "/definitions.json", cjson.encode(definitions))
  write(directory .. "/rabbitmq.conf", (([[
listeners.tcp.default = 127.0.0.1:%d
listeners.ssl.default = 127.0.0.1:%d
ssl_options.cacertfile = $DIRECTORY/ca.pem
ssl_options.certfile = $DIRECTORY/server.pem
ssl_options.keyfile = $DIRECTORY/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
load_definitions = $DIRECTORY/definitions.json
disk_free_limit.absolute = 1MB
%s]]):format(plain_port, tls_port, settings):gsub("%$DIRECTORY", directory)))

  function instance.control(command)
    assert(os.execute(("DIRECTORY=%s; %s %s/rabbitmqctl -q %s >>$DIRECTORY/log 2>&1 </dev/null")
      :format(directory, environment, folder, command)))
  end

  return instance
end

return M
