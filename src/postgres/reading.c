/*
** Reading entries row by row. A result is in memory as a whole, so a reading holds no snapshot.
*/
#include "operations.h"

void reading_start(outbox_store *store) {
  store->reading = sql_take(store);
  store->row = 0;
}

int reading_next(outbox_store *store, const PGresult **result, int *row) {
  if (store->reading == NULL)
    return store_fail(store, OUTBOX_MISUSE, "nothing is being read, or another call ended it");
  *result = store->reading;
  *row = store->row++;
  if (*row < PQntuples(store->reading)) return OUTBOX_ROW;
  outbox_finish(store);
  return OUTBOX_DONE;
}

void reading_entry(const PGresult *result, int row, outbox_entry *entry) {
  *entry = (outbox_entry){.seq = sql_int(result, row, 0),
                          .id = sql_bytes(result, row, 1),
                          .namespace = sql_bytes(result, row, 2),
                          .key = sql_bytes(result, row, 3),
                          .payload = sql_payload(result, row, 4),
                          .headers = sql_bytes(result, row, 6),
                          .created_at = sql_int(result, row, 7),
                          .attempts = sql_int(result, row, 8),
                          .last_error = sql_bytes(result, row, 9),
                          .source_id = sql_bytes(result, row, 10)};
}

/* Whether an entry makes the batch too large. Then the next reading begins with it. */
static bool exceeds(outbox_store *store, const outbox_entry *entry) {
  size_t size = entry->id.size + entry->namespace.size + entry->key.size + entry->payload.size +
                entry->headers.size;
  if (store->bytes_left < 0) return false;
  bool first = store->row == 1, fits = (int64_t)size <= store->bytes_left;
  store->bytes_left = fits ? store->bytes_left - (int64_t)size : 0;
  return !fits && !first;
}

int outbox_next(outbox_store *store, outbox_entry *entry) {
  const PGresult *result;
  int row, code = reading_next(store, &result, &row);
  if (code != OUTBOX_ROW) return code;
  reading_entry(result, row, entry);
  if (PQnfields(result) > 11) {
    entry->died_at = sql_int(result, row, 11);
    entry->due_at = sql_int(result, row, 12);
    entry->state = (enum outbox_state)sql_int(result, row, 13);
  }
  if (exceeds(store, entry)) {
    outbox_finish(store);
    return OUTBOX_DONE;
  }
  if (PQnfields(result) > 14) { /* claimed by hand; there is room: see outbox_get_claimed_entries */
    store->hand_partitions[store->hand_count] = sql_int(result, row, 14);
    store->hand_places[store->hand_count++] = entry->seq;
  }
  return OUTBOX_ROW;
}
