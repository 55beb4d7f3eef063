/*
** The one operation of a processor: with a claim it is one round trip, see round.c; without one, it
** claims its share first.
*/
#include <stdlib.h>

#include "round.h"

#define SECOND 1000000

static const char ANY_WORK_SQL[] =
    "SELECT EXISTS (SELECT FROM generate_series(0, 63) AS p CROSS JOIN LATERAL (SELECT 1"
    " FROM @entries WHERE partition = p AND (namespace = ANY ($1)) <> $2 LIMIT 1) AS e)"
    " OR EXISTS (SELECT FROM @delayed WHERE due_at <= $3 AND (namespace = ANY ($1)) <> $2)";

static const char FREED_SQL[] =
    "SELECT place FROM unnest($1::bigint[]) AS t (place) WHERE NOT EXISTS"
    " (SELECT FROM @delayed AS d WHERE d.seq = place AND d.position = place)";

/* --- Without a claim ------------------------------------------------------------------------- */

static int join(step *s, outbox_progress *progress) {
  outbox_store *store = s->store;
  lane *lane = s->lane;
  bool lost, ahead, any = false;
  lane->survey = (survey){0};
  int code = round_settle_without(s);
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
  return round_settle_and_read(s);
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

/* If this fails, the next call sees to it; meanwhile the share that it has had can be served. */
static int share(step *s, bool drop) {
  bool lost = false;
  int code = share_claim(s->store, false, drop, &lost, &s->more);
  s->lane->changed = code != OUTBOX_OK;
  if (lost) round_lose(s);
  return drop || s->lane->mask == 0 ? code : OUTBOX_OK;
}

static int serve(step *s, outbox_progress *progress) {
  lane *lane = s->lane;
  int code = check_holders(s);
  if (code != OUTBOX_OK) return code;
  if (s->want->leave || lane->changed || lane->mask == 0) {
    code = round_settle_alone(s);
    if (code != OUTBOX_OK || s->lost) return code;
    if (s->want->leave || lane->changed || lane->forgotten) code = share(s, s->want->leave);
    if (code != OUTBOX_OK || s->lost || s->want->leave) return code;
    progress->refused = lane->mask == 0;
  }
  if (lane->mask != 0) code = round_settle_and_read(s);
  if (code != OUTBOX_OK || s->lost) return code;
  bool due = lane->due && lane->any_due && s->want->where == OUTBOX_ANYWHERE;
  if (s->found.count == 0 && s->want->batch_size > 0 && (lane->changed || due))
    s->more = true; /* the next call sees to it */
  return is_idle(s) ? share(s, true) : OUTBOX_OK;
}

/* --- The operation --------------------------------------------------------------------------- */

/*
** The server may have crashed in between. Then it has undone what was settled last, which is not
** synced at once, and may draw numbers again that were seen. So nothing is known any more of what
** is there: the claim's partitions are gained anew, and read from the beginning.
*/
static void forget(lane *lane) {
  cursor_forget(lane);
  lane->mask = 0;
  lane->forgotten = true;
}

static int set_up_session(outbox_store *store) {
  lane *lane = store->lane;
  if (lane->session == store->sessions) return OUTBOX_OK;
  int code = connection_set(store);
  if (code != OUTBOX_OK) return code;
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
  code = round_resolve(&s);
  if (code == OUTBOX_OK) code = lane->lease == 0 ? join(&s, progress) : serve(&s, progress);
  free(s.entries);
  if (code != OUTBOX_OK) {
    lane_empty(&s.found);
    if (count == 0 || s.count > 0) return code;
    s.more = true; /* what is settled would be settled again; the next call sees to the rest */
  }
  lane_empty(&lane->hand);
  lane->hand = s.found;
  bell_see(store, lane->hand.count > 0);
  report(&s, progress);
  return OUTBOX_OK;
}
