rockspec_format = "3.0"
package = "outbox-nats"
version = "scm-1"
source = {
  url = "git+file://.",
}
description = {
  summary = "NATS JetStream as a destination of outbox, the transactional outbox for Lua",
  detailed = [[
With this rock the relay and the processors of the rock outbox, of the same version, deliver to
nats:// and tls:// through the C client of NATS.]],
  license = "MIT",
}
dependencies = {
  "lua >= 5.4, < 5.6",
  "lua-cjson",
  "outbox scm",
}
external_dependencies = {
  NATS = { header = "nats/nats.h", library = "nats" },
}
build = {
  type = "builtin",
  modules = {
    ["outbox.destinations.nats"] = {
      sources = {
        "src/destinations/client.c",
        "src/destinations/nats.c",
        "src/destinations/nats_dial.c",
      },
      libraries = { "nats", "pthread" },
      incdirs = { "$(NATS_INCDIR)" },
      libdirs = { "$(NATS_LIBDIR)" },
    },
    ["outbox.publishers.nats"] = "lua/outbox/publishers/nats.lua",
    ["outbox.publishers.tls"] = "lua/outbox/publishers/tls.lua",
  },
}
