/*
** The one operation of a processor: settle, renew, read, hold. One round trip, which the server
** gets as one message: so a process that is stopped never leaves a transaction open.
**
** It has the lock of its claim for that long, and looks whether the claim is there. Nobody can take
** over in between, and no row is written for it; see lease.c.
*/
#include <stdlib.h>

#include "lane.h"

#define SECOND 1000000

/* The order of an index is what a reading needs; whoever sorts has to read all first. */
static const char SESSION_SQL[] =
    "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off;"
    " SET enable_bitmapscan = off; SET jit = off";

/* No row is locked for the fence. It comes before anything else. */
static const char FENCE_SQL[] =
    "SELECT (SELECT last_value FROM @seq), pg_advisory_xact_lock(#, $1::int)::text,"
    " set_config('synchronous_commit', 'off', true)";

/* $1 the claim, $2 now, $3 the future. It takes a number for its transaction: see cursor.c. */
static const char STATUS_SQL[] =
    "SELECT (SELECT classes FROM @claims WHERE lease = $1),"
    " CASE WHEN $4 THEN pg_current_xact_id()::text::bigint ELSE 0 END,"
    " pg_snapshot_xmin(pg_current_snapshot())::text::bigint, @now(), " CLAIMS_FINGERPRINT ","
    " (SELECT coalesce(sum(hashtextextended(namespace, 0) >> 8), 0)::bigint + count(*)"
    " FROM @pauses),"
    " coalesce((SELECT due_at FROM @delayed WHERE due_at > $2 ORDER BY due_at LIMIT 1), 0),"
    " EXISTS (SELECT FROM @delayed WHERE due_at <= $2 AND position IS NOT NULL),"
    " EXISTS (SELECT FROM @delayed WHERE due_at <= $2 AND position IS NULL)"
    " OR EXISTS (SELECT FROM @delayed WHERE delayed_at > $3)";
enum { CLASSES, XID, XMIN, NOW, CLAIMS, PAUSES, DUE_AT, ANY_DUE, TO_PROMOTE };

static const char RENEW_SQL[] =
    "UPDATE @claims SET deadline = $2, claimed_at = $3, overtime = false WHERE lease = $1";

static const char PUT_DOWN_SQL[] = "DELETE FROM @batches WHERE lease = $1";

/* Whether a batch is in hand still, or the claim is gone: then nobody knows. */
static const char IS_HELD_SQL[] =
    "SELECT EXISTS (SELECT FROM @batches WHERE lease = $1 AND number = $2)"
    " OR NOT EXISTS (SELECT FROM @claims WHERE lease = $1)";

static const char ANY_WORK_SQL[] =
    "SELECT EXISTS (SELECT FROM generate_series(0, 63) AS p CROSS JOIN LATERAL (SELECT 1"
    " FROM @entries WHERE partition = p AND (namespace = ANY ($1)) <> $2 LIMIT 1) AS e)"
    " OR EXISTS (SELECT FROM @delayed WHERE due_at <= $3 AND (namespace = ANY ($1)) <> $2)";

static const char FREED_SQL[] =
    "SELECT place FROM unnest($1::bigint[]) AS t (place) WHERE NOT EXISTS"
    " (SELECT FROM @delayed AS d WHERE d.seq = place AND d.position = place)";

/* An outbox_advance under way. */
typedef struct step {
  outbox_store *store;
  lane *lane;
  const outbox_want *want;
  outbox_verdict *verdicts;
  outbox_identity *entries; /* what the verdicts mean */
  size_t count;             /* of verdicts that are not settled yet */
  int64_t now;
  bool lost, more;
  bool due; /* a retry that was settled just now */
  items found;
} step;

/* --- The claim is lost ----------------------------------------------------------------------- */

