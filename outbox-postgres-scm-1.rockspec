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
  type = "builtin",
  modules = {
    ["outbox.postgres"] = {
      sources = {
        "src/box.c",
        "src/bytes.c",
        "src/clock.c",
        "src/codes.c",
        "src/heads.c",
        "src/interval.c",
        "src/lines.c",
        "src/uuid.c",
        "src/postgres/engine.c",
        "src/lua/postgres.c",
      },
      libraries = { "pq", "m" },
      incdirs = { "$(PQ_INCDIR)" },
      libdirs = { "$(PQ_LIBDIR)" },
    },
  },
}
