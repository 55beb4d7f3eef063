/*
** The prepared statements, and what is read from them row by row.
*/
#define _POSIX_C_SOURCE 200809L

#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include "store.h"

char *outbox_expand(outbox_store *store, const char *sql) {
  sqlite3_str *text = sqlite3_str_new(store->db);
  for (size_t n; *sql != '\0'; sql += n) {
    n = strcspn(sql, "@");
    sqlite3_str_append(text, sql, (int)n);
    if (sql[n] != '\0') {
      sqlite3_str_appendall(text, store->prefix);
      n++;
    }
  }
  char *expanded = sqlite3_str_finish(text);
  if (expanded == NULL) outbox_fail(store, OUTBOX_NOMEM, "out of memory");
  return expanded;
}

int outbox_compile(outbox_store *store, const char *sql, unsigned flags, sqlite3_stmt **statement) {
  store->working = true;
  int sqlite_code = sqlite3_prepare_v3(store->db, sql, -1, flags, statement, NULL);
  store->working = false;
  return sqlite_code;
}

int outbox_work(outbox_store *store, sqlite3_stmt *statement) {
  store->working = true;
  int sqlite_code = sqlite3_step(statement);
  store->working = false;
  return sqlite_code;
}

int outbox_prepare(outbox_store *store, const char *sql, sqlite3_stmt **statement) {
  char *expanded = outbox_expand(store, sql);
  if (expanded == NULL) return OUTBOX_NOMEM;
  unsigned flags = store->attached ? 0 : SQLITE_PREPARE_PERSISTENT;
  int sqlite_code = outbox_compile(store, expanded, flags, statement);
  sqlite3_free(expanded);
  return sqlite_code == SQLITE_OK ? OUTBOX_OK : outbox_fail_sqlite(store);
}

/* The first statement on the outbox's tables checks once that they are ours. */
static int check_schema(outbox_store *store) {
  if (store->migrated) return OUTBOX_OK;
  int version;
  int code = outbox_schema_version(store, &version);
  if (code != OUTBOX_OK) return code;
  if (version < SCHEMA_VERSION)
    return outbox_fail(store, OUTBOX_SCHEMA, "the tables %s... are %s; call migrate first",
                       store->prefix, version == 0 ? "missing" : "from an older version");
  store->migrated = true;
  return OUTBOX_OK;
}

static int bind(outbox_store *store, sqlite3_stmt *statement, int first, const char *types,
                va_list values) {
  int sqlite_code = SQLITE_OK;
  for (int i = first; *types != '\0' && sqlite_code == SQLITE_OK; i++, types++) {
    if (*types == 'i') {
      sqlite_code = sqlite3_bind_int64(statement, i, va_arg(values, int64_t));
      continue;
    }
    outbox_bytes bytes = va_arg(values, outbox_bytes);
    if (bytes.data == NULL)
      sqlite_code = sqlite3_bind_null(statement, i);
    else if (*types == 'T')
      sqlite_code =
          sqlite3_bind_text64(statement, i, bytes.data, bytes.size, SQLITE_TRANSIENT, SQLITE_UTF8);
    else if (*types == 't')
      sqlite_code =
          sqlite3_bind_text64(statement, i, bytes.data, bytes.size, SQLITE_STATIC, SQLITE_UTF8);
    else
      sqlite_code = sqlite3_bind_blob64(statement, i, bytes.data, bytes.size, SQLITE_STATIC);
  }
  if (sqlite_code == SQLITE_OK) return OUTBOX_OK;
  int code = outbox_fail_sqlite(store);
  outbox_reset(store, statement);
  return code;
}

int outbox_bind(outbox_store *store, sqlite3_stmt *statement, int first, const char *types, ...) {
  va_list values;
  va_start(values, types);
  int code = bind(store, statement, first, types, values);
  va_end(values);
  return code;
}

/* Prepares a statement. When that fails, perhaps the tables have gone: a rollback can do that. */
static int prepare(outbox_store *store, enum statement which, const char *sql) {
  bool control = which <= LAST_CONTROL;
  int code = control ? OUTBOX_OK : check_schema(store);
  if (code == OUTBOX_OK) code = outbox_prepare(store, sql, &store->statements[which]);
  if (code != OUTBOX_ERROR || control) return code;
  char message[sizeof store->message];
  memcpy(message, store->message, sizeof message);
  store->migrated = false;
  code = check_schema(store);
  return code != OUTBOX_OK ? code : outbox_fail(store, OUTBOX_ERROR, "%s", message);
}

static int query(outbox_store *store, enum statement which, const char *sql, sqlite3_stmt **out,
                 const char *types, va_list values) {
  sqlite3_stmt **statement = &store->statements[which];
  if (*statement == NULL) {
    int code = prepare(store, which, sql);
    if (code != OUTBOX_OK) return code;
  }
  int code = bind(store, *statement, 1, types, values);
  if (code == OUTBOX_OK) *out = *statement;
  return code;
}

int outbox_query(outbox_store *store, enum statement which, const char *sql, sqlite3_stmt **out,
                 const char *types, ...) {
  va_list values;
  va_start(values, types);
  int code = query(store, which, sql, out, types, values);
  va_end(values);
  return code;
}

