/*
** What became of the entries that were handed out: written to the tables, and noted in the lines.
*/
#include "lane.h"

/* --- Writing --------------------------------------------------------------------------------- */

static outbox_identity identity_of(const item *item) {
  return (outbox_identity){item->entry.id, item->entry.seq};
}

/* Deletes a run of places without gaps at once. *length: how many; 0 if some were not there. */
static int delete_run(outbox_store *store, outbox_verdict *verdicts, const item *items,
                      size_t count, size_t *length) {
  size_t n = 1;
  int64_t deleted;
  *length = 0;
  while (n < count && verdicts[n].outcome == OUTBOX_DELIVERED && !items[n].delayed &&
         items[n].entry.seq == items[0].entry.seq + (int64_t)n)
    n++;
  int code = settle_run(store, identity_of(&items[0]), identity_of(&items[n - 1]), false, &deleted);
  if (code != OUTBOX_OK || deleted != (int64_t)n) return code;
  for (size_t i = 0; i < n; i++)
    verdicts[i].found = true;
  *length = n;
  return OUTBOX_OK;
}

static int64_t highest(const items *hand, const outbox_verdict *verdicts, size_t count) {
  int64_t seq = INT64_MIN;
  for (size_t i = 0; i < count; i++) {
    int64_t place = i < hand->count ? hand->items[i].entry.seq : verdicts[i].entry.seq;
    if (place > seq) seq = place;
  }
  return seq;
}

int verdict_settle(outbox_store *store, outbox_verdict *verdicts, size_t count, bool lost,
                   int64_t stays, int64_t now) {
  const items *hand = &store->lane->hand;
  int64_t last = highest(hand, verdicts, count);
  int code = count > 0 && last >= stays ? settle_mark(store, last) : OUTBOX_OK;
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
    if (item != NULL) entry = identity_of(item);
    code = settle_entry(store, &verdicts[i], entry, item == NULL || item->delayed, now);
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
