/*
** Counting: how much waits, and how long it has waited.
*/
#include "../columns.h"
#include "operations.h"

static const char COUNT_ENTRIES_SQL[] =
    "SELECT (SELECT count(*) FROM " ENTRIES "), (SELECT count(*) FROM @delayed),"
    " (SELECT count(*) FROM @dead), coalesce((SELECT max(?1 - created_at, 0) FROM " ENTRIES
    " AS e WHERE NOT EXISTS"
    " (SELECT 1 FROM @pauses AS p WHERE p.namespace = e.namespace) ORDER BY seq LIMIT 1), -1),"
    " (SELECT min(due_at) FROM @delayed), (SELECT count(position) FROM @delayed),"
    " (SELECT max(seq) FROM main.sqlite_sequence WHERE name = '@@" ENTRIES_NAME "' COLLATE NOCASE)";

int outbox_count_entries(outbox_store *store, outbox_counts *counts) {
  int64_t now, values[7];
  bool found;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = doorbell_check(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code == OUTBOX_OK) code = sql_fetch(store, COUNT_ENTRIES_SQL, values, 7, &found, "i", now);
  if (code == OUTBOX_OK)
    *counts = (outbox_counts){.ready = values[0],
                              .delayed = values[1],
                              .dead = values[2],
                              .oldest_age = values[3],
                              .due_at = values[4],
                              .retries = values[5],
                              .last_seq = values[6]};
  return code;
}
