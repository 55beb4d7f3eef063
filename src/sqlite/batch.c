/*
** The batch in hand: the ranges of seq that the entries read last cover. If they are deleted, their
** ranges can be, which is a quarter faster than one entry after another. That is safe because a seq
** never comes twice, except where the transaction that gave it is rolled back: then the batch is
** forgotten.
*/
#include "batch.h"

static void forget(batch *batch) {
  batch->open = false;
  batch->range_count = 0;
}

/* A transaction that the application began can be rolled back without our knowledge. */
static bool is_safe(const outbox_store *store) {
  return sqlite3_get_autocommit(store->db) || (store->depth > 0 && store->outermost);
}

void batch_start(outbox_store *store) {
  forget(&store->batch);
  store->batch.open = is_safe(store);
}

/* Makes room for one more range. */
static bool reserve(batch *batch) {
  if (batch->range_count < batch->range_capacity) return true;
  size_t capacity = 2 * (batch->range_count + 1);
  range *larger = sqlite3_realloc64(batch->ranges, capacity * sizeof *larger);
  if (larger == NULL) return false;
  batch->ranges = larger;
  batch->range_capacity = capacity;
  return true;
}

int batch_add(outbox_store *store, int64_t seq) {
  batch *batch = &store->batch;
  range *last = batch->range_count > 0 ? &batch->ranges[batch->range_count - 1] : NULL;
  if (!is_safe(store)) { /* then they are deleted one by one */
    forget(batch);
    return OUTBOX_ROW;
  }
  if (last != NULL && last->last < seq && last->last + 1 == seq) {
    last->last = seq;
    return OUTBOX_ROW;
  }
  if (!reserve(batch)) return store_fail_nomem(store);
  batch->ranges[batch->range_count++] = (range){seq, seq};
  return OUTBOX_ROW;
}

bool batch_holds(const outbox_store *store, range wanted) {
  for (size_t i = 0; i < store->batch.range_count; i++) {
    range held = store->batch.ranges[i];
    if (held.first <= wanted.first && wanted.last <= held.last) return true;
  }
  return false;
}
