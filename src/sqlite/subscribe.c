/*
** Subscriptions: what is published to a namespace becomes copies in others, instead of an entry.
**
** A trigger does that, so it is the same for everyone who publishes. It is there only while there
** is a subscription, so without one nothing is slower. It runs before the insertion, and writes the
** copies in its place.
*/
#include "operations.h"

/* A row that has a source is a copy, or was published before. */
#define IS_SUBSCRIBED                                                                              \
  " WHEN NEW.source_id IS NULL AND typeof(NEW.id) = 'text' AND EXISTS"                             \
  " (SELECT 1 FROM @@subscriptions WHERE namespace = NEW.namespace)"
#define COPY_TO(table, column)                                                                     \
  " BEGIN INSERT INTO " table                                                                      \
  " (id, namespace, key, payload, headers, created_at, source_id" column                           \
  ") SELECT NEW.id || ':' || copy, copy, NEW.key, NEW.payload, NEW.headers,"                       \
  " NEW.created_at, NEW.id"
#define INSTEAD " FROM @@subscriptions WHERE namespace = NEW.namespace; SELECT RAISE(IGNORE); END;"

static const char BEGIN_COPYING[] =
    "CREATE TRIGGER IF NOT EXISTS @copy BEFORE INSERT ON @@entries" IS_SUBSCRIBED COPY_TO(
        "@@entries", "") INSTEAD
    "CREATE TRIGGER IF NOT EXISTS @copy_scheduled BEFORE INSERT ON @@delayed" IS_SUBSCRIBED
    " AND NEW.position IS NULL" COPY_TO("@@delayed", ", due_at") ", NEW.due_at" INSTEAD;

static const char END_COPYING[] =
    "DROP TRIGGER IF EXISTS @copy; DROP TRIGGER IF EXISTS @copy_scheduled;";

static const char SUBSCRIBE_SQL[] =
    "INSERT OR IGNORE INTO @subscriptions (namespace, copy) VALUES (?1, ?2)";

static const char UNSUBSCRIBE_SQL[] =
    "DELETE FROM @subscriptions WHERE namespace = ?1 AND copy = ?2";

static const char ANY_SQL[] = "SELECT EXISTS (SELECT 1 FROM @subscriptions)";

static const char SELECT_SQL[] =
    "SELECT namespace, copy FROM @subscriptions ORDER BY namespace, copy";

/* Changes a subscription. *changed: whether it was not so before. */
static int change(outbox_store *store, const char *sql, outbox_bytes namespace, outbox_bytes copy,
                  bool *changed) {
  int64_t any = 0;
  bool found;
  *changed = false;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = sql_run(store, sql, "tt", namespace, copy);
  bool done = code == OUTBOX_OK && sqlite3_changes(store->db) > 0;
  if (code == OUTBOX_OK) code = sql_fetch(store, ANY_SQL, &any, 1, &found, "");
  if (code == OUTBOX_OK && done) code = sql_execute(store, any ? BEGIN_COPYING : END_COPYING);
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
