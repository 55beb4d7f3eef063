/*
** Reading entries row by row: a batch of a claim, or the entries that list.c selects.
**
** The columns: seq, ENTRY_COLUMNS, died_at, due_at, and one more. For a listed entry the last one
** is its state. For a claimed entry it says whether another entry holds it back.
*/
#include "../columns.h"
#include "operations.h"

#define MAX_LOOKS 10000 /* entries that a reading with a selection looks at: keeps it short */

static const char SELECT_CLAIMED_SQL[] =
    "SELECT seq, " ENTRY_COLUMNS ", 0, 0, 0"
    " FROM @leases AS l CROSS JOIN @entries AS e ON e.seq BETWEEN l.first_seq AND l.last_seq"
    " WHERE l.processor_id = ?1 AND l.deadline >= ?2 ORDER BY l.first_seq, e.seq LIMIT 0 + ?3";

static const char SELECT_UNHELD_SQL[] =
    "SELECT seq, " ENTRY_COLUMNS ", 0, 0, CASE WHEN ?6 THEN EXISTS (SELECT 1 FROM @delayed AS d"
    " WHERE d.namespace = e.namespace AND d.key = e.key AND d.position < e.seq) END"
    " FROM @leases AS l CROSS JOIN @entries AS e"
    " ON e.seq BETWEEN max(l.first_seq, ?4) AND min(l.last_seq, ?5)"
    " WHERE l.processor_id = ?1 AND l.deadline >= ?2 ORDER BY l.first_seq, e.seq LIMIT 0 + ?3";

static const char FIRST_POSITION_SQL[] =
    "SELECT position FROM @delayed WHERE position IS NOT NULL ORDER BY position LIMIT 1";

static const char HOLD_BATCH_SQL[] = "UPDATE @leases SET batch = ?2 WHERE processor_id = ?1";

/* Whether an entry that was read is left out of the reading. */
static bool leaves_out(outbox_store *store, const outbox_entry *entry, bool held) {
  filter *filter = &store->filter;
  filter->read_to = entry->seq;
  for (size_t i = 0; i < filter->except_count && !held; i++)
    held = bytes_equal(filter->except[i], entry->namespace);
  if (!held) filter->wanted--;
  return held;
}

/* Whether an entry makes the batch too large. Then the next reading begins with it. */
static bool exceeds(outbox_store *store, const outbox_entry *entry) {
  filter *filter = &store->filter;
  size_t size = entry->id.size + entry->namespace.size + entry->key.size + entry->payload.size +
                entry->headers.size;
  filter->bytes += (int64_t)size;
  bool fits = filter->max_bytes == 0 || filter->bytes <= filter->max_bytes || !filter->any;
  filter->any = true;
  if (fits) return false;
  filter->read_to = entry->seq - 1;
  return true;
}

int outbox_get_claimed_entries(outbox_store *store, outbox_bytes processor_id, int64_t batch_size,
                               const outbox_selection *selection) {
  int64_t now, position;
  bool waiting = false;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code != OUTBOX_OK) return code;
  batch_start(store);
  if (selection == NULL)
    return sql_query(store, SELECT_CLAIMED_SQL, &store->reading, "Tii", processor_id, now,
                     batch_size);
  store->filter = (filter){.active = true,
                           .wanted = batch_size,
                           .max_bytes = selection->batch_bytes,
                           .except = selection->except,
                           .except_count = selection->except_count,
                           .read_to = selection->after};
  if (selection->ordering != OUTBOX_ORDERING_NONE)
    code = sql_fetch(store, FIRST_POSITION_SQL, &position, 1, &waiting, "");
  if (code != OUTBOX_OK) return code;
  bool strict = selection->ordering == OUTBOX_ORDERING_STRICT;
  int64_t first = selection->after == INT64_MAX ? INT64_MAX : selection->after + 1;
  int64_t last = waiting && strict ? position - (position > INT64_MIN) : INT64_MAX;
  return sql_query(store, SELECT_UNHELD_SQL, &store->reading, "Tiiiii", processor_id, now,
                   (int64_t)MAX_LOOKS, first, last, (int64_t)(waiting && !strict));
}

int64_t outbox_read_to(const outbox_store *store) {
  return store->filter.read_to;
}

int outbox_hold_batch(outbox_store *store, outbox_bytes processor_id) {
  int code = transaction_enter(store);
  if (code != OUTBOX_OK) return code;
  sqlite3_str *text = sqlite3_str_new(store->db);
  for (size_t i = 0; i < store->batch.range_count; i++)
    sqlite3_str_appendf(text, "%s%lld-%lld", i > 0 ? "," : "", store->batch.ranges[i].first,
                        store->batch.ranges[i].last);
  bool empty = sqlite3_str_length(text) == 0 && sqlite3_str_errcode(text) == SQLITE_OK;
  outbox_bytes ranges = {NULL, (size_t)sqlite3_str_length(text)};
  char *bytes = sqlite3_str_finish(text);
  ranges.data = bytes;
  if (bytes == NULL && !empty)
    code = store_fail_nomem(store);
  else
    code = sql_process(store, HOLD_BATCH_SQL, "tt", processor_id, ranges);
  sqlite3_free(bytes);
  return code;
}

int reading_next(outbox_store *store) {
  if (store->reading == NULL)
    return store_fail(store, OUTBOX_MISUSE, "nothing is being read, or another call ended it");
  int code = sql_step(store, store->reading);
  if (code != OUTBOX_ROW) {
    store->reading = NULL;
    store->batch.open = store->filter.active = false;
  }
  return code;
}

int outbox_next(outbox_store *store, outbox_entry *entry) {
  int code;
  sqlite3_stmt *row;
  do {
    bool enough = store->filter.active && store->filter.wanted == 0;
    if (enough) outbox_finish(store);
    code = enough ? OUTBOX_DONE : reading_next(store);
    if (code != OUTBOX_ROW) return code;
    row = store->reading;
    entry->seq = sqlite3_column_int64(row, 0);
    entry->namespace = sql_column(row, 2);
  } while (store->filter.active && leaves_out(store, entry, sqlite3_column_int(row, 11)));
  entry->id = sql_column(row, 1);
  entry->key = sql_column(row, 3);
  entry->payload = sql_column(row, 4);
  entry->headers = sql_column(row, 5);
  if (store->filter.active && exceeds(store, entry)) {
    outbox_finish(store);
    return OUTBOX_DONE;
  }
  entry->created_at = sqlite3_column_int64(row, 6);
  entry->attempts = sqlite3_column_int64(row, 7);
  entry->last_error = sql_column(row, 8);
  bool listed = !store->filter.active; /* else it is ready */
  entry->state = listed ? (enum outbox_state)sqlite3_column_int(row, 11) : OUTBOX_READY;
  entry->died_at = listed ? sqlite3_column_int64(row, 9) : 0;
  entry->due_at = listed ? sqlite3_column_int64(row, 10) : 0;
  if (store->batch.open) code = batch_add(store, entry->seq);
  if (code != OUTBOX_ROW) outbox_finish(store);
  return code;
}