static void lose(step *s) {
  lane *lane = s->lane;
  lane_empty(&lane->hand);
  lane_empty(&s->found);
  lane->lease = 0;
  lane->mask = 0;
  lines_clear(&lane->holders);
  lane_begin_anew(lane, UINT64_MAX);
  s->lost = s->more = true;
}

/* --- What became of the batch ---------------------------------------------------------------- */

static bool keeps_waiting(const outbox_verdict *verdict) {
  return verdict->outcome == OUTBOX_RETRY || verdict->outcome == OUTBOX_PUT_OFF;
}

static void follow_verdict(step *s, const item *item, const outbox_verdict *verdict) {
  lane *lane = s->lane;
  if (verdict->outcome == OUTBOX_AGAIN) {
    lane_rewind_item(lane, item);
    s->more |= s->want->batch_size > 0;
  } else if (keeps_waiting(verdict)) {
    if (item->line != 0) lane_add_holder(lane, item->entry.seq, item->partition);
    if (verdict->at <= s->now) s->due = lane->due = s->more = true;
  } else if (item->delayed && item->line != 0) {
    lane_drop_holder(lane, item->entry.seq);
  }
}

/*
** Memory follows before anything is read: the reading of the same round trip sees what was settled.
** To do it again, after a failure, changes nothing.
*/
static void follow_verdicts(step *s) {
  const items *hand = &s->lane->hand;
  for (size_t i = 0; i < s->count; i++)
    if (i < hand->count)
      follow_verdict(s, &hand->items[i], &s->verdicts[i]);
    else if (keeps_waiting(&s->verdicts[i]))
      s->lane->due = true;
    else
      lane_drop_holder(s->lane, s->verdicts[i].entry.seq);
}

static bool add_verdicts(const step *s, settlement *settlement) {
  const items *hand = &s->lane->hand;
  bool good = true;
  for (size_t i = 0; i < s->count && good; i++) {
    bool ready = i < hand->count && !hand->items[i].delayed;
    good = settle_add(settlement, s->entries[i], ready ? hand->items[i].partition : -1,
                      &s->verdicts[i]);
  }
  return good;
}

/* --- The round trip -------------------------------------------------------------------------- */

static void read_status(step *s, reading *r, const PGresult *row) {
  lane *lane = s->lane;
  int64_t before = r->started, ours;
  outbox_system_clock(NULL, &ours);
  s->store->skew = sql_int(row, 0, NOW) - (ours - (clock_monotonic() - before) / 2);
  lane->any_due = sql_bool(row, 0, ANY_DUE) || s->due;
  if (lane->due_at != 0 && lane->due_at <= s->now) lane->due = true; /* it has come */
  lane->due_at = sql_int(row, 0, DUE_AT);
  lane->changed =
      sql_bool(row, 0, TO_PROMOTE) || share_has_changed(lane, sql_int(row, 0, CLAIMS), s->now);
}

/* Whether the deadline has come nearer. It is not moved for each batch: a row that is gets slow. */
static bool is_to_renew(const step *s) {
  return s->now < s->lane->renewed_at || s->now - s->lane->renewed_at >= s->lane->duration / 4;
}

static int receive(step *s, reading *r, settlement *settlement, bool renews) {
  outbox_store *store = s->store;
  lane *lane = s->lane;
  const PGresult *status = sql_result(store, 1);
  int64_t last_value = sql_int(sql_result(store, 0), 0, 0), pauses = sql_int(status, 0, PAUSES);
  settle_results(store, settlement, s->verdicts, s->entries, s->count);
  s->count = 0;
  if (PQgetisnull(status, 0, CLASSES)) {
    lose(s);
    return OUTBOX_OK;
  }
  read_status(s, r, status);
  cursor_mark(lane, last_value, sql_int(status, 0, XID), sql_int(status, 0, XMIN));
  if (renews) {
    lane->renewed_at = s->now;
    lane->deadline = clock_later(s->now, lane->duration);
  }
  lane_empty(&lane->hand);
  int code = OUTBOX_OK;
  if (r->what != READ_NOTHING) code = read_receive(store, r, last_value, &s->found, &s->more);
  if (code == OUTBOX_OK && pauses != lane->pauses) {
    pause_see(store, r->before,
              pauses); /* all is committed; if this fails, the next call does it */
    s->more = true;
  }
  return code;
}

