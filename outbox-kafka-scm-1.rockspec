rockspec_format = "3.0"
package = "outbox-kafka"
version = "scm-1"
source = {
  url = "git+file://.",
}
description = {
  summary = "Kafka as a destination of outbox, the transactional outbox for Lua",
  detailed = [[
With this rock the relay and the processors of the rock outbox, of the same version, deliver to
kafka:// through librdkafka.]],
  license = "MIT",
}
dependencies = {
  "lua >= 5.4, < 5.6",
  "lua-cjson",
  "outbox scm",
}
external_dependencies = {
  RDKAFKA = { header = "librdkafka/rdkafka.h", library = "rdkafka" },
}
build = {
  type = "builtin",
  modules = {
    ["outbox.destinations.kafka"] = {
      sources = {
        "src/destinations/client.c",
        "src/destinations/kafka.c",
      },
      libraries = { "rdkafka" },
      incdirs = { "$(RDKAFKA_INCDIR)" },
      libdirs = { "$(RDKAFKA_LIBDIR)" },
    },
    ["outbox.publishers.kafka"] = "lua/outbox/publishers/kafka.lua",
  },
}
