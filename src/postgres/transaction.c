/*
** Transactions: a BEGIN, and savepoints in it.
**
** A COMMIT whose answer was lost with the connection may have happened. The server is asked for the
** fate of a transaction that has published, whose number is known.
*/
#define _POSIX_C_SOURCE 200809L

#include "transaction.h"

#include <string.h>
#include <time.h>

#define PATIENCE 100   /* times that the fate of a transaction is asked for */
#define PAUSE 20000000 /* nanoseconds in between */

static const char SAVEPOINT_SQL[] = "SAVEPOINT outbox";
static const char RELEASE_SQL[] = "RELEASE SAVEPOINT outbox";

/* NULL if the server has recovered from a crash since $2: that begins its statistics anew. */
static const char STATUS_SQL[] =
    "SELECT CASE WHEN stats_reset < to_timestamp($2 / 1e6) THEN pg_xact_status($1::text::xid8) END"
    " FROM pg_stat_bgwriter";

/* Waits as a COMMIT does, for what is before it, too: a standby may not have that yet. */
static const char SYNC_SQL[] = "SELECT pg_logical_emit_message(true, 'outbox', '')";

/* Runs a statement that needs no table. */
static int control(outbox_store *store, const char *sql) {
  PGresult *result = PQexec(store->db, sql);
  int code = PQresultStatus(result) == PGRES_COMMAND_OK ? OUTBOX_OK
                                                        : connection_fail(store, result, false);
  PQclear(result);
  return code;
}

static PGTransactionStatusType status(const outbox_store *store) {
  return connection_is_lost(store) ? PQTRANS_UNKNOWN : PQtransactionStatus(store->db);
}

bool outbox_in_transaction(outbox_store *store) {
  return store_is_ours(store) && store->depth > 0;
}

void outbox_finish(outbox_store *store) {
  PQclear(store->reading);
  store->reading = NULL;
  store->bytes_left = -1;
}

int transaction_enter(outbox_store *store) {
  if (!store_is_ours(store))
    return store_fail(store, OUTBOX_FORKED,
                      "the store was opened before fork(); open stores after it");
  if (store->working)
    return store_fail(store, OUTBOX_MISUSE, "the store is in the middle of another call");
  outbox_finish(store);
  if (!connection_is_lost(store)) return OUTBOX_OK;
  if (store->sessions == 0) return OUTBOX_MISUSE; /* outbox_open failed; its message stands */
  if (store->depth > 0)
    return store_fail(store, OUTBOX_DISCONNECTED,
                      "the connection was lost, and with it the transaction");
  return connection_open(store);
}

int transaction_ready(outbox_store *store) {
  int code = transaction_enter(store);
  return code == OUTBOX_OK ? sql_check_schema(store) : code;
}

int outbox_check_transaction(outbox_store *store) {
  int code = transaction_enter(store);
  if (code == OUTBOX_OK && store->depth > 0 && status(store) != PQTRANS_INTRANS)
    code = store_fail(store, OUTBOX_MISUSE,
                      status(store) == PQTRANS_INERROR
                          ? "a statement has failed: PostgreSQL ignores the rest of the transaction"
                          : "the transaction was already ended, by SQL");
  return code;
}

int outbox_begin(outbox_store *store) {
  int code = outbox_check_transaction(store);
  if (code != OUTBOX_OK) return code;
  code = control(store, store->depth == 0 ? "BEGIN ISOLATION LEVEL READ COMMITTED" : SAVEPOINT_SQL);
  if (code == OUTBOX_OK && store->depth == 0 && store->pooled) {
    code = connection_set(store);
    if (code != OUTBOX_OK) control(store, "ROLLBACK");
  }
  if (code != OUTBOX_OK) return code;
  if (store->depth++ == 0) store->xid = 0;
  return OUTBOX_OK;
}

