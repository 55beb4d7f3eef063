/*
** The loadable extension: publishing in SQL, for programs in any language.
**
**     SELECT load_extension('outbox_sqlite');
**     SELECT outbox_migrate();
**     SELECT outbox_publish(namespace, key, payload);
**     SELECT outbox_publish(namespace, key, payload, headers);
**     SELECT * FROM outbox_entries WHERE seq = outbox_find(id);
**
** outbox_publish returns the message's id. It takes part in the transaction that is open; without
** one each call is a transaction of its own. The namespace is TEXT or NULL (then ""), the key TEXT,
** an INTEGER or NULL, the payload TEXT, a BLOB or NULL, the headers a JSON object or NULL.
**
** outbox_find returns the seq of the ready entry with an id, or NULL. A condition on the id itself
** would look at every entry.
**
** All functions are SQLITE_DIRECTONLY: no trigger and no view can call them. If a trigger could
** call them, every write to its table would fail on connections without the extension. A trigger
** does not need them: it can INSERT into outbox_entries.
*/
#include <string.h>

#include "attach.h"
#include "derived.h"

#define OLDEST_SQLITE 3038000

/* The functions of a connection share this; the last one that is destroyed frees it. */
typedef struct shared {
  outbox_store *store;
  int functions;
} shared;

static void release(void *context) {
  shared *shared = context;
  if (--shared->functions > 0) return;
  outbox_close(shared->store);
  sqlite3_free(shared);
}

/* --- The functions --------------------------------------------------------------------------- */

static const char *type_name(sqlite3_value *value) {
  static const char *const NAMES[] = {[SQLITE_INTEGER] = "an INTEGER",
                                      [SQLITE_FLOAT] = "a REAL",
                                      [SQLITE_TEXT] = "TEXT",
                                      [SQLITE_BLOB] = "a BLOB",
                                      [SQLITE_NULL] = "NULL"};
  return NAMES[sqlite3_value_type(value)];
}

/* Reads an argument of one of two types, or NULL; false after an error. */
static bool read_argument(sqlite3_context *context, sqlite3_value *value, const char *name,
                          const char *wanted, int type, int other, outbox_bytes *bytes) {
  int given = sqlite3_value_type(value);
  if (given == SQLITE_NULL) return true;
  if (given != type && given != other) {
    char *message = sqlite3_mprintf("outbox_publish: the %s must be %s or NULL, not %s", name,
                                    wanted, type_name(value));
    if (message != NULL)
      sqlite3_result_error(context, message, -1);
    else
      sqlite3_result_error_nomem(context);
    sqlite3_free(message);
    return false;
  }
  bytes->data =
      given == SQLITE_BLOB ? sqlite3_value_blob(value) : (const void *)sqlite3_value_text(value);
  bytes->size = (size_t)sqlite3_value_bytes(value);
  if (bytes->data == NULL && bytes->size == 0 && given == SQLITE_BLOB) bytes->data = "";
  if (bytes->data == NULL) sqlite3_result_error_nomem(context);
  return bytes->data != NULL;
}

static void fail(sqlite3_context *context, outbox_store *store, const char *name, int code) {
  char *message =
      sqlite3_mprintf("%s: %s (%s)", name, outbox_error_message(store), outbox_code_name(code));
  if (message != NULL)
    sqlite3_result_error(context, message, -1);
  else
    sqlite3_result_error_nomem(context);
  sqlite3_free(message);
}

/* Whether a text is a JSON object. Fails with SQLite's error where it has no JSON functions. */
static int is_object(sqlite3 *db, outbox_bytes text, bool *yes) {
  static const char SQL[] = "SELECT CASE WHEN json_valid(?1) THEN json_type(?1) END = 'object'";
  sqlite3_stmt *statement;
  int sqlite_code = sqlite3_prepare_v2(db, SQL, -1, &statement, NULL);
  if (sqlite_code != SQLITE_OK) return sqlite_code;
  if (memchr(text.data, '\0', text.size) != NULL)
    text.size = 0; /* SQLite would read as far as the NUL */
  sqlite3_bind_text64(statement, 1, text.data, text.size, SQLITE_STATIC, SQLITE_UTF8);
  if (sqlite3_step(statement) == SQLITE_ROW) *yes = sqlite3_column_int(statement, 0);
  return sqlite3_finalize(statement);
}

