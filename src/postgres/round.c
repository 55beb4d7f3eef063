/*
** The round trip. The server gets it as one message: so a process that is stopped never leaves a
** transaction open.
**
** It has the lock of its claim for that long, and looks whether the claim is there. Nobody can take
** over in between, and no row is written for it; see lease.c.
*/
#include "round.h"

/* No row is locked for the fence. It comes before anything else. */
static const char FENCE_SQL[] =
    "SELECT (SELECT last_value - (NOT is_called)::int FROM @seq),"
    " pg_advisory_xact_lock(#, $1::int)::text, set_config('synchronous_commit', 'off', true)";

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

static const char LOCK_CLAIMS_SQL[] = "SELECT pg_advisory_xact_lock(#, 1025)::text";

/*
** Gives the claim $1 of the processor $3 another number, so that a round trip which the server
** begins with only now finds none. Of its batches only $2 was ever handed out. The answer to this
** may be lost, too: then the claim has its new number already. Returns the number, NULL where the
** claim is gone; and whether that batch is in hand still.
*/
static const char RENUMBER_SQL[] =
    "WITH c AS (UPDATE @claims SET lease = DEFAULT WHERE lease = $1 RETURNING lease),"
    " o AS (UPDATE @outages AS o SET lease = c.lease FROM c WHERE o.lease = $1),"
    " d AS (DELETE FROM @batches WHERE lease = $1 AND number <> $2),"
    " b AS (UPDATE @batches AS b SET lease = c.lease FROM c WHERE b.lease = $1 AND number = $2)"
    " SELECT coalesce((SELECT lease FROM c), (SELECT max(lease) FROM @claims"
    " WHERE processor_id = $3 AND NOT by_hand AND lease > $1)),"
    " EXISTS (SELECT FROM @batches WHERE number = $2)";

/* --- The claim is lost ----------------------------------------------------------------------- */

void round_lose(step *s) {
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
void round_follow(step *s) {
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
    spot spot = {ready ? hand->items[i].partition : -1, 0};
    if (ready && hand->session == s->store->sessions) spot.tid = hand->items[i].tid;
    good = settle_add(settlement, s->entries[i], spot, &s->verdicts[i]);
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

/* What is still there is to be found again. */
static void rewind_hand(lane *lane) {
  for (size_t i = 0; i < lane->hand.count; i++)
    lane_rewind_item(lane, &lane->hand.items[i]);
}

static int receive(step *s, reading *r, settlement *settlement, bool renews, bool asked) {
  outbox_store *store = s->store;
  lane *lane = s->lane;
  const PGresult *status = sql_result(store, 1);
  int64_t last_value = sql_int(sql_result(store, 0), 0, 0), pauses = sql_int(status, 0, PAUSES);
  settle_results(store, settlement, s->verdicts, s->entries, s->count);
  if (settlement->missed > 0) rewind_hand(lane);
  if (PQgetisnull(status, 0, CLASSES)) {
    round_lose(s);
    return OUTBOX_OK;
  }
  read_status(s, r, status);
  cursor_mark(lane, last_value, sql_int(status, 0, XID), sql_int(status, 0, XMIN),
              asked ? sql_result(store, 2) : NULL);
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

static bool was_delivered(const step *s, int64_t seq) {
  for (size_t i = 0; i < s->count; i++)
    if (s->entries[i].seq == seq) return s->verdicts[i].outcome == OUTBOX_DELIVERED;
  return false;
}

/* Deletes those whose rows had moved. The reading may have found them before. */
static void catch_up(step *s, settlement *settlement) {
  items *found = &s->found;
  size_t count = 0;
  if (settle_missed(s->store, settlement, s->verdicts, s->count) != OUTBOX_OK) return;
  for (size_t i = 0; i < found->count; i++)
    if (found->items[i].delayed || !was_delivered(s, found->items[i].entry.seq))
      found->items[count++] = found->items[i];
  s->more |= count < found->count;
  found->count = count;
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
  bool asked = cursor_send(store, &r->xids, &r->floors);
  if (renews)
    sql_add(store, RENEW_SQL, "iii", lane->lease, clock_later(s->now, lane->duration), s->now);
  if (lane->hand.count > 0) sql_add(store, PUT_DOWN_SQL, "i", lane->lease);
  settle_send(store, &settlement, lane->lease, s->now);
  read_send(store, r);
  int code = sql_end(store);
  if (code == OUTBOX_DISCONNECTED) lane->uncertain = true;
  if (code == OUTBOX_OK) {
    code = receive(s, r, &settlement, renews, asked);
    if (settlement.missed > 0) catch_up(s, &settlement);
    s->count = 0;
  }
  settle_free(&settlement);
  return code;
}

int round_settle_alone(step *s) {
  reading none = {.what = READ_NOTHING, .started = clock_monotonic()};
  for (int p = 0; p < PARTITIONS; p++)
    none.before[p] = INT64_MAX;
  round_follow(s);
  int code = go_round(s, &none);
  read_free(&none);
  return code;
}

static int read_once(step *s, bool *other) {
  reading r = {.want = s->want, .now = s->now, .place = NEVER, .started = clock_monotonic()};
  for (int p = 0; p < PARTITIONS; p++)
    r.before[p] = INT64_MAX;
  round_follow(s);
  int code = read_choose(s->store, &r, &s->more);
  if (code == OUTBOX_OK) code = go_round(s, &r);
  *other = r.other;
  read_free(&r);
  return code;
}

int round_settle_and_read(step *s) {
  bool other;
  int code = read_once(s, &other);
  if (code == OUTBOX_OK && other && s->found.count == 0 && !s->lost && s->lane->suspect_count == 0)
    read_once(s, &other); /* all is settled: this may fail */
  return code;
}

/* What was put off before may still be settled. */
int round_settle_without(step *s) {
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

/*
** The connection was lost in the last round trip. The server may still be at work on it, with the
** lock of the claim, or begin with it later. If the row of the batch in hand is gone, that was
** committed: so is what became of it. What was read then was never handed out.
*/
int round_resolve(step *s) {
  lane *lane = s->lane;
  if (!lane->uncertain) return OUTBOX_OK;
  sql_start(s->store);
  sql_add(s->store, FENCE_SQL, "i", LOCK_CLAIM + (lane->lease & 0x3fffffff));
  sql_add(s->store, LOCK_CLAIMS_SQL, "");
  sql_add(s->store, RENUMBER_SQL, "iit", lane->lease, lane->hand.number, lane->processor_id);
  int code = sql_end(s->store);
  if (code != OUTBOX_OK) return code;
  const PGresult *row = sql_result(s->store, 2);
  lane->uncertain = false;
  if (PQgetisnull(row, 0, 0)) return OUTBOX_OK; /* it will turn out to be lost */
  lane->lease = sql_int(row, 0, 0);
  if (lane->hand.count == 0 || sql_bool(row, 0, 1)) return OUTBOX_OK;
  for (size_t i = 0; i < s->count; i++)
    s->verdicts[i].found = true;
  round_follow(s);
  lane_empty(&lane->hand);
  s->count = 0;
  return OUTBOX_OK;
}
