/*
** How a processor finds entries: three walks over the queue, and what they leave behind.
**
** `main` goes forward only. It leaves behind whatever belongs to a line, and whatever a retry holds
** back, which makes the line. Once a line is free, `lap` comes by: a second walk from the lowest
** place left behind up to main, in turns with it. It serves the lines that have joined it, and at
** its end forgets them. `due` looks at each delayed entry once, when it is due. A retry is handed
** out from where it lies, so nothing ever appears before the place of a walk.
*/
#include <string.h>

#include "../columns.h"
#include "walk.h"

#define SHORT 1000 /* microseconds */

static const char WALK_ALL_SQL[] = "SELECT seq, " READY_ENTRY_COLUMNS ", nonce FROM " READY
                                   " WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT 0 + ?3";

static const char DUE_SQL[] =
    "SELECT position, id, namespace, key, due_at, seq, attempts, last_error IS NOT NULL"
    " FROM @delayed WHERE due_at >= ?1 AND due_at <= ?2 ORDER BY due_at, seq LIMIT 0 + ?3";

static const char FIRST_POSITION_SQL[] =
    "SELECT position FROM @delayed WHERE position IS NOT NULL ORDER BY position LIMIT 1";

static const char ANY_BETWEEN_SQL[] = "SELECT 1 FROM " READY " WHERE seq > ?1 AND seq < ?2 LIMIT 1";

static const char IS_READY_SQL[] = "SELECT 1 FROM " ENTRIES " WHERE seq = ?1 AND id = ?2";

static const char IS_DELAYED_SQL[] = "SELECT 1 FROM @delayed WHERE position = ?1 AND id = ?2";

/* --- Lines ----------------------------------------------------------------------------------- */

static void start_lap(lane *lane, int64_t from) {
  lane->lap = from - 1;
  lane->lap_rows = 0;
  lane->left_lap = false;
  for (line *line = NULL; (line = lines_next(&lane->lines, line)) != NULL;) {
    line->joined = line->state != LINE_PARKED && !line->blocked && line->first >= from;
    line->next = NEVER;
  }
}

/*
** The lines that the lap has served are forgotten, but what waits again, and but what lies at the
** place `rest` and after it; NEVER: the lap has met main.
*/
static void end_lap(lane *lane, int64_t rest, int64_t now) {
  lane->lap = NEVER;
  /* A lap may take a tenth of the time; a short one is not worth a sleep. */
  int64_t pause = 10 * lane->lap_rows * ROW_NS / 1000;
  lane->next_lap = now + (pause < SHORT ? 0 : pause);
  for (line *line = NULL; (line = lines_next(&lane->lines, line)) != NULL;) {
    if (line->state == LINE_PARKED || !line->joined) continue;
    line->first = lines_lower(line->next, rest);
    line->next = NEVER;
    line->state = LINE_HELD;
    line->joined = false;
    if (line->first == NEVER) lines_drop(&lane->lines, line);
  }
}

/* A lap that has nobody to serve any more ends at once. */
static void leave_lap(lane *lane, int64_t now) {
  bool serves = false;
  for (line *line = NULL; (line = lines_next(&lane->lines, line)) != NULL;)
    serves |= line->joined && line->state == LINE_LAGGING;
  if (!serves && lane->lap != NEVER) end_lap(lane, lane->lap + 1, now);
  lane->left_lap = false;
}

/*
** Begins a lap where a free line waits for one, at most once a second while one is on: what has
** joined that one goes on in the next.
*/
static void consider_lap(lane *lane, int64_t now) {
  int64_t from = NEVER;
  bool waits = false;
  if (!lane->wants_lap || now < lane->next_lap) return;
  lane->wants_lap = false;
  for (line *line = NULL; (line = lines_next(&lane->lines, line)) != NULL;) {
    waits |= line->state == LINE_LAGGING && !line->joined;
    if (line->state == LINE_LAGGING || line->joined) from = lines_lower(from, line->first);
  }
  if (!waits || from == NEVER) return;
  start_lap(lane, from);
  lane->next_lap = now + SECOND;
}

/* --- Judging an entry ------------------------------------------------------------------------ */