/* Settles what is in hand, renews the claim, and reads. */
static int go_round(step *s, reading *r) {
  outbox_store *store = s->store;
  lane *lane = s->lane;
  settlement settlement = {0};
  bool renews = is_to_renew(s), writes = s->count > 0 || lane->hand.count > 0;
  if (!add_verdicts(s, &settlement)) {
    settle_free(&settlement);
    return store_fail_nomem(store);
  }
  sql_start(store);
  sql_add(store, FENCE_SQL, "i", LOCK_CLAIM + (lane->lease & 0x3fffffff));
  sql_add(store, STATUS_SQL, "iiib", lane->lease, s->now, time_future(store, s->now),
          writes || renews);
  if (renews)
    sql_add(store, RENEW_SQL, "iii", lane->lease, clock_later(s->now, lane->duration), s->now);
  if (lane->hand.count > 0) sql_add(store, PUT_DOWN_SQL, "i", lane->lease);
  settle_send(store, &settlement, lane->lease, s->now);
  read_send(store, r);
  int code = sql_end(store);
  if (code == OUTBOX_DISCONNECTED && writes) lane->uncertain = true;
  if (code == OUTBOX_OK) code = receive(s, r, &settlement, renews);
  settle_free(&settlement);
  return code;
}

static int settle_alone(step *s) {
  reading none = {.what = READ_NOTHING, .started = clock_monotonic()};
  for (int p = 0; p < PARTITIONS; p++)
    none.before[p] = INT64_MAX;
  follow_verdicts(s);
  return go_round(s, &none);
}

static int read_once(step *s, bool *other) {
  reading r = {.want = s->want, .now = s->now, .place = NEVER, .started = clock_monotonic()};
  for (int p = 0; p < PARTITIONS; p++)
    r.before[p] = INT64_MAX;
  follow_verdicts(s);
  int code = read_choose(s->store, &r, &s->more);
  if (code == OUTBOX_OK) code = go_round(s, &r);
  *other = r.other;
  read_free(&r);
  return code;
}

static int settle_and_read(step *s) {
  bool other;
  int code = read_once(s, &other);
  if (code == OUTBOX_OK && other && s->found.count == 0 && !s->lost && s->lane->suspect_count == 0)
    read_once(s, &other); /* all is settled: this may fail */
  return code;
}

/* --- Without a claim ------------------------------------------------------------------------- */

/* What was put off before may still be settled. */
static int settle_without(step *s) {
  settlement settlement = {0};
  if (s->count == 0) return OUTBOX_OK;
  if (!add_verdicts(s, &settlement)) {
    settle_free(&settlement);
    return store_fail_nomem(s->store);
  }
  sql_start(s->store);
  settle_send(s->store, &settlement, 0, s->now);
  int code = sql_end(s->store);
  if (code == OUTBOX_OK) {
    settle_results(s->store, &settlement, s->verdicts, s->entries, s->count);
    s->count = 0;
  }
  settle_free(&settlement);
  return code;
}

static int join(step *s, outbox_progress *progress) {
  outbox_store *store = s->store;
  lane *lane = s->lane;
  bool lost, ahead, any = false;
  lane->survey = (survey){0};
  int code = settle_without(s);
  if (code != OUTBOX_OK || s->want->leave || (s->want->batch_size <= 0 && !s->want->join))
    return code;
  code = sql_run(store, ANY_WORK_SQL, "Tbi", &lane->names, lane->except, s->now);
  if (code == OUTBOX_OK) any = sql_bool(sql_result(store, 0), 0, 0);
  if (code == OUTBOX_OK) code = due_look(store, s->now, &lane->due_at, &ahead);
  if (code != OUTBOX_OK || (!any && !s->want->join)) return code;
  lane->busy_at = s->now;
  code = share_claim(store, s->want->join, false, &lost, &s->more);
  progress->refused = code == OUTBOX_OK && lane->mask == 0;
  if (code != OUTBOX_OK || lane->mask == 0) return code;
  return settle_and_read(s);
}

