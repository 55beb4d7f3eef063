/*
** Reading the next batch, and noting that it is in hand: one statement, which begins where the
** cursor is, and tells how far it has looked.
**
** The last row of a result is no entry: it names the last place that was looked at, and whether
** that was the end. Others name places that were left behind, and suspects.
*/
#include "lane.h"

#define LARGE 8   /* a batch, in which the partitions take turns */
#define SPREAD 16 /* from so many partitions a batch is, so that it has many keys */

/* --- SQL ------------------------------------------------------------------------------------- */

/* It tears the SQL apart. */
/* clang-format off */

#define LAPSED "'" OUTBOX_LAPSED "'"
#define SIZE                                                                                       \
  "octet_length(id) + octet_length(namespace) + coalesce(octet_length(key), 0)"                    \
  " + coalesce(octet_length(payload), octet_length(payload_bytes), 0)"                             \
  " + coalesce(octet_length(headers), 0)"

/*
** Of the rows `b`, those that fit into the batch are in hand from now on: mostly all, so nothing is
** copied to find out.
*/
#define IS_CHOSEN "((SELECT whole FROM a) OR place IN (SELECT place FROM k))"
#define HOLD                                                                                       \
  ", a AS MATERIALIZED (SELECT count(*) FILTER (WHERE last_error = " LAPSED ") = 0 AND ($5 = 0"    \
  " OR coalesce(sum(" SIZE ") FILTER (WHERE $5 <> 0), 0) <= $5) AS whole FROM b),"                 \
  " k AS (SELECT place FROM (SELECT place, row_number() OVER w AS n, sum(" SIZE ") OVER w"         \
  " AS bytes, count(*) FILTER (WHERE last_error = " LAPSED ") OVER w AS lapses FROM b"             \
  " WINDOW w AS (ROWS UNBOUNDED PRECEDING)) AS c"                                                  \
  " WHERE n = 1 OR (lapses = 0 AND ($5 = 0 OR bytes <= $5))),"                                     \
  " h AS (INSERT INTO @batches (lease, partitions, places)"                                        \
  " SELECT $3, array_agg(partition), array_agg(place) FROM b WHERE " IS_CHOSEN                     \
  " HAVING count(*) > 0 AND EXISTS (SELECT FROM @claims WHERE lease = $3) RETURNING number)"

#define FOUND(seq)                                                                                 \
  " SELECT place, " ENTRY_COLUMNS ", partition, delayed, (SELECT number FROM h), 0::bigint, " seq  \
  ", tid FROM b WHERE " IS_CHOSEN
#define CUT "NOT (SELECT whole FROM a)"

#define NO_ENTRY                                                                                   \
  " UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL"
#define END(partition, early, seq)                                                                 \
  NO_ENTRY ", " partition ", " early ", NULL, 1, " seq ", NULL"

/* Whether a retry holds an entry back. The first half is asked once, and mostly answers for all. */
#define EARLIER(table, place)                                                                      \
  "((SELECT EXISTS (SELECT FROM @delayed WHERE position IS NOT NULL))"                             \
  " AND EXISTS (SELECT FROM @delayed AS d WHERE d.namespace = " table ".namespace"                 \
  " AND d.key = " table ".key AND d.position < " place "))"

/* Whether an earlier one of its key is ready. `bounds`: up to there none is, by partition. */
#define READY_BEFORE(place, bounds)                                                                \
  "EXISTS (SELECT FROM @entries AS o WHERE o.partition = e.partition"                              \
  " AND o.seq > (" bounds ")[e.partition + 1] AND o.seq < " place                                  \
  " AND o.namespace = e.namespace AND o.key = e.key)"

/* Open writers and their floors: those that have ended. A reading begins at their floors. */
#define ENDED(xids, floors)                                                                        \
  "WITH o AS MATERIALIZED (SELECT xid, floor"                                                      \
  " FROM unnest(" xids "::bigint[], " floors "::bigint[]) AS o (xid, floor)"                     \
  " WHERE pg_visible_in_snapshot(xid::text::xid8, pg_current_snapshot())), "
#define FLOOR "least(t.low, (SELECT min(floor) FROM o))"
#define TELL_ENDED NO_ENTRY ", NULL, false, NULL, 5, xid, NULL FROM o"

