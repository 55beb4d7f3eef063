/*
** Claiming by hand. A claim is a mask of partitions, of all namespaces. With a limit it takes whole
** partitions, the oldest first, until the limit is reached, and so may exceed it. While a processor
** holds partitions, nothing new is claimed.
*/
#include <stdlib.h>

#include "operations.h"

/* Whether a mask of partitions, $1, has anything to be had at the time $2. */
static const char ANY_SQL[] =
    "SELECT EXISTS (SELECT FROM generate_series(0, 63) AS p CROSS JOIN LATERAL"
    " (SELECT 1 FROM @entries WHERE partition = p AND " HAS_CLASS(
        "$1", "p") " LIMIT 1) AS e)"
                   " OR EXISTS (SELECT FROM @delayed WHERE due_at <= $2 AND position IS NOT NULL"
                   " AND " HAS_CLASS("$1", "partition") ")";

/* How much lies in each partition, at most $2, and where it begins. */
static const char MEASURE_SQL[] =
    "SELECT p::bigint, count(seq), min(seq) FROM generate_series(0, 63) AS p LEFT JOIN LATERAL"
    " (SELECT * FROM ((SELECT seq FROM @entries WHERE partition = p ORDER BY seq LIMIT $2)"
    " UNION ALL (SELECT position FROM @delayed WHERE due_at <= $1 AND partition = p"
    " AND position IS NOT NULL ORDER BY due_at LIMIT $2)) AS a) AS e ON true"
    " GROUP BY p ORDER BY min(seq)";

static const char INSERT_SQL[] =
    "INSERT INTO @claims (processor_id, namespaces, classes, by_hand, deadline, claimed_at)"
    " VALUES ($1, '', $2, true, $3, $4)";

static const char UPDATE_SQL[] =
    "UPDATE @claims SET classes = $2, deadline = $3, claimed_at = $4, overtime = false"
    " WHERE lease = $1";

static const char RENEW_SQL[] =
    "WITH c AS (UPDATE @claims SET deadline = $2, claimed_at = $3, overtime = false"
    " WHERE processor_id = $1 AND by_hand RETURNING lease),"
    " b AS (DELETE FROM @batches WHERE lease IN (SELECT lease FROM c))"
    " SELECT count(*) FROM c";

static const char RELEASE_SQL[] =
    "WITH c AS (DELETE FROM @claims WHERE processor_id = $1 AND by_hand RETURNING lease),"
    " b AS (DELETE FROM @batches WHERE lease IN (SELECT lease FROM c))"
    " SELECT count(pg_notify('outbox_#', 'given')) FROM c";

static const char HOLD_SQL[] =
    "WITH c AS (SELECT lease FROM @claims WHERE processor_id = $1 AND by_hand LIMIT 1),"
    " d AS (DELETE FROM @batches WHERE lease IN (SELECT lease FROM c))"
    " INSERT INTO @batches (lease, partitions, places) SELECT lease, $2::smallint[], $3 FROM c"
    " WHERE cardinality($3) > 0";

/* It tears the SQL apart. */
/* clang-format off */

/* An entry waits for an earlier retry of its key, unless that one is due, and read before it. */
#define IS_HELD(table, place)                                                                      \
  "EXISTS (SELECT FROM @delayed AS r WHERE r.namespace = " table ".namespace"                      \
  " AND r.key = " table ".key AND r.position < " place " AND r.due_at > $2)"
#define STATE(due_at, state) ", 0::bigint, " due_at ", " state "::bigint, "

/*
** $1 the processor, $2 now, $3 how many. A small batch has the oldest of all partitions, a large
** one all that it can have of the first ones, beginning with the one that begins first.
*/
#define READ(first, enough)                                                                        \
  "WITH mine AS MATERIALIZED (SELECT p FROM @claims AS c CROSS JOIN generate_series(0, 63) AS p"   \
  first " WHERE c.processor_id = $1 AND c.by_hand AND c.deadline >= $2"                            \
  " AND " HAS_CLASS("c.classes", "p") " ORDER BY seq)"                                             \
  " SELECT * FROM ((SELECT e.* FROM mine CROSS JOIN LATERAL"                                       \
  " (SELECT seq AS place, " ENTRY_COLUMNS STATE("0::bigint", "0") "partition::bigint"              \
  " FROM @entries AS e WHERE partition = p AND NOT " IS_HELD("e", "e.seq")                         \
  " AND NOT " IS_PAUSED("e.namespace") " ORDER BY seq LIMIT $3) AS e" enough ")"                   \
  " UNION ALL SELECT position, " ENTRY_COLUMNS STATE("due_at", "1") "partition::bigint"            \
  " FROM @delayed AS d WHERE due_at <= $2 AND position IS NOT NULL"                                \
  " AND partition IN (SELECT p FROM mine) AND NOT " IS_HELD("d", "d.position")                     \
  " AND NOT " IS_PAUSED("d.namespace") ") AS a ORDER BY place LIMIT $3"