/* Undoes the innermost begin, and keeps the message of the error that is the reason. */
static void undo(outbox_store *store) {
  char message[sizeof store->message];
  memcpy(message, store->message, sizeof message);
  if (store->depth == 1) {
    if (status(store) != PQTRANS_IDLE && status(store) != PQTRANS_UNKNOWN)
      control(store, "ROLLBACK");
  } else if (status(store) == PQTRANS_INTRANS || status(store) == PQTRANS_INERROR) {
    control(store, "ROLLBACK TO SAVEPOINT outbox");
    control(store, RELEASE_SQL);
  }
  store->depth--;
  store->hand_count = 0; /* what was read may be undone as well */
  memcpy(store->message, message, sizeof message);
}

enum fate { UNKNOWN, COMMITTED, ROLLED_BACK };

/*
** What became of the transaction whose COMMIT got no answer. A server that was started anew, has
** crashed, or is another one, may have given its number to another transaction.
*/
static enum fate find_fate(outbox_store *store) {
  char text[24];
  int64_t xid = store->xid, started = store->server_started, since = store->connected_at;
  if (xid == 0 || connection_open(store) != OUTBOX_OK) return UNKNOWN;
  size_t size = 0;
  for (int64_t rest = xid; rest > 0; rest /= 10)
    size++;
  for (size_t i = size; i > 0; i--, xid /= 10)
    text[i - 1] = (char)('0' + xid % 10);
  for (int i = 0; i < PATIENCE && store->server_started == started; i++) {
    int code = sql_run(store, STATUS_SQL, "ti", (outbox_bytes){text, size}, since);
    if (code != OUTBOX_OK) return UNKNOWN;
    outbox_bytes fate = sql_bytes(sql_result(store, 0), 0, 0);
    if (fate.data == NULL) return UNKNOWN;
    if (bytes_equal(fate, (outbox_bytes){"committed", 9}))
      return sql_run(store, SYNC_SQL, "") == OUTBOX_OK ? COMMITTED : UNKNOWN;
    if (bytes_equal(fate, (outbox_bytes){"aborted", 7})) return ROLLED_BACK;
    nanosleep(&(struct timespec){.tv_nsec = PAUSE}, NULL);
  }
  return UNKNOWN;
}

int transaction_end(outbox_store *store, int code) {
  if (code == OUTBOX_OK) code = outbox_check_transaction(store);
  if (code == OUTBOX_OK) {
    bool outermost = store->depth == 1;
    code = control(store, outermost ? "COMMIT" : RELEASE_SQL);
    if (code == OUTBOX_DISCONNECTED && outermost) {
      store->depth = 0;
      enum fate fate = find_fate(store);
      if (fate == COMMITTED) return OUTBOX_OK;
      return store_fail(store, OUTBOX_DISCONNECTED, "%s",
                        fate == ROLLED_BACK
                            ? "the connection was lost, and the transaction is rolled back"
                            : "the connection was lost; nobody knows whether it was committed");
    }
  }
  if (code != OUTBOX_OK)
    undo(store);
  else
    store->depth--;
  return code;
}

int outbox_commit(outbox_store *store) {
  int code = transaction_enter(store);
  if (store->depth > 0 && code != OUTBOX_FORKED) return transaction_end(store, code);
  return code != OUTBOX_OK ? code : store_fail(store, OUTBOX_MISUSE, "no transaction to commit");
}

int outbox_rollback(outbox_store *store) {
  int code = transaction_enter(store);
  if (store->depth == 0 || code == OUTBOX_FORKED) return code;
  undo(store);
  return OUTBOX_OK;
}

void transaction_start(outbox_store *store, int *first) {
  sql_start(store);
  *first = store->depth > 0;
  if (store->depth > 0) sql_add(store, SAVEPOINT_SQL, "");
}

int transaction_finish(outbox_store *store) {
  if (store->depth > 0) sql_add(store, RELEASE_SQL, "");
  int code = sql_end(store);
  if (code == OUTBOX_OK || store->depth == 0 || status(store) != PQTRANS_INERROR) return code;
  char message[sizeof store->message];
  memcpy(message, store->message, sizeof message);
  /* Where not even the savepoint could be set, the transaction was over before. */
  if (control(store, "ROLLBACK TO SAVEPOINT outbox") == OUTBOX_OK) control(store, RELEASE_SQL);
  memcpy(store->message, message, sizeof message);
  return code;
}
