/*
** What becomes of an entry, ready or delayed: deleted once delivered, delayed for a retry, buried.
** A round trip settles all entries of a batch. Those that were ready, and delivered, are found
** where their rows lie, which costs a third, or by partition and seq; all others by their ids.
*/
#include <stdlib.h>

#include "operations.h"

/*
** $1 where the rows lie, $2 their seqs. Another row may be there by now, but not one of these seqs,
** unless the server has crashed; and then this is another connection.
*/
static const char DELETE_HERE_SQL[] =
    "DELETE FROM @entries WHERE ctid = ANY ($1::tid[]) AND seq = ANY ($2::bigint[])";

/* $1 partitions, $2 seqs, $3 ids. IS TRUE: the index on ids, which is larger, is not to be used. */
static const char DELETE_READY_SQL[] =
    "DELETE FROM @entries AS e USING unnest($1::bigint[], $2::bigint[], $3::text[])"
    " AS t (partition, seq, id) WHERE e.partition = t.partition::smallint AND e.seq = t.seq"
    " AND (e.id = t.id) IS TRUE";

/*
** $1 seqs, $2 ids, $3 outcomes, $4 attempts to add, $5 times, $6 errors; $7 the claim that must be
** there still, 0: none. An entry with the lowest seq is meant by its id alone.
*/
#define VERDICTS                                                                                   \
  " unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::text[])"        \
  " AS t (seq, id, outcome, charge, at, error)"
#define MAY " AND ($7 = 0 OR EXISTS (SELECT FROM @claims WHERE lease = $7))"
#define ANY_SEQ "'-9223372036854775808'::bigint"
#define IS_IT(place) " AND t.seq IN (" place ", " ANY_SEQ ")"
#define DELIVERED " AND t.outcome = 1"
#define DELAYS " AND t.outcome IN (2, 3)" MAY
#define BURIED " AND t.outcome = 4" MAY

#define RETURNED " RETURNING t.seq, t.id"

static const char DELETE_SQL[] = "WITH a AS (DELETE FROM @entries AS e USING" VERDICTS
                                 " WHERE e.id = t.id" IS_IT("e.seq") DELIVERED RETURNED
    "),"
    " b AS (DELETE FROM @delayed AS e USING" VERDICTS " WHERE e.id = t.id" IS_IT("e.position")
        DELIVERED RETURNED ")"
                           " SELECT * FROM a UNION ALL SELECT * FROM b";

/* What an entry becomes: its columns, with the charge. */
#define COPIED "e.namespace, e.key, e.payload, e.payload_bytes, e.headers, e.created_at,"
#define CHARGED " e.attempts + t.charge, coalesce(t.error, e.last_error), e.source_id"
#define TAKEN(table, place)                                                                        \
  "DELETE FROM @" table " AS e USING" VERDICTS " WHERE e.id = t.id" IS_IT(place)
#define GIVEN " RETURNING t.seq AS asked, t.id AS asked_id, e.id, " COPIED CHARGED ", e.seq, t.at, "

/* The id; changed where plain SQL has published it twice and the table holds the other one. */
#define FREE_ID(table, place)                                                                      \
  "CASE WHEN EXISTS (SELECT FROM @" table " AS o WHERE o.id = d.id)"                               \
  " THEN d.id || '~' || " place " ELSE d.id END"

#define MOVED                                                                                      \
  "(asked, asked_id, id, namespace, key, payload, payload_bytes, headers, created_at, attempts,"   \
  " last_error, source_id, seq, at, partition)"
#define REST                                                                                       \
  ", namespace, key, payload, payload_bytes, headers, created_at, attempts, last_error, source_id"