/*
** The usual one: all namespaces, order by key. $1 partitions, $2 where each begins. A small batch
** has the oldest of all partitions, a large one up to $6 of each of the first ones. It has no row
** for the end: the last entry is the end, and each tells in `seq` whether the batch was cut.
*/
#define FAST(with, low, order)                                                                     \
  with "b AS MATERIALIZED (SELECT e.* FROM unnest($1::bigint[], $2::bigint[]) AS t (p, low)"       \
  " CROSS JOIN LATERAL (SELECT partition, seq AS place, " ENTRY_COLUMNS ", false AS delayed,"      \
  " ctid AS tid FROM @entries AS e WHERE e.partition = t.p::smallint AND e.seq > " low             \
  " AND NOT " EARLIER("e", "e.seq") " AND NOT " IS_PAUSED("e.namespace")                           \
  " ORDER BY e.seq LIMIT $6) AS e" order " LIMIT $4)" HOLD                                         \
  FOUND("CASE WHEN " CUT " THEN 0::bigint END")

static const char FAST_SQL[] = FAST("WITH ", "t.low", "");
static const char FAST_OLDEST_SQL[] = FAST("WITH ", "t.low", " ORDER BY place");

/* The same beside open writers. */
static const char BESIDE_SQL[] = FAST(ENDED("$7", "$8"), FLOOR, "") TELL_ENDED;
static const char BESIDE_OLDEST_SQL[] =
    FAST(ENDED("$7", "$8"), FLOOR, " ORDER BY place") TELL_ENDED;

/*
** Any other: looks at $6 rows, at most $11 of a partition. $7 namespaces, or $8 all but these; $9
** those that are left behind; $10 the ordering; $12 open writers, $13 their floors.
*/
#define IS_SERVED(names, except) "(namespace = ANY (" names ")) <> " except
#define WALK(numbered)                                                                             \
  ENDED("$12", "$13")                                                                              \
  "w AS MATERIALIZED (SELECT row_number() OVER (" numbered ") AS r, e.*"                          \
  " FROM unnest($1::bigint[], $2::bigint[]) AS t (p, low)"                                         \
  " CROSS JOIN LATERAL (SELECT partition, seq, namespace, key FROM @entries AS e"                  \
  " WHERE e.partition = t.p::smallint AND e.seq > " FLOOR                                      \
  " ORDER BY e.seq LIMIT $11) AS e LIMIT $6),"                                                     \
  " g AS MATERIALIZED (SELECT * FROM w WHERE " IS_SERVED("$7", "$8")                               \
  " AND NOT (namespace = ANY ($9)) AND NOT " IS_PAUSED("w.namespace")                              \
  " AND NOT CASE $10 WHEN 1 THEN " EARLIER("w", "w.seq")                                           \
  " WHEN 2 THEN EXISTS (SELECT FROM @delayed AS d WHERE d.position < w.seq AND "                   \
  IS_SERVED("$7", "$8") ") ELSE false END LIMIT $4),"                                              \
  " b AS MATERIALIZED (SELECT g.r, e.* FROM g CROSS JOIN LATERAL (SELECT partition,"               \
  " seq AS place, " ENTRY_COLUMNS ", false AS delayed, ctid AS tid"                                \
  " FROM @entries AS e WHERE e.partition = g.partition AND e.seq = g.seq) AS e)" HOLD ","          \
  " s AS (SELECT CASE WHEN " CUT " OR (SELECT count(*) FROM b) = $4"                               \
  " THEN (SELECT max(r) FROM b WHERE " IS_CHOSEN ") ELSE (SELECT max(r) FROM w) END AS r)"         \
  FOUND("NULL::bigint") NO_ENTRY_BUT("namespace") ", partition, false, NULL, 2, min(seq), NULL"    \
  " FROM w WHERE namespace = ANY ($9) AND r <= (SELECT r FROM s)"                                  \
  " GROUP BY namespace, partition"                                                                 \
  TELL_ENDED                                                                                       \
  NO_ENTRY ", partition, count(*) = $11, NULL, 4, max(seq), NULL"                                  \
  " FROM w WHERE r <= (SELECT r FROM s) GROUP BY partition"                                        \
  END("(SELECT partition FROM w WHERE r = (SELECT r FROM s))",                                     \
      CUT " OR (SELECT count(*) FROM b) = $4 OR (SELECT count(*) FROM w) = $6",                    \
      "(SELECT seq FROM w WHERE r = (SELECT r FROM s))")
#define NO_ENTRY_BUT(namespace)                                                                    \
  " UNION ALL SELECT NULL, NULL, " namespace ", NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL"

static const char WALK_SQL[] = WALK("");
static const char WALK_OLDEST_SQL[] = WALK("ORDER BY seq");

