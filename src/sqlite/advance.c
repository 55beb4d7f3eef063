/*
** The one operation of a processor: settle, renew, read, hold.
**
** What keeps entries back is noted before the reading, what sets them free after the commit: the
** snapshot of the reading still shows the retries that this call settles.
*/
#include <string.h>

#include "lane.h"

#define MOST_LINES 100000 /* then all are forgotten, and main goes back to the lowest */

/* An outbox_advance under way. */
typedef struct step {
  outbox_store *store;
  lane *lane;
  const outbox_want *want;
  int64_t now;
  bool settles; /* there are verdicts, so it writes in any case */
  bool leaves;  /* gives everything back */
  bool ahead;   /* a retry was delayed in the future */
  bool mine;    /* there was a claim before */
  bool more;
  survey survey;
  unsigned version; /* of the database, when it was read */
  items found;
  int64_t due_at; /* when the next entry falls due; 0: none */
} step;

/* Forgets what was found, also what was `dropped` of it: it is looked for again. */
static void put_back(step *s, int64_t dropped) {
  int64_t from = dropped == NEVER ? NEVER : dropped - 1;
  for (size_t i = 0; i < s->found.count; i++)
    from = lines_lower(from, s->found.items[i].entry.seq - 1);
  lane_empty(&s->found);
  lane_begin_anew(s->lane, from);
}

/* --- Reading --------------------------------------------------------------------------------- */

static int look(step *s) {
  outbox_store *store = s->store;
  lane *lane = s->lane;
  int code = doorbell_see(store);
  if (code == OUTBOX_OK && lane->paused_at_version != store->doorbell.version) {
    code = pause_see(store);
    if (code == OUTBOX_OK) lane->paused_at_version = store->doorbell.version;
  }
  if (code == OUTBOX_OK && !s->settles) code = share_survey(store, s->now, false, &s->survey);
  s->version = transaction_version(store);
  uint64_t mask = s->mine ? lane->mask : UINT64_MAX;
  bool delayed = false;
  if (code == OUTBOX_OK) code = due_any(store, &delayed);
  if (code == OUTBOX_OK && !s->want->leave)
    code = walk_read(store, s->want, mask, s->now, delayed, &s->found, &s->more);
  return code == OUTBOX_OK && delayed ? due_look(store, s->now, &s->due_at, &s->ahead) : code;
}

/* Reads without the write lock, all of one snapshot. */
static int read_first(step *s) {
  outbox_store *store = s->store;
  int code = transaction_control(store, BEGIN_READ);
  if (code != OUTBOX_OK) return code;
  code = look(s);
  if (code == OUTBOX_OK) code = transaction_control(store, COMMIT);
  if (code == OUTBOX_OK || sqlite3_get_autocommit(store->db)) return code;
  char message[sizeof store->message];
  memcpy(message, store->message, sizeof message);
  store->doomed = transaction_control(store, ROLLBACK) != OUTBOX_OK;
  return store_fail(store, code, "%s", message);
}

/* --- Writing --------------------------------------------------------------------------------- */

/* An idle claim is not renewed but given back, so that it keeps nobody waiting. */
static bool is_idle(const step *s) {
  lane *lane = s->lane;
  if (s->found.count > 0 || lane->hand.count > 0 || lane_is_waiting(lane) || lane->lap != NEVER ||
      s->more || s->want->batch_size <= 0)
    lane->busy_at = s->now;
  else if (s->now < lane->busy_at)
    lane->busy_at = s->now; /* the clock was set back */
  return s->now - lane->busy_at >= lane->duration / 2;
}

static bool has_to_write(const step *s) {
  const lane *lane = s->lane;
  if (s->settles) return true; /* there was no survey yet */
  uint64_t share = share_quota(lane, &s->survey);
  if (s->survey.lapsed || s->ahead || lane->scheduled_count > 0) return true;
  if (!s->mine) return s->found.count > 0 && !s->leaves && (share != 0 || s->want->join);
  return s->found.count > 0 || s->leaves || share != lane->mask || !s->survey.own ||
         lane->deadline - s->now < lane->duration / 2;
}