int outbox_step(outbox_store *store, sqlite3_stmt *statement) {
  bool theirs = !sqlite3_get_autocommit(store->db) && (store->depth == 0 || !store->outermost);
  int sqlite_code = outbox_work(store, statement);
  if (sqlite_code == SQLITE_ROW) return OUTBOX_ROW;
  int code = sqlite_code == SQLITE_DONE ? OUTBOX_DONE : outbox_fail_sqlite(store);
  if (code != OUTBOX_DONE && theirs && sqlite3_get_autocommit(store->db)) {
    size_t end = strlen(store->message);
    sqlite3_snprintf((int)(sizeof store->message - end), store->message + end,
                     "; SQLite has rolled the whole transaction back");
  }
  outbox_reset(store, statement);
  return code;
}

void outbox_reset(outbox_store *store, sqlite3_stmt *statement) {
  sqlite3_reset(statement);
  sqlite3_clear_bindings(statement);
  for (int i = 0; store->attached && store->depth == 0 && i < STATEMENTS; i++)
    if (store->statements[i] == statement) {
      sqlite3_finalize(statement);
      store->statements[i] = NULL;
    }
}

void outbox_finalize(outbox_store *store) {
  for (int i = 0; i < STATEMENTS; i++)
    sqlite3_finalize(store->statements[i]);
  memset(store->statements, 0, sizeof store->statements);
}

static int run(outbox_store *store, enum statement which, const char *sql, const char *types,
               va_list values) {
  sqlite3_stmt *statement;
  int code = query(store, which, sql, &statement, types, values);
  if (code != OUTBOX_OK) return code;
  do /* some connections are set to give rows for a write: how many it changed */
    code = outbox_step(store, statement);
  while (code == OUTBOX_ROW);
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

int outbox_run(outbox_store *store, enum statement which, const char *sql, const char *types, ...) {
  va_list values;
  va_start(values, types);
  int code = run(store, which, sql, types, values);
  va_end(values);
  return code;
}

int outbox_process(outbox_store *store, enum statement which, const char *sql, const char *types,
                   ...) {
  int64_t before = sqlite3_total_changes64(store->db);
  va_list values;
  va_start(values, types);
  int code = run(store, which, sql, types, values);
  va_end(values);
  store->doorbell.processing += sqlite3_total_changes64(store->db) - before;
  return code;
}

outbox_bytes outbox_column(sqlite3_stmt *statement, int index) {
  outbox_bytes bytes = {sqlite3_column_blob(statement, index), 0};
  if (bytes.data != NULL)
    bytes.size = (size_t)sqlite3_column_bytes(statement, index);
  else if (sqlite3_column_type(statement, index) != SQLITE_NULL)
    bytes.data = ""; /* which is how SQLite gives an empty blob */
  return bytes;
}

bool outbox_equal(outbox_bytes a, outbox_bytes b) {
  return a.size == b.size && (a.size == 0 || memcmp(a.data, b.data, a.size) == 0);
}

/* --- Readings -------------------------------------------------------------------------------- */

int outbox_next_row(outbox_store *store) {
  if (store->reading == NULL)
    return outbox_fail(store, OUTBOX_MISUSE, "nothing is being read, or another call ended it");
  int code = outbox_step(store, store->reading);
  if (code != OUTBOX_ROW) {
    store->reading = NULL;
    store->batch.open = store->filter.active = false;
  }
  return code;
}

int outbox_next(outbox_store *store, outbox_entry *entry) {
  int code;
  sqlite3_stmt *row;
  do {
    bool enough = store->filter.active && store->filter.wanted == 0;
    if (enough) outbox_finish(store);
    code = enough ? OUTBOX_DONE : outbox_next_row(store);
    if (code != OUTBOX_ROW) return code;
    row = store->reading;
    entry->seq = sqlite3_column_int64(row, 0);
    entry->namespace = outbox_column(row, 2);
  } while (store->filter.active && outbox_leaves_out(store, entry, sqlite3_column_int(row, 11)));
  entry->id = outbox_column(row, 1);
  entry->key = outbox_column(row, 3);
  entry->payload = outbox_column(row, 4);
  entry->headers = outbox_column(row, 5);
  entry->created_at = sqlite3_column_int64(row, 6);
  entry->attempts = sqlite3_column_int64(row, 7);
  entry->last_error = outbox_column(row, 8);
  bool listed = !store->filter.active; /* else it is ready */
  entry->state = listed ? (enum outbox_state)sqlite3_column_int(row, 11) : OUTBOX_READY;
  entry->died_at = listed ? sqlite3_column_int64(row, 9) : 0;
  entry->due_at = listed ? sqlite3_column_int64(row, 10) : 0;
  if (store->batch.open) code = outbox_remember(store, entry);
  if (code != OUTBOX_ROW) outbox_finish(store);
  return code;
}

void outbox_finish(outbox_store *store) {
  if (store->reading == NULL || store->pid != getpid() || store->working) return;
  outbox_reset(store, store->reading);
  store->reading = NULL;
  store->batch.open = store->filter.active = false;
}
