rockspec_format = "3.0"
package = "outbox-redis"
version = "scm-1"
source = {
  url = "git+file://.",
}
description = {
  summary = "Redis Streams as a destination of outbox, the transactional outbox for Lua",
  detailed = [[
With this rock the relay and the processors of the rock outbox, of the same version, deliver to
redis://, rediss:// and unix: through hiredis.]],
  license = "MIT",
}
dependencies = {
  "lua >= 5.4, < 5.6",
  "lua-cjson",
  "outbox scm",
}
external_dependencies = {
  HIREDIS = { header = "hiredis/hiredis.h", library = "hiredis" },
}
build = {
  type = "builtin",
  modules = {
    ["outbox.destinations.redis"] = {
      sources = {
        "src/destinations/client.c",
        "src/destinations/redis.c",
        "src/destinations/redis_tls.c",
      },
      libraries = { "hiredis" },
      incdirs = { "$(HIREDIS_INCDIR)" },
      libdirs = { "$(HIREDIS_LIBDIR)" },
    },
    ["outbox.publishers.redis"] = "lua/outbox/publishers/redis.lua",
    ["outbox.publishers.rediss"] = "lua/outbox/publishers/rediss.lua",
    ["outbox.publishers.unix"] = "lua/outbox/publishers/unix.lua",
  },
}
