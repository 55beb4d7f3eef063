/*
** The prepared statements: found by their SQL, bound, stepped, read.
*/
#include <stdarg.h>
#include <string.h>

#include "schema.h"
#include "statement.h"

char *sql_expand(outbox_store *store, const char *sql) {
  sqlite3_str *text = sqlite3_str_new(store->db);
  for (size_t n; *sql != '\0'; sql += n) {
    n = strcspn(sql, "@");
    sqlite3_str_append(text, sql, (int)n);
    if (sql[n] == '\0') continue;
    bool bare = sql[n + 1] == '@';
    if (!bare) sqlite3_str_appendall(text, "main.");
    sqlite3_str_appendall(text, store->prefix);
    n += bare ? 2 : 1;
  }
  char *expanded = sqlite3_str_finish(text);
  if (expanded == NULL) store_fail_nomem(store);
  return expanded;
}

int sql_compile(outbox_store *store, const char *sql, unsigned flags, sqlite3_stmt **statement) {
  store->working = true;
  int sqlite_code = sqlite3_prepare_v3(store->db, sql, -1, flags, statement, NULL);
  store->working = false;
  return sqlite_code;
}

int sql_work(outbox_store *store, sqlite3_stmt *statement) {
  store->working = true;
  int sqlite_code = sqlite3_step(statement);
  store->working = false;
  return sqlite_code;
}

int sql_script(outbox_store *store, const char *sql) {
  store->working = true;
  int sqlite_code = sqlite3_exec(store->db, sql, NULL, NULL, NULL);
  store->working = false;
  return sqlite_code;
}

int sql_execute(outbox_store *store, const char *script) {
  char *sql = sql_expand(store, script);
  if (sql == NULL) return OUTBOX_NOMEM;
  int sqlite_code = sql_script(store, sql);
  sqlite3_free(sql);
  return sqlite_code == SQLITE_OK ? OUTBOX_OK : store_fail_sqlite(store);
}

int sql_configure(outbox_store *store, const char *sql, const char *wanted, bool *answered) {
  sqlite3_stmt *statement = NULL;
  int sqlite_code = sql_compile(store, sql, 0, &statement);
  if (sqlite_code == SQLITE_OK) {
    if (sql_work(store, statement) == SQLITE_ROW && wanted != NULL) {
      const char *answer = (const char *)sqlite3_column_text(statement, 0);
      *answered = answer != NULL && strcmp(answer, wanted) == 0;
    }
    sqlite_code = sqlite3_finalize(statement);
  }
  return sqlite_code == SQLITE_OK ? OUTBOX_OK : store_fail_sqlite(store);
}

int sql_check_encoding(outbox_store *store) {
  bool utf8 = false;
  int code = sql_configure(store, "PRAGMA encoding", "UTF-8", &utf8);
  if (code == OUTBOX_OK && !utf8)
    code = store_fail(store, OUTBOX_ENCODING, "the database's text is not UTF-8 but UTF-16");
  return code;
}

int sql_schema_version(outbox_store *store, int *version) {
  int64_t found = 0;
  *version = 0;
  char *sql = sql_expand(store, "SELECT max(version) FROM @schema");
  if (sql == NULL) return OUTBOX_NOMEM;
  sqlite3_stmt *statement;
  int sqlite_code = sql_compile(store, sql, 0, &statement);
  sqlite3_free(sql);
  if (sqlite_code == SQLITE_ERROR) return OUTBOX_OK; /* there is no such table */
  if (sqlite_code == SQLITE_OK) {
    if (sql_work(store, statement) == SQLITE_ROW) found = sqlite3_column_int64(statement, 0);
    sqlite_code = sqlite3_finalize(statement);
  }
  if (sqlite_code != SQLITE_OK) return store_fail_sqlite(store);
  if (found > schema_version)
    return store_fail(store, OUTBOX_NEWER,
                      "the tables %s... have version %lld, this library knows up to %d",
                      store->prefix, (long long)found, schema_version);
  if (found < 0)
    return store_fail(store, OUTBOX_CORRUPT, "the tables %s... have version %lld, which is none",
                      store->prefix, (long long)found);
  *version = (int)found;
  return OUTBOX_OK;
}