#define LARGE 32 /* a batch */
static const char READ_SQL[] = READ(" CROSS JOIN (SELECT 0 AS seq) AS f", "");
static const char READ_LARGE_SQL[] = READ(" LEFT JOIN LATERAL (SELECT seq FROM @entries"
                                          " WHERE partition = p ORDER BY seq LIMIT 1) AS f ON true",
                                          " LIMIT $3");

/* clang-format on */

/* A claim in the making. */
typedef struct claim {
  outbox_store *store;
  outbox_bytes processor_id;
  int64_t now, deadline, limit;
  int64_t own;             /* the row of the processor; 0: none */
  uint64_t classes, taken; /* its own; those of others */
  bool shut;               /* a processor holds partitions */
  int64_t lapses_at, due_at;
  bool more, any, work;
  bool grown; /* it has partitions that it had not */
} claim;

static int look(claim *c) {
  PGresult *rows;
  int code = lease_read_all(c->store, &rows);
  for (int i = 0; i < PQntuples(rows) && code == OUTBOX_OK; i++) {
    claim_row row = lease_row(rows, i);
    bool reaped = false, own = row.by_hand && bytes_equal(row.processor_id, c->processor_id);
    if (own) {
      c->own = row.lease;
      c->classes = row.classes;
      code = lease_charge(c->store, &row, c->now); /* what is in hand still was cut off */
      continue;
    }
    if (lease_has_lapsed(c->store, &row, c->now))
      code = lease_reap(c->store, &row, c->now, &reaped);
    if (reaped || row.classes == 0) continue;
    c->lapses_at = time_earlier(c->lapses_at, clock_later(row.deadline, 1));
    c->shut |= !row.by_hand;
    c->taken |= row.classes;
  }
  PQclear(rows);
  return code;
}

static int follow_the_clock(claim *c) {
  bool ahead;
  int code = due_look(c->store, c->now, &c->due_at, &ahead);
  if (code == OUTBOX_OK && !c->shut) code = due_promote(c->store, c->now, &c->more);
  return code == OUTBOX_OK && ahead ? due_correct(c->store, c->now) : code;
}

/* Takes whole partitions until there is enough, its own first. */
static int choose(claim *c, uint64_t available) {
  int code = sql_run(c->store, MEASURE_SQL, "ii", c->now, c->limit);
  if (code != OUTBOX_OK) return code;
  const PGresult *rows = sql_result(c->store, 0);
  uint64_t own = c->classes, chosen = 0;
  int64_t count = 0;
  for (int pass = 0; pass < 2; pass++)
    for (int i = 0; i < PQntuples(rows) && count < c->limit; i++) {
      uint64_t bit = (uint64_t)1 << sql_int(rows, i, 0);
      int64_t some = sql_int(rows, i, 1);
      if (some == 0 || (chosen & bit) != 0 || ((pass == 0 ? own : available) & bit) == 0) continue;
      chosen |= bit;
      count += some;
    }
  c->classes = chosen;
  return OUTBOX_OK;
}

static int save(claim *c) {
  if (!c->any) return c->own != 0 ? lease_remove(c->store, c->own) : OUTBOX_OK;
  if (c->own != 0)
    return sql_run(c->store, UPDATE_SQL, "iiii", c->own, (int64_t)c->classes, c->deadline, c->now);
  return sql_run(c->store, INSERT_SQL, "tiii", c->processor_id, (int64_t)c->classes, c->deadline,
                 c->now);
}

