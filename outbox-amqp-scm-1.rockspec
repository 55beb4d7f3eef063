rockspec_format = "3.0"
package = "outbox-amqp"
version = "scm-1"
source = {
  url = "git+file://.",
}
description = {
  summary = "RabbitMQ as a destination of outbox, the transactional outbox for Lua",
  detailed = [[
With this rock the relay and the processors of the rock outbox, of the same version, deliver to
amqp:// and amqps:// through librabbitmq.]],
  license = "MIT",
}
dependencies = {
  "lua >= 5.4, < 5.6",
  "lua-cjson",
  "outbox scm",
}
external_dependencies = {
  RABBITMQ = { header = "amqp.h", library = "rabbitmq" },
  OPENSSL = { header = "openssl/ssl.h", library = "ssl" },
}
build = {
  type = "builtin",
  modules = {
    ["outbox.destinations.amqp"] = {
      sources = {
        "src/destinations/client.c",
        "src/destinations/amqp.c",
        "src/destinations/amqp_login.c",
      },
      libraries = { "rabbitmq", "ssl" },
      incdirs = { "$(RABBITMQ_INCDIR)", "$(OPENSSL_INCDIR)" },
      libdirs = { "$(RABBITMQ_LIBDIR)", "$(OPENSSL_LIBDIR)" },
    },
    ["outbox.publishers.amqp"] = "lua/outbox/publishers/amqp.lua",
    ["outbox.publishers.amqps"] = "lua/outbox/publishers/amqps.lua",
  },
}