/* --- With one -------------------------------------------------------------------------------- */

/* Whether the retries that others wait for are still there: an operator deletes without a word. */
static int check_holders(step *s) {
  lane *lane = s->lane;
  array places = {0};
  if (s->now >= lane->checked_at && s->now - lane->checked_at < SECOND) return OUTBOX_OK;
  lane->checked_at = s->now;
  lane->due = true;
  if (lane->holders_lost) { /* nobody knows them all: what they held back is read again */
    lane->holders_lost = lane->holders.live > 0;
    for (int p = 0; p < PARTITIONS; p++)
      lane_rewind(lane, p, INT64_MIN);
  }
  if (lane->holders.live == 0) return OUTBOX_OK;
  for (line *it = NULL; (it = lines_next(&lane->holders, it)) != NULL;)
    array_add_int(&places, it->first);
  int code = sql_run(s->store, FREED_SQL, "I", &places);
  array_free(&places);
  if (code != OUTBOX_OK) return code;
  const PGresult *rows = sql_result(s->store, 0);
  for (int i = 0; i < PQntuples(rows); i++)
    lane_drop_holder(lane, sql_int(rows, i, 0));
  return OUTBOX_OK;
}

/* An idle claim is not renewed but given back, so that it keeps nobody waiting. */
static bool is_idle(const step *s) {
  lane *lane = s->lane;
  if (s->found.count > 0 || lane->hand.count > 0 || lane_is_waiting(lane) || lane->has_lap ||
      s->more || s->want->batch_size <= 0 || s->now < lane->busy_at)
    lane->busy_at = s->now;
  return s->now - lane->busy_at >= lane->duration / 2;
}

/*
** What was in hand is settled by now, and would be settled again if this failed. Then the next call
** sees to it.
*/
static int share(step *s, bool drop) {
  bool lost = false;
  s->lane->changed = share_claim(s->store, false, drop, &lost, &s->more) != OUTBOX_OK;
  if (lost) lose(s);
  return OUTBOX_OK;
}

static int serve(step *s, outbox_progress *progress) {
  lane *lane = s->lane;
  int code = check_holders(s);
  if (code != OUTBOX_OK) return code;
  if (s->want->leave || lane->changed || lane->mask == 0) {
    code = settle_alone(s);
    if (code != OUTBOX_OK || s->lost) return code;
    if (s->want->leave || lane->changed || lane->forgotten) code = share(s, s->want->leave);
    progress->refused = !s->want->leave && lane->mask == 0;
    if (s->lost || s->want->leave) return code;
  }
  if (lane->mask != 0) code = settle_and_read(s);
  if (code != OUTBOX_OK || s->lost) return code;
  bool due = lane->due && lane->any_due && s->want->where == OUTBOX_ANYWHERE;
  if (s->found.count == 0 && s->want->batch_size > 0 && (lane->changed || due))
    s->more = true; /* the next call sees to it */
  return is_idle(s) ? share(s, true) : OUTBOX_OK;
}

/* --- The operation --------------------------------------------------------------------------- */

