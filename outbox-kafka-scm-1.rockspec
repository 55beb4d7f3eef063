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
  "outbox scm",
}
external_dependencies = {
  RDKAFKA = { header = "librdkafka/rdkafka.h", library = "rdkafka" },
}
build = {
  type = "make",
  makefile = "src/rock.mk",
  build_pass = false,
  install_variables = {
    CFLAGS = "$(CFLAGS)",
    LIBFLAG = "$(LIBFLAG)",
    LUA_INCDIR = "$(LUA_INCDIR)",
    MODULE = "$(LIBDIR)/outbox/destinations/kafka.$(LIB_EXTENSION)",
    SOURCES = "src/destinations/client.c src/destinations/kafka.c",
    INCLUDES = "-I$(RDKAFKA_INCDIR)",
    LIBRARIES = "-L$(RDKAFKA_LIBDIR) -lrdkafka",
  },
}
