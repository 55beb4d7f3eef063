/*
** The rows of the claims, and what becomes of the entries in hand when one lapses.
**
** Whoever changes claims has the lock of the claims. A processor that settles has the lock of its
** own claim, and looks whether its row is there; whoever removes a row that has lapsed takes that
** lock first. So nobody takes over in the middle of a settlement, and no row is written for it.
*/
#include <stdio.h>
#include <stdlib.h>

#include "operations.h"

static const char LOCK_SQL[] = "SELECT pg_advisory_xact_lock(#, 1025)::text";

#define COLUMNS "lease, processor_id, namespaces, classes, by_hand, deadline, claimed_at, overtime"

static const char SELECT_SQL[] = "SELECT " COLUMNS " FROM @claims ORDER BY lease";

static const char LIST_SQL[] =
    "SELECT " COLUMNS ", (SELECT array_to_string(array_agg(places ORDER BY number), ',')"
    " FROM @batches AS b WHERE b.lease = c.lease) FROM @claims AS c ORDER BY lease";

static const char TRY_SQL[] = "SELECT pg_try_advisory_xact_lock(#, $1::int)";

static const char REMOVE_SQL[] = "DELETE FROM @claims WHERE lease = $1";

/* Of what is in hand, the ready entries and the delayed ones. A retry may be in hand early. */
#define HAND                                                                                       \
  " FROM (SELECT unnest(partitions) AS partition, unnest(places) AS place FROM @batches"           \
  " WHERE lease = $1) AS h"
#define DIED "attempts = attempts + 1, last_error = '" OUTBOX_LAPSED "'"

static const char CHARGE_READY_SQL[] =
    "UPDATE @entries AS e SET " DIED HAND " WHERE e.partition = h.partition AND e.seq = h.place";

/* Under a claim by hand, a retry that is not due was settled before. */
static const char CHARGE_DELAYED_SQL[] =
    "UPDATE @delayed AS e SET " DIED ", due_at = least(due_at, $2)" HAND
    " WHERE e.position = h.place AND ($3 OR e.due_at <= $2)";

static const char SUSPECT_DELAYED_SQL[] =
    "UPDATE @delayed AS e SET last_error = '" OUTBOX_OVERTIME "', due_at = $2" HAND
    " WHERE e.position = h.place AND ($3 OR e.due_at <= $2)";

static const char SUSPECT_READY_SQL[] =
    "WITH d AS (DELETE FROM @entries AS e USING (SELECT h.*" HAND
    ") AS h WHERE e.partition = h.partition AND e.seq = h.place RETURNING e.*)"
    " INSERT INTO @delayed (id, namespace, key, payload, payload_bytes, headers, created_at,"
    " attempts, last_error, source_id, seq, due_at, position, partition, delayed_at)"
    " SELECT CASE WHEN EXISTS (SELECT FROM @delayed AS o WHERE o.id = d.id)"
    " THEN d.id || '~' || d.seq ELSE d.id END, namespace, key, payload, payload_bytes, headers,"
    " created_at, attempts, '" OUTBOX_OVERTIME "', source_id, seq, $2, seq, partition, $2 FROM d";

static const char FORGET_SQL[] = "DELETE FROM @batches WHERE lease = $1";

int lease_lock(outbox_store *store) {
  return sql_run(store, LOCK_SQL, "");
}

int lease_read_all(outbox_store *store, PGresult **rows) {
  int code = sql_run(store, SELECT_SQL, "");
  *rows = code == OUTBOX_OK ? sql_take(store) : NULL;
  return code;
}

claim_row lease_row(const PGresult *rows, int row) {
  return (claim_row){.lease = sql_int(rows, row, 0),
                     .processor_id = sql_bytes(rows, row, 1),
                     .namespaces = sql_bytes(rows, row, 2),
                     .classes = (uint64_t)sql_int(rows, row, 3),
                     .by_hand = sql_bool(rows, row, 4),
                     .deadline = sql_int(rows, row, 5),
                     .claimed_at = sql_int(rows, row, 6),
                     .overtime = sql_bool(rows, row, 7)};
}

