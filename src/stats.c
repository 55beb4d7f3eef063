/*
** What an operator wants to know: how much waits, and how long it has waited.
*/
#include "store.h"

static const char COUNT_ENTRIES_SQL[] =
    "SELECT (SELECT count(*) FROM @entries), (SELECT count(*) FROM @delayed),"
    " (SELECT count(*) FROM @dead), (SELECT ?1 - created_at FROM @entries ORDER BY seq LIMIT 1),"
    " (SELECT min(due_at) FROM @delayed), (SELECT count(position) FROM @delayed),"
    " (SELECT max(seq) FROM main.sqlite_sequence WHERE name = '@entries' COLLATE NOCASE)";

int outbox_count_entries(outbox_store *store, outbox_counts *counts) {
  int64_t now;
  sqlite3_stmt *row;
  int code = outbox_enter(store);
  if (code == OUTBOX_OK) code = outbox_now(store, &now);
  if (code == OUTBOX_OK)
    code = outbox_query(store, COUNT_ENTRIES, COUNT_ENTRIES_SQL, &row, "i", now);
  if (code != OUTBOX_OK) return code;
  code = outbox_step(store, row);
  if (code != OUTBOX_ROW) return code;
  counts->ready = sqlite3_column_int64(row, 0);
  counts->delayed = sqlite3_column_int64(row, 1);
  counts->dead = sqlite3_column_int64(row, 2);
  counts->oldest_age = sqlite3_column_int64(row, 3);
  counts->due_at = sqlite3_column_int64(row, 4);
  counts->retries = sqlite3_column_int64(row, 5);
  counts->last_seq = sqlite3_column_int64(row, 6);
  outbox_reset(store, row);
  return OUTBOX_OK;
}
