/*
** Transactions: a BEGIN IMMEDIATE, and savepoints in it. Every operation begins here.
*/
#include <string.h>

#include "transaction.h"

static const char *const CONTROL_SQL[] = {[BEGIN] = "BEGIN IMMEDIATE",
                                          [BEGIN_READ] = "BEGIN",
                                          [COMMIT] = "COMMIT",
                                          [ROLLBACK] = "ROLLBACK",
                                          [SAVEPOINT] = "SAVEPOINT outbox",
                                          [RELEASE] = "RELEASE SAVEPOINT outbox",
                                          [ROLLBACK_TO] = "ROLLBACK TO SAVEPOINT outbox",
                                          [DATA_VERSION] = "PRAGMA data_version"};

int transaction_control(outbox_store *store, enum control which) {
  int code = transaction_prepare(store, which, which);
  if (code == OUTBOX_OK) code = sql_step(store, store->controls[which]);
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

int transaction_prepare(outbox_store *store, enum control first, enum control last) {
  int code = OUTBOX_OK;
  for (enum control i = first; i <= last && code == OUTBOX_OK; i++)
    if (store->controls[i] == NULL) code = sql_prepare(store, CONTROL_SQL[i], &store->controls[i]);
  return code;
}

void outbox_finish(outbox_store *store) {
  if (store->reading == NULL || !store_is_ours(store) || store->working) return;
  sql_reset(store, store->reading);
  store->reading = NULL;
  store->stepped = false;
  store->batch.open = store->filter.active = false;
}

/* A store that keeps no statements leaves none behind once all its transactions have ended. */
static void leave(outbox_store *store) {
  if (!store->keeps && store->depth == 0) sql_finalize(store);
}

int transaction_enter(outbox_store *store) {
  if (!store_is_ours(store))
    return store_fail(store, OUTBOX_FORKED,
                      "the store was opened before fork(); open stores after it");
  if (store->working) return store_fail_reentered(store);
  if (store->db == NULL && store->attached)
    return store_fail(store, OUTBOX_CLOSED, "the connection that the store used is closed");
  if (store->db == NULL) return OUTBOX_MISUSE; /* outbox_open failed; its message stands */
  outbox_finish(store);
  store->changes = -1;
  leave(store); /* the connection is being closed, and its statements were in use just then */
  if (store->doomed) { /* until it is rolled back it must neither grow nor be committed */
    int code = sqlite3_get_autocommit(store->db) ? OUTBOX_OK : transaction_control(store, ROLLBACK);
    if (code != OUTBOX_OK) return code;
    store->doomed = false;
  }
  return OUTBOX_OK;
}

int outbox_check_transaction(outbox_store *store) {
  int code = transaction_enter(store);
  if (code == OUTBOX_OK && store->depth > 0 && sqlite3_get_autocommit(store->db))
    code = store_fail(store, OUTBOX_MISUSE,
                      "the transaction was already ended, by SQL or by SQLite after an error");
  return code;
}

bool transaction_is_writing(sqlite3 *db) {
  for (sqlite3_stmt *s = sqlite3_next_stmt(db, NULL); s != NULL; s = sqlite3_next_stmt(db, s))
    if (sqlite3_stmt_busy(s) && !sqlite3_stmt_readonly(s)) return true;
  return false;
}

unsigned transaction_version(outbox_store *store) {
  unsigned version = 0;
  sqlite3_file_control(store->db, NULL, SQLITE_FCNTL_DATA_VERSION, &version);
  return version;
}

int outbox_begin(outbox_store *store) {
  int code = outbox_check_transaction(store);
  if (code != OUTBOX_OK) return code;
  bool outermost = sqlite3_get_autocommit(store->db);
  if (outermost && store->attached &&
      transaction_is_writing(store->db)) /* a BEGIN would roll it back */
    return store_fail(store, OUTBOX_MISUSE,
                      "no transaction can be begun while a statement that writes gives its rows");
  code = outermost ? transaction_prepare(store, BEGIN, ROLLBACK)
                   : transaction_prepare(store, SAVEPOINT, ROLLBACK_TO);
  if (code == OUTBOX_OK) code = transaction_control(store, outermost ? BEGIN : SAVEPOINT);
  if (code == OUTBOX_BUSY &&
      !outermost) /* the lock is there: SQLite forbids savepoints just then */
    code = store_fail(store, OUTBOX_MISUSE,
                      "no savepoint can be set while a statement that writes gives its rows");
  if (code != OUTBOX_OK) {
    leave(store);
    return code;
  }
  if (store->depth++ == 0) store->outermost = outermost;
  return OUTBOX_OK;
}

/*
** Undoes the innermost begin, whatever state an error has left it in. Keeps the error's message.
** If there is not enough memory to undo that part, rolls the whole transaction back, so that the
** part is not committed. If the transaction is the application's, the message asks the application
** to roll it back.
*/
static void undo(outbox_store *store) {
  char message[sizeof store->message];
  memcpy(message, store->message, sizeof message);
  bool outermost = store->depth == 1 && store->outermost, kept = false;
  if (!sqlite3_get_autocommit(store->db) &&
      (outermost || store->doomed || transaction_control(store, ROLLBACK_TO) != OUTBOX_OK ||
       transaction_control(store, RELEASE) != OUTBOX_OK)) {
    kept = store->attached && !store->outermost;
    if (!kept) store->doomed = transaction_control(store, ROLLBACK) != OUTBOX_OK;
  }
  store->depth--;
  leave(store);
  batch_start(store); /* the entries that were read may be undone as well */
  store_fail(store, OUTBOX_OK, "%s%s", message,
             kept ? "; part of it could not be undone: roll the transaction back" : "");
}

int transaction_end(outbox_store *store, int code) {
  if (code == OUTBOX_OK) code = outbox_check_transaction(store);
  if (code == OUTBOX_OK)
    code = transaction_control(store, store->depth == 1 && store->outermost ? COMMIT : RELEASE);
  if (code != OUTBOX_OK) {
    undo(store);
  } else {
    store->depth--;
    leave(store);
  }
  return code;
}

/* A begin can be ended even if its rollback is still to be done. */
static bool can_end(const outbox_store *store, int code) {
  return store->depth > 0 && (code == OUTBOX_OK || (store->doomed && code != OUTBOX_FORKED));
}

int outbox_commit(outbox_store *store) {
  int code = transaction_enter(store);
  if (can_end(store, code)) return transaction_end(store, code);
  return code != OUTBOX_OK ? code : store_fail(store, OUTBOX_MISUSE, "no transaction to commit");
}

int outbox_rollback(outbox_store *store) {
  int code = transaction_enter(store);
  if (!can_end(store, code)) return code;
  undo(store);
  return OUTBOX_OK;
}
