/*
** Known heads of a namespace: entries that are the first of their keys. After a failure others are
** tried than the oldest, and only a head may be. They are looked for forward, partition by
** partition, from the first entries that were left behind; at most a tenth of the time.
*/
#include <stdlib.h>

#include "lane.h"

#define LOOK 10000          /* rows at a time */
#define MOST_PAUSE 10000000 /* microseconds; more are left: the clock was set back */

/* $1 partitions, $2 and $3 between which places, $4 how many rows, $5 the namespace. */
static const char SWEEP_SQL[] =
    "SELECT partition::bigint, seq, key, namespace = $5 FROM unnest($1::bigint[], $2::bigint[],"
    " $3::bigint[]) AS t (p, low, high) CROSS JOIN LATERAL (SELECT partition, seq, namespace, key"
    " FROM @entries AS e WHERE e.partition = t.p::smallint AND e.seq > t.low AND e.seq <= t.high"
    " ORDER BY e.seq LIMIT $4) AS e LIMIT $4";

/* A row: its place, and its number in the result. */
typedef struct met {
  int64_t place;
  int row;
} met;

static void begin_round(const lane *lane, space *space) {
  heads_begin(space->heads, 0);
  for (int p = 0; p < PARTITIONS; p++)
    space->at[p] = lane_from(lane, space, p);
}

static bool is_in_hand(const lane *lane, int64_t place) {
  for (size_t i = 0; i < lane->hand.count; i++)
    if (lane->hand.items[i].entry.seq == place) return true;
  return false;
}

static void note(lane *lane, space *space, const PGresult *rows, int row) {
  int64_t place = sql_int(rows, row, 1);
  outbox_bytes key = sql_bytes(rows, row, 2);
  uint64_t line = key.data != NULL ? box_line(space->hash, key) : 0;
  if (lane->ordering == OUTBOX_ORDERING_NONE) line = 0;
  space->at[sql_int(rows, row, 0)] = place;
  if (!sql_bool(rows, row, 3)) return;
  if (heads_met(space->heads, line) || is_in_hand(lane, place)) return;
  heads_add(space->heads, place, lane_random(lane));
}

static int compare(const void *a, const void *b) {
  int64_t x = ((const met *)a)->place, y = ((const met *)b)->place;
  return (x > y) - (x < y);
}

/* In the order of seq, so that the newest head is the last one. */
static int note_all(outbox_store *store, space *space, const PGresult *rows) {
  int count = PQntuples(rows);
  met *list = malloc(((size_t)count + 1) * sizeof *list);
  if (list == NULL) return store_fail_nomem(store);
  for (int i = 0; i < count; i++)
    list[i] = (met){sql_int(rows, i, 1), i};
  qsort(list, (size_t)count, sizeof *list, compare);
  for (int i = 0; i < count; i++)
    note(store->lane, space, rows, list[i].row);
  free(list);
  return OUTBOX_OK;
}

static int sweep(outbox_store *store, space *space, int64_t now) {
  lane *lane = store->lane;
  array partitions = {0}, lows = {0}, highs = {0};
  int64_t started = clock_monotonic();
  if (now < lane->swept_at && lane->swept_at - now < MOST_PAUSE) return OUTBOX_OK;
  for (int p = 0; p < PARTITIONS; p++) {
    if (!(lane->mask >> p & 1) || space->at[p] >= lane->last[p]) continue;
    array_add_int(&partitions, p);
    array_add_int(&lows, space->at[p]);
    array_add_int(&highs, lane->last[p]);
  }
  int code = sql_run(store, SWEEP_SQL, "IIIit", &partitions, &lows, &highs, (int64_t)LOOK,
                     (outbox_bytes){space->name, space->size});
  array_free(&partitions);
  array_free(&lows);
  array_free(&highs);
  if (code != OUTBOX_OK) return code;
  const PGresult *rows = sql_result(store, 0);
  code = note_all(store, space, rows);
  if (code != OUTBOX_OK) return code;
  bool end = PQntuples(rows) < LOOK; /* all was looked at */
  for (int p = 0; p < PARTITIONS && end; p++)
    if (space->at[p] < lane->last[p]) space->at[p] = lane->last[p];
  lane->swept_at = now + 10 * (clock_monotonic() - started);
  return code;
}

static bool is_avoided(const outbox_want *want, int64_t place) {
  for (size_t i = 0; i < want->avoid_count; i++)
    if (want->avoid[i] == place) return true;
  return false;
}

static void take(lane *lane, space *space, const outbox_want *want, int64_t *place) {
  do
    *place = heads_take(space->heads, want->where == OUTBOX_NEWEST, lane_random(lane));
  while (*place != NEVER && is_avoided(want, *place));
}

static bool is_done(const lane *lane, const space *space) {
  for (int p = 0; p < PARTITIONS; p++)
    if ((lane->mask >> p & 1) && space->at[p] < lane->last[p]) return false;
  return true;
}

/*
** A round that has come to its end is followed by another one if anything came of it. So a look
** ends where nothing is to be had.
*/
int sweep_head(outbox_store *store, space *space, const outbox_want *want, int64_t now,
               int64_t *place, bool *more) {
  lane *lane = store->lane;
  *place = NEVER;
  if (space->heads == NULL) {
    space->heads = heads_make(lane_reallocate);
    if (space->heads == NULL) return store_fail_nomem(store);
    begin_round(lane, space);
  }
  if (space->heads->done) begin_round(lane, space);
  take(lane, space, want, place);
  if (*place == NEVER && is_done(lane, space) && space->heads->fruitful) begin_round(lane, space);
  if (*place == NEVER && !is_done(lane, space)) {
    int code = sweep(store, space, now);
    if (code != OUTBOX_OK) return code;
    take(lane, space, want, place);
  }
  if (*place != NEVER)
    space->heads->fruitful = true;
  else if (is_done(lane, space))
    space->heads->done = true;
  *more |= *place == NEVER && !is_done(lane, space) && now >= lane->swept_at;
  return OUTBOX_OK;
}
