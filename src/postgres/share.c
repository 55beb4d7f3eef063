/*
** How lanes share the outbox: what others hold, what this processor may hold, and its row. This
** takes several round trips, and is rare: at first, at last, and when something has changed.
*/
#include "lane.h"

static const char INSERT_SQL[] =
    "INSERT INTO @claims (processor_id, namespaces, classes, by_hand, deadline, claimed_at)"
    " VALUES ($1, $2, $3, false, $4, $5) RETURNING lease";

static const char UPDATE_SQL[] =
    "UPDATE @claims SET classes = $2, deadline = $3, claimed_at = $4, overtime = false"
    " WHERE lease = $1";

static const char FINGERPRINT_SQL[] = "SELECT " CLAIMS_FINGERPRINT;

/* Processors that stand by are told that something was given back. */
static const char RING_SQL[] = "SELECT pg_notify('outbox_#', 'given')::text";

static const char HOLDERS_SQL[] =
    "SELECT position, partition::bigint FROM @delayed WHERE position IS NOT NULL"
    " AND (key IS NOT NULL OR $2) AND " HAS_CLASS("$1", "partition") " LIMIT 100000";

/* --- Looking at the claims ------------------------------------------------------------------- */

static int note(outbox_store *store, const claim_row *row, int64_t now, survey *survey) {
  const lane *lane = store->lane;
  bool reaped = false, same = bytes_equal(row->processor_id, lane->processor_id);
  if (lane->lease != 0 && row->lease == lane->lease && same) {
    survey->own = true;
    survey->mask = row->classes;
    survey->members++;
    return OUTBOX_OK;
  }
  /* Whoever had this id before is dead: no two live processors have the same. */
  bool predecessor = lane->lease == 0 && !row->by_hand && same;
  int code = OUTBOX_OK;
  if (predecessor || lease_has_lapsed(store, row, now)) code = lease_reap(store, row, now, &reaped);
  if (reaped || code != OUTBOX_OK) return code;
  survey->lapses_at = time_earlier(survey->lapses_at, clock_later(row->deadline, 1));
  if (!row->by_hand && bytes_equal(row->namespaces, lane->namespaces)) {
    survey->members++;
    survey->taken |= row->classes;
  } else if (row->classes != 0 && box_overlaps(row->namespaces, lane->namespaces)) {
    survey->overlapped = true;
  }
  return OUTBOX_OK;
}

static int look(outbox_store *store, int64_t now, survey *survey) {
  PGresult *rows;
  *survey = (struct survey){0};
  int code = lease_read_all(store, &rows);
  for (int i = 0; i < PQntuples(rows) && code == OUTBOX_OK; i++) {
    claim_row row = lease_row(rows, i);
    code = note(store, &row, now, survey);
  }
  PQclear(rows);
  if (!survey->own) survey->members++;
  return code;
}

static uint64_t quota(const lane *lane, const survey *survey) {
  return box_quota(survey->mask, survey->taken, survey->members, survey->overlapped,
                   lane->ordering == OUTBOX_ORDERING_STRICT);
}

bool share_has_changed(const lane *lane, int64_t fingerprint, int64_t now) {
  return fingerprint != lane->fingerprint ||
         (lane->survey.lapses_at != 0 && now >= lane->survey.lapses_at) ||
         lane->deadline - now < lane->duration / 2;
}

/* --- The row --------------------------------------------------------------------------------- */

/* What the claim is after the commit. */
typedef struct kept {
  int64_t now, lease, fingerprint;
  uint64_t mask;
  survey survey;
  bool lost, more;
} kept;

