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
  "outbox scm",
}
external_dependencies = {
  HIREDIS = { header = "hiredis/hiredis.h", library = "hiredis" },
}
build = {
  type = "make",
  makefile = "src/rock.mk",
  build_pass = false,
  install_variables = {
    CFLAGS = "$(CFLAGS)",
    LIBFLAG = "$(LIBFLAG)",
    LUA_INCDIR = "$(LUA_INCDIR)",
    MODULE = "$(LIBDIR)/outbox/destinations/redis.$(LIB_EXTENSION)",
    SOURCES = "src/destinations/client.c src/destinations/redis.c src/destinations/redis_tls.c",
    INCLUDES = "-I$(HIREDIS_INCDIR)",
    LIBRARIES = "-L$(HIREDIS_LIBDIR) -lhiredis",
  },
}
