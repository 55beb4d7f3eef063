/*
** Counting: how much waits, and how long it has waited.
*/
#include "../columns.h"
#include "operations.h"

/* What is paused is neither late nor down. */
#define PAUSED "(SELECT namespace FROM @pauses)"

static const char COUNT_ENTRIES_SQL[] =
    "SELECT (SELECT count(*) FROM " READY "), (SELECT count(*) FROM @delayed),"
    " (SELECT count(*) FROM @dead), coalesce((SELECT max(?1 - created_at, 0) FROM " READY
    " WHERE namespace NOT IN " PAUSED " ORDER BY seq LIMIT 1), -1),"
    " (SELECT due_at FROM @delayed WHERE namespace NOT IN " PAUSED " ORDER BY due_at LIMIT 1),"
    " (SELECT count(position) FROM @delayed),"
    " " NEXT_SEQ("@") " - 1";

/* ?1 is now. Of the entries of a group, min() chooses the row that created_at is of. */
static const char SUMMARIES_SQL[] =
    "WITH live (namespace, down_since, error) AS"
    " (SELECT o.namespace, o.down_since, o.error FROM @outages AS o JOIN @claims AS c"
    " ON c.lease = o.lease WHERE c.deadline >= ?1 AND o.namespace NOT IN " PAUSED "),"
    " counts (namespace, ready, delayed, dead, due_at, seq, oldest) AS"
    " (SELECT namespace, count(*), 0, 0, NULL, min(seq), created_at FROM " READY
    " GROUP BY namespace"
    " UNION ALL SELECT namespace, 0, count(*), 0, min(due_at), 0, NULL FROM @delayed"
    " GROUP BY namespace"
    " UNION ALL SELECT namespace, 0, 0, count(*), NULL, 0, NULL FROM @dead GROUP BY namespace"
    " UNION ALL SELECT namespace, 0, 0, 0, NULL, 0, NULL FROM @pauses"
    " UNION ALL SELECT namespace, 0, 0, 0, NULL, 0, NULL FROM live)"
    " SELECT namespace, sum(ready), sum(delayed), sum(dead),"
    " CASE WHEN namespace IN " PAUSED " THEN -1 ELSE coalesce(max(?1 - max(oldest), 0), -1) END,"
    " coalesce(min(due_at), 0),"
    " coalesce((SELECT paused_at FROM @pauses AS p WHERE p.namespace = counts.namespace), 0),"
    " coalesce((SELECT min(down_since) FROM live WHERE live.namespace = counts.namespace), 0),"
    " (SELECT error FROM live WHERE live.namespace = counts.namespace ORDER BY down_since LIMIT 1)"
    " FROM counts GROUP BY namespace ORDER BY namespace";

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

int outbox_summaries(outbox_store *store) {
  int64_t now;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  return code == OUTBOX_OK ? sql_query(store, SUMMARIES_SQL, &store->reading, "i", now) : code;
}

int outbox_next_summary(outbox_store *store, outbox_summary *summary) {
  int code = reading_next(store);
  if (code != OUTBOX_ROW) return code;
  sqlite3_stmt *row = store->reading;
  *summary = (outbox_summary){.namespace = sql_column(row, 0),
                              .ready = sqlite3_column_int64(row, 1),
                              .delayed = sqlite3_column_int64(row, 2),
                              .dead = sqlite3_column_int64(row, 3),
                              .oldest_age = sqlite3_column_int64(row, 4),
                              .due_at = sqlite3_column_int64(row, 5),
                              .paused_at = sqlite3_column_int64(row, 6),
                              .down_since = sqlite3_column_int64(row, 7),
                              .error = sql_column(row, 8)};
  return code;
}