static int write_row(outbox_store *store, kept *kept, bool join, bool drop) {
  const lane *lane = store->lane;
  int64_t deadline = clock_later(kept->now, lane->duration);
  bool stays = kept->mask != 0 || lane->lease != 0 || join;
  uint64_t given = lane->mask & ~kept->mask;
  int code = OUTBOX_OK;
  if (drop || !stays) {
    kept->mask = kept->lease = 0;
    if (lane->lease == 0) return code;
    code = lease_remove(store, lane->lease);
    given = lane->mask;
  } else if (lane->lease != 0) {
    code =
        sql_run(store, UPDATE_SQL, "iiii", lane->lease, (int64_t)kept->mask, deadline, kept->now);
    kept->lease = lane->lease;
  } else {
    code = sql_run(store, INSERT_SQL, "ttiii", lane->processor_id, lane->namespaces,
                   (int64_t)kept->mask, deadline, kept->now);
    if (code == OUTBOX_OK) kept->lease = sql_int(sql_result(store, 0), 0, 0);
  }
  return code == OUTBOX_OK && given != 0 ? sql_run(store, RING_SQL, "") : code;
}

/* What is scheduled and due becomes ready; what was delayed in the future is due. */
static int follow_the_clock(outbox_store *store, kept *kept) {
  int64_t due_at;
  bool ahead = false;
  int code = due_promote(store, kept->now, &kept->more);
  if (code == OUTBOX_OK) code = due_look(store, kept->now, &due_at, &ahead);
  return code == OUTBOX_OK && ahead ? due_correct(store, kept->now) : code;
}

static int claim_inside(outbox_store *store, kept *kept, bool join, bool drop) {
  const lane *lane = store->lane;
  int code = lease_lock(store);
  if (code == OUTBOX_OK) code = store_now_inside(store, &kept->now);
  if (code == OUTBOX_OK) code = look(store, kept->now, &kept->survey);
  if (code != OUTBOX_OK) return code;
  kept->lost = lane->lease != 0 && !kept->survey.own;
  if (kept->lost) return OUTBOX_OK;
  kept->mask = quota(lane, &kept->survey);
  code = write_row(store, kept, join, drop);
  if (code == OUTBOX_OK) code = follow_the_clock(store, kept);
  if (code == OUTBOX_OK) code = sql_run(store, FINGERPRINT_SQL, "");
  if (code == OUTBOX_OK) kept->fingerprint = sql_int(sql_result(store, 0), 0, 0);
  return code;
}

/* Which retries there are in partitions that were gained. */
static int load_holders(outbox_store *store, uint64_t gained) {
  lane *lane = store->lane;
  if (gained == 0 || lane->ordering == OUTBOX_ORDERING_NONE) return OUTBOX_OK;
  int code =
      sql_run(store, HOLDERS_SQL, "ib", (int64_t)gained, lane->ordering == OUTBOX_ORDERING_STRICT);
  if (code != OUTBOX_OK) return code;
  const PGresult *rows = sql_result(store, 0);
  for (int i = 0; i < PQntuples(rows); i++)
    lane_add_holder(lane, sql_int(rows, i, 0), (int)sql_int(rows, i, 1));
  if (PQntuples(rows) == 100000) lane->holders_lost = true;
  return OUTBOX_OK;
}

int share_claim(outbox_store *store, bool join, bool drop, bool *lost, bool *more) {
  lane *lane = store->lane;
  kept kept = {.lease = 0};
  int code = outbox_begin(store);
  if (code == OUTBOX_OK) code = transaction_end(store, claim_inside(store, &kept, join, drop));
  if (code != OUTBOX_OK) return code;
  *lost = kept.lost;
  if (kept.lost) return OUTBOX_OK;
  uint64_t gained = kept.mask & ~lane->mask;
  if (lane->mask == 0) lines_clear(&lane->holders); /* all of them are read below */
  lane->survey = kept.survey;
  lane->fingerprint = kept.fingerprint;
  lane->lease = kept.lease;
  lane->mask = kept.mask;
  lane->forgotten = false;
  lane->renewed_at = kept.now;
  lane->deadline = clock_later(kept.now, lane->duration);
  lane_begin_anew(lane, gained);
  *more |= kept.more || gained != 0;
  return load_holders(store, gained);
}
