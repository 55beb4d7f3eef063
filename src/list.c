/*
** Listing what there is, page by page: for those who look after it.
*/
#include "store.h"

#define PAGE " WHERE seq > ?1 AND (?3 IS NULL OR namespace = ?3) ORDER BY seq LIMIT ?2"

static const char SELECT_READY_SQL[] = "SELECT " ENTRY_COLUMNS ", 0, 0 FROM @entries" PAGE;

static const char SELECT_DELAYED_SQL[] = "SELECT " ENTRY_COLUMNS ", 0, due_at FROM @delayed" PAGE;

static const char SELECT_DEAD_SQL[] = "SELECT " ENTRY_COLUMNS ", died_at, 0 FROM @dead" PAGE;

static int list(outbox_store *store, enum statement which, const char *sql, outbox_bytes namespace,
                int64_t after, int64_t limit) {
  int code = outbox_enter(store);
  if (code != OUTBOX_OK) return code;
  return outbox_query(store, which, sql, &store->reading, "iiT", after, limit, namespace);
}

int outbox_ready_entries(outbox_store *store, outbox_bytes namespace, int64_t after,
                         int64_t limit) {
  return list(store, SELECT_READY, SELECT_READY_SQL, namespace, after, limit);
}

int outbox_delayed_entries(outbox_store *store, outbox_bytes namespace, int64_t after,
                           int64_t limit) {
  return list(store, SELECT_DELAYED, SELECT_DELAYED_SQL, namespace, after, limit);
}

int outbox_dead_entries(outbox_store *store, outbox_bytes namespace, int64_t after, int64_t limit) {
  return list(store, SELECT_DEAD, SELECT_DEAD_SQL, namespace, after, limit);
}