/* $8 is now. */
static const char DELAY_SQL[] = "WITH d " MOVED " AS (" TAKEN("entries", "e.seq") DELAYS GIVEN
    "e.partition),"
    " i AS (INSERT INTO @delayed (id" REST ", seq, due_at, position, partition, delayed_at)"
    " SELECT " FREE_ID("delayed", "d.seq") REST
    ", seq, at, seq, partition, $8 FROM d),"
    " u AS (UPDATE @delayed AS e SET attempts = e.attempts + t.charge,"
    " last_error = coalesce(t.error, e.last_error), due_at = t.at,"
    " delayed_at = CASE WHEN e.position IS NOT NULL THEN $8 END FROM" VERDICTS
    " WHERE e.id = t.id" IS_IT("e.position") DELAYS
    " AND NOT EXISTS (SELECT FROM d"
    " WHERE d.asked = t.seq AND d.asked_id = t.id)" RETURNED ")"
    " SELECT asked, asked_id FROM d UNION ALL SELECT * FROM u";

static const char BURY_SQL[] = "WITH d " MOVED " AS (" TAKEN("entries", "e.seq") BURIED GIVEN
    "e.partition),"
    " f " MOVED " AS (" TAKEN("delayed", "e.position") BURIED GIVEN
    "e.partition),"
    " i AS (INSERT INTO @dead (id" REST ", seq, died_at)"
    " SELECT " FREE_ID("dead", "d.seq") REST
    ", seq, $8 FROM"
    " (SELECT * FROM d UNION ALL SELECT * FROM f) AS d)"
    " SELECT asked, asked_id FROM d UNION ALL SELECT asked, asked_id FROM f";

/* A scheduled entry is known by its id alone; dead letters have places. */
static const char BURY_SCHEDULED_SQL[] =
    "WITH d AS (DELETE FROM @delayed WHERE id = $1 AND position IS NULL RETURNING *)"
    " INSERT INTO @dead (id" REST ", seq, died_at) SELECT " FREE_ID(
        "dead", "d.seq") ", namespace,"
                         " key, payload, payload_bytes, headers, created_at, attempts + $2, "
                         "coalesce($3, last_error),"
                         " source_id, nextval('@seq'), $4 FROM d";

static const char DELAY_SCHEDULED_SQL[] =
    "UPDATE @delayed SET attempts = attempts + $2, last_error = coalesce($3, last_error),"
    " due_at = $4 WHERE id = $1 AND position IS NULL";

static const char DELETE_SCHEDULED_SQL[] =
    "DELETE FROM @delayed WHERE id = ANY ($1) AND position IS NULL";

static const char IS_WAITING_SQL[] =
    "SELECT EXISTS (SELECT FROM generate_series(0, 63) AS p CROSS JOIN LATERAL"
    " (SELECT 1 FROM @entries WHERE partition = p AND seq = $1 LIMIT 1) AS e)"
    " OR EXISTS (SELECT FROM @delayed WHERE position = $1)";

/* A processor may wait for nothing but what was settled by hand: see @ring(). */
static const char RING_SQL[] = "SELECT CASE WHEN pg_try_advisory_lock(#, 1026) THEN"
                               " pg_advisory_unlock(#, 1026)::text"
                               " ELSE pg_notify('outbox_#', 'given')::text END";

/* --- Many at once ---------------------------------------------------------------------------- */

/* The text of an error, which must never be why a settlement fails. */
static bool add_error(settlement *s, outbox_bytes error) {
  char *copy;
  outbox_bytes text = text_clean(error, &copy);
  array_add_bytes(&s->errors, text);
  if (copy == NULL) return text.data != NULL || error.data == NULL;
  char **larger = realloc(s->copies, (s->copy_count + 1) * sizeof *larger);
  if (larger == NULL) {
    free(copy);
    return false;
  }
  s->copies = larger;
  s->copies[s->copy_count++] = copy;
  return true;
}

bool settle_add(settlement *s, outbox_identity entry, spot spot, outbox_verdict *verdict) {
  bool delivered = verdict->outcome == OUTBOX_DELIVERED;
  verdict->found = verdict->outcome == OUTBOX_AGAIN || (delivered && spot.partition >= 0);
  if (verdict->outcome == OUTBOX_AGAIN) return true;
  if (delivered && spot.partition >= 0) {
    array_add_int(&s->partitions, spot.partition);
    if (spot.tid != 0) array_add_tid(&s->tids, spot.tid);
    array_add_int(&s->delivered_seqs, entry.seq);
    array_add_bytes(&s->delivered_ids, entry.id);
    return true;
  }
  bool buries = verdict->outcome == OUTBOX_BURY;
  array_add_int(&s->seqs, entry.seq);
  array_add_bytes(&s->ids, entry.id);
  array_add_int(&s->outcomes, (int64_t)verdict->outcome);
  array_add_int(&s->charges,
                verdict->outcome == OUTBOX_RETRY || (buries && verdict->error.data != NULL));
  array_add_int(&s->times, verdict->at);
  s->deletes |= delivered;
  s->buries |= buries;
  s->delays |= !delivered && !buries;
  return add_error(s, verdict->error);
}

