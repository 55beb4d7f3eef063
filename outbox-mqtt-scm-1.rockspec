rockspec_format = "3.0"
package = "outbox-mqtt"
version = "scm-1"
source = {
  url = "git+file://.",
}
description = {
  summary = "MQTT 5 as a destination of outbox, the transactional outbox for Lua",
  detailed = [[
With this rock the relay and the processors of the rock outbox, of the same version, deliver to
mqtt:// and mqtts:// through libmosquitto.]],
  license = "MIT",
}
dependencies = {
  "lua >= 5.4, < 5.6",
  "outbox scm",
}
external_dependencies = {
  MOSQUITTO = { header = "mosquitto.h", library = "mosquitto" },
}
build = {
  type = "make",
  makefile = "src/rock.mk",
  build_pass = false,
  install_variables = {
    CFLAGS = "$(CFLAGS)",
    LIBFLAG = "$(LIBFLAG)",
    LUA_INCDIR = "$(LUA_INCDIR)",
    MODULE = "$(LIBDIR)/outbox/destinations/mqtt.$(LIB_EXTENSION)",
    SOURCES = "src/destinations/client.c src/destinations/mqtt.c",
    INCLUDES = "-I$(MOSQUITTO_INCDIR)",
    LIBRARIES = "-L$(MOSQUITTO_LIBDIR) -lmosquitto",
  },
}
