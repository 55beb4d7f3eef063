rockspec_format = "3.0"
package = "outbox"
version = "0.1.0-1"
source = {
  url = "git+file://.",
  tag = "v0.1.0",
}
description = {
  summary = "The transactional outbox for Lua, on SQLite",
  detailed = [[
An application changes its database and must tell the world about it: both or neither. It writes
the message in the same transaction as its own data; a processor delivers it afterwards, at least
once, and survives crashes. A small core in C on SQLite, with an API in Lua.]],
  license = "MIT",
}
dependencies = {
  "lua >= 5.4",
}
external_dependencies = {
  SQLITE = { header = "sqlite3.h", library = "sqlite3" },
}
build = {
  type = "builtin",
  install = { bin = { "bin/outbox" } },
  modules = {
    ["outbox"] = "lua/outbox.lua",
    ["outbox.attach"] = "lua/outbox/attach.lua",
    ["outbox.command"] = "lua/outbox/command.lua",
    ["outbox.command.database"] = "lua/outbox/command/database.lua",
    ["outbox.command.entries"] = "lua/outbox/command/entries.lua",
    ["outbox.command.format"] = "lua/outbox/command/format.lua",
    ["outbox.command.log"] = "lua/outbox/command/log.lua",
    ["outbox.command.publish"] = "lua/outbox/command/publish.lua",
    ["outbox.command.relay"] = "lua/outbox/command/relay.lua",
    ["outbox.command.stats"] = "lua/outbox/command/stats.lua",
    ["outbox.command.top"] = "lua/outbox/command/top.lua",
    ["outbox.headers"] = "lua/outbox/headers.lua",
    ["outbox.processor"] = "lua/outbox/processor.lua",
    ["outbox.delivery"] = "lua/outbox/delivery.lua",
    ["outbox.inbox"] = "lua/outbox/inbox.lua",
    ["outbox.need"] = "lua/outbox/need.lua",
    ["outbox.options"] = "lua/outbox/options.lua",
    ["outbox.publisher"] = "lua/outbox/publisher.lua",
    ["outbox.publishers.cloudevents"] = "lua/outbox/publishers/cloudevents.lua",
    ["outbox.publishers.exec"] = "lua/outbox/publishers/exec.lua",
    ["outbox.publishers.file"] = "lua/outbox/publishers/file.lua",
    ["outbox.publishers.format"] = "lua/outbox/publishers/format.lua",
    ["outbox.publishers.http"] = "lua/outbox/publishers/http.lua",
    ["outbox.publishers.redis"] = "lua/outbox/publishers/redis.lua",
    ["outbox.publishers.route"] = "lua/outbox/publishers/route.lua",
    ["outbox.problem"] = "lua/outbox/problem.lua",
    ["outbox.testing"] = "lua/outbox/testing.lua",
    ["outbox.types"] = "lua/outbox/types.lua",
    ["outbox.core"] = {
      sources = {
        "src/bytes.c",
        "src/clock.c",
        "src/codes.c",
        "src/interval.c",
        "src/uuid.c",
        "src/sqlite/attach.c",
        "src/sqlite/batch.c",
        "src/sqlite/claim.c",
        "src/sqlite/dead.c",
        "src/sqlite/doorbell.c",
        "src/sqlite/error.c",
        "src/sqlite/handshake.c",
        "src/sqlite/heartbeat.c",
        "src/sqlite/list.c",
        "src/sqlite/migrate.c",
        "src/sqlite/open.c",
        "src/sqlite/publish.c",
        "src/sqlite/reading.c",
        "src/sqlite/schema.c",
        "src/sqlite/settle.c",
        "src/sqlite/sql.c",
        "src/sqlite/statement.c",
        "src/sqlite/stats.c",
        "src/sqlite/store.c",
        "src/sqlite/transaction.c",
        "src/lua/module.c",
        "src/lua/open.c",
        "src/lua/process.c",
        "src/lua/publish.c",
        "src/lua/reading.c",
        "src/lua/store.c",
        "src/lua/transaction.c",
      },
      libraries = { "sqlite3", "m" },
      incdirs = { "$(SQLITE_INCDIR)" },
      libdirs = { "$(SQLITE_LIBDIR)" },
    },
    -- No module of Lua's but an extension of SQLite's, found by package.searchpath all the same.
    ["outbox_sqlite"] = {
      sources = {
        "src/bytes.c",
        "src/clock.c",
        "src/codes.c",
        "src/uuid.c",
        "src/sqlite/attach.c",
        "src/sqlite/batch.c",
        "src/sqlite/doorbell.c",
        "src/sqlite/error.c",
        "src/sqlite/extension.c",
        "src/sqlite/heartbeat.c",
        "src/sqlite/migrate.c",
        "src/sqlite/open.c",
        "src/sqlite/publish.c",
        "src/sqlite/schema.c",
        "src/sqlite/statement.c",
        "src/sqlite/store.c",
        "src/sqlite/transaction.c",
      },
      defines = { "OUTBOX_EXTENSION" },
      incdirs = { "$(SQLITE_INCDIR)" },
    },
  },
}
test = {
  type = "command",
  command = "make test",
}