static int claim_inside(claim *c) {
  int code = lease_lock(c->store);
  if (code == OUTBOX_OK) code = store_now_inside(c->store, &c->now);
  if (code == OUTBOX_OK) code = look(c);
  if (code == OUTBOX_OK) code = follow_the_clock(c);
  if (code != OUTBOX_OK) return code;
  uint64_t available = c->shut ? 0 : ~c->taken, before = c->classes;
  if (c->limit > 0)
    code = choose(c, available);
  else
    c->classes |= available;
  if (code == OUTBOX_OK) code = sql_run(c->store, ANY_SQL, "ii", (int64_t)c->classes, c->now);
  if (code != OUTBOX_OK) return code;
  c->grown = (c->classes & ~before) != 0;
  c->any = c->classes != 0 && sql_bool(sql_result(c->store, 0), 0, 0);
  code = sql_run(c->store, ANY_SQL, "ii", (int64_t)-1, c->now);
  if (code == OUTBOX_OK) c->work = sql_bool(sql_result(c->store, 0), 0, 0);
  return code == OUTBOX_OK ? save(c) : code;
}

int outbox_claim_entries(outbox_store *store, outbox_bytes processor_id, int64_t deadline,
                         int64_t limit, outbox_claimed *claimed) {
  claim c = {.store = store, .processor_id = processor_id, .deadline = deadline, .limit = limit};
  int code = transaction_ready(store);
  if (code == OUTBOX_OK) code = store_now(store, &c.now);
  if (code == OUTBOX_OK) code = outbox_begin(store);
  if (code == OUTBOX_OK) code = transaction_end(store, claim_inside(&c));
  if (code == OUTBOX_OK) bell_see(store, c.any && c.grown);
  *claimed =
      (outbox_claimed){.any = c.any, .again_at = time_earlier(c.due_at, c.work ? c.lapses_at : 0)};
  if (c.more) claimed->again_at = c.now;
  return code;
}

/* --- Reading what is claimed, and keeping it ------------------------------------------------- */

static int make_room(outbox_store *store, int rows) {
  size_t room = (size_t)rows;
  store->hand_count = 0;
  if (room <= store->hand_room) return OUTBOX_OK;
  int64_t *places = realloc(store->hand_places, room * sizeof *places);
  if (places != NULL) store->hand_places = places;
  int64_t *partitions = realloc(store->hand_partitions, room * sizeof *partitions);
  if (partitions != NULL) store->hand_partitions = partitions;
  if (places == NULL || partitions == NULL) return store_fail_nomem(store);
  store->hand_room = room;
  return OUTBOX_OK;
}

int outbox_get_claimed_entries(outbox_store *store, outbox_bytes processor_id, int64_t batch_size,
                               int64_t batch_bytes) {
  int64_t now;
  const char *sql = batch_size < LARGE ? READ_SQL : READ_LARGE_SQL;
  int code = transaction_ready(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code == OUTBOX_OK) code = sql_run(store, sql, "tii", processor_id, now, batch_size);
  if (code == OUTBOX_OK) code = make_room(store, PQntuples(sql_result(store, 0)));
  if (code != OUTBOX_OK) return code;
  reading_start(store);
  if (batch_bytes > 0) store->bytes_left = batch_bytes;
  return OUTBOX_OK;
}

int outbox_hold_batch(outbox_store *store, outbox_bytes processor_id) {
  array places = {0}, partitions = {0};
  int first;
  int code = transaction_ready(store);
  if (code != OUTBOX_OK) return code;
  for (size_t i = 0; i < store->hand_count; i++) {
    array_add_int(&places, store->hand_places[i]);
    array_add_int(&partitions, store->hand_partitions[i]);
  }
  transaction_start(store, &first);
  sql_add(store, HOLD_SQL, "tII", processor_id, &partitions, &places);
  code = transaction_finish(store);
  array_free(&places);
  array_free(&partitions);
  return code;
}

int outbox_renew_claim(outbox_store *store, outbox_bytes processor_id, int64_t deadline,
                       bool *renewed) {
  int64_t now;
  int first, code = transaction_ready(store);
  *renewed = false;
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code != OUTBOX_OK) return code;
  transaction_start(store, &first);
  sql_add(store, RENEW_SQL, "tii", processor_id, deadline, now);
  code = transaction_finish(store);
  if (code == OUTBOX_OK) *renewed = sql_int(sql_result(store, first), 0, 0) > 0;
  return code;
}

int outbox_release_claim(outbox_store *store, outbox_bytes processor_id) {
  int first, code = transaction_ready(store);
  if (code != OUTBOX_OK) return code;
  transaction_start(store, &first);
  sql_add(store, RELEASE_SQL, "t", processor_id);
  return transaction_finish(store);
}
