/*
** The migration: runs the steps from the version that a database has to the version of this
** library.
*/
#include "operations.h"
#include "schema.h"

#define VIEW_SINCE 5 /* the version in which the table of the entries became a view */

static int write_version(outbox_store *store) {
  char script[80];
  sqlite3_snprintf(sizeof script, script, "UPDATE @schema SET version = %d;", schema_version);
  return sql_execute(store, script);
}

/* What the application has created on the table would be gone without a word. */
static const char FOREIGN_SQL[] =
    "SELECT type || ' ' || name FROM main.sqlite_master WHERE tbl_name = '@@entries' COLLATE NOCASE"
    " AND type IN ('index', 'trigger') AND sql IS NOT NULL AND name <> '@@copy' COLLATE NOCASE"
    " UNION ALL SELECT 'column ' || name FROM pragma_table_xinfo('@@entries', 'main')"
    " WHERE name NOT IN ('seq', 'id', 'namespace', 'key', 'payload', 'headers', 'created_at',"
    " 'attempts', 'last_error', 'source_id')"
    " UNION ALL SELECT 'foreign key of ' || t.name FROM main.sqlite_master AS t,"
    " pragma_foreign_key_list(t.name, 'main') AS f WHERE t.type = 'table'"
    " AND f.\"table\" = '@@entries' COLLATE NOCASE";

static int check_foreign(outbox_store *store) {
  sqlite3_stmt *row;
  int code = sql_prepare(store, FOREIGN_SQL, &row);
  if (code != OUTBOX_OK) return code;
  if (sql_work(store, row) == SQLITE_ROW)
    code = store_fail(store, OUTBOX_MISUSE,
                      "the %s of the application is on %sentries, which becomes a view: drop it, "
                      "migrate, and create it on %sready",
                      (const char *)sqlite3_column_text(row, 0), store->prefix, store->prefix);
  int sqlite_code = sqlite3_finalize(row);
  return code == OUTBOX_OK && sqlite_code != SQLITE_OK ? store_fail_sqlite(store) : code;
}

static int run_steps(outbox_store *store) {
  int version = 0;
  int code = sql_schema_version(store, &version); /* another process may have been faster */
  if (code != OUTBOX_OK || version == schema_version) return code;
  if (version > 0 && version < VIEW_SINCE) code = check_foreign(store);
  for (; version < schema_version; version++)
    for (int i = 0; code == OUTBOX_OK && i < SCHEMA_SCRIPTS && schema_steps[version][i] != NULL;
         i++)
      code = sql_execute(store, schema_steps[version][i]);
  return code == OUTBOX_OK ? write_version(store) : code;
}

/* The table that is dropped need not be written over with zeros, which doubles the log. */
static int run_quickly(outbox_store *store) {
  bool secure = false;
  int code = sql_configure(store, "PRAGMA secure_delete", "1", &secure);
  if (code == OUTBOX_OK && secure)
    code = sql_configure(store, "PRAGMA secure_delete = OFF", NULL, NULL);
  if (code == OUTBOX_OK) code = outbox_begin(store);
  if (code == OUTBOX_OK) code = transaction_end(store, run_steps(store));
  if (secure) sql_configure(store, "PRAGMA secure_delete = ON", NULL, NULL);
  if (code == OUTBOX_OK && sqlite3_get_autocommit(store->db)) /* the log may be large now */
    sqlite3_wal_checkpoint_v2(store->db, "main", SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
  return code;
}

int outbox_migrate(outbox_store *store) {
  int version = 0;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK && store->attached) code = sql_check_encoding(store);
  if (code == OUTBOX_OK) code = sql_schema_version(store, &version);
  if (code != OUTBOX_OK || version == schema_version) return code;
  if (version > 0 && !store->attached) return run_quickly(store);
  code = outbox_begin(store);
  return code == OUTBOX_OK ? transaction_end(store, run_steps(store)) : code;
}