/*
** Retries that are due, of the partitions of the mask $1 whose reading has come by, which $2 tells;
** before that an earlier entry of the key may be ready. The end tells whether there are others.
** $6 now, $7 namespaces, or $8 all but these; $9 those that are left behind; $10 the ordering; $11
** empty, or up to where nothing is left behind.
*/
#define IS_SUSPECT "(attempts = 0 AND last_error IS NOT NULL AND $10 <> 2)"
#define IS_DUE                                                                                     \
  " FROM @delayed AS e WHERE due_at <= $6 AND position IS NOT NULL"                                \
  " AND " HAS_CLASS("$1", "partition") " AND " IS_SERVED("$7", "$8")                               \
  " AND NOT " IS_PAUSED("e.namespace")
static const char DUE_SQL[] =
    "WITH b AS MATERIALIZED (SELECT partition, position AS place, " ENTRY_COLUMNS
    ", true AS delayed, NULL::tid AS tid" IS_DUE " AND NOT " IS_SUSPECT
    " AND position <= ($2::bigint[])[partition + 1] AND NOT (namespace = ANY ($9))"
    " AND NOT CASE $10 WHEN 1 THEN "
    EARLIER("e", "e.position") " WHEN 2 THEN EXISTS (SELECT FROM @delayed AS d"
    " WHERE d.position < e.position AND " IS_SERVED("$7", "$8") ") ELSE false END"
    " AND NOT (cardinality($11) > 0 AND $10 = 1 AND "
    READY_BEFORE("e.position", "$11::bigint[]") ")"
    " ORDER BY due_at, seq LIMIT $4)," " s AS (SELECT id, namespace, partition, position" IS_DUE
    " AND " IS_SUSPECT " ORDER BY due_at, seq LIMIT 256)" HOLD
    FOUND("NULL::bigint")
    " UNION ALL SELECT NULL, id, namespace, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,"
    " partition, true, NULL, 3, position, NULL FROM s"
    END("(SELECT count(*) FROM (SELECT" IS_DUE " AND position > ($2::bigint[])[partition + 1]"
        " LIMIT 1) AS a)", CUT " OR (SELECT count(*) FROM b) = $4", "NULL");

/*
** The entry at the place $2, of the partitions of the mask $1, if no earlier one of its key waits.
** $4 the ordering; $6 up to which place of each partition nothing of it is ready.
*/
static const char PLACE_SQL[] =
    "WITH b AS MATERIALIZED (SELECT partition, seq AS place, " ENTRY_COLUMNS ", false AS delayed,"
    " ctid AS tid FROM @entries AS e WHERE partition IN (SELECT p FROM generate_series(0, 63) AS p"
    " WHERE " HAS_CLASS("$1", "p") ") AND seq = $2 AND NOT " IS_PAUSED("e.namespace")
    " AND NOT ($4 = 1 AND (" EARLIER("e", "e.seq") " OR "
    READY_BEFORE("e.seq", "$6::bigint[]") "))"
    " UNION ALL SELECT partition, position, " ENTRY_COLUMNS ", true, NULL FROM @delayed"
    " AS e"
    " WHERE seq = $2 AND position = $2 AND " HAS_CLASS("$1", "partition")
    " AND NOT " IS_PAUSED("e.namespace") " AND NOT ($4 = 1 AND (" EARLIER("e", "e.position") " OR "
    READY_BEFORE("e.position", "$6::bigint[]") "))" ")" HOLD FOUND("NULL::bigint")
    END("NULL", "false", "NULL");

/* clang-format on */

/* --- Sending --------------------------------------------------------------------------------- */

/* All namespaces that are left behind, or those alone that the lap serves. */
static void add_names(array *array, const lane *lane, bool lap) {
  for (size_t i = 0; i < lane->space_count; i++) {
    const space *space = &lane->spaces[i];
    if (space->joined || !lap) array_add_bytes(array, (outbox_bytes){space->name, space->size});
  }
}

/* In turn, so that none is always the last. */
static void add_partitions(outbox_store *store, reading *r) {
  lane *lane = store->lane;
  const space *space = lane_find_space(lane, r->space);
  lane->turn = (lane->turn + 1) % PARTITIONS;
  for (int i = 0; i < PARTITIONS; i++) {
    int p = (lane->turn + i) % PARTITIONS;
    if (!(lane->mask >> p & 1)) continue;
    int64_t from = lane->low[p]; /* or below, because something may still appear above it */
    if (r->what == READ_LAP) from = lines_lower(from, lane->lap[p]);
    if (r->what == READ_SPACE && space != NULL) from = lines_lower(from, lane_from(lane, space, p));
    r->order[r->count++] = p;
    r->before[p] = from;
    array_add_int(&r->partitions, p);
    array_add_int(&r->lows, from);
  }
}

