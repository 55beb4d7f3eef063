/*
** How lanes share the outbox: what others hold, what this processor may hold, and its row.
**
** The number of a row is never used again, so a processor that has lost its row finds no other in
** its place.
*/
#include "lane.h"

static const char INSERT_LANE_SQL[] =
    "INSERT INTO @claims (processor_id, namespaces, classes, first_seq, last_seq, deadline,"
    " claimed_at, held) VALUES (?1, ?2, ?3, -9223372036854775808, 9223372036854775807, ?4, ?5, ?6)";

static const char UPDATE_LANE_SQL[] =
    "UPDATE @claims SET classes = ?2, deadline = ?3, claimed_at = ?4, held = ?5 WHERE lease = ?1";

/* --- Looking at the claims ------------------------------------------------------------------- */

/* A look under way. */
typedef struct look {
  outbox_store *store;
  int64_t now;
  bool reap;
  survey *survey;
} look;

static int note(void *context, const outbox_lease *lease) {
  const look *look = context;
  const lane *lane = look->store->lane;
  survey *survey = look->survey;
  if (lane->lease != 0 && lease->lease == lane->lease &&
      bytes_equal(lease->processor_id, lane->processor_id)) {
    survey->own = true;
    survey->mask = lease->classes;
    survey->members++;
    return OUTBOX_OK;
  }
  /* Whoever had this id before is dead: no two live processors have the same. */
  bool predecessor = lane->lease == 0 && lease_is_lane(lease) &&
                     bytes_equal(lease->processor_id, lane->processor_id);
  if (predecessor || lease_has_lapsed(look->store, lease, look->now)) {
    survey->lapsed = true;
    return look->reap ? lease_reap(look->store, lease, look->now) : OUTBOX_OK;
  }
  survey->lapses_at = due_earlier(survey->lapses_at, lease_lapses_at(lease));
  if (lease_is_lane(lease) && bytes_equal(lease->namespaces, lane->namespaces)) {
    survey->members++;
    survey->taken |= lease->classes;
  } else if (lease->classes != 0 && box_overlaps(lease->namespaces, lane->namespaces)) {
    survey->overlapped = true;
  }
  return OUTBOX_OK;
}

/* Whether nobody has written since, and no claim may have lapsed. */
static bool is_known(outbox_store *store, int64_t now) {
  const seen *seen = &store->lane->seen;
  int64_t lapses_at = seen->survey.lapses_at;
  return seen->changes == sqlite3_total_changes64(store->db) &&
         seen->version == transaction_version(store) && now >= seen->at &&
         (lapses_at == 0 || now < lapses_at);
}

void share_note(outbox_store *store, int64_t now, const survey *survey) {
  lane *lane = store->lane;
  lane->seen = (seen){.survey = *survey,
                      .at = now,
                      .changes = sqlite3_total_changes64(store->db),
                      .version = transaction_version(store)};
  lane->seen.survey.own = lane->lease != 0;
  lane->seen.survey.mask = lane->mask;
  lane->seen.survey.lapsed = false; /* it was removed */
}

int share_survey(outbox_store *store, int64_t now, bool reap, survey *survey) {
  if (reap && is_known(store, now)) {
    *survey = store->lane->seen.survey;
    return OUTBOX_OK;
  }
  look look = {store, now, reap, survey};
  *survey = (struct survey){0};
  int code = lease_each(store, note, &look);
  if (!survey->own) survey->members++;
  return code;
}

/* --- The share ------------------------------------------------------------------------------- */

uint64_t share_quota(const lane *lane, const survey *survey) {
  return box_quota(survey->mask, survey->taken, survey->members, survey->overlapped,
                   lane->ordering == OUTBOX_ORDERING_STRICT);
}

/* --- The row --------------------------------------------------------------------------------- */

static int name_hand(outbox_store *store, const items *hand, outbox_bytes *held) {
  sqlite3_str *text = sqlite3_str_new(store->db);
  int64_t last = 0;
  for (size_t i = 0, n; i < hand->count; i += n) {
    int64_t place = hand->items[i].entry.seq;
    for (n = 1; i + n < hand->count; n++)
      if (hand->items[i + n].entry.seq != place + (int64_t)n) break;
    lease_name(text, (range){place, place + (int64_t)n - 1}, &last);
  }
  return lease_finish(store, text, held);
}

int share_write(outbox_store *store, uint64_t mask, int64_t now, const items *hand, bool drop,
                int64_t *lease) {
  const lane *lane = store->lane;
  int64_t deadline = clock_later(now, lane->duration);
  outbox_bytes held = {NULL, 0};
  if (drop) {
    int code = *lease != 0 ? lease_remove(store, *lease) : OUTBOX_OK;
    *lease = 0;
    return code;
  }
  int code = hand->count > 0 ? name_hand(store, hand, &held) : OUTBOX_OK;
  if (code == OUTBOX_OK && *lease != 0)
    code = sql_process(store, UPDATE_LANE_SQL, "iiiit", *lease, (int64_t)mask, deadline, now, held);
  else if (code == OUTBOX_OK)
    code = sql_process(store, INSERT_LANE_SQL, "ttiiit", lane->processor_id, lane->namespaces,
                       (int64_t)mask, deadline, now, held);
  if (code == OUTBOX_OK && *lease == 0) *lease = sqlite3_last_insert_rowid(store->db);
  sqlite3_free((void *)held.data);
  return code;
}

double outbox_share(const outbox_store *store) {
  const lane *lane = store->lane;
  return lane != NULL && lane->lease != 0 ? (double)box_count(lane->mask) / BOX_CLASSES : 0;
}