/* What a walk does with a ready entry: *take it, or note that it is left behind. */
static int judge(reading *r, const item *item, bool lap, bool *take) {
  lines *lines = &r->lane->lines;
  int64_t seq = item->entry.seq, head = NEVER;
  bool held = false;
  *take = false;
  if (lane_has(r->lane, seq)) return OUTBOX_OK;
  line *space = lines_find(lines, item->space), *line = lines_find(lines, item->line);
  if (space != NULL && !(lap && space->state != LINE_PARKED && space->joined)) {
    space->first = lines_lower(space->first, seq);
    return OUTBOX_OK;
  }
  if (line != NULL && !(lap && line->joined && line->next == NEVER)) {
    line->first = lines_lower(line->first, seq);
    return OUTBOX_OK;
  }
  int code = take_is_held(r, item, &held, &head);
  *take = code == OUTBOX_OK && !held;
  if (code != OUTBOX_OK || !held) return code;
  if (line == NULL) {
    if (!lines_reserve(lines, 1)) return store_fail_nomem(r->store);
    line = lines_add(lines, item->line, LINE_HELD);
    line->joined = lap;
    line->first = seq;
  }
  line->head = head;
  if (lap) line->next = lines_lower(line->next, seq);
  return OUTBOX_OK;
}

/* --- The walks ------------------------------------------------------------------------------- */

/* Walks from *at up to `to`. *end: it has come there. */
static int walk(reading *r, int64_t *at, int64_t to, bool lap, bool *end) {
  lane *lane = r->lane;
  bool dense = lane->namespaces.size == 0 && r->mask == UINT64_MAX && lane->lines.live == 0;
  int64_t looked = 0;
  sqlite3_stmt *row;
  int code = sql_query(r->store, dense ? WALK_ALL_SQL : take_walk_sql, &row, "iii", *at, to,
                       (int64_t)LOOK);
  if (code != OUTBOX_OK) return code;
  while (!take_is_enough(r) && (code = sql_step(r->store, row)) == OUTBOX_ROW) {
    item item = {.delayed = false};
    bool wanted = false, taken = true;
    int failed = OUTBOX_OK;
    looked++;
    if (take_is_ours(r, row, &item)) failed = judge(r, &item, lap, &wanted);
    if (failed == OUTBOX_OK && wanted)
      failed = dense ? take_row(r, row, &item) : take_place(r, &item, &taken);
    if (failed != OUTBOX_OK) {
      sql_reset(r->store, row);
      return failed;
    }
    size_t count = r->found->count;
    bool refused =
        wanted && r->full && (count == 0 || r->found->items[count - 1].entry.seq != item.entry.seq);
    if (!refused) *at = item.entry.seq;
  }
  if (code == OUTBOX_ROW || code == OUTBOX_OK) sql_reset(r->store, row);
  if (lap) lane->lap_rows += looked;
  *end = code == OUTBOX_DONE && looked < LOOK;
  return code == OUTBOX_ROW || code == OUTBOX_DONE ? OUTBOX_OK : code;
}

/* Main and lap take turns, batch by batch. */
static int read_anywhere(reading *r, bool *more) {
  lane *lane = r->lane;
  if (lane->left_lap) leave_lap(lane, r->now);
  consider_lap(lane, r->now);
  lane->main_has_turn = !lane->main_has_turn;
  for (int i = 0; i < 2 && !take_is_enough(r); i++) {
    size_t before = r->found->count;
    bool end = false, lap = lane->main_has_turn == (i != 0);
    if (lap && lane->lap == NEVER) continue;
    int code = lap ? walk(r, &lane->lap, lane->main, true, &end)
                   : walk(r, &lane->main, NEVER, false, &end);
    if (code != OUTBOX_OK) return code;
    if (lap && end) end_lap(lane, NEVER, r->now);
    if (!end) *more = true;
    if (!lap && end && lane->ahead) { /* what lay ahead of main does so no more */
      lane->ahead = false;
      lane->due_at = lane->due_seq = INT64_MIN;
      *more = true;
    }
    if (r->found->count > before) break;
  }
  return OUTBOX_OK;
}

/* --- Retries --------------------------------------------------------------------------------- */

