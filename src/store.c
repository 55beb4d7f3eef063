/*
** The store: one SQLite connection, its prepared statements, its transactions and its errors.
*/
#define _POSIX_C_SOURCE 200809L

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store.h"

/* --- Errors ---------------------------------------------------------------------------------- */

const char *outbox_code_name(int code) {
  switch (code) {
  case OUTBOX_OK: return "ok";
  case OUTBOX_ROW: return "row";
  case OUTBOX_DONE: return "done";
  case OUTBOX_BUSY: return "busy";
  case OUTBOX_CALLBACK: return "callback";
  case OUTBOX_CANTOPEN: return "cantopen";
  case OUTBOX_CONSTRAINT: return "constraint";
  case OUTBOX_CORRUPT: return "corrupt";
  case OUTBOX_DUPLICATE: return "duplicate";
  case OUTBOX_ENCODING: return "encoding";
  case OUTBOX_FORKED: return "forked";
  case OUTBOX_FULL: return "full";
  case OUTBOX_IO: return "io";
  case OUTBOX_MISUSE: return "misuse";
  case OUTBOX_NEWER: return "newer";
  case OUTBOX_NOMEM: return "nomem";
  case OUTBOX_NOTADB: return "notadb";
  case OUTBOX_READONLY: return "readonly";
  case OUTBOX_SCHEMA: return "schema";
  case OUTBOX_TOOBIG: return "toobig";
  default: return "error";
  }
}

const char *outbox_error_message(const outbox_store *store) {
  return store->message;
}

int outbox_fail(outbox_store *store, int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  sqlite3_vsnprintf(sizeof store->message, store->message, format, arguments);
  va_end(arguments);
  return code;
}

int outbox_code(int sqlite_code) {
  switch (sqlite_code & 0xff) {
  case SQLITE_OK: return OUTBOX_OK;
  case SQLITE_BUSY:
  case SQLITE_LOCKED: return OUTBOX_BUSY;
  case SQLITE_CANTOPEN: return OUTBOX_CANTOPEN;
  case SQLITE_CONSTRAINT: return OUTBOX_CONSTRAINT;
  case SQLITE_CORRUPT: return OUTBOX_CORRUPT;
  case SQLITE_FULL: return OUTBOX_FULL;
  case SQLITE_IOERR: return OUTBOX_IO;
  case SQLITE_MISUSE: return OUTBOX_MISUSE;
  case SQLITE_NOMEM: return OUTBOX_NOMEM;
  case SQLITE_NOTADB: return OUTBOX_NOTADB;
  case SQLITE_PERM:
  case SQLITE_READONLY: return OUTBOX_READONLY;
  case SQLITE_TOOBIG: return OUTBOX_TOOBIG;
  default: return OUTBOX_ERROR;
  }
}

int outbox_fail_duplicate(outbox_store *store) {
  return outbox_fail(store, OUTBOX_DUPLICATE, "an entry with this id is already in the outbox");
}

int outbox_fail_sqlite(outbox_store *store) {
  int sqlite_code = sqlite3_extended_errcode(store->db);
  if (sqlite_code == SQLITE_BUSY_SNAPSHOT)
    return outbox_fail(store, OUTBOX_BUSY,
                       "this transaction began by reading and the database has changed since; "
                       "begin it with BEGIN IMMEDIATE");
  if (sqlite_code == SQLITE_CONSTRAINT_UNIQUE) /* of ours, only ids are unique */
    return outbox_fail_duplicate(store);
  int code = outbox_code(sqlite_code);
  return outbox_fail(store, code != OUTBOX_OK ? code : OUTBOX_ERROR, "%s",
                     sqlite3_errmsg(store->db));
}

/* --- Statements ------------------------------------------------------------------------------ */

static const char *const CONTROL[] = {[BEGIN] = "BEGIN IMMEDIATE",
                                      [COMMIT] = "COMMIT",
                                      [ROLLBACK] = "ROLLBACK",
                                      [SAVEPOINT] = "SAVEPOINT outbox",
                                      [RELEASE] = "RELEASE SAVEPOINT outbox",
                                      [ROLLBACK_TO] = "ROLLBACK TO SAVEPOINT outbox",
                                      [DATA_VERSION] = "PRAGMA data_version"};

static int control(outbox_store *store, enum statement which) {
  return outbox_run(store, which, CONTROL[which], "");
}

