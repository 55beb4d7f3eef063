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
  "outbox scm",
}
external_dependencies = {
  RABBITMQ = { header = "amqp.h", library = "rabbitmq" },
  OPENSSL = { header = "openssl/ssl.h", library = "ssl" },
}
build = {
  type = "make",
  makefile = "src/rock.mk",
  build_pass = false,
  install_variables = {
    CFLAGS = "$(CFLAGS)",
    LIBFLAG = "$(LIBFLAG)",
    LUA_INCDIR = "$(LUA_INCDIR)",
    MODULE = "$(LIBDIR)/outbox/destinations/amqp.$(LIB_EXTENSION)",
    SOURCES = "src/destinations/client.c src/destinations/amqp.c src/destinations/amqp_login.c",
    INCLUDES = "-I$(RABBITMQ_INCDIR) -I$(OPENSSL_INCDIR)",
    LIBRARIES = "-L$(RABBITMQ_LIBDIR) -lrabbitmq -L$(OPENSSL_LIBDIR) -lssl",
  },
}
