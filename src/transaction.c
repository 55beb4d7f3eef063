/*
** Transactions: a BEGIN IMMEDIATE, and savepoints in it.
*/
#include <string.h>

#include "store.h"

static const char *const CONTROL[] = {[BEGIN] = "BEGIN IMMEDIATE",
                                      [COMMIT] = "COMMIT",
                                      [ROLLBACK] = "ROLLBACK",
                                      [SAVEPOINT] = "SAVEPOINT outbox",
                                      [RELEASE] = "RELEASE SAVEPOINT outbox",
                                      [ROLLBACK_TO] = "ROLLBACK TO SAVEPOINT outbox",
                                      [DATA_VERSION] = "PRAGMA data_version"};

int outbox_control(outbox_store *store, enum statement which) {
  return outbox_run(store, which, CONTROL[which], "");
}

int outbox_prepare_control(outbox_store *store, enum statement first, enum statement last) {
  int code = OUTBOX_OK;
  for (enum statement i = first; i <= last && code == OUTBOX_OK; i++)
    if (store->statements[i] == NULL)
      code = outbox_prepare(store, CONTROL[i], &store->statements[i]);
  return code;
}

/* On somebody else's connection no statement is left behind when all is ended. */
static void leave(outbox_store *store) {
  if (store->attached && store->depth == 0) outbox_finalize(store);
}

int outbox_check_transaction(outbox_store *store) {
  int code = outbox_enter(store);
  if (code == OUTBOX_OK && store->depth > 0 && sqlite3_get_autocommit(store->db))
    code = outbox_fail(store, OUTBOX_MISUSE,
                       "the transaction was already ended, by SQL or by SQLite after an error");
  return code;
}

/* Whether a statement that writes is in the middle of its work, and so of a transaction. */
static bool is_writing(sqlite3 *db) {
  for (sqlite3_stmt *s = sqlite3_next_stmt(db, NULL); s != NULL; s = sqlite3_next_stmt(db, s))
    if (sqlite3_stmt_busy(s) && !sqlite3_stmt_readonly(s)) return true;
  return false;
}

int outbox_begin(outbox_store *store) {
  int code = outbox_check_transaction(store);
  if (code != OUTBOX_OK) return code;
  bool outermost = sqlite3_get_autocommit(store->db);
  if (outermost && store->attached && is_writing(store->db)) /* a BEGIN would be its rollback */
    return outbox_fail(store, OUTBOX_MISUSE,
                       "no transaction can be begun while a statement that writes gives its rows");
  code = outermost ? outbox_prepare_control(store, BEGIN, ROLLBACK)
                   : outbox_prepare_control(store, SAVEPOINT, ROLLBACK_TO);
  if (code == OUTBOX_OK) code = outbox_control(store, outermost ? BEGIN : SAVEPOINT);
  if (code == OUTBOX_BUSY && !outermost) /* no lock is missing: SQLite forbids it just then */
    code = outbox_fail(store, OUTBOX_MISUSE,
                       "no savepoint can be set while a statement that writes gives its rows");
  if (code != OUTBOX_OK) {
    leave(store);
    return code;
  }
  if (store->depth++ == 0) store->outermost = outermost;
  return OUTBOX_OK;
}

/*
** Undoes the innermost begin, whatever state an error has left it in; keeps the error's message. If
** a part cannot be undone, for want of memory, the whole is: better than to commit that part. But
** not if the whole is the application's, which must be told to do so itself.
*/
static void undo(outbox_store *store) {
  char message[sizeof store->message];
  memcpy(message, store->message, sizeof message);
  bool outermost = store->depth == 1 && store->outermost, kept = false;
  if (!sqlite3_get_autocommit(store->db) &&
      (outermost || store->doomed || outbox_control(store, ROLLBACK_TO) != OUTBOX_OK ||
       outbox_control(store, RELEASE) != OUTBOX_OK)) {
    kept = store->attached && !store->outermost;
    if (!kept) store->doomed = outbox_control(store, ROLLBACK) != OUTBOX_OK;
  }
  store->depth--;
  leave(store);
  outbox_start_batch(store); /* what was read may never have been there */
  outbox_fail(store, OUTBOX_OK, "%s%s", message,
              kept ? "; part of it could not be undone: roll the transaction back" : "");
}

int outbox_end(outbox_store *store, int code) {
  if (code == OUTBOX_OK) code = outbox_check_transaction(store);
  if (code == OUTBOX_OK)
    code = outbox_control(store, store->depth == 1 && store->outermost ? COMMIT : RELEASE);
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