static void send_walk(outbox_store *store, reading *r) {
  lane *lane = store->lane;
  bool main = r->what == READ_MAIN;
  const space *space = lane_find_space(lane, r->space);
  add_partitions(store, r);
  r->oldest = lane->ordering == OUTBOX_ORDERING_STRICT || r->limit < LARGE;
  if (main && lane->space_count == 0 && lane->namespaces.size == 0 &&
      lane->ordering == OUTBOX_ORDERING_KEY) {
    if (lane->cap < r->limit / SPREAD + 1) lane->cap = r->limit / SPREAD + 1;
    r->cap = r->oldest || lane->cap > r->limit ? r->limit : lane->cap;
    bool beside = lane->writer_count > 0;
    const char *sql = r->oldest ? beside ? BESIDE_OLDEST_SQL : FAST_OLDEST_SQL
                      : beside  ? BESIDE_SQL
                                : FAST_SQL;
    sql_add(store, sql, beside ? "IIiiiiII" : "IIiiii", &r->partitions, &r->lows, lane->lease,
            r->limit, r->want->batch_bytes, r->cap, &r->xids, &r->floors);
    return;
  }
  r->careful = true;
  if (r->what == READ_LAP) add_names(&r->names, lane, true);
  if (r->what == READ_SPACE && space != NULL)
    array_add_bytes(&r->names, (outbox_bytes){space->name, space->size});
  if (main) add_names(&r->left, lane, false);
  int64_t look = lane->look > 2 * r->limit ? lane->look : 2 * r->limit;
  r->cap = r->oldest ? look : look / PARTITIONS + 1;
  sql_add(store, r->oldest ? WALK_OLDEST_SQL : WALK_SQL, "IIiiiiTbTiiII", &r->partitions, &r->lows,
          lane->lease, r->limit, r->want->batch_bytes, look, main ? &lane->names : &r->names,
          main && lane->except, &r->left, (int64_t)lane->ordering, r->cap, &r->xids, &r->floors);
}

/* Up to where nothing of a namespace, or of any, is ready. */
static void add_bounds(const lane *lane, const space *one, array *bounds) {
  for (int p = 0; p < PARTITIONS; p++) {
    int64_t from = lane->low[p];
    for (size_t i = 0; i < lane->space_count; i++) {
      const space *space = &lane->spaces[i];
      if ((one == NULL || one == space) && (space->met >> p & 1))
        from = lines_lower(from, space->from[p]);
    }
    array_add_int(bounds, from);
  }
}

static void send_place(outbox_store *store, reading *r) {
  lane *lane = store->lane;
  add_bounds(lane, lane_find_space(lane, r->space), &r->bounds);
  sql_add(store, PLACE_SQL, "iiiiiI", (int64_t)lane->mask, r->place, lane->lease,
          (int64_t)lane->ordering, (int64_t)0, &r->bounds);
}

static void send_due(outbox_store *store, reading *r) {
  lane *lane = store->lane;
  const space *space = lane_find_space(lane, r->space);
  bool any = space != NULL || lane->ordering == OUTBOX_ORDERING_NONE;
  for (int p = 0; p < PARTITIONS; p++)
    array_add_int(&r->lows, any ? INT64_MAX : lane->last[p]);
  if (lane->space_count > 0) add_bounds(lane, space, &r->bounds);
  if (space != NULL)
    array_add_bytes(&r->names, (outbox_bytes){space->name, space->size});
  else
    for (size_t i = 0; i < lane->space_count; i++)
      if (!lane->spaces[i].lagging)
        array_add_bytes(&r->left, (outbox_bytes){lane->spaces[i].name, lane->spaces[i].size});
  sql_add(store, DUE_SQL, "iIiiiiTbTiI", (int64_t)lane->mask, &r->lows, lane->lease, r->limit,
          r->want->batch_bytes, r->now, space != NULL ? &r->names : &lane->names,
          space == NULL && lane->except, &r->left, (int64_t)lane->ordering, &r->bounds);
}

void read_send(outbox_store *store, reading *r) {
  r->started = clock_monotonic();
  switch (r->what) {
  case READ_NOTHING: break;
  case READ_MAIN:
  case READ_LAP:
  case READ_SPACE: send_walk(store, r); break;
  case READ_DUE: send_due(store, r); break;
  case READ_PLACE: send_place(store, r); break;
  }
}

void read_free(reading *r) {
  array_free(&r->partitions);
  array_free(&r->lows);
  array_free(&r->bounds);
  array_free(&r->names);
  array_free(&r->left);
  array_free(&r->xids);
  array_free(&r->floors);
}
