/*
** Opening a database with the settings that the outbox needs, and closing a store of any kind.
*/
#include <string.h>

#include "attach.h"
#include "operations.h"

/*
** The change to WAL mode needs exclusive access for a moment. SQLite waits for that, and keeps new
** readers out meanwhile, but sometimes it gives up at once. So it is asked again, and all its waits
** together take no longer than the timeout.
*/
static int enter_wal(outbox_store *store) {
  bool wal = false, memory = false;
  int64_t *left = &store->lock_wait.timeout, timeout = *left;
  int64_t end = clock_monotonic() + timeout;
  int code;
  for (;; sqlite3_sleep(1)) {
    code = sql_configure(store, "PRAGMA journal_mode = WAL", "wal", &wal);
    *left = end - clock_monotonic();
    if (code != OUTBOX_BUSY || *left <= 0) break;
  }
  *left = timeout;
  if (code != OUTBOX_OK || wal) return code;
  code = sql_configure(store, "PRAGMA journal_mode", "memory", &memory);
  if (code == OUTBOX_OK && !memory)
    code = store_fail(store, OUTBOX_CANTOPEN, "WAL mode is not possible on this file system");
  return code;
}

/* Denies the application's SQL to end a transaction or a savepoint that we began. */
static int authorize(void *context, int action, const char *operation, const char *name,
                     const char *database, const char *trigger) {
  (void)operation, (void)database, (void)trigger;
  outbox_store *store = context;
  bool ours = action == SQLITE_TRANSACTION ||
              (action == SQLITE_SAVEPOINT && sqlite3_stricmp(name, "outbox") == 0);
  return ours && store->restricted ? SQLITE_DENY : SQLITE_OK;
}

/* Opens a file, by its path or as a URI. The system knows best why it cannot be opened. */
static int open_file(outbox_store *store, const char *path, enum outbox_mode mode) {
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_URI | SQLITE_OPEN_EXRESCODE | SQLITE_OPEN_NOMUTEX;
  if (mode == OUTBOX_CREATE) flags |= SQLITE_OPEN_CREATE;
  store->keeps = true;
  if (sqlite3_open_v2(path, &store->db, flags, NULL) == SQLITE_OK) {
    /* A statement is never compiled anew for the sake of the values that are bound to it. */
    sqlite3_db_config(store->db, SQLITE_DBCONFIG_ENABLE_QPSG, 1, NULL);
    return OUTBOX_OK;
  }
  int code = store_fail_sqlite(store), reason = sqlite3_system_errno(store->db);
  if (code == OUTBOX_CANTOPEN && reason != 0) store_fail(store, code, "%s", strerror(reason));
  return code;
}

/* The first reading. A log without its index has to be made readable, and a torn change undone. */
static int read_first(outbox_store *store, enum outbox_mode mode) {
  bool empty = false;
  int code = sql_check_encoding(store);
  if (mode == OUTBOX_READ && (code == OUTBOX_READONLY || code == OUTBOX_CANTOPEN))
    return store_fail(store, OUTBOX_CANTOPEN,
                      "to read this database, SQLite must write files beside it: read it as a user "
                      "who may write to its directory, or, if no program uses it and there is no "
                      "file -wal, as file:PATH?immutable=1");
  if (code != OUTBOX_OK || mode == OUTBOX_CREATE) return code;
  code = sql_configure(store, "PRAGMA page_count", "0", &empty);
  if (code == OUTBOX_OK && empty) code = store_fail(store, OUTBOX_CANTOPEN, "it is empty");
  return code;
}

/* The settings of a store that may write. */
static int configure(outbox_store *store, enum outbox_synchronous synchronous) {
  static const char *const SYNCHRONOUS[] = {
      [OUTBOX_SYNCHRONOUS_OFF] = "PRAGMA synchronous = OFF",
      [OUTBOX_SYNCHRONOUS_NORMAL] = "PRAGMA synchronous = NORMAL",
      [OUTBOX_SYNCHRONOUS_FULL] = "PRAGMA synchronous = FULL",
      [OUTBOX_SYNCHRONOUS_EXTRA] = "PRAGMA synchronous = EXTRA",
  };
  if (sqlite3_db_readonly(store->db, "main") == 1)
    return store_fail(store, OUTBOX_READONLY, "the file cannot be written");
  int code = enter_wal(store);
  if (code == OUTBOX_OK) code = sql_configure(store, SYNCHRONOUS[synchronous], NULL, NULL);
  /* A checkpoint at a log of 16 MiB instead of 4: draining is a twelfth faster. */
  if (code == OUTBOX_OK)
    code = sql_configure(store, "PRAGMA wal_autocheckpoint = 4000", NULL, NULL);
  /* Cuts a log that a burst or a long reader made large back to 64 MiB. */
  if (code == OUTBOX_OK)
    code = sql_configure(store, "PRAGMA journal_size_limit = 67108864", NULL, NULL);
  return code;
}

static int open_database(outbox_store *store, const char *path, const outbox_options *options) {
  int code = open_file(store, path, options->mode);
  if (code != OUTBOX_OK) return code;
  store_wait_for_locks(store->db, &store->lock_wait);
  code = read_first(store, options->mode);
  if (code == OUTBOX_OK)
    code = options->mode == OUTBOX_READ ? sql_configure(store, "PRAGMA query_only = ON", NULL, NULL)
                                        : configure(store, options->synchronous);
  if (code == OUTBOX_OK) code = transaction_prepare(store, BEGIN, DATA_VERSION);
  sqlite3_set_authorizer(store->db, authorize, store);
  return code;
}

static void close_database(outbox_store *store) {
  sql_finalize(store);
  if (store->db != NULL) { /* it outlives the store if the user left a statement open */
    sqlite3_set_authorizer(store->db, NULL, NULL);
    sqlite3_busy_timeout(store->db, (int)(store->lock_wait.timeout / 1000));
  }
  sqlite3_close_v2(store->db);
  store->db = NULL;
}

int outbox_open(outbox_store **out, const char *path, const outbox_options *options) {
  int code = store_make(out, options);
  if (code != OUTBOX_OK) return code;
  outbox_store *store = *out;
  code = open_database(store, path, options != NULL ? options : &(outbox_options)OUTBOX_DEFAULTS);
  if (code != OUTBOX_OK) {
    char reason[sizeof store->message];
    memcpy(reason, store->message, sizeof reason);
    store_fail(store, code, "%s: %s", path, reason);
    close_database(store);
  }
  return code;
}

int outbox_close(outbox_store *store) {
  if (store == NULL) return OUTBOX_OK;
  if (store->working) return store_fail_reentered(store); /* that call goes on using the store */
  heartbeat_close(store);
  if (store->lane != NULL) store->free_lane(store->lane);
  if (store->attached) {
    attach_detach(store);
  } else if (store_is_ours(store) && store->db != NULL) {
    /* A statement that the user left open keeps the connection, but not the transaction. */
    if (!sqlite3_get_autocommit(store->db)) transaction_control(store, ROLLBACK);
    close_database(store);
  }
  doorbell_close(store);
  sqlite3_free(store->batch.ranges);
  store_free(store);
  return OUTBOX_OK;
}