int outbox_enter(outbox_store *store) {
  if (store->pid != getpid())
    return outbox_fail(store, OUTBOX_FORKED,
                       "the store was opened before fork(); open stores after it");
  if (store->db == NULL) return OUTBOX_MISUSE; /* outbox_open failed; its message stands */
  outbox_finish(store);
  if (store->doomed) { /* what could not be rolled back must not be committed, nor added to */
    int code = sqlite3_get_autocommit(store->db) ? OUTBOX_OK : control(store, ROLLBACK);
    if (code != OUTBOX_OK) return code;
    store->doomed = false;
  }
  return OUTBOX_OK;
}

int outbox_now(outbox_store *store, int64_t *now) {
  if (store->clock(store->clock_context, now) != 0)
    return outbox_fail(store, OUTBOX_CALLBACK, "the clock failed");
  return OUTBOX_OK;
}

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

static int prepare(outbox_store *store, const char *sql, sqlite3_stmt **statement) {
  char *expanded = outbox_expand(store, sql);
  if (expanded == NULL) return OUTBOX_NOMEM;
  int sqlite_code =
      sqlite3_prepare_v3(store->db, expanded, -1, SQLITE_PREPARE_PERSISTENT, statement, NULL);
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
  outbox_reset(statement);
  return code;
}

int outbox_bind(outbox_store *store, sqlite3_stmt *statement, int first, const char *types, ...) {
  va_list values;
  va_start(values, types);
  int code = bind(store, statement, first, types, values);
  va_end(values);
  return code;
}