static void publish(sqlite3_context *context, int count, sqlite3_value **values) {
  shared *shared = sqlite3_user_data(context);
  outbox_message message;
  memset(&message, 0, sizeof message);
  if (!read_argument(context, values[0], "namespace", "TEXT", SQLITE_TEXT, SQLITE_TEXT,
                     &message.namespace) ||
      !read_argument(context, values[1], "key", "TEXT, an INTEGER", SQLITE_TEXT, SQLITE_INTEGER,
                     &message.key) ||
      !read_argument(context, values[2], "payload", "TEXT, a BLOB", SQLITE_TEXT, SQLITE_BLOB,
                     &message.payload) ||
      (count == 4 && !read_argument(context, values[3], "headers", "a JSON object", SQLITE_TEXT,
                                    SQLITE_TEXT, &message.headers)))
    return;
  bool valid = message.headers.data == NULL;
  sqlite3 *db = sqlite3_context_db_handle(context);
  int sqlite_code = valid ? SQLITE_OK : is_object(db, message.headers, &valid);
  if (sqlite_code != SQLITE_OK) {
    sqlite3_result_error(context, sqlite3_errmsg(db), -1);
    sqlite3_result_error_code(context, sqlite_code);
    return;
  }
  if (!valid) {
    sqlite3_result_error(context, "outbox_publish: the headers must be a JSON object", -1);
    return;
  }
  int code = outbox_publish(shared->store, &message, 1);
  if (code != OUTBOX_OK)
    fail(context, shared->store, "outbox_publish", code);
  else
    sqlite3_result_text(context, message.id.data, (int)message.id.size, SQLITE_TRANSIENT);
}

static void migrate(sqlite3_context *context, int count, sqlite3_value **values) {
  (void)count, (void)values;
  shared *shared = sqlite3_user_data(context);
  int code = outbox_migrate(shared->store);
  if (code != OUTBOX_OK) fail(context, shared->store, "outbox_migrate", code);
}

static void find(sqlite3_context *context, int count, sqlite3_value **values) {
  (void)count;
  shared *shared = sqlite3_user_data(context);
  int64_t seq;
  bool found = false;
  if (sqlite3_value_type(values[0]) != SQLITE_TEXT) return;
  outbox_bytes id = {sqlite3_value_text(values[0]), (size_t)sqlite3_value_bytes(values[0])};
  int code = outbox_check_transaction(shared->store);
  if (code == OUTBOX_OK) code = derived_find(shared->store, id, &seq, &found);
  if (code != OUTBOX_OK)
    fail(context, shared->store, "outbox_find", code);
  else if (found)
    sqlite3_result_int64(context, seq);
}

/* --- Loading --------------------------------------------------------------------------------- */

/* SQLite calls `release` also for a function that it fails to create. */
static int create(sqlite3 *db, shared *shared, const char *name, int arguments,
                  void (*function)(sqlite3_context *, int, sqlite3_value **)) {
  shared->functions++;
  return sqlite3_create_function_v2(db, name, arguments, SQLITE_UTF8 | SQLITE_DIRECTONLY, shared,
                                    function, NULL, NULL, release);
}

/* SQLite makes this name from the file's name. */
int sqlite3_outboxsqlite_init(sqlite3 *db, char **message, const sqlite3_api_routines *api);

int sqlite3_outboxsqlite_init(sqlite3 *db, char **message, const sqlite3_api_routines *api) {
  SQLITE_EXTENSION_INIT2(api);
  if (sqlite3_libversion_number() < OLDEST_SQLITE) {
    *message =
        sqlite3_mprintf("outbox needs SQLite 3.38 or newer, this is %s", sqlite3_libversion());
    return SQLITE_ERROR;
  }
  shared *shared = sqlite3_malloc(sizeof *shared);
  if (shared == NULL) return SQLITE_NOMEM;
  shared->functions = 1; /* this one */
  int code = attach_borrow(&shared->store, db, NULL);
  if (code != OUTBOX_OK && shared->store != NULL)
    *message = sqlite3_mprintf("outbox: %s", outbox_error_message(shared->store));
  int sqlite_code = code == OUTBOX_OK ? SQLITE_OK : SQLITE_ERROR;
  if (sqlite_code == SQLITE_OK) sqlite_code = create(db, shared, "outbox_publish", 3, publish);
  if (sqlite_code == SQLITE_OK) sqlite_code = create(db, shared, "outbox_publish", 4, publish);
  if (sqlite_code == SQLITE_OK) sqlite_code = create(db, shared, "outbox_migrate", 0, migrate);
  if (sqlite_code == SQLITE_OK) sqlite_code = create(db, shared, "outbox_find", 1, find);
  if (code == OUTBOX_OK && sqlite_code != SQLITE_OK)
    *message = sqlite3_mprintf("outbox: %s", sqlite3_errmsg(db));
  release(shared);
  return sqlite_code;
}
