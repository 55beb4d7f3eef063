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
  "outbox scm",
}
external_dependencies = {
  NATS = { header = "nats/nats.h", library = "nats" },
}
build = {
  type = "make",
  makefile = "src/rock.mk",
  build_pass = false,
  install_variables = {
    CFLAGS = "$(CFLAGS)",
    LIBFLAG = "$(LIBFLAG)",
    LUA_INCDIR = "$(LUA_INCDIR)",
    MODULE = "$(LIBDIR)/outbox/destinations/nats.$(LIB_EXTENSION)",
    SOURCES = "src/destinations/client.c src/destinations/nats.c src/destinations/nats_dial.c",
    INCLUDES = "-I$(NATS_INCDIR)",
    LIBRARIES = "-L$(NATS_LIBDIR) -lnats -lpthread",
  },
}