static void send(outbox_store *store, const char *sql, settlement *s, int64_t lease, int64_t now) {
  if (sql == DELETE_SQL)
    sql_add(store, sql, "ITIIITi", &s->seqs, &s->ids, &s->outcomes, &s->charges, &s->times,
            &s->errors, lease);
  else
    sql_add(store, sql, "ITIIITii", &s->seqs, &s->ids, &s->outcomes, &s->charges, &s->times,
            &s->errors, lease, now);
}

void settle_send(outbox_store *store, settlement *s, int64_t lease, int64_t now) {
  if (s->delivered_seqs.count > 0 && s->tids.count == s->delivered_seqs.count)
    sql_add(store, DELETE_HERE_SQL, "DI", &s->tids, &s->delivered_seqs);
  else if (s->delivered_seqs.count > 0)
    sql_add(store, DELETE_READY_SQL, "IIT", &s->partitions, &s->delivered_seqs, &s->delivered_ids);
  if (s->deletes) send(store, DELETE_SQL, s, lease, now);
  if (s->delays) send(store, DELAY_SQL, s, lease, now);
  if (s->buries) send(store, BURY_SQL, s, lease, now);
}

/* Marks the verdict of an entry that a row names. */
static void mark(const PGresult *rows, int row, outbox_verdict *verdicts,
                 const outbox_identity *entries, size_t count) {
  int64_t seq = sql_int(rows, row, 0);
  outbox_bytes id = sql_bytes(rows, row, 1);
  for (size_t i = 0; i < count; i++)
    if (entries[i].seq == seq && bytes_equal(entries[i].id, id)) verdicts[i].found = true;
}

/* Those that settle_add took for found were there unless the number differs. */
static void check_delivered(const settlement *s, int64_t changes, outbox_verdict *verdicts,
                            size_t count) {
  for (size_t i = 0; i < count && changes != s->delivered_seqs.count; i++)
    if (verdicts[i].outcome == OUTBOX_DELIVERED) verdicts[i].found = false;
}

void settle_results(outbox_store *store, settlement *s, outbox_verdict *verdicts,
                    const outbox_identity *entries, size_t count) {
  for (int c = 0; c < store->call_count; c++) {
    const char *sql = store->calls[c].statement->sql;
    int64_t changes = sql_changes(store->calls[c].result);
    if (sql == DELETE_HERE_SQL) s->missed = s->delivered_seqs.count - (int)changes;
    if (sql == DELETE_READY_SQL) check_delivered(s, changes, verdicts, count);
  }
  for (int c = 0; c < store->call_count; c++) {
    const char *sql = store->calls[c].statement->sql;
    const PGresult *rows = store->calls[c].result;
    if (sql == DELETE_SQL || sql == DELAY_SQL || sql == BURY_SQL)
      for (int row = 0; row < PQntuples(rows); row++)
        mark(rows, row, verdicts, entries, count);
  }
}

int settle_missed(outbox_store *store, settlement *s, outbox_verdict *verdicts, size_t count) {
  int64_t changes = s->delivered_seqs.count - s->missed;
  int code = sql_run(store, DELETE_READY_SQL, "IIT", &s->partitions, &s->delivered_seqs,
                     &s->delivered_ids);
  if (code == OUTBOX_OK) changes += sql_changes(sql_result(store, 0));
  check_delivered(s, changes, verdicts, count);
  return code;
}

