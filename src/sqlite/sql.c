/*
** SQL of the application's own, on the store's connection: compiled, bound, and read row by row.
*/
#include <unistd.h>

#include "operations.h"

struct outbox_rows {
  outbox_store *store;
  pid_t pid;               /* the process that opened it; the store may be closed before */
  sqlite3_stmt *statement; /* NULL once it has ended */
};

static int refuse(outbox_store *store, const char *reason) {
  return store_fail(store, OUTBOX_MISUSE, "%s", reason);
}

/* Not store_fail_sqlite, because constraints and transactions are the application's here. */
static int fail(outbox_store *store) {
  int code = outbox_code(sqlite3_extended_errcode(store->db));
  return store_fail(store, code != OUTBOX_OK ? code : OUTBOX_ERROR, "%s",
                    sqlite3_errmsg(store->db));
}

static void finalize(outbox_rows *rows) {
  if (rows->statement != NULL && rows->pid == getpid()) /* else the parent's */
    sqlite3_finalize(rows->statement);
  rows->statement = NULL;
}

/* Compiles SQL that must be one statement. Comments may follow it. */
static int compile(outbox_rows *rows, const char *sql) {
  outbox_store *store = rows->store;
  sqlite3_stmt *second = NULL;
  bool more = false;
  store->working = store->restricted = true;
  int sqlite_code = sqlite3_prepare_v2(store->db, sql, -1, &rows->statement, &sql);
  store->restricted = false;
  int code = OUTBOX_OK;
  if (sqlite_code == SQLITE_AUTH)
    code = refuse(store, "a transaction cannot be begun or ended from within");
  else if (sqlite_code != SQLITE_OK)
    code = fail(store);
  else if (rows->statement == NULL)
    code = refuse(store, "there is no statement in it");
  while (code == OUTBOX_OK && *sql != '\0' && !more)
    more = sqlite3_prepare_v2(store->db, sql, -1, &second, &sql) != SQLITE_OK || second != NULL;
  sqlite3_finalize(second);
  store->working = false;
  return more ? refuse(store, "one statement at a time") : code;
}

static int bind(outbox_rows *rows, int parameter, const outbox_value *value) {
  sqlite3_stmt *s = rows->statement;
  const void *data = value->type >= OUTBOX_TEXT && value->bytes.size > 0 ? value->bytes.data : "";
  int sqlite_code = SQLITE_OK;
  switch (value->type) {
  case OUTBOX_NULL: sqlite_code = sqlite3_bind_null(s, parameter); break;
  case OUTBOX_BOOLEAN: sqlite_code = sqlite3_bind_int(s, parameter, value->boolean); break;
  case OUTBOX_INTEGER: sqlite_code = sqlite3_bind_int64(s, parameter, value->integer); break;
  case OUTBOX_REAL:
    if (value->real != value->real) return refuse(rows->store, "SQLite has no NaN");
    sqlite_code = sqlite3_bind_double(s, parameter, value->real);
    break;
  case OUTBOX_TEXT:
    sqlite_code =
        sqlite3_bind_text64(s, parameter, data, value->bytes.size, SQLITE_TRANSIENT, SQLITE_UTF8);
    break;
  case OUTBOX_BLOB:
    sqlite_code = sqlite3_bind_blob64(s, parameter, data, value->bytes.size, SQLITE_TRANSIENT);
    break;
  }
  return sqlite_code == SQLITE_OK ? OUTBOX_OK : fail(rows->store);
}

static int bind_all(outbox_rows *rows, const outbox_value *values, size_t count) {
  int wanted = sqlite3_bind_parameter_count(rows->statement), code = OUTBOX_OK;
  if ((size_t)wanted != count)
    return store_fail(rows->store, OUTBOX_MISUSE, "it has %d parameters, %llu values were given",
                      wanted, (unsigned long long)count);
  for (int i = 0; i < wanted && code == OUTBOX_OK; i++)
    code = bind(rows, i + 1, &values[i]);
  return code;
}

static int start(outbox_store *store, outbox_rows **out, const char *sql,
                 const outbox_value *values, size_t count) {
  *out = NULL;
  int code = outbox_check_transaction(store);
  if (code == OUTBOX_OK && store->attached)
    code = refuse(store, "an attached store runs no SQL; use its connection");
  if (code != OUTBOX_OK) return code;
  outbox_rows *rows = sqlite3_malloc(sizeof *rows);
  if (rows == NULL) return store_fail_nomem(store);
  *rows = (outbox_rows){.store = store, .pid = store->pid};
  code = compile(rows, sql);
  if (code == OUTBOX_OK) code = bind_all(rows, values, count);
  if (code == OUTBOX_OK)
    *out = rows;
  else
    outbox_close_rows(rows);
  return code;
}

/*
** Outside a transaction a statement that writes must not stop at a row, because the next rollback
** on the connection would undo its work.
*/
int outbox_query(outbox_store *store, outbox_rows **out, const char *sql,
                 const outbox_value *values, size_t count) {
  int code = start(store, out, sql, values, count);
  if (code != OUTBOX_OK || sqlite3_stmt_readonly((*out)->statement) || outbox_in_transaction(store))
    return code;
  outbox_close_rows(*out);
  *out = NULL;
  return refuse(store, "a query that writes needs a transaction");
}

static int step(outbox_rows *rows) {
  if (rows->statement == NULL) return OUTBOX_DONE;
  int sqlite_code = sql_work(rows->store, rows->statement);
  if (sqlite_code == SQLITE_ROW) return OUTBOX_ROW;
  int code = sqlite_code == SQLITE_DONE ? OUTBOX_DONE : fail(rows->store);
  finalize(rows);
  return code;
}

int outbox_next_row(outbox_rows *rows) {
  int code = outbox_check_transaction(rows->store);
  return code == OUTBOX_OK ? step(rows) : code;
}

int outbox_column_count(const outbox_rows *rows) {
  return sqlite3_column_count(rows->statement);
}

const char *outbox_column_name(const outbox_rows *rows, int column) {
  return rows->statement != NULL ? sqlite3_column_name(rows->statement, column) : NULL;
}

outbox_value outbox_column(const outbox_rows *rows, int column) {
  sqlite3_stmt *s = rows->statement;
  switch (sqlite3_column_type(s, column)) {
  case SQLITE_INTEGER:
    return (outbox_value){.type = OUTBOX_INTEGER, .integer = sqlite3_column_int64(s, column)};
  case SQLITE_FLOAT:
    return (outbox_value){.type = OUTBOX_REAL, .real = sqlite3_column_double(s, column)};
  case SQLITE_TEXT: return (outbox_value){.type = OUTBOX_TEXT, .bytes = sql_column(s, column)};
  case SQLITE_BLOB: return (outbox_value){.type = OUTBOX_BLOB, .bytes = sql_column(s, column)};
  default: return (outbox_value){.type = OUTBOX_NULL};
  }
}

void outbox_close_rows(outbox_rows *rows) {
  if (rows == NULL) return;
  finalize(rows);
  sqlite3_free(rows);
}

int outbox_execute(outbox_store *store, const char *sql, const outbox_value *values, size_t count,
                   int64_t *changed) {
  outbox_rows *rows;
  int code = start(store, &rows, sql, values, count);
  if (code != OUTBOX_OK) return code;
  int64_t before = sqlite3_total_changes64(store->db);
  do
    code = step(rows);
  while (code == OUTBOX_ROW);
  bool any = code == OUTBOX_DONE && sqlite3_total_changes64(store->db) != before;
  if (code == OUTBOX_DONE) *changed = any ? sqlite3_changes64(store->db) : 0;
  outbox_close_rows(rows);
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}
