/*
** Listing entries for operators: page by page, or by their id. And dead letters: put back, purged.
*/
#include "operations.h"

#define STATE(died_at, due_at, state)                                                              \
  ", " died_at "::bigint, " due_at "::bigint, " state "::bigint AS state"

#define OF_READY "SELECT seq, " ENTRY_COLUMNS STATE("0", "0", "0") " FROM @entries"
#define OF_DELAYED "SELECT seq, " ENTRY_COLUMNS STATE("0", "due_at", "1") " FROM @delayed"
#define OF_DEAD "SELECT seq, " ENTRY_COLUMNS STATE("died_at", "0", "2") " FROM @dead"

/* $1 is where the page begins, $2 how many, $3 the namespace or NULL. */
#define PAGE(rest) " AND ($3::text IS NULL OR namespace = $3) ORDER BY seq" rest " LIMIT $2"

/* The order of seq, of 64 indexes. */
#define READY_PAGE(compared, rest)                                                                 \
  "SELECT e.* FROM generate_series(0, 63) AS p CROSS JOIN LATERAL (" OF_READY                      \
  " WHERE partition = p AND seq " compared " $1" PAGE(rest) ") AS e ORDER BY seq" rest " LIMIT $2"

static const char *const READY_SQL[] = {READY_PAGE(">", ""), READY_PAGE("<", " DESC")};
static const char *const DELAYED_SQL[] = {OF_DELAYED " WHERE seq > $1" PAGE(""),
                                          OF_DELAYED " WHERE seq < $1" PAGE(" DESC")};
static const char *const DEAD_SQL[] = {OF_DEAD " WHERE seq > $1" PAGE(""),
                                       OF_DEAD " WHERE seq < $1" PAGE(" DESC")};

static const char FIND_SQL[] =
    OF_READY " WHERE id = $1 UNION ALL " OF_DELAYED " WHERE id = $1 UNION ALL " OF_DEAD
             " WHERE id = $1 ORDER BY state";

static const char REQUEUE_SQL[] = "SELECT @requeue($1)";

static const char PURGE_SQL[] = "DELETE FROM @dead WHERE id = ANY ($1)";

static int list(outbox_store *store, const char *const *sql, outbox_bytes namespace, int64_t after,
                int64_t limit) {
  bool back = limit < 0;
  if (limit == INT64_MIN) limit++;
  int code = transaction_ready(store);
  if (code == OUTBOX_OK)
    code = sql_run(store, sql[back], "iit", after, back ? -limit : limit, namespace);
  if (code == OUTBOX_OK) reading_start(store);
  return code;
}

int outbox_ready_entries(outbox_store *store, outbox_bytes namespace, int64_t after,
                         int64_t limit) {
  return list(store, READY_SQL, namespace, after, limit);
}

int outbox_delayed_entries(outbox_store *store, outbox_bytes namespace, int64_t after,
                           int64_t limit) {
  return list(store, DELAYED_SQL, namespace, after, limit);
}

int outbox_dead_entries(outbox_store *store, outbox_bytes namespace, int64_t after, int64_t limit) {
  return list(store, DEAD_SQL, namespace, after, limit);
}

int outbox_find_entries(outbox_store *store, outbox_bytes id) {
  int code = transaction_ready(store);
  if (code == OUTBOX_OK) code = sql_run(store, FIND_SQL, "t", id);
  if (code == OUTBOX_OK) reading_start(store);
  return code;
}

/* --- Dead letters ---------------------------------------------------------------------------- */

static int take_out(outbox_store *store, const outbox_bytes *ids, size_t count, bool requeue,
                    int64_t *taken) {
  array list = {0};
  int first;
  *taken = 0;
  if (count == 0) return OUTBOX_OK;
  int code = outbox_check_transaction(store);
  if (code == OUTBOX_OK) code = sql_check_schema(store);
  if (code != OUTBOX_OK) return code;
  for (size_t i = 0; i < count; i++)
    array_add_bytes(&list, ids[i]);
  transaction_start(store, &first);
  sql_add(store, requeue ? REQUEUE_SQL : PURGE_SQL, "T", &list);
  code = transaction_finish(store);
  array_free(&list);
  if (code != OUTBOX_OK) return code;
  const PGresult *result = sql_result(store, first);
  *taken = requeue ? sql_int(result, 0, 0) : sql_changes(result);
  return code;
}

int outbox_requeue_entries(outbox_store *store, const outbox_bytes *ids, size_t count,
                           int64_t *requeued) {
  return take_out(store, ids, count, true, requeued);
}

int outbox_purge_entries(outbox_store *store, const outbox_bytes *ids, size_t count,
                         int64_t *purged) {
  return take_out(store, ids, count, false, purged);
}
