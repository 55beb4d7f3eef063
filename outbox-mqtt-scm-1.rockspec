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
  "lua-cjson",
  "outbox scm",
}
external_dependencies = {
  MOSQUITTO = { header = "mosquitto.h", library = "mosquitto" },
}
build = {
  type = "builtin",
  modules = {
    ["outbox.destinations.mqtt"] = {
      sources = { "src/destinations/client.c", "src/destinations/mqtt.c" },
      libraries = { "mosquitto" },
      incdirs = { "$(MOSQUITTO_INCDIR)" },
      libdirs = { "$(MOSQUITTO_LIBDIR)" },
    },
    ["outbox.publishers.mqtt"] = "lua/outbox/publishers/mqtt.lua",
    ["outbox.publishers.mqtts"] = "lua/outbox/publishers/mqtts.lua",
  },
}
