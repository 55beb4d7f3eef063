/*
** Reading what is asked for by name: an entry by its place, or the oldest entries of a namespace
** that is parked. Only there several of a key come in one batch.
*/
#include "walk.h"

static const char DUE_SQL[] =
    "SELECT position, NULL, namespace, key, attempts = 0 AND last_error IS NOT NULL FROM @delayed"
    " WHERE due_at <= ?1 AND position IS NOT NULL ORDER BY due_at LIMIT 0 + ?2";

/* Hands out one entry by its place, if it is the first of its key. */
int seek_place(reading *r, int64_t place) {
  for (int delayed = 0; delayed < 2; delayed++) {
    sqlite3_stmt *row;
    item item = {.delayed = delayed != 0};
    bool held = false;
    int64_t head;
    int code = sql_query(r->store, delayed ? take_delayed_sql : take_ready_sql, &row, "i", place);
    if (code == OUTBOX_OK) code = sql_step(r->store, row);
    if (code == OUTBOX_DONE) continue;
    if (code != OUTBOX_ROW) return code;
    code = OUTBOX_OK;
    bool ours = take_is_ours(r, row, &item);
    if (ours && !lane_is_paused(r->lane, item.space) && !lane_has(r->lane, place)) {
      line *line = lines_find(&r->lane->lines, item.line);
      held = (line != NULL && (line->first < place || line->blocked)) ||
             lane_keeps(r->lane, item.line);
      if (!held) code = take_is_held(r, &item, &held, &head);
      if (code == OUTBOX_OK && !held) code = take_row(r, row, &item);
    }
    sql_reset(r->store, row);
    return code;
  }
  return OUTBOX_OK;
}

/* Whether something before it keeps back a delayed entry. */
static int is_due_held(const reading *r, const item *item, bool *held) {
  const line *line = lines_find(&r->lane->lines, item->line);
  int64_t head;
  *held = line != NULL && (line->first < item->entry.seq || line->blocked);
  return *held ? OUTBOX_OK : take_is_held(r, item, held, &head);
}

/* The retries of a parked namespace that are due, but no suspects, up to so many. */
static int read_due(reading *r, const line *space, size_t most) {
  sqlite3_stmt *row;
  if (!r->retries || most == 0) return OUTBOX_OK;
  int code = sql_query(r->store, DUE_SQL, &row, "ii", r->now, (int64_t)LOOK);
  if (code != OUTBOX_OK) return code;
  while (!take_is_enough(r) && r->found->count < most &&
         (code = sql_step(r->store, row)) == OUTBOX_ROW) {
    item item = {.delayed = true};
    bool held = false, taken;
    if (!take_is_ours(r, row, &item) || item.space != space->hash || sqlite3_column_int(row, 4) ||
        lane_has(r->lane, item.entry.seq))
      continue;
    int failed = is_due_held(r, &item, &held);
    if (failed == OUTBOX_OK && !held) failed = take_place(r, &item, &taken);
    if (failed == OUTBOX_OK) continue;
    sql_reset(r->store, row);
    return failed;
  }
  if (code == OUTBOX_ROW || code == OUTBOX_OK) sql_reset(r->store, row);
  return code == OUTBOX_ROW || code == OUTBOX_DONE ? OUTBOX_OK : code;
}

/* Walks through a parked namespace, from the first of it that was left behind. */
static int read_oldest(reading *r, line *space, bool *unseen) {
  lane *lane = r->lane;
  int64_t looked = 0, first = NEVER, at = space->first - 1;
  sqlite3_stmt *row;
  int code = sql_query(r->store, take_walk_sql, &row, "iii", at, lane->main, (int64_t)LOOK);
  if (code != OUTBOX_OK) return code;
  while (!take_is_enough(r) && (code = sql_step(r->store, row)) == OUTBOX_ROW) {
    item item = {.delayed = false};
    bool held = false, taken = false;
    int failed = OUTBOX_OK;
    looked++;
    at = sqlite3_column_int64(row, 0);
    if (!take_is_ours(r, row, &item) || item.space != space->hash) continue;
    /* What is in hand may come again, so it counts as left behind. */
    held = lines_find(&lane->lines, item.line) != NULL || lane_has(lane, at) ||
           lane_keeps(lane, item.line);
    int64_t head;
    if (!held) failed = take_is_held(r, &item, &held, &head);
    if (failed == OUTBOX_OK && !held) failed = take_place(r, &item, &taken);
    if (failed != OUTBOX_OK) {
      sql_reset(r->store, row);
      return failed;
    }
    if (!taken) first = lines_lower(first, at);
  }
  if (code == OUTBOX_ROW || code == OUTBOX_OK) sql_reset(r->store, row);
  if (code != OUTBOX_DONE && code != OUTBOX_ROW && code != OUTBOX_OK) return code;
  bool end = code == OUTBOX_DONE && looked < LOOK;
  if (!end) first = lines_lower(first, at + 1); /* the rest was not looked at */
  space->first = first;
  *unseen = !end && r->found->count == 0;
  return OUTBOX_OK;
}

/* Up to half are retries; of batches of one, every other. */
int seek_oldest(reading *r, line *space, bool *unseen) {
  size_t half = ((size_t)r->want->batch_size + (lane_random(r->lane) & 1)) / 2;
  int code = read_due(r, space, half);
  if (code == OUTBOX_OK && space->first != NEVER) code = read_oldest(r, space, unseen);
  return code == OUTBOX_OK && r->found->count == 0 ? read_due(r, space, 1) : code;
}
