/*
** What became of the entries that were handed out: written to the tables, and noted in the lines.
*/
#include "../columns.h"
#include "lane.h"

#define MIN_RUN 4 /* entries; fewer are deleted faster one by one */

static const char DELETE_READY_SQL[] = "DELETE FROM @entries WHERE seq = ?1 AND id = ?2";

static const char DELETE_DELAYED_SQL[] = "DELETE FROM @delayed WHERE position = ?1 AND id = ?2";

/* Compares the ids at both ends, because seq starts again from 1 in tables that were emptied. */
static const char CHECK_RUN_SQL[] =
    "SELECT (SELECT count(*) FROM @entries WHERE seq BETWEEN ?1 AND ?2) = ?2 - ?1 + 1"
    " AND (SELECT id FROM @entries WHERE seq = ?1) = ?3"
    " AND (SELECT id FROM @entries WHERE seq = ?2) = ?4";

static const char DELETE_RUN_SQL[] = "DELETE FROM @entries WHERE seq BETWEEN ?1 AND ?2";

/* The id; changed where plain SQL has published it twice and the table holds the other one. */
#define FREE_ID(table)                                                                             \
  "CASE WHEN EXISTS (SELECT 1 FROM " table " WHERE id = ?2) THEN id || '~' || ?1 ELSE id END"

/* ?3 is the attempts to add, ?4 the error, ?5 the time until when it waits, ?6 now. */
static const char DELAY_READY_SQL[] =
    "INSERT INTO @delayed (" ENTRY_COLUMNS ", due_at, position, delayed_at)"
    " SELECT " FREE_ID("@delayed") ", " MESSAGE_COLUMNS_BUT_ID
                                   ", attempts + ?3, coalesce(?4, last_error), ?5, seq, ?6 FROM "
                                   "@entries WHERE seq = ?1"
                                   " AND id = ?2";

static const char DELAY_AGAIN_SQL[] =
    "UPDATE @delayed SET attempts = attempts + ?3, last_error = coalesce(?4, last_error),"
    " due_at = ?5, delayed_at = ?6 WHERE position = ?1 AND id = ?2";

static const char BURY_READY_SQL[] =
    "INSERT INTO @dead (seq, " ENTRY_COLUMNS ", died_at)"
    " SELECT seq, " FREE_ID("@dead") ", " MESSAGE_COLUMNS_BUT_ID
                                     ", attempts + ?3, coalesce(?4, last_error), ?6 FROM @entries "
                                     "WHERE seq = ?1 AND id = ?2";

static const char BURY_DELAYED_SQL[] =
    "INSERT INTO @dead (seq, " ENTRY_COLUMNS ", died_at)"
    " SELECT position, " FREE_ID("@dead") ", " MESSAGE_COLUMNS_BUT_ID
                                          ", attempts + ?3, coalesce(?4, last_error), ?6 FROM "
                                          "@delayed WHERE position = ?1 AND id = ?2";

/* --- Writing --------------------------------------------------------------------------------- */

/* Deletes a run of places without gaps at once, if all of it is there. *length: how many, or 0. */
static int delete_run(outbox_store *store, outbox_verdict *verdicts, const item *items,
                      size_t count, size_t *length) {
  size_t n = 1;
  int64_t whole = 0;
  bool found;
  *length = 0;
  while (n < count && verdicts[n].outcome == OUTBOX_DELIVERED && !items[n].delayed &&
         items[n].entry.seq == items[0].entry.seq + (int64_t)n)
    n++;
  if (n < MIN_RUN) return OUTBOX_OK;
  const outbox_entry *from = &items[0].entry, *to = &items[n - 1].entry;
  int code = sql_fetch(store, CHECK_RUN_SQL, &whole, 1, &found, "iitt", from->seq, to->seq,
                       from->id, to->id);
  if (code != OUTBOX_OK || !whole) return code;
  code = sql_process(store, DELETE_RUN_SQL, "ii", from->seq, to->seq);
  for (size_t i = 0; i < n && code == OUTBOX_OK; i++)
    verdicts[i].found = true;
  if (code == OUTBOX_OK) *length = n;
  return code;
}

static int delete_one(outbox_store *store, bool delayed, outbox_identity entry, bool *found) {
  int code = sql_process(store, delayed ? DELETE_DELAYED_SQL : DELETE_READY_SQL, "it", entry.seq,
                         entry.id);
  if (code == OUTBOX_OK) *found = sqlite3_changes(store->db) > 0;
  return code;
}

/* Copies an entry to another table, or changes it where it is delayed already. */
static int copy(outbox_store *store, const char *sql, outbox_identity entry,
                const outbox_verdict *verdict, int64_t now, bool *found) {
  bool charged = verdict->outcome == OUTBOX_RETRY ||
                 (verdict->outcome == OUTBOX_BURY && verdict->error.data != NULL);
  int code = sql_process(store, sql, "ititii", entry.seq, entry.id, (int64_t)charged,
                         verdict->error, verdict->at, now);
  if (code == OUTBOX_OK) *found = sqlite3_changes(store->db) > 0;
  return code;
}