void settle_free(settlement *s) {
  array_free(&s->partitions);
  array_free(&s->tids);
  array_free(&s->delivered_seqs);
  array_free(&s->delivered_ids);
  array_free(&s->seqs);
  array_free(&s->ids);
  array_free(&s->outcomes);
  array_free(&s->charges);
  array_free(&s->times);
  array_free(&s->errors);
  for (size_t i = 0; i < s->copy_count; i++)
    free(s->copies[i]);
  free(s->copies);
}

/* --- By hand --------------------------------------------------------------------------------- */

int outbox_is_waiting(outbox_store *store, int64_t seq, bool *waits) {
  *waits = false;
  int code = transaction_ready(store);
  if (code == OUTBOX_OK) code = sql_run(store, IS_WAITING_SQL, "i", seq);
  if (code == OUTBOX_OK) *waits = sql_bool(sql_result(store, 0), 0, 0);
  return code;
}

/* Settles one entry; one that is meant by its id alone may be scheduled, too. */
static int settle(outbox_store *store, outbox_identity entry, outbox_verdict verdict, bool *found) {
  settlement s = {0};
  int64_t now = 0;
  int first;
  *found = false;
  int code = outbox_check_transaction(store);
  if (code == OUTBOX_OK) code = sql_check_schema(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code != OUTBOX_OK) return code;
  if (!settle_add(&s, entry, (spot){-1, 0}, &verdict)) {
    settle_free(&s);
    return store_fail_nomem(store);
  }
  bool buries = verdict.outcome == OUTBOX_BURY, scheduled = entry.seq == OUTBOX_ANY_SEQ;
  char *copy = NULL;
  outbox_bytes error = text_clean(verdict.error, &copy);
  int64_t charge = verdict.error.data != NULL;
  transaction_start(store, &first);
  settle_send(store, &s, 0, now);
  if (scheduled)
    sql_add(store, buries ? BURY_SCHEDULED_SQL : DELAY_SCHEDULED_SQL, "titi", entry.id, charge,
            error, buries ? now : verdict.at);
  sql_add(store, RING_SQL, "");
  code = transaction_finish(store);
  if (code == OUTBOX_OK) {
    *found = PQntuples(sql_result(store, first)) > 0;
    if (scheduled && !*found) *found = sql_changes(sql_result(store, first + 1)) > 0;
  }
  free(copy);
  settle_free(&s);
  return code;
}

int outbox_retry_entry(outbox_store *store, outbox_identity entry, int64_t due_at,
                       outbox_bytes error, bool *found) {
  outbox_verdict verdict = {
      .outcome = error.data != NULL ? OUTBOX_RETRY : OUTBOX_PUT_OFF, .at = due_at, .error = error};
  return settle(store, entry, verdict, found);
}

int outbox_bury_entry(outbox_store *store, outbox_identity entry, outbox_bytes error, bool *found) {
  return settle(store, entry, (outbox_verdict){.outcome = OUTBOX_BURY, .error = error}, found);
}

int outbox_delete_entries(outbox_store *store, const outbox_identity *entries, size_t count,
                          int64_t *deleted) {
  settlement s = {0};
  array scheduled = {0};
  int first;
  *deleted = 0;
  if (count == 0) return OUTBOX_OK;
  int code = outbox_check_transaction(store);
  if (code == OUTBOX_OK) code = sql_check_schema(store);
  if (code != OUTBOX_OK) return code;
  for (size_t i = 0; i < count; i++) {
    outbox_verdict verdict = {.outcome = OUTBOX_DELIVERED};
    settle_add(&s, entries[i], (spot){-1, 0}, &verdict);
    if (entries[i].seq == OUTBOX_ANY_SEQ) array_add_bytes(&scheduled, entries[i].id);
  }
  transaction_start(store, &first);
  settle_send(store, &s, 0, 0);
  if (scheduled.count > 0) sql_add(store, DELETE_SCHEDULED_SQL, "T", &scheduled);
  sql_add(store, RING_SQL, "");
  code = transaction_finish(store);
  if (code == OUTBOX_OK) {
    *deleted = PQntuples(sql_result(store, first));
    if (scheduled.count > 0) *deleted += sql_changes(sql_result(store, first + 1));
  }
  settle_free(&s);
  array_free(&scheduled);
  return code;
}