/*
** The connection was lost in the last round trip. If the row of the batch in hand is gone, that was
** committed: so is what became of it. What was read then was never handed out.
*/
static int resolve(step *s) {
  lane *lane = s->lane;
  if (!lane->uncertain) return OUTBOX_OK;
  int code = sql_run(s->store, IS_HELD_SQL, "ii", lane->lease, lane->hand.number);
  if (code != OUTBOX_OK) return code;
  bool held = sql_bool(sql_result(s->store, 0), 0, 0);
  if (!held && lane->hand.count > 0) {
    code = sql_run(s->store, PUT_DOWN_SQL, "i", lane->lease);
    if (code != OUTBOX_OK) return code;
    for (size_t i = 0; i < s->count; i++)
      s->verdicts[i].found = true;
    follow_verdicts(s);
    lane_empty(&lane->hand);
    s->count = 0;
  }
  lane->uncertain = false;
  return OUTBOX_OK;
}

/*
** The server may have crashed in between. Then it has undone what was settled last, which is not
** synced at once, and may draw numbers again that were seen. So nothing is known any more of what
** is there: the claim's partitions are gained anew, and read from the beginning.
*/
static void forget(lane *lane) {
  cursor_forget(lane);
  lane->final = INT64_MIN;
  lane->mask = 0;
  lane->forgotten = true;
}

static int set_up_session(outbox_store *store) {
  lane *lane = store->lane;
  if (store->serves && lane->session == store->sessions) return OUTBOX_OK;
  int code = sql_script(store, SESSION_SQL);
  if (code != OUTBOX_OK) return code;
  store->serves = true;
  if (lane->session != 0) forget(lane);
  lane->session = store->sessions;
  return OUTBOX_OK;
}

static void report(const step *s, outbox_progress *progress) {
  const lane *lane = s->lane;
  progress->count = lane->hand.count;
  progress->lost = s->lost;
  progress->uniform = lane_is_uniform(&lane->hand);
  progress->repeats = lane_repeats(&lane->hand);
  progress->deadline = lane->lease != 0 ? lane->deadline : 0;
  progress->overlapped = lane->survey.overlapped && lane->mask == 0;
  progress->more = s->more && !progress->refused;
  progress->again_at = time_earlier(lane->due_at, lane->survey.lapses_at);
}

static int identify(step *s) {
  const items *hand = &s->lane->hand;
  s->entries = malloc((s->count + 1) * sizeof *s->entries);
  if (s->entries == NULL) return store_fail_nomem(s->store);
  for (size_t i = 0; i < s->count; i++)
    s->entries[i] = i < hand->count
                        ? (outbox_identity){hand->items[i].entry.id, hand->items[i].entry.seq}
                        : s->verdicts[i].entry;
  return OUTBOX_OK;
}

int outbox_advance(outbox_store *store, outbox_verdict *verdicts, size_t count,
                   const outbox_want *want, outbox_progress *progress) {
  lane *lane = store->lane;
  step s = {.store = store, .lane = lane, .want = want, .verdicts = verdicts, .count = count};
  *progress = (outbox_progress){0};
  int code = transaction_ready(store);
  if (code == OUTBOX_OK && (lane == NULL || store->depth > 0))
    code = store_fail(store, OUTBOX_MISUSE,
                      lane == NULL ? "the store serves no processor" : "a transaction is open");
  if (code == OUTBOX_OK && count < lane->hand.count)
    code = store_fail(store, OUTBOX_MISUSE, "each entry in hand needs a verdict");
  if (code == OUTBOX_OK) code = store_now(store, &s.now);
  if (code == OUTBOX_OK) code = set_up_session(store);
  if (code == OUTBOX_OK) code = identify(&s);
  if (code != OUTBOX_OK) return code;
  PQclear(lane->suspect_rows);
  lane->suspect_rows = NULL;
  lane->suspect_count = 0;
  code = resolve(&s);
  if (code == OUTBOX_OK) code = lane->lease == 0 ? join(&s, progress) : serve(&s, progress);
  free(s.entries);
  if (code != OUTBOX_OK) {
    lane_empty(&s.found);
    return code;
  }
  lane_empty(&lane->hand);
  lane->hand = s.found;
  bell_see(store, lane->hand.count > 0);
  report(&s, progress);
  return OUTBOX_OK;
}
