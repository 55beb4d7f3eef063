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
        "src/heartbeat.c",
        "src/lines.c",
        "src/uuid.c",
        "src/postgres/advance.c",
        "src/postgres/choose.c",
        "src/postgres/claim.c",
        "src/postgres/connection.c",
        "src/postgres/cursor.c",
        "src/postgres/due.c",
        "src/postgres/engine.c",
        "src/postgres/follow.c",
        "src/postgres/heartbeat.c",
        "src/postgres/lane.c",
        "src/postgres/lease.c",
        "src/postgres/list.c",
        "src/postgres/migrate.c",
        "src/postgres/open.c",
        "src/postgres/pause.c",
        "src/postgres/publish.c",
        "src/postgres/read.c",
        "src/postgres/reading.c",
        "src/postgres/round.c",
        "src/postgres/schema.c",
        "src/postgres/settle.c",
        "src/postgres/share.c",
        "src/postgres/sql.c",
        "src/postgres/statement.c",
        "src/postgres/stats.c",
        "src/postgres/steering.c",
        "src/postgres/store.c",
        "src/postgres/sweep.c",
        "src/postgres/text.c",
        "src/postgres/transaction.c",
        "src/postgres/wait.c",
        "src/lua/postgres.c",
      },
      libraries = { "pq", "m" },
      incdirs = { "$(PQ_INCDIR)" },
      libdirs = { "$(PQ_LIBDIR)" },
    },
  },
}
