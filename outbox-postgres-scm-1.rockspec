rockspec_format = "3.0"
package = "outbox-postgres"
version = "scm-1"
source = {
  url = "git+file://.",
}
description = {
  summary = "PostgreSQL for outbox, the transactional outbox for Lua",
  detailed = [[
The rock outbox works on SQLite. With this one, of the same version, it works on PostgreSQL, too:
outbox.open("postgresql://...").]],
  license = "MIT",
}
dependencies = {
  "lua >= 5.4, < 5.6",
  "outbox scm",
}
external_dependencies = {
  PQ = { header = "libpq-fe.h", library = "pq" },
}
build = {
  type = "make",
  makefile = "src/rock.mk",
  build_pass = false,
  install_variables = {
    CFLAGS = "$(CFLAGS)",
    LIBFLAG = "$(LIBFLAG)",
    LUA_INCDIR = "$(LUA_INCDIR)",
    MODULE = "$(LIBDIR)/outbox/postgres.$(LIB_EXTENSION)",
    SOURCES = "src/lua/postgres.c src/postgres/*.c " ..
      "src/box.c src/bytes.c src/clock.c src/codes.c src/heads.c src/heartbeat.c src/lines.c src/uuid.c",
    INCLUDES = "-I$(PQ_INCDIR)",
    LIBRARIES = "-L$(PQ_LIBDIR) -lpq -lm",
  },
}