/* Scheduled entries that are due become ready. */
static int promote(step *s) {
  lane *lane = s->lane;
  bool done;
  int code = OUTBOX_OK;
  for (size_t i = 0; i < lane->scheduled_count && code == OUTBOX_OK; i++)
    code = due_promote(s->store, lane->scheduled[i], s->now, &done);
  s->more = s->more || lane->scheduled_count > 0 || s->ahead;
  return code == OUTBOX_OK && s->ahead ? due_correct(s->store, s->now) : code;
}

/* What the claim is after the commit. */
typedef struct kept {
  bool lost;
  bool wanted; /* there is something to be had, or to be waited for */
  uint64_t mask;
  int64_t lease, dropped;
} kept;

/* The highest place of a ready entry that was found; INT64_MIN: none. */
static int64_t highest_found(const step *s) {
  int64_t highest = INT64_MIN;
  for (size_t i = 0; i < s->found.count; i++)
    if (!s->found.items[i].delayed && s->found.items[i].entry.seq > highest)
      highest = s->found.items[i].entry.seq;
  return highest;
}

static int write_all(step *s, outbox_verdict *verdicts, size_t count, kept *kept) {
  outbox_store *store = s->store;
  lane *lane = s->lane;
  int code = store_now_inside(store, &s->now);
  if (code == OUTBOX_OK) code = share_survey(store, s->now, true, &s->survey);
  if (code != OUTBOX_OK) return code;
  kept->lost = s->mine && !s->survey.own;
  kept->lease = lane->lease;
  bool changed = transaction_version(store) != s->version;
  code = verdict_settle(store, verdicts, count, kept->lost,
                        changed || s->survey.lapsed ? INT64_MIN : highest_found(s), s->now);
  if (code != OUTBOX_OK || kept->lost) return code;
  kept->mask = s->leaves ? 0 : share_quota(lane, &s->survey);
  /* What was charged just now must be handed out alone, so it is all read again. */
  uint64_t usable = s->survey.lapsed ? 0 : kept->mask;
  kept->wanted = s->mine || s->found.count > 0 || s->want->join;
  if (changed) code = pause_see(store);
  if (code == OUTBOX_OK) code = walk_verify(store, &s->found, usable, changed, &kept->dropped);
  bool drop = s->leaves || !kept->wanted || (kept->mask == 0 && !s->mine && !s->want->join);
  if (drop) kept->mask = 0;
  if (code == OUTBOX_OK)
    code = share_write(store, kept->mask, s->now, &s->found, drop, &kept->lease);
  return code == OUTBOX_OK ? promote(s) : code;
}

/* --- Memory follows -------------------------------------------------------------------------- */

static void lose(step *s) {
  lane *lane = s->lane;
  lane_empty(&s->found);
  lane_empty(&lane->hand);
  lane->lease = 0;
  lane->mask = 0;
  lane->highest = INT64_MIN;
  for (int i = 0; i < BOX_CLASSES; i++)
    lane->floor[i] = INT64_MIN;
  lane_begin_anew(lane, INT64_MIN);
}

static int64_t lowest_left(const lane *lane) {
  int64_t first = NEVER;
  for (line *line = NULL; (line = lines_next(&lane->lines, line)) != NULL;)
    first = lines_lower(first, line->first);
  return lines_lower(lane->main, first == NEVER ? NEVER : first - 1);
}

/* Goes back to where something of the classes that were gained may lie. */
static void move(step *s, const kept *kept) {
  lane *lane = s->lane;
  uint64_t before = lane->mask, given = before & ~kept->mask, gained = kept->mask & ~before;
  int64_t dropped = kept->dropped == NEVER ? NEVER : kept->dropped - 1, from = dropped;
  int64_t left = given != 0 ? lines_lower(lowest_left(lane), dropped) : NEVER;
  for (int i = 0; i < BOX_CLASSES; i++) {
    if (given >> i & 1) lane->floor[i] = left;
    if (s->mine && ((gained >> i & 1) || kept->lease == 0))
      from = lines_lower(from, lane->floor[i]);
  }
  lane->lease = kept->lease;
  lane->mask = kept->mask;
  lane->deadline = clock_later(s->now, lane->duration);
  if (from < lane->main) lane_begin_anew(lane, from);
  if (gained == 0 && kept->dropped == NEVER) return;
  s->more = true;
  lane->due_at = lane->due_seq = INT64_MIN;
}