static void forget_suspects(lane *lane) {
  for (size_t i = 0; i < lane->suspect_count; i++)
    sqlite3_free(lane->suspect_bytes[i]);
  lane->suspect_count = 0;
}

static int name_suspect(reading *r, sqlite3_stmt *row, const item *item) {
  lane *lane = r->lane;
  outbox_bytes id = sql_column(row, 1), namespace = item->entry.namespace;
  char *bytes = sqlite3_malloc64(id.size + namespace.size + 1);
  if (bytes == NULL) return store_fail_nomem(r->store);
  if (id.size > 0) memcpy(bytes, id.data, id.size);
  if (namespace.size > 0) memcpy(bytes + id.size, namespace.data, namespace.size);
  lane->suspect_bytes[lane->suspect_count] = bytes;
  lane->suspects[lane->suspect_count++] =
      (outbox_suspect){{bytes, id.size}, {bytes + id.size, namespace.size}, item->entry.seq};
  return OUTBOX_OK;
}

/* Whether a delayed entry that is due, and ours, may be handed out; notes what keeps it back. */
static int judge_due(reading *r, const item *item, bool *may) {
  lane *lane = r->lane;
  line *space = lines_find(&lane->lines, item->space), *line = lines_find(&lane->lines, item->line);
  int64_t place = item->entry.seq, head;
  bool held = false;
  *may = false;
  if (space != NULL && space->state == LINE_PARKED) {
    space->first = lines_lower(space->first, place);
    return OUTBOX_OK;
  }
  if (line != NULL && (line->first < place || line->blocked)) {
    lane->skipped = true;
    return OUTBOX_OK;
  }
  int code = take_is_held(r, item, &held, &head);
  /* Where main has not come by yet, an earlier one of its line may be ready. */
  if (code == OUTBOX_OK && !held && item->line != 0 && place > lane->main) {
    code = sql_fetch(r->store, ANY_BETWEEN_SQL, &head, 1, &held, "ii", lane->main, place);
    lane->ahead |= held;
  }
  if (held) lane->skipped = true;
  *may = code == OUTBOX_OK && !held;
  return code;
}

static int read_due_row(reading *r, sqlite3_stmt *row) {
  item item = {.delayed = true};
  bool may, taken;
  if (sqlite3_column_type(row, 0) == SQLITE_NULL) {
    r->lane->scheduled[r->lane->scheduled_count++] = sqlite3_column_int64(row, 5);
    return OUTBOX_OK;
  }
  if (!take_is_ours(r, row, &item) || lane_has(r->lane, item.entry.seq)) return OUTBOX_OK;
  if (lane_is_paused(r->lane, item.space)) return OUTBOX_OK;
  bool suspect = r->lane->ordering != OUTBOX_ORDERING_STRICT && /* all would wait for it */
                 sqlite3_column_int64(row, 6) == 0 && sqlite3_column_int(row, 7) != 0;
  if (suspect) return name_suspect(r, row, &item);
  int code = judge_due(r, &item, &may);
  return code == OUTBOX_OK && may ? take_place(r, &item, &taken) : code;
}

/* Retries that are due, each looked at once, up to half of the batch. */
static int read_due(reading *r, int64_t most) {
  lane *lane = r->lane;
  sqlite3_stmt *row;
  int failed = OUTBOX_OK;
  int code = sql_query(r->store, DUE_SQL, &row, "iii", lane->due_at, r->now, (int64_t)LOOK);
  if (code != OUTBOX_OK) return code;
  while (!take_is_enough(r) && (int64_t)r->found->count < most && lane->suspect_count < MANY &&
         lane->scheduled_count < MANY && failed == OUTBOX_OK &&
         (code = sql_step(r->store, row)) == OUTBOX_ROW) {
    int64_t due_at = sqlite3_column_int64(row, 4), seq = sqlite3_column_int64(row, 5);
    if (due_at == lane->due_at && seq <= lane->due_seq) continue;
    failed = read_due_row(r, row);
    if (r->full && failed == OUTBOX_OK) break; /* this one did not fit, perhaps */
    lane->due_at = due_at;
    lane->due_seq = seq;
  }
  if (code == OUTBOX_ROW || code == OUTBOX_OK) sql_reset(r->store, row);
  if (failed != OUTBOX_OK) return failed;
  return code == OUTBOX_ROW || code == OUTBOX_DONE ? OUTBOX_OK : code;
}

