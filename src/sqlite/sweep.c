/*
** Known heads of parked namespaces, and the walk that meets them.
**
** One walk, the *sweep*, meets the heads of all parked namespaces at once. A namespace joins it at
** the first of its entries, if the sweep began no later than its round did, and passed nothing of
** it before. One that cannot join begins a new sweep from where its own round stands. How far the
** last sweeps came is remembered, so that nobody walks there again.
*/
#include "walk.h"

#define SAVED (10 * LOOK) /* rows */
#define LEAST 100         /* rows; fewer are not worth the trouble */
#define SWEEP_ROW_NS 500  /* what a row costs a sweep: its key is remembered */

static void begin_round(const lane *lane, line *space) {
  heads_begin(space->heads, space->first - 1);
  space->since = lane->sweep;
}

/* The heads of a parked namespace that is met at a place; NULL if it has no part in this sweep. */
static heads *take_part(const lane *lane, line *space, int64_t place) {
  if (space->heads == NULL || space->heads->sweep != lane->sweep) {
    int64_t at = space->heads != NULL ? lane_swept(lane, space->heads) : space->first - 1;
    bool may = space->since != lane->sweep && at >= lane->swept_from;
    if (may && space->heads == NULL) {
      space->heads = heads_make(lane->lines.reallocate);
      if (space->heads != NULL) begin_round(lane, space);
    }
    if (!may || space->heads == NULL) {
      space->since = lane->sweep; /* it has missed this one */
      return NULL;
    }
    space->heads->at = at;
    space->heads->sweep = lane->sweep;
  }
  return place > space->heads->at ? space->heads : NULL;
}

/* Where a new sweep begins for one that stands at a place: with others a little before it. */
static int64_t start_of(const lane *lane, int64_t at) {
  int64_t from = at;
  for (line *line = NULL; (line = lines_next(&lane->lines, line)) != NULL;) {
    if (line->state != LINE_PARKED) continue;
    int64_t its = line->heads != NULL ? lane_swept(lane, line->heads) : line->first - 1;
    if (its < from && (uint64_t)at - (uint64_t)its <= LOOK / 2) from = its;
  }
  return from;
}

/* The sweep that is on, if it meets heads of this namespace soon; else a new one. */
static void join(lane *lane, const line *space) {
  heads *heads = space->heads;
  int64_t at = lane_swept(lane, heads), swept = lane->swept[lane->sweep % SWEEPS];
  if ((heads->sweep != lane->sweep && at < swept) || (heads->count == 0 && at > swept + LOOK / 2))
    lane_begin_sweep(lane, start_of(lane, at));
  heads->sweep = lane->sweep;
  heads->at = at;
}

/*
** How many rows may be looked at now: a twentieth of the time's worth, saved up to a bound. Nothing
** is saved at the start, where main has a long way to go.
*/
static int64_t allowance(reading *r) {
  lane *lane = r->lane;
  int64_t since = r->now - lane->swept_at;
  if (lane->swept_at == 0)
    lane->sweep_rows = LOOK;
  else if (since > 0)
    lane->sweep_rows += since < SECOND ? since / 20 * 1000 / SWEEP_ROW_NS : SAVED;
  if (lane->sweep_rows > SAVED) lane->sweep_rows = SAVED;
  lane->swept_at = r->now;
  return lane->sweep_rows < 2 * LOOK ? lane->sweep_rows : 2 * LOOK;
}

/* Goes on with the sweep. */
static int sweep(reading *r, const line *space) {
  lane *lane = r->lane;
  int64_t most = allowance(r), looked = 0;
  sqlite3_stmt *row;
  if (most < LEAST) return OUTBOX_OK;
  join(lane, space);
  int64_t *at = &lane->swept[lane->sweep % SWEEPS];
  int code = sql_query(r->store, take_walk_sql, &row, "iii", *at, lane->main, most);
  if (code != OUTBOX_OK) return code;
  while (looked < most && (code = sql_step(r->store, row)) == OUTBOX_ROW) {
    item item = {.delayed = false};
    looked++;
    *at = sqlite3_column_int64(row, 0);
    if (!take_is_ours(r, row, &item)) continue;
    line *line = lines_find(&lane->lines, item.space);
    if (line == NULL || line->state != LINE_PARKED) continue;
    heads *heads = take_part(lane, line, *at);
    if (heads == NULL) continue;
    heads->at = *at;
    if (heads_met(heads, item.line) || lane_has(lane, *at)) continue;
    /* Whether a retry holds it back is asked when it is taken. */
    if (lines_find(&lane->lines, item.line) == NULL) heads_add(heads, *at, lane_random(lane));
  }
  if (code == OUTBOX_ROW || code == OUTBOX_OK) sql_reset(r->store, row);
  lane->sweep_rows -= looked;
  if (code == OUTBOX_DONE && looked < most) *at = lane->main; /* up to there all is gone */
  return code == OUTBOX_ROW || code == OUTBOX_DONE ? OUTBOX_OK : code;
}

static bool is_avoided(const outbox_want *want, int64_t place) {
  for (size_t i = 0; i < want->avoid_count; i++)
    if (want->avoid[i] == place) return true;
  return false;
}

/* Takes known heads, until there are enough or none is left; before that, looks for some. */
static int look(reading *r, line *space) {
  lane *lane = r->lane;
  heads *heads = space->heads;
  bool newest = r->want->where == OUTBOX_NEWEST;
  int64_t place;
  int code = OUTBOX_OK;
  if (lane_swept(lane, heads) < lane->main && (newest || heads->count == 0)) code = sweep(r, space);
  while (code == OUTBOX_OK && !take_is_enough(r) &&
         (place = heads_take(heads, newest, lane_random(lane))) != NEVER)
    if (!is_avoided(r->want, place)) code = seek_place(r, place);
  return code;
}

/*
** A round that has come to its end is followed by another one if anything came of it. So a look
** ends where nothing is to be had. It also ends where all the time that it may take is spent: then
** the next one goes on.
*/
int sweep_heads(reading *r, line *space, bool *more) {
  lane *lane = r->lane;
  bool is_new = space->heads == NULL;
  if (space->first == NEVER) return OUTBOX_OK;
  if (is_new) space->heads = heads_make(lane->lines.reallocate);
  if (space->heads == NULL) return store_fail_nomem(r->store);
  heads *heads = space->heads;
  if (is_new || heads->done || space->first - 1 < heads->from) begin_round(lane, space);
  int code = look(r, space);
  bool end = lane_swept(lane, heads) >= lane->main;
  if (code == OUTBOX_OK && r->found->count == 0 && end && heads->fruitful) {
    begin_round(lane, space);
    code = look(r, space);
    end = lane_swept(lane, heads) >= lane->main;
  }
  if (r->found->count > 0) heads->fruitful = true;
  heads->done = r->found->count == 0 && end;
  *more |= r->found->count == 0 && !end && lane->sweep_rows >= LEAST;
  return code;
}