static void hold(step *s) {
  lane *lane = s->lane;
  lane_empty(&lane->hand);
  lane->hand = s->found;
  s->found = (items){0};
  lane->highest = INT64_MIN;
  for (size_t i = 0; i < lane->hand.count; i++)
    if (lane->hand.items[i].entry.seq > lane->highest)
      lane->highest = lane->hand.items[i].entry.seq;
}

static void report(const step *s, outbox_progress *progress) {
  const lane *lane = s->lane;
  progress->count = lane->hand.count;
  progress->uniform = lane_is_uniform(&lane->hand);
  progress->repeats = lane_repeats(&lane->hand);
  progress->deadline = lane->lease != 0 ? lane->deadline : 0;
  progress->overlapped = s->survey.overlapped && lane->mask == 0;
  progress->more = s->more && !progress->refused;
  progress->again_at = due_earlier(s->due_at, s->survey.lapses_at);
  if (s->want->batch_size <= 0) return;
  bool due = lane->lap != NEVER || (lane->wants_lap && lane->next_lap <= s->now);
  if (due && s->want->where == OUTBOX_ANYWHERE)
    progress->more = !progress->refused;
  else if (due || lane->wants_lap) /* only who asks for anything goes on with the lap */
    progress->again_at = due_earlier(progress->again_at, due ? s->now : lane->next_lap);
}

/* --- The operation --------------------------------------------------------------------------- */

static int write_and_follow(step *s, outbox_verdict *verdicts, size_t count,
                            outbox_progress *progress) {
  lane *lane = s->lane;
  kept kept = {.dropped = NEVER};
  int code = outbox_begin(s->store);
  if (code == OUTBOX_OK) code = transaction_end(s->store, write_all(s, verdicts, count, &kept));
  if (code != OUTBOX_OK) {
    put_back(s, kept.dropped);
    return code;
  }
  progress->lost = kept.lost;
  if (kept.lost) {
    lose(s);
    s->more = true;
    return OUTBOX_OK;
  }
  for (size_t i = 0; i < count; i++) /* the reading has not seen what may be had at once */
    s->more |= (verdicts[i].outcome == OUTBOX_AGAIN && s->want->batch_size > 0) ||
               ((verdicts[i].outcome == OUTBOX_RETRY || verdicts[i].outcome == OUTBOX_PUT_OFF) &&
                verdicts[i].at <= s->now);
  bool skipped = lane->skipped;
  verdict_unblock(lane, verdicts, count);
  s->more |= skipped && !lane->skipped; /* a retry that is due waited for one that is gone */
  hold(s);
  move(s, &kept);
  share_note(s->store, s->now, &s->survey);
  if (lane->lines.live > MOST_LINES) lane_begin_anew(lane, NEVER);
  progress->refused = kept.mask == 0 && kept.wanted && !s->leaves;
  return OUTBOX_OK;
}

int outbox_advance(outbox_store *store, outbox_verdict *verdicts, size_t count,
                   const outbox_want *want, outbox_progress *progress) {
  lane *lane = store->lane;
  step s = {.store = store, .lane = lane, .want = want, .settles = count > 0};
  *progress = (outbox_progress){0};
  int code = transaction_enter(store);
  if (code == OUTBOX_OK && (lane == NULL || !sqlite3_get_autocommit(store->db)))
    code = store_fail(store, OUTBOX_MISUSE,
                      lane == NULL ? "the store serves no processor" : "a transaction is open");
  if (code == OUTBOX_OK && count < lane->hand.count)
    code = store_fail(store, OUTBOX_MISUSE, "each entry in hand needs a verdict");
  if (code == OUTBOX_OK) code = doorbell_check(store);
  if (code == OUTBOX_OK) code = store_now(store, &s.now);
  if (code == OUTBOX_OK && !lines_reserve(&lane->lines, lane->hand.count))
    code = store_fail_nomem(store);
  if (code != OUTBOX_OK) return code;
  s.mine = lane->lease != 0;
  verdict_block(lane, verdicts);
  code = read_first(&s);
  if (code == OUTBOX_OK) {
    s.leaves = want->leave || is_idle(&s);
    if (has_to_write(&s)) {
      code = write_and_follow(&s, verdicts, count, progress);
    } else if (s.found.count > 0) {
      put_back(&s, NEVER);
      progress->refused = true;
    }
  } else {
    put_back(&s, NEVER);
  }
  lane_empty(&s.found);
  if (code == OUTBOX_OK) report(&s, progress);
  return code;
}
