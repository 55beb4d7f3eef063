/*
** The batch in hand: the ids of the entries that were read last, and the ranges of seq they cover.
** If these very ids are deleted, their ranges can be, which is a quarter faster than one id after
** another. That is safe because a seq never comes twice, except where the transaction that gave it
** is rolled back: then the batch is forgotten.
*/
#include <string.h>

#include "batch.h"

static void forget(batch *batch) {
  batch->open = false;
  batch->count = batch->size = batch->range_count = 0;
}

/* A transaction that the application began can be rolled back without our knowledge. */
static bool is_safe(const outbox_store *store) {
  return sqlite3_get_autocommit(store->db) || (store->depth > 0 && store->outermost);
}

void batch_start(outbox_store *store) {
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

int batch_add(outbox_store *store, const outbox_entry *entry) {
  batch *batch = &store->batch;
  if (!is_safe(store) || entry->id.data == NULL) { /* then they are deleted one by one */
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
  if (!reserved) return store_fail_nomem(store);

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

bool batch_is(const outbox_store *store, const outbox_bytes *ids, size_t count) {
  const batch *batch = &store->batch;
  const char *id = batch->ids;
  if (count != batch->count) return false;
  for (size_t i = 0; i < count; i++) {
    size_t size;
    memcpy(&size, id, sizeof size);
    id += sizeof size;
    if (!bytes_equal((outbox_bytes){id, size}, ids[i])) return false;
    id += size;
  }
  return true;
}
