/*
** Counting: how much waits, and how long it has waited.
*/
#include "operations.h"

/* What is paused is neither late nor down. */
#define PAUSED "(SELECT namespace FROM @pauses)"

/* Of the ready entries, the oldest of each partition. $1 is now. */
static const char COUNT_SQL[] =
    "SELECT (SELECT count(*) FROM @entries), (SELECT count(*) FROM @delayed),"
    " (SELECT count(*) FROM @dead), coalesce((SELECT CASE WHEN count(*) > 0"
    " THEN greatest($1 - min(created_at), 0) END"
    " FROM generate_series(0, 63) AS p CROSS JOIN LATERAL (SELECT created_at FROM @entries"
    " WHERE partition = p AND namespace NOT IN " PAUSED " ORDER BY seq LIMIT 1) AS e), -1),"
    " coalesce((SELECT due_at FROM @delayed WHERE namespace NOT IN " PAUSED
    " ORDER BY due_at LIMIT 1), 0),"
    " (SELECT count(position) FROM @delayed),"
    " (SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM @seq)";

static const char SUMMARIES_SQL[] =
    "WITH live AS (SELECT o.namespace, o.down_since, o.error FROM @outages AS o"
    " JOIN @claims AS c ON c.lease = o.lease WHERE c.deadline >= $1"
    " AND o.namespace NOT IN " PAUSED "),"
    " counts (namespace, ready, delayed, dead, due_at, oldest) AS"
    " (SELECT namespace, count(*), 0, 0, NULL::bigint, min(created_at) FROM @entries"
    " GROUP BY namespace"
    " UNION ALL SELECT namespace, 0, count(*), 0, min(due_at), NULL FROM @delayed"
    " GROUP BY namespace"
    " UNION ALL SELECT namespace, 0, 0, count(*), NULL, NULL FROM @dead GROUP BY namespace"
    " UNION ALL SELECT namespace, 0, 0, 0, NULL, NULL FROM @pauses"
    " UNION ALL SELECT namespace, 0, 0, 0, NULL, NULL FROM live)"
    " SELECT n.namespace, sum(ready)::bigint, sum(delayed)::bigint, sum(dead)::bigint,"
    " CASE WHEN n.namespace IN " PAUSED
    " OR max(oldest) IS NULL THEN -1 ELSE greatest($1 - max(oldest), 0) END,"
    " coalesce(min(due_at), 0),"
    " coalesce((SELECT paused_at FROM @pauses AS p WHERE p.namespace = n.namespace), 0),"
    " coalesce((SELECT min(down_since) FROM live WHERE live.namespace = n.namespace), 0),"
    " (SELECT error FROM live WHERE live.namespace = n.namespace ORDER BY down_since LIMIT 1)"
    " FROM counts AS n GROUP BY n.namespace ORDER BY n.namespace COLLATE \"C\"";

int outbox_count_entries(outbox_store *store, outbox_counts *counts) {
  int64_t now;
  int code = transaction_ready(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code == OUTBOX_OK) code = sql_run(store, COUNT_SQL, "i", now);
  if (code != OUTBOX_OK) return code;
  const PGresult *row = sql_result(store, 0);
  *counts = (outbox_counts){.ready = sql_int(row, 0, 0),
                            .delayed = sql_int(row, 0, 1),
                            .dead = sql_int(row, 0, 2),
                            .oldest_age = sql_int(row, 0, 3),
                            .due_at = sql_int(row, 0, 4),
                            .retries = sql_int(row, 0, 5),
                            .last_seq = sql_int(row, 0, 6)};
  return code;
}

int outbox_summaries(outbox_store *store) {
  int64_t now;
  int code = transaction_ready(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code == OUTBOX_OK) code = sql_run(store, SUMMARIES_SQL, "i", now);
  if (code == OUTBOX_OK) reading_start(store);
  return code;
}

int outbox_next_summary(outbox_store *store, outbox_summary *summary) {
  const PGresult *result;
  int row, code = reading_next(store, &result, &row);
  if (code != OUTBOX_ROW) return code;
  *summary = (outbox_summary){.namespace = sql_bytes(result, row, 0),
                              .ready = sql_int(result, row, 1),
                              .delayed = sql_int(result, row, 2),
                              .dead = sql_int(result, row, 3),
                              .oldest_age = sql_int(result, row, 4),
                              .due_at = sql_int(result, row, 5),
                              .paused_at = sql_int(result, row, 6),
                              .down_since = sql_int(result, row, 7),
                              .error = sql_bytes(result, row, 8)};
  return code;
}