bool lease_has_lapsed(const outbox_store *store, const claim_row *claim, int64_t now) {
  return claim->deadline < now || claim->claimed_at > time_future(store, now);
}

int lease_charge(outbox_store *store, const claim_row *claim, int64_t now) {
  int lane = !claim->by_hand;
  sql_start(store);
  if (claim->overtime) {
    sql_add(store, SUSPECT_DELAYED_SQL, "iib", claim->lease, now, lane);
    sql_add(store, SUSPECT_READY_SQL, "ii", claim->lease, now);
  } else {
    sql_add(store, CHARGE_READY_SQL, "i", claim->lease);
    sql_add(store, CHARGE_DELAYED_SQL, "iib", claim->lease, now, lane);
  }
  sql_add(store, FORGET_SQL, "i", claim->lease);
  return sql_end(store);
}

int lease_remove(outbox_store *store, int64_t lease) {
  return sql_run(store, REMOVE_SQL, "i", lease);
}

int lease_reap(outbox_store *store, const claim_row *claim, int64_t now, bool *reaped) {
  *reaped = false;
  int code = sql_run(store, TRY_SQL, "i", LOCK_CLAIM + (claim->lease & 0x3fffffff));
  if (code != OUTBOX_OK || !sql_bool(sql_result(store, 0), 0, 0)) return code;
  *reaped = true;
  code = lease_charge(store, claim, now);
  return code == OUTBOX_OK ? lease_remove(store, claim->lease) : code;
}

/* --- For operators --------------------------------------------------------------------------- */

int outbox_leases(outbox_store *store) {
  int code = transaction_ready(store);
  if (code == OUTBOX_OK) code = sql_run(store, LIST_SQL, "");
  if (code == OUTBOX_OK) reading_start(store);
  return code;
}

/* The places, each relative to the one before. */
static int name_places(outbox_store *store, outbox_bytes list, bool overtime, outbox_bytes *held) {
  size_t used = 0, size = 2 * list.size + 64;
  int64_t last = 0;
  *held = (outbox_bytes){NULL, 0};
  free(store->held);
  store->held = NULL;
  if (list.data == NULL) return OUTBOX_OK;
  const char *at = list.data, *end = at + list.size;
  char *text = store->held = malloc(size);
  if (text == NULL) return store_fail_nomem(store);
  if (overtime) text[used++] = '!';
  while (at < end) {
    char *next;
    int64_t place = strtoll(at, &next, 10), first = place;
    while (*next == ',' && strtoll(next + 1, NULL, 10) == place + 1)
      place = strtoll(next + 1, &next, 10);
    used +=
        (size_t)snprintf(text + used, size - used, at > (const char *)list.data ? ",%lld" : "%lld",
                         (long long)(first - last));
    if (place > first)
      used += (size_t)snprintf(text + used, size - used, "+%lld", (long long)(place - first));
    last = place;
    at = *next == ',' ? next + 1 : end;
  }
  *held = (outbox_bytes){text, used};
  return OUTBOX_OK;
}

int outbox_next_lease(outbox_store *store, outbox_lease *lease) {
  const PGresult *result;
  outbox_bytes held;
  int row, code = reading_next(store, &result, &row);
  if (code != OUTBOX_ROW) return code;
  claim_row claim = lease_row(result, row);
  code = name_places(store, sql_bytes(result, row, 8), claim.overtime, &held);
  if (code != OUTBOX_OK) return code;
  outbox_bytes set = claim.namespaces;
  bool except = set.size == 0 || *(const char *)set.data == '-';
  if (set.size > 0) set = (outbox_bytes){(const char *)set.data + 1, set.size - 1};
  *lease = (outbox_lease){.lease = claim.lease,
                          .processor_id = claim.processor_id,
                          .except = except,
                          .namespaces = set,
                          .classes = claim.classes,
                          .first_seq = INT64_MIN,
                          .last_seq = INT64_MAX,
                          .deadline = claim.deadline,
                          .claimed_at = claim.claimed_at,
                          .held = held};
  return OUTBOX_ROW;
}
