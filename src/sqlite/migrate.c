/*
** The migration: climbs the ladder from the version that a database has to the one we work with.
*/
#include "schema.h"
#include "transaction.h"

/* One step, and the version that the tables have after it. */
static int climb(outbox_store *store, int version) {
  char *step = sqlite3_mprintf("%s DELETE FROM @schema; INSERT INTO @schema VALUES (%d);",
                               schema_steps[version], version + 1);
  char *sql = step != NULL ? sql_expand(store, step) : NULL;
  sqlite3_free(step);
  if (sql == NULL) return store_fail_nomem(store);
  int sqlite_code = sql_script(store, sql);
  sqlite3_free(sql);
  return sqlite_code == SQLITE_OK ? OUTBOX_OK : store_fail_sqlite(store);
}

int outbox_migrate(outbox_store *store) {
  int version = 0;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK && store->attached) code = sql_check_encoding(store);
  if (code == OUTBOX_OK) code = sql_schema_version(store, &version);
  if (code != OUTBOX_OK || version == schema_version) return code;
  code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = sql_schema_version(store, &version); /* another process may have been faster */
  for (; code == OUTBOX_OK && version < schema_version; version++)
    code = climb(store, version);
  return transaction_end(store, code);
}
