/*
** Pausing: nothing of a namespace is handed out while there is a row for it.
**
** A processor reads these rows again whenever somebody has committed. For its lane such a namespace
** is parked, but is not to be had by name either.
*/
#include "lane.h"

static const char PAUSE_SQL[] =
    "INSERT OR IGNORE INTO @pauses (namespace, paused_at) VALUES (?1, ?2)";

static const char RESUME_SQL[] = "DELETE FROM @pauses WHERE namespace = ?1";

static const char SELECT_SQL[] =
    "SELECT namespace, paused_at FROM @pauses WHERE namespace >= '' ORDER BY namespace";

/* --- By operators ---------------------------------------------------------------------------- */

static int changed(outbox_store *store, int code, bool *any) {
  *any = code == OUTBOX_OK && sqlite3_changes(store->db) > 0;
  if (store->lane != NULL) store->lane->paused_at_version = -1;
  return code;
}

int outbox_pause(outbox_store *store, outbox_bytes namespace, bool *paused) {
  int64_t now;
  *paused = false;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code != OUTBOX_OK) return code;
  return changed(store, sql_run(store, PAUSE_SQL, "ti", namespace, now), paused);
}

int outbox_resume(outbox_store *store, outbox_bytes namespace, bool *resumed) {
  *resumed = false;
  int code = transaction_enter(store);
  if (code != OUTBOX_OK) return code;
  return changed(store, sql_run(store, RESUME_SQL, "t", namespace), resumed);
}

int outbox_paused_namespaces(outbox_store *store) {
  int code = transaction_enter(store);
  return code == OUTBOX_OK ? sql_query(store, SELECT_SQL, &store->reading, "") : code;
}

int outbox_next_paused(outbox_store *store, outbox_paused *paused) {
  int code = reading_next(store);
  if (code == OUTBOX_ROW)
    *paused =
        (outbox_paused){sql_column(store->reading, 0), sqlite3_column_int64(store->reading, 1)};
  return code;
}

/* --- By a processor -------------------------------------------------------------------------- */

static void note(lane *lane, uint64_t space) {
  line *line = lines_add(&lane->lines, space, LINE_PARKED);
  lane_park(lane, line);
  line->paused = true;
}

/* Reads the rows; with `apply`, notes them. *sum: the same for the same names. */
static int read_rows(outbox_store *store, bool apply, uint64_t *sum) {
  lane *lane = store->lane;
  sqlite3_stmt *row;
  *sum = 0;
  int code = sql_query(store, SELECT_SQL, &row, "");
  if (code != OUTBOX_OK) return code;
  while ((code = sql_step(store, row)) == OUTBOX_ROW) {
    uint64_t space = box_space(sql_column(row, 0));
    *sum += space;
    if (!apply) continue;
    if (!lines_reserve(&lane->lines, 1)) {
      sql_reset(store, row);
      return store_fail_nomem(store);
    }
    note(lane, space);
  }
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

int pause_see(outbox_store *store) {
  lane *lane = store->lane;
  uint64_t sum;
  int code = read_rows(store, false, &sum);
  if (code != OUTBOX_OK || sum == lane->pauses) return code;
  lane->pauses = 0; /* should the following fail, it is done again */
  lines *lines = &lane->lines;
  for (line *line = NULL; (line = lines_next(lines, line)) != NULL;)
    line->paused = false;
  code = read_rows(store, true, &sum);
  if (code != OUTBOX_OK) return code;
  for (line *line = NULL; (line = lines_next(lines, line)) != NULL;)
    if (line->state == LINE_PARKED && !line->paused && !line->parked) lane_release(lane, line);
  lane->due_at = lane->due_seq = INT64_MIN;
  lane->pauses = sum;
  return OUTBOX_OK;
}