static int settle_one(outbox_store *store, outbox_verdict *verdict, bool delayed,
                      outbox_identity entry, int64_t now) {
  int code = OUTBOX_OK;
  switch (verdict->outcome) {
  case OUTBOX_AGAIN: verdict->found = true; return OUTBOX_OK;
  case OUTBOX_DELIVERED:
    code = delete_one(store, delayed, entry, &verdict->found);
    if (code == OUTBOX_OK && !verdict->found) /* somebody has moved it meanwhile */
      code = delete_one(store, !delayed, entry, &verdict->found);
    return code;
  case OUTBOX_RETRY:
  case OUTBOX_PUT_OFF:
    code = copy(store, delayed ? DELAY_AGAIN_SQL : DELAY_READY_SQL, entry, verdict, now,
                &verdict->found);
    if (delayed) return code;
    break;
  case OUTBOX_BURY:
    code = copy(store, delayed ? BURY_DELAYED_SQL : BURY_READY_SQL, entry, verdict, now,
                &verdict->found);
    break;
  }
  bool gone;
  return code == OUTBOX_OK && verdict->found ? delete_one(store, delayed, entry, &gone) : code;
}

int verdict_settle(outbox_store *store, outbox_verdict *verdicts, size_t count, bool lost,
                   int64_t now) {
  const items *hand = &store->lane->hand;
  int code = OUTBOX_OK;
  for (size_t i = 0, n; i < count && code == OUTBOX_OK; i += n) {
    const item *item = i < hand->count ? &hand->items[i] : NULL;
    outbox_identity entry = verdicts[i].entry;
    n = 1;
    verdicts[i].found = false;
    if (lost && verdicts[i].outcome != OUTBOX_DELIVERED) continue;
    if (item != NULL && verdicts[i].outcome == OUTBOX_DELIVERED && !item->delayed) {
      code = delete_run(store, &verdicts[i], item, hand->count - i, &n);
      if (code != OUTBOX_OK || n > 0) continue;
      n = 1;
    }
    if (item != NULL) entry = (outbox_identity){item->entry.id, item->entry.seq};
    code = settle_one(store, &verdicts[i], item == NULL || item->delayed, entry, now);
  }
  return code;
}

/* --- Memory ---------------------------------------------------------------------------------- */

static bool keeps_waiting(const outbox_verdict *verdict) {
  return verdict->outcome == OUTBOX_RETRY || verdict->outcome == OUTBOX_PUT_OFF;
}

void verdict_block(lane *lane, const outbox_verdict *verdicts) {
  items *hand = &lane->hand;
  for (size_t i = 0; i < hand->count; i++) {
    item *item = &hand->items[i];
    item->stays = verdicts[i].outcome == OUTBOX_AGAIN;
    if (item->line == 0 || !keeps_waiting(&verdicts[i])) continue;
    line *line = lines_add(&lane->lines, item->line, LINE_HELD);
    line->state = LINE_HELD;
    line->blocked = true;
    line->joined = false;
    line->head = item->entry.seq;
    /* It was handed out, so all before it are done. */
    if (line->first < item->entry.seq) line->first = item->entry.seq;
  }
  for (size_t i = 0; i < hand->count; i++) {
    const item *item = &hand->items[i];
    if (verdicts[i].outcome != OUTBOX_AGAIN) continue;
    line *line = lines_find(&lane->lines, item->space);
    bool parked = line != NULL && line->state == LINE_PARKED;
    if (!parked)
      line = lines_add(&lane->lines, item->line != 0 ? item->line : item->space, LINE_HELD);
    line->first = lines_lower(line->first, item->entry.seq);
    if (parked) continue;
    line->joined = false;
    line->blocked = true;
  }
}

/* Whether an entry of this line is kept waiting. */
static bool any_waits(const items *hand, const outbox_verdict *verdicts, uint64_t line) {
  for (size_t i = 0; i < hand->count && line != 0; i++)
    if (keeps_waiting(&verdicts[i]) && hand->items[i].line == line) return true;
  return false;
}

static void unblock_again(lane *lane, const outbox_verdict *verdicts, const item *item) {
  line *space = lines_find(&lane->lines, item->space);
  if (item->delayed) lane->due_at = lane->due_seq = INT64_MIN;
  if (space != NULL && space->state == LINE_PARKED) return;
  line *line = lines_find(&lane->lines, item->line != 0 ? item->line : item->space);
  if (line == NULL) return;
  line->blocked = false;
  if (!any_waits(&lane->hand, verdicts, item->line)) lane_release(lane, line);
}

/* An entry has left the queue: what waited behind it is free. */
static void unblock_gone(lane *lane, const item *item) {
  line *line = lines_find(&lane->lines, item->line);
  if (line != NULL && (item->delayed || item->entry.attempts > 0 || line->state == LINE_HELD))
    lane_release(lane, line);
  if (!item->delayed || !lane->skipped) return;
  lane->due_at = lane->due_seq = INT64_MIN;
  lane->skipped = false;
}

void verdict_unblock(lane *lane, const outbox_verdict *verdicts, size_t count) {
  const items *hand = &lane->hand;
  for (size_t i = 0; i < hand->count; i++)
    if (verdicts[i].outcome == OUTBOX_AGAIN)
      unblock_again(lane, verdicts, &hand->items[i]);
    else if (!keeps_waiting(&verdicts[i]))
      unblock_gone(lane, &hand->items[i]);
  for (size_t i = 0; i < hand->count; i++) { /* the tables tell now what is held back */
    line *line = lines_find(&lane->lines, hand->items[i].line);
    if (line == NULL || !line->blocked) continue;
    line->blocked = false;
    if (line->first == NEVER) lines_drop(&lane->lines, line);
  }
  if (count > hand->count) lane->checked_at = 0; /* one that a line waits for may have gone */
}