static int query(outbox_store *store, enum statement which, const char *sql, sqlite3_stmt **out,
                 const char *types, va_list values) {
  sqlite3_stmt **statement = &store->statements[which];
  if (*statement == NULL) {
    int code = check_schema(store);
    if (code == OUTBOX_OK) code = prepare(store, sql, statement);
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
  int sqlite_code = sqlite3_step(statement);
  if (sqlite_code == SQLITE_ROW) return OUTBOX_ROW;
  int code = sqlite_code == SQLITE_DONE ? OUTBOX_DONE : outbox_fail_sqlite(store);
  outbox_reset(statement);
  return code;
}

void outbox_reset(sqlite3_stmt *statement) {
  sqlite3_reset(statement);
  sqlite3_clear_bindings(statement);
}

int outbox_run(outbox_store *store, enum statement which, const char *sql, const char *types, ...) {
  sqlite3_stmt *statement;
  va_list values;
  va_start(values, types);
  int code = query(store, which, sql, &statement, types, values);
  va_end(values);
  if (code != OUTBOX_OK) return code;
  code = outbox_step(store, statement);
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

outbox_bytes outbox_column(sqlite3_stmt *statement, int index) {
  outbox_bytes bytes = {sqlite3_column_blob(statement, index), 0};
  if (bytes.data != NULL)
    bytes.size = (size_t)sqlite3_column_bytes(statement, index);
  else if (sqlite3_column_type(statement, index) != SQLITE_NULL)
    bytes.data = ""; /* which is how SQLite gives an empty blob */
  return bytes;
}

/* --- Readings -------------------------------------------------------------------------------- */

int outbox_next_row(outbox_store *store) {
  if (store->reading == NULL)
    return outbox_fail(store, OUTBOX_MISUSE, "nothing is being read, or another call ended it");
  int code = outbox_step(store, store->reading);
  if (code != OUTBOX_ROW) {
    store->reading = NULL;
    store->batch.open = false;
  }
  return code;
}

int outbox_next(outbox_store *store, outbox_entry *entry) {
  int code = outbox_next_row(store);
  if (code != OUTBOX_ROW) return code;
  sqlite3_stmt *row = store->reading;
  entry->seq = sqlite3_column_int64(row, 0);
  entry->id = outbox_column(row, 1);
  entry->namespace = outbox_column(row, 2);
  entry->key = outbox_column(row, 3);
  entry->payload = outbox_column(row, 4);
  entry->headers = outbox_column(row, 5);
  entry->created_at = sqlite3_column_int64(row, 6);
  entry->attempts = sqlite3_column_int64(row, 7);
  entry->last_error = outbox_column(row, 8);
  entry->died_at = sqlite3_column_int64(row, 9);
  if (store->batch.open) outbox_remember(store, entry);
  return OUTBOX_ROW;
}

void outbox_finish(outbox_store *store) {
  if (store->reading == NULL || store->pid != getpid()) return;
  store->batch.open = false;
  outbox_reset(store->reading);
  store->reading = NULL;
}

/* --- Transactions ---------------------------------------------------------------------------- */

/* Prepared when the store is opened: to roll back must not need memory that may not be there. */
static int prepare_control(outbox_store *store) {
  int code = OUTBOX_OK;
  for (enum statement i = 0; i <= LAST_CONTROL && code == OUTBOX_OK; i++)
    code = prepare(store, CONTROL[i], &store->statements[i]);
  return code;
}

int outbox_check_transaction(outbox_store *store) {
  int code = outbox_enter(store);
  if (code == OUTBOX_OK && store->depth > 0 && sqlite3_get_autocommit(store->db))
    code = outbox_fail(store, OUTBOX_MISUSE,
                       "the transaction was already ended, by SQL or by SQLite after an error");
  return code;
}

int outbox_begin(outbox_store *store) {
  int code = outbox_check_transaction(store);
  if (code != OUTBOX_OK) return code;
  bool outermost = sqlite3_get_autocommit(store->db);
  code = control(store, outermost ? BEGIN : SAVEPOINT);
  if (code == OUTBOX_BUSY && !outermost) /* no lock is missing: SQLite forbids it just then */
    code = outbox_fail(store, OUTBOX_MISUSE,
                       "no savepoint can be set while a statement that writes gives its rows");
  if (code != OUTBOX_OK) return code;
  if (store->depth++ == 0) store->outermost = outermost;
  return OUTBOX_OK;
}

/*
** Undoes the innermost begin, whatever state an error has left it in; keeps the error's message. If
** a part cannot be undone, for want of memory, the whole is: better than to commit that part.
*/
static void undo(outbox_store *store) {
  char message[sizeof store->message];
  memcpy(message, store->message, sizeof message);
  bool outermost = store->depth == 1 && store->outermost;
  store->depth--;
  if (!sqlite3_get_autocommit(store->db) &&
      (outermost || store->doomed || control(store, ROLLBACK_TO) != OUTBOX_OK ||
       control(store, RELEASE) != OUTBOX_OK))
    store->doomed = control(store, ROLLBACK) != OUTBOX_OK;
  memcpy(store->message, message, sizeof message);
}

int outbox_end(outbox_store *store, int code) {
  if (code == OUTBOX_OK) code = outbox_check_transaction(store);
  if (code == OUTBOX_OK)
    code = control(store, store->depth == 1 && store->outermost ? COMMIT : RELEASE);
  if (code == OUTBOX_OK)
    store->depth--;
  else
    undo(store);
  return code;
}

/* A begin can be ended even if its rollback is still to be done. */
static bool can_end(const outbox_store *store, int code) {
  return store->depth > 0 && (code == OUTBOX_OK || (store->doomed && code != OUTBOX_FORKED));
}

int outbox_commit(outbox_store *store) {
  int code = outbox_enter(store);
  if (can_end(store, code)) return outbox_end(store, code);
  return code != OUTBOX_OK ? code : outbox_fail(store, OUTBOX_MISUSE, "no transaction to commit");
}

int outbox_rollback(outbox_store *store) {
  int code = outbox_enter(store);
  if (!can_end(store, code)) return code;
  undo(store);
  return OUTBOX_OK;
}

/* --- Opening and closing --------------------------------------------------------------------- */

/* The prefix becomes part of SQL text, so it must be an identifier that needs no quotes. */
static bool is_identifier(const char *name) {
  static const char LETTERS[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789";
  return strlen(name) <= 64 && name[strspn(name, LETTERS)] == '\0' && name[0] != '\0' &&
         !(name[0] >= '0' && name[0] <= '9');
}

/* Runs a PRAGMA and, where `wanted` is not NULL, tells whether that is what it answers. */
static int configure(outbox_store *store, const char *sql, const char *wanted, bool *answered) {
  sqlite3_stmt *statement = NULL;
  int sqlite_code = sqlite3_prepare_v2(store->db, sql, -1, &statement, NULL);
  if (sqlite_code == SQLITE_OK) {
    if (sqlite3_step(statement) == SQLITE_ROW && wanted != NULL) {
      const char *answer = (const char *)sqlite3_column_text(statement, 0);
      *answered = answer != NULL && strcmp(answer, wanted) == 0;
    }
    sqlite_code = sqlite3_finalize(statement);
  }
  return sqlite_code == SQLITE_OK ? OUTBOX_OK : outbox_fail_sqlite(store);
}

/* The change to WAL mode needs the file alone for a moment, and SQLite does not wait for that. */
static int enter_wal(outbox_store *store, int busy_timeout) {
  bool wal = false, memory = false;
  for (int waited = 0;; waited += sqlite3_sleep(1 + waited / 8)) {
    int code = configure(store, "PRAGMA journal_mode = WAL", "wal", &wal);
    if (code == OUTBOX_BUSY && waited < busy_timeout) continue;
    if (code != OUTBOX_OK || wal) return code;
    break;
  }
  int code = configure(store, "PRAGMA journal_mode", "memory", &memory);
  if (code == OUTBOX_OK && !memory)
    code = outbox_fail(store, OUTBOX_CANTOPEN, "WAL mode is not possible on this file system");
  return code;
}

static int open_database(outbox_store *store, const char *path, const outbox_options *options) {
  static const char *const SYNCHRONOUS[] = {
      [OUTBOX_SYNCHRONOUS_OFF] = "PRAGMA synchronous = OFF",
      [OUTBOX_SYNCHRONOUS_NORMAL] = "PRAGMA synchronous = NORMAL",
      [OUTBOX_SYNCHRONOUS_FULL] = "PRAGMA synchronous = FULL",
      [OUTBOX_SYNCHRONOUS_EXTRA] = "PRAGMA synchronous = EXTRA",
  };
  bool utf8 = false;
  int flags =
      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_EXRESCODE | SQLITE_OPEN_NOMUTEX;
  if (sqlite3_open_v2(path, &store->db, flags, NULL) != SQLITE_OK) return outbox_fail_sqlite(store);
  sqlite3_busy_timeout(store->db, options->busy_timeout);
  int code = configure(store, "PRAGMA encoding", "UTF-8", &utf8);
  if (code == OUTBOX_OK && !utf8)
    code = outbox_fail(store, OUTBOX_ENCODING, "the database's text is not UTF-8 but UTF-16");
  if (code == OUTBOX_OK && sqlite3_db_readonly(store->db, "main") == 1)
    code = outbox_fail(store, OUTBOX_READONLY, "the file cannot be written");
  if (code == OUTBOX_OK) code = enter_wal(store, options->busy_timeout);
  if (code == OUTBOX_OK) code = configure(store, SYNCHRONOUS[options->synchronous], NULL, NULL);
  /* A log that a burst or a long reader made large is cut back to 64 MiB. It is copied back at
  ** 4,000 pages, not at SQLite's 1,000, for a quarter of the syncs. */
  if (code == OUTBOX_OK)
    code = configure(store, "PRAGMA journal_size_limit = 67108864", NULL, NULL);
  if (code == OUTBOX_OK) code = configure(store, "PRAGMA wal_autocheckpoint = 4000", NULL, NULL);
  if (code == OUTBOX_OK) code = prepare_control(store);
  return code;
}

static void close_database(outbox_store *store) {
  for (int i = 0; i < STATEMENTS; i++)
    sqlite3_finalize(store->statements[i]);
  memset(store->statements, 0, sizeof store->statements);
  sqlite3_close_v2(store->db);
  store->db = NULL;
}

int outbox_open(outbox_store **out, const char *path, const outbox_options *options) {
  static const outbox_options DEFAULTS = OUTBOX_DEFAULTS;
  if (options == NULL) options = &DEFAULTS;
  outbox_store *store = *out = sqlite3_malloc(sizeof *store);
  if (store == NULL) return OUTBOX_NOMEM;
  memset(store, 0, sizeof *store);
  store->pid = getpid();
  store->clock = options->clock != NULL ? options->clock : outbox_system_clock;
  store->clock_context = options->clock_context;
  store->id_generator = options->id_generator;
  store->id_generator_context = options->id_generator_context;
  if (store->id_generator == NULL) {
    store->id_generator = outbox_uuid_v7;
    store->id_generator_context = &store->uuid_state;
  }
  const char *prefix = options->prefix != NULL ? options->prefix : DEFAULTS.prefix;
  if (!is_identifier(prefix))
    return outbox_fail(store, OUTBOX_MISUSE, "the prefix is not a plain identifier");
  store->prefix = sqlite3_mprintf("%s", prefix);
  if (store->prefix == NULL) return outbox_fail(store, OUTBOX_NOMEM, "out of memory");

  int code = open_database(store, path, options);
  if (code != OUTBOX_OK) {
    char reason[sizeof store->message];
    memcpy(reason, store->message, sizeof reason);
    outbox_fail(store, code, "%s: %s", path, reason);
    close_database(store);
  }
  return code;
}

struct sqlite3 *outbox_connection(outbox_store *store) {
  return store->pid == getpid() ? store->db : NULL;
}

void outbox_close(outbox_store *store) {
  if (store == NULL) return;
  if (store->pid == getpid() && store->db != NULL) {
    /* Whoever left a statement of their own open keeps the connection, but not the transaction. */
    if (!sqlite3_get_autocommit(store->db)) control(store, ROLLBACK);
    close_database(store);
  }
  sqlite3_free(store->batch.ids);
  sqlite3_free(store->prefix);
  sqlite3_free(store);
}