/*
** Whether the retries that lines wait for are still there: an operator deletes them without a word,
** and so does a processor that has lost its claim.
*/
static int check_heads(reading *r) {
  lane *lane = r->lane;
  for (line *line = NULL; (line = lines_next(&lane->lines, line)) != NULL;) {
    sqlite3_stmt *row;
    if (line->state != LINE_HELD || line->blocked || line->joined) continue;
    int code = sql_query(r->store, take_delayed_sql, &row, "i", line->head);
    if (code == OUTBOX_OK) code = sql_step(r->store, row);
    if (code == OUTBOX_DONE)
      lane_release(lane, line);
    else if (code == OUTBOX_ROW)
      sql_reset(r->store, row);
    else
      return code;
  }
  return OUTBOX_OK;
}

/* --- Reading --------------------------------------------------------------------------------- */

int walk_read(outbox_store *store, const outbox_want *want, uint64_t mask, int64_t now,
              bool delayed, items *found, bool *more) {
  lane *lane = store->lane;
  reading r = {store, lane, want, mask, now, false, false, found};
  int code = OUTBOX_OK;
  int64_t position;
  forget_suspects(lane);
  lane->scheduled_count = 0;
  if (delayed) code = sql_fetch(store, FIRST_POSITION_SQL, &position, 1, &r.retries, "");
  if (code == OUTBOX_OK && now - lane->checked_at >= SECOND) {
    lane->checked_at = now;
    lane->due_at = lane->due_seq = INT64_MIN;
    code = check_heads(&r);
  } else if (now < lane->checked_at) { /* the clock was set back */
    lane->checked_at = now;
    lane->due_at = lane->due_seq = INT64_MIN;
  }
  if (code != OUTBOX_OK || want->batch_size <= 0) return code;
  if (want->where == OUTBOX_PLACE) return seek_place(&r, want->place);
  if (want->where != OUTBOX_ANYWHERE) {
    line *space = lines_find(&lane->lines, box_space(want->namespace));
    if (space == NULL || space->state != LINE_PARKED || space->paused) return OUTBOX_OK;
    bool heads = want->where != OUTBOX_OLDEST; /* also where all the first rows are held back */
    if (!heads) code = seek_oldest(&r, space, &heads);
    return heads && code == OUTBOX_OK ? sweep_heads(&r, space, more) : code;
  }
  if (delayed) code = read_due(&r, (want->batch_size + 1) / 2);
  return code == OUTBOX_OK ? read_anywhere(&r, more) : code;
}

/* --- Verifying ------------------------------------------------------------------------------- */

static int is_there(outbox_store *store, const item *item, bool *there) {
  int64_t one, head;
  bool held = false;
  int code = sql_fetch(store, item->delayed ? IS_DELAYED_SQL : IS_READY_SQL, &one, 1, there, "it",
                       item->entry.seq, item->entry.id);
  if (code == OUTBOX_OK && *there && item->line != 0)
    code = take_find_holder(store, &item->entry, &held, &head);
  if (held) *there = false;
  return code;
}

int walk_verify(outbox_store *store, items *found, uint64_t mask, bool changed, int64_t *dropped) {
  lane *lane = store->lane;
  size_t kept = 0;
  int code = OUTBOX_OK;
  *dropped = NEVER;
  for (size_t i = 0; i < found->count; i++) {
    const item *item = &found->items[i];
    bool good =
        code == OUTBOX_OK && (mask >> item->class & 1) != 0 && !lane_is_paused(lane, item->space);
    if (good && changed) code = is_there(store, item, &good);
    if (good && code == OUTBOX_OK) {
      if (kept != i) found->items[kept] = *item;
      kept++;
      continue;
    }
    *dropped = lines_lower(*dropped, item->entry.seq);
    if (item->delayed) lane->due_at = lane->due_seq = INT64_MIN;
  }
  found->count = kept;
  return code;
}
