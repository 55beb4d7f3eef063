/*
** Listing entries for operators: page by page, or by their id.
*/
#include "../columns.h"
#include "derived.h"
#include "operations.h"

/* The columns that reading.c expects; the last is the state. No nonce: each has its id. */
#define SELECT_READY "SELECT seq, " ENTRY_COLUMNS ", 0, 0, 0 FROM " ENTRIES
#define SELECT_DELAYED "SELECT seq, " ENTRY_COLUMNS ", 0, due_at, 1 FROM @delayed"
#define SELECT_DEAD "SELECT seq, " ENTRY_COLUMNS ", died_at, 0, 2 FROM @dead"

#define PAGE " WHERE seq > ?1 AND (?3 IS NULL OR namespace = ?3) ORDER BY seq LIMIT 0 + ?2"
#define BACK " WHERE seq < ?1 AND (?3 IS NULL OR namespace = ?3) ORDER BY seq DESC LIMIT 0 - ?2"

/* Forwards and backwards. */
static const char *const SELECT_READY_SQL[] = {SELECT_READY PAGE, SELECT_READY BACK};
static const char *const SELECT_DELAYED_SQL[] = {SELECT_DELAYED PAGE, SELECT_DELAYED BACK};
static const char *const SELECT_DEAD_SQL[] = {SELECT_DEAD PAGE, SELECT_DEAD BACK};

static const char FIND_ENTRIES_SQL[] =
    SELECT_READY " WHERE seq = ?2 UNION ALL " SELECT_DELAYED " WHERE id = ?1 UNION ALL " SELECT_DEAD
                 " WHERE id = ?1";

static int list(outbox_store *store, const char *const *sql, outbox_bytes namespace, int64_t after,
                int64_t limit) {
  bool back = limit < 0;
  int code = transaction_enter(store);
  if (code != OUTBOX_OK) return code;
  return sql_query(store, sql[back], &store->reading, "iiT", after, limit, namespace);
}

int outbox_ready_entries(outbox_store *store, outbox_bytes namespace, int64_t after,
                         int64_t limit) {
  return list(store, SELECT_READY_SQL, namespace, after, limit);
}

int outbox_delayed_entries(outbox_store *store, outbox_bytes namespace, int64_t after,
                           int64_t limit) {
  return list(store, SELECT_DELAYED_SQL, namespace, after, limit);
}

int outbox_dead_entries(outbox_store *store, outbox_bytes namespace, int64_t after, int64_t limit) {
  return list(store, SELECT_DEAD_SQL, namespace, after, limit);
}

int outbox_find_entries(outbox_store *store, outbox_bytes id) {
  int64_t seq;
  bool found;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = derived_find(store, id, &seq, &found);
  if (code != OUTBOX_OK) return code;
  return sql_query(store, FIND_ENTRIES_SQL, &store->reading, "Ti", id, found ? seq : INT64_MIN);
}
