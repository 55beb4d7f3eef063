/*
** Reading entries row by row: a batch of a claim, or the entries that list.c selects.
**
** The columns: seq, ENTRY_COLUMNS; and died_at, due_at, the state, unless all entries are ready.
*/
#include "../columns.h"
#include "derived.h"
#include "lease.h"

/* ?1 is the processor, ?2 now, ?3 how many entries. */
#define OF_CLAIM " WHERE +l.processor_id = ?1 AND l.deadline >= ?2 AND " IS_INTERVAL

#define WITHIN " BETWEEN l.first_seq AND l.last_seq"
#define CLAIMED(table) " FROM @claims AS l CROSS JOIN " table " AS e ON e.seq" WITHIN OF_CLAIM
#define CLAIMED_RETRIES " FROM @claims AS l CROSS JOIN @delayed AS d ON d.position" WITHIN OF_CLAIM

/* Where something may be held back, this finds nothing, and the query after it is to be used. */
#define ANY_IS_HELD                                                                                \
  "(EXISTS (SELECT 1 FROM @delayed WHERE position IS NOT NULL) OR EXISTS (SELECT 1 FROM @pauses))"

static const char SELECT_CLAIMED_SQL[] =
    "SELECT seq, " READY_ENTRY_COLUMNS
    ", nonce" CLAIMED(READY) " ORDER BY l.first_seq, l.lease, e.seq"
                             " LIMIT CASE WHEN " ANY_IS_HELD " THEN 0 ELSE ?3 END";

/*
** The same where entries wait for a retry, or a namespace is paused. A retry that is due is read at
** its place.
*/
#define IS_PAUSED(table)                                                                           \
  "EXISTS (SELECT 1 FROM @pauses AS p WHERE p.namespace = " table ".namespace)"
#define READY_IS_HELD IS_HELD("e", "e.seq", "l.first_seq")
#define RETRY_IS_HELD IS_HELD("d", "d.position", "l.first_seq")
static const char SELECT_MERGED_SQL[] =
    "SELECT seq AS place, " ENTRY_COLUMNS
    ", 0, 0, 0, l.first_seq AS first, l.lease AS lease" CLAIMED(
        ENTRIES) " AND NOT " READY_IS_HELD
                 " AND NOT " IS_PAUSED("e") " UNION ALL SELECT position, " ENTRY_COLUMNS
                                            ", 0, due_at, 1, l.first_seq, l.lease" CLAIMED_RETRIES
                                            " AND d.due_at <= ?2 AND NOT " RETRY_IS_HELD
                                            " AND NOT " IS_PAUSED(
                                                "d") " ORDER BY first, lease, place LIMIT 0 + ?3";

static const char ANY_IS_HELD_SQL[] = "SELECT " ANY_IS_HELD;

/* Asks what is held back only where nothing is found: a statement less for each batch. */
static int start(outbox_store *store, outbox_bytes processor_id, int64_t now, int64_t batch_size) {
  int64_t any = 0;
  bool found;
  sqlite3_stmt *row;
  int code = sql_query(store, SELECT_CLAIMED_SQL, &row, "Tii", processor_id, now, batch_size);
  if (code == OUTBOX_OK) code = sql_step(store, row);
  if (code == OUTBOX_ROW) {
    store->reading = row;
    store->stepped = true;
    return OUTBOX_OK;
  }
  if (code == OUTBOX_DONE) code = sql_fetch(store, ANY_IS_HELD_SQL, &any, 1, &found, "");
  if (code != OUTBOX_OK) return code;
  return sql_query(store, any ? SELECT_MERGED_SQL : SELECT_CLAIMED_SQL, &store->reading, "Tii",
                   processor_id, now, batch_size);
}

int outbox_get_claimed_entries(outbox_store *store, outbox_bytes processor_id, int64_t batch_size,
                               int64_t batch_bytes) {
  int64_t now;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code == OUTBOX_OK) code = start(store, processor_id, now, batch_size);
  if (code != OUTBOX_OK) return code;
  batch_start(store);
  store->filter = (filter){.active = batch_bytes > 0, .left = batch_bytes, .none = true};
  return OUTBOX_OK;
}

int reading_next(outbox_store *store) {
  if (store->reading == NULL)
    return store_fail(store, OUTBOX_MISUSE, "nothing is being read, or another call ended it");
  int code = store->stepped ? OUTBOX_ROW : sql_step(store, store->reading);
  store->stepped = false;
  if (code != OUTBOX_ROW) {
    store->reading = NULL;
    store->batch.open = store->filter.active = false;
  }
  return code;
}

/* Whether an entry makes the batch too large. Then the next reading begins with it. */
static bool exceeds(filter *filter, const outbox_entry *entry) {
  size_t size = entry->id.size + entry->namespace.size + entry->key.size + entry->payload.size +
                entry->headers.size;
  bool first = filter->none;
  filter->none = false;
  filter->left -= (int64_t)size;
  return filter->left < 0 && !first;
}

int outbox_next(outbox_store *store, outbox_entry *entry) {
  int code = reading_next(store);
  if (code != OUTBOX_ROW) return code;
  sqlite3_stmt *row = store->reading;
  *entry = (outbox_entry){.seq = sqlite3_column_int64(row, 0),
                          .id = derived_column(row, store->id),
                          .namespace = sql_column(row, 2),
                          .key = sql_column(row, 3),
                          .payload = sql_column(row, 4),
                          .headers = sql_column(row, 5),
                          .created_at = sqlite3_column_int64(row, 6),
                          .attempts = sqlite3_column_int64(row, 7),
                          .last_error = sql_column(row, 8),
                          .source_id = sql_source(row)};
  if (sqlite3_data_count(row) > 11) {
    entry->died_at = sqlite3_column_int64(row, 10);
    entry->due_at = sqlite3_column_int64(row, 11);
    entry->state = (enum outbox_state)sqlite3_column_int(row, 12);
  }
  if (store->filter.active && exceeds(&store->filter, entry)) {
    outbox_finish(store);
    return OUTBOX_DONE;
  }
  if (store->batch.open) code = batch_add(store, entry->seq);
  if (code != OUTBOX_ROW) outbox_finish(store);
  return code;
}
