/*
** Pauses, as a processor sees them. Nothing of a paused namespace is ever read. A processor that
** learns of a pause notes from where on it has left something behind.
*/
#include "lane.h"

static const char SELECT_SQL[] = "SELECT namespace FROM @pauses";

/* What was passed by unseen is met again. */
static int note(outbox_store *store, outbox_bytes name, const int64_t *before) {
  lane *lane = store->lane;
  space *space = lane_add_space(lane, name);
  if (space == NULL) return store_fail_nomem(store);
  bool known = space->parked || space->paused || space->lagging;
  space->paused = true;
  space->lagging = space->joined = false;
  for (int p = 0; p < PARTITIONS && !known; p++)
    lane_rewind(lane, p, before[p]);
  return OUTBOX_OK;
}

int pause_see(outbox_store *store, const int64_t *before, int64_t fingerprint) {
  lane *lane = store->lane;
  int code = sql_run(store, SELECT_SQL, "");
  if (code != OUTBOX_OK) return code;
  PGresult *rows = sql_take(store);
  for (size_t i = lane->space_count; i > 0; i--) {
    space *space = &lane->spaces[i - 1];
    bool stays = false;
    for (int row = 0; row < PQntuples(rows) && space->paused && !stays; row++)
      stays = box_space(sql_bytes(rows, row, 0)) == space->hash;
    if (!space->paused || stays) continue;
    space->paused = false;
    lane_free_space(lane, space);
  }
  for (int row = 0; row < PQntuples(rows) && code == OUTBOX_OK; row++)
    code = note(store, sql_bytes(rows, row, 0), before);
  PQclear(rows);
  if (code == OUTBOX_OK) lane->pauses = fingerprint;
  return code;
}
