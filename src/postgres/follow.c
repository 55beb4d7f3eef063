/*
** What a reading has found, and how far it has come.
*/
#include "lane.h"

#define LEAST_LOOK 64 /* rows of a careful reading */
#define MOST_LOOK 10000

static void set_place(lane *lane, reading *r, int partition, int64_t place) {
  space *space = lane_find_space(lane, r->space);
  if (r->what == READ_MAIN) {
    cursor_set(lane, partition, r->before[partition], place);
  } else if (r->what == READ_LAP) {
    lane->lap[partition] = place;
  } else if (space != NULL && place >= lane->last[partition]) {
    space->met &= ~((uint64_t)1 << partition); /* from there on it is where main is */
  } else if (space != NULL && (space->met >> partition & 1)) {
    space->from[partition] = place;
  }
}

/* How far a walk has come in each partition; where it was `capped`, there may be more. */
typedef struct reach {
  int64_t place[PARTITIONS];
  int64_t count[PARTITIONS];
  bool capped[PARTITIONS];
} reach;

static void measure(const reading *r, const items *found, const PGresult *rows, reach *reach) {
  *reach = (struct reach){{0}, {0}, {false}};
  for (size_t i = 0; i < found->count && !r->careful; i++) {
    int p = found->items[i].partition;
    if (++reach->count[p] == r->cap) reach->capped[p] = true;
    if (reach->count[p] == 1 || found->items[i].entry.seq > reach->place[p])
      reach->place[p] = found->items[i].entry.seq;
  }
  for (int i = 0; i < PQntuples(rows) && r->careful; i++) {
    if (!PQgetisnull(rows, i, 0) || sql_int(rows, i, 14) != KIND_REACHED) continue;
    int p = (int)sql_int(rows, i, 11);
    reach->place[p] = sql_int(rows, i, 15);
    reach->capped[p] = sql_bool(rows, i, 12);
  }
}

/* The partitions before the one where the walk has stopped are done, but for those with a cap. */
static void follow(outbox_store *store, reading *r, const items *found, const PGresult *rows,
                   int64_t last_value, bool *more) {
  lane *lane = store->lane;
  bool full = (int64_t)found->count >= r->limit, capped = false;
  int end = (r->careful ? PQntuples(rows) : (int)found->count) - 1; /* or the last entry */
  int partition = end < 0 ? 0 : (int)sql_int(rows, end, 11);
  int64_t place = end < 0 ? 0 : sql_int(rows, end, r->careful ? 15 : 0);
  bool has_seq = end >= 0 && !PQgetisnull(rows, end, 15);
  bool early = r->careful ? sql_bool(rows, end, 12) : full || has_seq;
  bool none = r->careful && !has_seq;
  reach reach;
  measure(r, found, rows, &reach);
  for (int i = 0; i < r->count && !(early && none); i++) {
    int p = r->order[i];
    bool here = early && (r->oldest || p == partition), cut = !r->oldest && reach.capped[p];
    int64_t to = here ? place : cut ? reach.place[p] : last_value;
    capped |= cut;
    set_place(lane, r, p, to < r->before[p] ? r->before[p] : to);
    if (here && !r->oldest) break;
  }
  bool whole = !early && !capped;
  if (r->careful) /* as few rows as fill the batch */
    lane->look = full ? lane->look / 2 : whole ? lane->look : 4 * lane->look;
  else if (!r->oldest) /* as few of each partition */
    lane->cap = full ? r->cap / 2 : capped ? 2 * r->cap : lane->cap;
  if (lane->look < LEAST_LOOK) lane->look = LEAST_LOOK;
  if (lane->look > MOST_LOOK) lane->look = MOST_LOOK;
  if (!whole) *more = true;
  if (whole && r->what == READ_MAIN && lane->ahead) { /* it has come by */
    lane->ahead = false;
    lane->due = *more = true;
  }
  if (whole && r->what == READ_LAP) read_end_lap(lane);
}

/* The reading began at the floors of the writers that have ended: all begins there again. */
static void end_writers(lane *lane, const PGresult *rows) {
  int64_t floor = INT64_MAX;
  for (int i = 0; i < PQntuples(rows); i++)
    if (PQgetisnull(rows, i, 0) && sql_int(rows, i, 14) == KIND_ENDED)
      floor = lines_lower(floor, cursor_end_writer(lane, sql_int(rows, i, 15)));
  for (int p = 0; p < PARTITIONS && floor < INT64_MAX; p++)
    lane_rewind(lane, p, floor);
}

static void note_suspects(lane *lane, PGresult *rows) {
  for (int i = 0; i < PQntuples(rows) && lane->suspect_count < MOST_SUSPECTS; i++)
    if (PQgetisnull(rows, i, 0) && sql_int(rows, i, 14) == KIND_SUSPECT)
      lane->suspects[lane->suspect_count++] =
          (outbox_suspect){sql_bytes(rows, i, 1), sql_bytes(rows, i, 2), sql_int(rows, i, 15)};
}

int read_receive(outbox_store *store, reading *r, int64_t last_value, items *found, bool *more) {
  lane *lane = store->lane;
  PGresult *rows = sql_take(store);
  int count = PQntuples(rows), end = count - 1;
  int code = lane_read(store, rows, found); /* `rows` live in it */
  if (code != OUTBOX_OK) return code;
  for (int i = 0; i < count; i++) {
    if (!PQgetisnull(rows, i, 0) || sql_int(rows, i, 14) != KIND_LEFT) continue;
    space *space = lane_find_space(lane, box_space(sql_bytes(rows, i, 2)));
    int p = (int)sql_int(rows, i, 11);
    int64_t place = sql_int(rows, i, 15);
    if (space == NULL) continue;
    lane_leave(space, p, place);
    if (space->joined) lane->lap[p] = lines_lower(lane->lap[p], place - 1);
  }
  end_writers(lane, rows);
  bool walks = r->what == READ_MAIN || r->what == READ_LAP || r->what == READ_SPACE;
  if (walks) follow(store, r, found, rows, last_value, more);
  if (r->what == READ_LAP || (r->what == READ_MAIN && lane->has_lap)) *more = true;
  if (r->what == READ_DUE) {
    note_suspects(lane, rows);
    if (!sql_bool(rows, end, 12) && r->space == 0) lane->due = false;
    if (r->space == 0) lane->ahead = sql_int(rows, end, 11) != 0;
  }
  if (r->what == READ_DUE && lane->suspect_count > 0) { /* their bytes are in the rows */
    lane->suspect_rows = found->count > 0 ? NULL : found->result;
    if (found->count == 0) found->result = NULL;
  }
  return OUTBOX_OK;
}
