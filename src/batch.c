/*
** Batches: what a processor reads of its claim, and so has in hand.
*/
#include <string.h>

#include "store.h"

#define LOOK_AT_MOST 10000 /* entries per reading with a selection, to keep it short */

static const char SELECT_CLAIMED_SQL[] =
    "SELECT e.seq, e.id, e.namespace, e.key, e.payload, e.headers, e.created_at, e.attempts,"
    " e.last_error, 0, 0"
    " FROM @leases AS l CROSS JOIN @entries AS e ON e.seq BETWEEN l.first_seq AND l.last_seq"
    " WHERE l.processor_id = ?1 AND l.deadline >= ?2 ORDER BY l.first_seq, e.seq LIMIT ?3";

static const char SELECT_UNHELD_SQL[] =
    "SELECT e.seq, e.id, e.namespace, e.key, e.payload, e.headers, e.created_at, e.attempts,"
    " e.last_error, 0, 0, CASE WHEN ?6 THEN EXISTS (SELECT 1 FROM @delayed AS d"
    " WHERE d.namespace = e.namespace AND d.key = e.key AND d.position < e.seq) END"
    " FROM @leases AS l CROSS JOIN @entries AS e"
    " ON e.seq BETWEEN max(l.first_seq, ?4) AND min(l.last_seq, ?5)"
    " WHERE l.processor_id = ?1 AND l.deadline >= ?2 ORDER BY l.first_seq, e.seq LIMIT ?3";

static const char FIRST_POSITION_SQL[] =
    "SELECT position FROM @delayed WHERE position IS NOT NULL ORDER BY position LIMIT 1";

static const char HOLD_BATCH_SQL[] = "UPDATE @leases SET batch = ?2 WHERE processor_id = ?1";

/* --- The batch in memory --------------------------------------------------------------------- */

static void forget(batch *batch) {
  batch->open = false;
  batch->count = batch->size = batch->range_count = 0;
}

/* Nobody would tell whether a transaction that somebody else began is rolled back. */
static bool is_safe(const outbox_store *store) {
  return sqlite3_get_autocommit(store->db) || (store->depth > 0 && store->outermost);
}

void outbox_start_batch(outbox_store *store) {
  forget(&store->batch);
  store->batch.open = is_safe(store);
}

/* Makes room for `size` bytes. */
static bool reserve(void **bytes, size_t *capacity, size_t size) {
  if (size <= *capacity) return true;
  void *larger = sqlite3_realloc64(*bytes, 2 * size);
  if (larger == NULL) return false;
  *bytes = larger;
  *capacity = 2 * size;
  return true;
}

int outbox_remember(outbox_store *store, const outbox_entry *entry) {
  batch *batch = &store->batch;
  if (!is_safe(store) || entry->id.data == NULL) { /* no harm: they will be deleted one by one */
    forget(batch);
    return OUTBOX_ROW;
  }
  size_t size = batch->size + sizeof(size_t) + entry->id.size;
  void *ids = batch->ids, *ranges = batch->ranges;
  bool reserved =
      reserve(&ids, &batch->capacity, size) &&
      reserve(&ranges, &batch->range_capacity, (batch->range_count + 1) * sizeof(range));
  batch->ids = ids;
  batch->ranges = ranges;
  if (!reserved) return outbox_fail(store, OUTBOX_NOMEM, "out of memory");

  range *last = batch->range_count > 0 ? &batch->ranges[batch->range_count - 1] : NULL;
  if (last != NULL && last->last < entry->seq && last->last + 1 == entry->seq)
    last->last = entry->seq;
  else
    batch->ranges[batch->range_count++] = (range){entry->seq, entry->seq};
  memcpy(batch->ids + batch->size, &entry->id.size, sizeof(size_t));
  memcpy(batch->ids + batch->size + sizeof(size_t), entry->id.data, entry->id.size);
  batch->size = size;
  batch->count++;
  return OUTBOX_ROW;
}

bool outbox_is_batch(const outbox_store *store, const outbox_bytes *ids, size_t count) {
  const batch *batch = &store->batch;
  const char *id = batch->ids;
  if (count != batch->count) return false;
  for (size_t i = 0; i < count; i++) {
    size_t size;
    memcpy(&size, id, sizeof size);
    id += sizeof size;
    if (!outbox_equal((outbox_bytes){id, size}, ids[i])) return false;
    id += size;
  }
  return true;
}

/* --- Reading --------------------------------------------------------------------------------- */

bool outbox_leaves_out(outbox_store *store, const outbox_entry *entry, bool held) {
  filter *filter = &store->filter;
  filter->read_to = entry->seq;
  for (size_t i = 0; i < filter->except_count && !held; i++)
    held = outbox_equal(filter->except[i], entry->namespace);
  if (!held) filter->wanted--;
  return held;
}

/* Finds the first place to which an entry will come back, if any is to be retried. */
static int find_position(outbox_store *store, int64_t *position) {
  sqlite3_stmt *row;
  int code = outbox_query(store, FIRST_POSITION, FIRST_POSITION_SQL, &row, "");
  if (code == OUTBOX_OK) code = outbox_step(store, row);
  if (code != OUTBOX_ROW) return code == OUTBOX_DONE ? OUTBOX_OK : code;
  *position = sqlite3_column_int64(row, 0);
  outbox_reset(store, row);
  return OUTBOX_OK;
}

int outbox_get_claimed_entries(outbox_store *store, outbox_bytes processor_id, int64_t batch_size,
                               const outbox_selection *selection) {
  int64_t now, position = INT64_MAX;
  int code = outbox_enter(store);
  if (code == OUTBOX_OK) code = outbox_now(store, &now);
  if (code != OUTBOX_OK) return code;
  outbox_start_batch(store);
  if (selection == NULL)
    return outbox_query(store, SELECT_CLAIMED, SELECT_CLAIMED_SQL, &store->reading, "Tii",
                        processor_id, now, batch_size);
  store->filter = (filter){.active = true,
                           .wanted = batch_size,
                           .except = selection->except,
                           .except_count = selection->except_count,
                           .read_to = selection->after};
  if (selection->ordering != OUTBOX_ORDERING_NONE) code = find_position(store, &position);
  if (code != OUTBOX_OK) return code;
  bool waiting = position != INT64_MAX, strict = selection->ordering == OUTBOX_ORDERING_STRICT;
  int64_t first = selection->after == INT64_MAX ? INT64_MAX : selection->after + 1;
  int64_t last = waiting && strict ? position - (position > INT64_MIN) : INT64_MAX;
  return outbox_query(store, SELECT_UNHELD, SELECT_UNHELD_SQL, &store->reading, "Tiiiii",
                      processor_id, now, (int64_t)LOOK_AT_MOST, first, last,
                      (int64_t)(waiting && !strict));
}

int64_t outbox_read_to(const outbox_store *store) {
  return store->filter.read_to;
}

/* --- In hand --------------------------------------------------------------------------------- */

int outbox_hold_batch(outbox_store *store, outbox_bytes processor_id) {
  int code = outbox_enter(store);
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
    code = outbox_fail(store, OUTBOX_NOMEM, "out of memory");
  else
    code = outbox_process(store, HOLD_BATCH, HOLD_BATCH_SQL, "tt", processor_id, ranges);
  sqlite3_free(bytes);
  return code;
}