int sql_prepare(outbox_store *store, const char *sql, sqlite3_stmt **statement) {
  char *expanded = sql_expand(store, sql);
  if (expanded == NULL) return OUTBOX_NOMEM;
  unsigned flags = store->keeps ? SQLITE_PREPARE_PERSISTENT : 0;
  int sqlite_code = sql_compile(store, expanded, flags, statement);
  sqlite3_free(expanded);
  return sqlite_code == SQLITE_OK ? OUTBOX_OK : store_fail_sqlite(store);
}

/* The first statement that names our tables checks that they have our version. */
static int check_schema(outbox_store *store) {
  if (store->migrated) return OUTBOX_OK;
  int version;
  int code = sql_schema_version(store, &version);
  if (code != OUTBOX_OK) return code;
  if (version < schema_version)
    return store_fail(store, OUTBOX_SCHEMA, "the tables %s... are %s; call migrate first",
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
  int code = store_fail_sqlite(store);
  sql_reset(store, statement);
  return code;
}

int sql_bind(outbox_store *store, sqlite3_stmt *statement, int first, const char *types, ...) {
  va_list values;
  va_start(values, types);
  int code = bind(store, statement, first, types, values);
  va_end(values);
  return code;
}

/* Finds where a statement is kept, or makes room for it. NULL: there is no room. */
static statement *find_statement(outbox_store *store, const char *sql) {
  statement *s = store->statements, *end = s + store->statement_count;
  while (s < end && s->sql != sql)
    s++;
  if (s < end) return s;
  if (store->statement_count == MAX_STATEMENTS) return NULL;
  store->statement_count++;
  *s = (statement){.sql = sql};
  return s;
}

/* Explains a failed statement: the tables may be gone, because a rollback can take them away. */
static int explain(outbox_store *store, int code) {
  if (code != OUTBOX_ERROR) return code;
  char message[sizeof store->message];
  memcpy(message, store->message, sizeof message);
  store->migrated = false;
  code = check_schema(store);
  return code != OUTBOX_OK ? code : store_fail(store, OUTBOX_ERROR, "%s", message);
}

static int prepare(outbox_store *store, const char *sql, sqlite3_stmt **prepared) {
  int code = check_schema(store);
  return code != OUTBOX_OK ? code : explain(store, sql_prepare(store, sql, prepared));
}

static int query(outbox_store *store, const char *sql, sqlite3_stmt **out, const char *types,
                 va_list values) {
  statement *s = find_statement(store, sql);
  if (s == NULL) return store_fail(store, OUTBOX_ERROR, "too many kinds of statements");
  if (s->prepared == NULL) {
    int code = prepare(store, sql, &s->prepared);
    if (code != OUTBOX_OK) return code;
  }
  int code = bind(store, s->prepared, 1, types, values);
  if (code == OUTBOX_OK) *out = s->prepared;
  return code;
}

int sql_query(outbox_store *store, const char *sql, sqlite3_stmt **out, const char *types, ...) {
  va_list values;
  va_start(values, types);
  int code = query(store, sql, out, types, values);
  va_end(values);
  return code;
}

int sql_step(outbox_store *store, sqlite3_stmt *statement) {
  bool theirs = !sqlite3_get_autocommit(store->db) && (store->depth == 0 || !store->outermost);
  int sqlite_code = sql_work(store, statement);
  if (sqlite_code == SQLITE_ROW) return OUTBOX_ROW;
  int code = sqlite_code == SQLITE_DONE ? OUTBOX_DONE : explain(store, store_fail_sqlite(store));
  if (code != OUTBOX_DONE && theirs && sqlite3_get_autocommit(store->db)) {
    size_t end = strlen(store->message);
    sqlite3_snprintf((int)(sizeof store->message - end), store->message + end,
                     "; SQLite has rolled the whole transaction back");
  }
  sql_reset(store, statement);
  return code;
}

/* Finalizes a statement if it is one of the store's. */
static void finalize(outbox_store *store, sqlite3_stmt *prepared) {
  sqlite3_stmt **kept = NULL;
  for (int i = 0; i < store->statement_count && kept == NULL; i++)
    if (store->statements[i].prepared == prepared) kept = &store->statements[i].prepared;
  for (int i = 0; i < CONTROLS && kept == NULL; i++)
    if (store->controls[i] == prepared) kept = &store->controls[i];
  if (kept == NULL) return;
  sqlite3_finalize(prepared);
  *kept = NULL;
}

void sql_reset(outbox_store *store, sqlite3_stmt *prepared) {
  sqlite3_reset(prepared);
  sqlite3_clear_bindings(prepared);
  if (!store->keeps && store->depth == 0) finalize(store, prepared);
}

void sql_finalize(outbox_store *store) {
  if (store->db == NULL) return;
  for (sqlite3_stmt *s = sqlite3_next_stmt(store->db, NULL), *next; s != NULL; s = next) {
    next = sqlite3_next_stmt(store->db, s);
    finalize(store, s);
  }
  store->reading = NULL;
  store->stepped = store->batch.open = store->filter.active = false;
  store->statement_count = 0;
  memset(store->controls, 0, sizeof store->controls);
}

int sql_fetch(outbox_store *store, const char *sql, int64_t *values, int count, bool *found,
              const char *types, ...) {
  sqlite3_stmt *row;
  va_list arguments;
  *found = false;
  va_start(arguments, types);
  int code = query(store, sql, &row, types, arguments);
  va_end(arguments);
  if (code == OUTBOX_OK) code = sql_step(store, row);
  if (code != OUTBOX_ROW) return code == OUTBOX_DONE ? OUTBOX_OK : code;
  for (int i = 0; i < count; i++)
    values[i] = sqlite3_column_int64(row, i);
  *found = true;
  sql_reset(store, row);
  return OUTBOX_OK;
}

int sql_finish(outbox_store *store, sqlite3_stmt *statement) {
  int code;
  do /* a write gives rows on a connection that is set to count its changes */
    code = sql_step(store, statement);
  while (code == OUTBOX_ROW);
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

static int run(outbox_store *store, const char *sql, const char *types, va_list values) {
  sqlite3_stmt *statement;
  int code = query(store, sql, &statement, types, values);
  return code == OUTBOX_OK ? sql_finish(store, statement) : code;
}

int sql_run(outbox_store *store, const char *sql, const char *types, ...) {
  va_list values;
  va_start(values, types);
  int code = run(store, sql, types, values);
  va_end(values);
  return code;
}

int sql_process(outbox_store *store, const char *sql, const char *types, ...) {
  int64_t before = sqlite3_total_changes64(store->db);
  va_list values;
  va_start(values, types);
  int code = run(store, sql, types, values);
  va_end(values);
  store->doorbell.processing += sqlite3_total_changes64(store->db) - before;
  return code;
}

outbox_bytes sql_source(sqlite3_stmt *statement) {
  if (sqlite3_column_type(statement, 9) == SQLITE_NULL) return (outbox_bytes){NULL, 0};
  outbox_bytes id = sql_column(statement, 1), source = sql_column(statement, 9);
  return bytes_equal(source, id) ? (outbox_bytes){NULL, 0} : source;
}

outbox_bytes sql_column(sqlite3_stmt *statement, int index) {
  outbox_bytes bytes = {sqlite3_column_blob(statement, index), 0};
  if (bytes.data != NULL)
    bytes.size = (size_t)sqlite3_column_bytes(statement, index);
  else if (sqlite3_column_type(statement, index) != SQLITE_NULL)
    bytes.data = ""; /* SQLite gives an empty blob as NULL */
  return bytes;
}
