/*
** The migration: runs the steps from the version that a database has to the version of this
** library.
*/
#include "schema.h"
#include "transaction.h"

static int write_version(outbox_store *store) {
  char script[80];
  sqlite3_snprintf(sizeof script, script, "DELETE FROM @schema; INSERT INTO @schema VALUES (%d);",
                   schema_version);
  return sql_execute(store, script);
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
  bool older = code == OUTBOX_OK && version < schema_version;
  for (; code == OUTBOX_OK && version < schema_version; version++)
    code = sql_execute(store, schema_steps[version]);
  if (code == OUTBOX_OK && older) code = write_version(store);
  return transaction_end(store, code);
}
