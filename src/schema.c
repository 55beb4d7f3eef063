/*
** The outbox's tables, and the migration that brings a database to them.
*/
#include "store.h"

/* Microseconds since the epoch, as far as SQL's clock goes: milliseconds. */
#define NOW_MS "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)"

/* A UUIDv7, for plain SQL that publishes: rises with time, as the ids of the default generator. */
#define UUID_V7                                                                                    \
  "substr(printf('%012x', " NOW_MS "), 1, 8) || '-' || substr(printf('%012x', " NOW_MS "), 9)"     \
  " || '-7' || substr(hex(randomblob(2)), 2) || '-' || substr('89AB', 1 + (random() & 3), 1)"      \
  " || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))"

/* The check of the headers is rough: an application's SQLite may well have no JSON functions. */
#define COLUMNS                                                                                    \
  " id TEXT NOT NULL UNIQUE DEFAULT (lower(" UUID_V7 ")) CHECK (typeof(id) = 'text'),"             \
  " namespace TEXT NOT NULL DEFAULT '',"                                                           \
  " key TEXT,"                                                                                     \
  " payload BLOB,"                                                                                 \
  " headers TEXT CHECK (headers IS NULL OR headers GLOB '{*}'),"                                   \
  " created_at INTEGER NOT NULL DEFAULT (" NOW_MS " * 1000),"                                      \
  " attempts INTEGER NOT NULL DEFAULT 0,"                                                          \
  " last_error TEXT"

/*
** AUTOINCREMENT, because a seq must never come twice: a lease may still cover it. The delayed ones
** have a seq only to keep their order; `position` is the seq among the ready that a retry had.
*/
static const char TABLES[] =
    "CREATE TABLE @schema (version INTEGER NOT NULL);"
    "INSERT INTO @schema VALUES (1);"
    "CREATE TABLE @entries (seq INTEGER PRIMARY KEY AUTOINCREMENT," COLUMNS ");"
    "CREATE TABLE @delayed (seq INTEGER PRIMARY KEY," COLUMNS ","
    " due_at INTEGER NOT NULL, position INTEGER);"
    "CREATE INDEX @delayed_due_at ON @delayed (due_at);"
    "CREATE INDEX @delayed_key ON @delayed (namespace, key, position);"
    "CREATE INDEX @delayed_position ON @delayed (position);"
    "CREATE TABLE @dead (seq INTEGER PRIMARY KEY," COLUMNS ", died_at INTEGER NOT NULL);"
    "CREATE TABLE @leases (first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL,"
    " processor_id TEXT NOT NULL, deadline INTEGER NOT NULL, claimed_at INTEGER NOT NULL,"
    " batch TEXT);";

int outbox_schema_version(outbox_store *store, int *version) {
  *version = 0;
  char *sql = outbox_expand(store, "SELECT max(version) FROM @schema");
  if (sql == NULL) return OUTBOX_NOMEM;
  sqlite3_stmt *statement;
  int sqlite_code = outbox_compile(store, sql, 0, &statement);
  sqlite3_free(sql);
  if (sqlite_code == SQLITE_ERROR) return OUTBOX_OK; /* there is no such table */
  if (sqlite_code == SQLITE_OK) {
    if (outbox_work(store, statement) == SQLITE_ROW) *version = sqlite3_column_int(statement, 0);
    sqlite_code = sqlite3_finalize(statement);
  }
  if (sqlite_code != SQLITE_OK) return outbox_fail_sqlite(store);
  if (*version > SCHEMA_VERSION)
    return outbox_fail(store, OUTBOX_NEWER,
                       "the tables %s... have version %d, this library knows up to %d",
                       store->prefix, *version, SCHEMA_VERSION);
  return OUTBOX_OK;
}

static int create_tables(outbox_store *store) {
  char *sql = outbox_expand(store, TABLES);
  if (sql == NULL) return OUTBOX_NOMEM;
  store->working = true;
  int sqlite_code = sqlite3_exec(store->db, sql, NULL, NULL, NULL);
  store->working = false;
  sqlite3_free(sql);
  return sqlite_code == SQLITE_OK ? OUTBOX_OK : outbox_fail_sqlite(store);
}

int outbox_migrate(outbox_store *store) {
  int version = 0;
  int code = outbox_enter(store);
  if (code == OUTBOX_OK && store->attached) code = outbox_check_encoding(store);
  if (code == OUTBOX_OK) code = outbox_schema_version(store, &version);
  if (code != OUTBOX_OK || version == SCHEMA_VERSION) return code;
  code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = outbox_schema_version(store, &version); /* another process may have been faster */
  if (code == OUTBOX_OK && version == 0) code = create_tables(store);
  return outbox_end(store, code);
}
