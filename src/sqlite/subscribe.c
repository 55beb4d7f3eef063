/*
** Subscriptions: what is published to a namespace becomes copies in others, instead of an entry.
** See copies.c.
*/
#include "operations.h"

static const char SUBSCRIBE_SQL[] =
    "INSERT OR IGNORE INTO @subscriptions (namespace, copy) VALUES (?1, ?2)";

static const char UNSUBSCRIBE_SQL[] =
    "DELETE FROM @subscriptions WHERE namespace = ?1 AND copy = ?2";

static const char FAN_OUT_SQL[] =
    "UPDATE @schema SET fans_out = EXISTS (SELECT 1 FROM @subscriptions)";

static const char SELECT_SQL[] =
    "SELECT namespace, copy FROM @subscriptions ORDER BY namespace, copy";

/* Changes a subscription. *changed: whether it was not so before. */
static int change(outbox_store *store, const char *sql, outbox_bytes namespace, outbox_bytes copy,
                  bool *changed) {
  *changed = false;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = sql_run(store, sql, "tt", namespace, copy);
  bool done = code == OUTBOX_OK && sqlite3_changes(store->db) > 0;
  if (done) code = sql_run(store, FAN_OUT_SQL, "");
  code = transaction_end(store, code);
  *changed = code == OUTBOX_OK && done;
  return code;
}

int outbox_subscribe(outbox_store *store, outbox_bytes namespace, outbox_bytes copy, bool *added) {
  return change(store, SUBSCRIBE_SQL, namespace, copy, added);
}

int outbox_unsubscribe(outbox_store *store, outbox_bytes namespace, outbox_bytes copy,
                       bool *removed) {
  return change(store, UNSUBSCRIBE_SQL, namespace, copy, removed);
}

int outbox_subscriptions(outbox_store *store) {
  int code = transaction_enter(store);
  return code == OUTBOX_OK ? sql_query(store, SELECT_SQL, &store->reading, "") : code;
}

int outbox_next_subscription(outbox_store *store, outbox_subscription *subscription) {
  int code = reading_next(store);
  if (code == OUTBOX_ROW)
    *subscription =
        (outbox_subscription){sql_column(store->reading, 0), sql_column(store->reading, 1)};
  return code;
}
