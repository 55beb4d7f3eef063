/*
** What is read next: the main walk and the lap take turns, and so do retries that are due; or what
** the caller asks for by name.
*/
#include "lane.h"

static void start_lap(lane *lane) {
  bool any = false;
  for (int i = 0; i < PARTITIONS; i++)
    lane->lap[i] = NEVER;
  for (size_t i = 0; i < lane->space_count; i++) {
    space *space = &lane->spaces[i];
    space->joined = space->lagging;
    for (int p = 0; p < PARTITIONS && space->joined; p++)
      lane->lap[p] = lines_lower(lane->lap[p], lane_from(lane, space, p));
    any |= space->joined;
  }
  lane->has_lap = any;
}

/* A lap that has nobody to serve any more has ended. */
static bool serves_lap(const lane *lane) {
  bool any = false;
  for (size_t i = 0; i < lane->space_count; i++)
    any |= lane->spaces[i].joined;
  return lane->has_lap && any;
}

void read_end_lap(lane *lane) {
  lane->has_lap = false;
  for (size_t i = lane->space_count; i > 0; i--) {
    space *space = &lane->spaces[i - 1];
    if (space->joined) lane_drop_space(lane, space);
  }
}

/* A namespace that is asked for by name. */
static int choose_space(outbox_store *store, reading *r, bool *more) {
  lane *lane = store->lane;
  space *space = lane_find_space(lane, box_space(r->want->namespace));
  if (space == NULL || !space->parked || space->paused) return OUTBOX_OK;
  r->space = space->hash;
  if (r->want->where != OUTBOX_OLDEST) {
    int code = sweep_head(store, space, r->want, r->now, &r->place, more);
    if (code == OUTBOX_OK && r->place != NEVER) r->what = READ_PLACE;
    return code;
  }
  space->retries = !space->retries && lane->any_due;
  r->what = space->retries ? READ_DUE : READ_SPACE;
  r->other = lane->any_due; /* retries and the rest take turns */
  return OUTBOX_OK;
}

int read_choose(outbox_store *store, reading *r, bool *more) {
  lane *lane = store->lane;
  r->what = READ_NOTHING;
  r->limit = r->want->batch_size;
  if (r->limit <= 0 || lane->mask == 0) return OUTBOX_OK;
  if (r->want->where == OUTBOX_PLACE) {
    r->what = READ_PLACE;
    r->place = r->want->place;
    return OUTBOX_OK;
  }
  if (r->want->where != OUTBOX_ANYWHERE) return choose_space(store, r, more);
  if (lane->due && lane->any_due && !lane->had_due) {
    lane->had_due = r->other = true;
    r->what = READ_DUE;
    r->limit = (r->limit + 1) / 2;
    return OUTBOX_OK;
  }
  lane->had_due = false;
  if (!serves_lap(lane)) start_lap(lane);
  lane->main_had_turn = lane->has_lap && !lane->main_had_turn;
  r->what = lane->has_lap && !lane->main_had_turn ? READ_LAP : READ_MAIN;
  return OUTBOX_OK;
}
