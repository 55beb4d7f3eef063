/*
** Keeping a claim by hand: what is in hand, when it lapses, giving it back; and the list of all
** claims.
*/
#include "lease.h"

static const char RENEW_INTERVALS_SQL[] =
    "UPDATE @claims SET deadline = ?2, claimed_at = ?3, held = NULL"
    " WHERE processor_id = ?1 AND " IS_INTERVAL;

static const char DELETE_INTERVALS_SQL[] =
    "DELETE FROM @claims WHERE processor_id = ?1 AND " IS_INTERVAL;

static const char HOLD_SQL[] =
    "UPDATE @claims SET held = ?2 WHERE lease = (SELECT lease FROM @claims"
    " INDEXED BY @@claims_first_seq WHERE processor_id = ?1 AND " IS_INTERVAL
    " ORDER BY first_seq LIMIT 1)";

int outbox_hold_batch(outbox_store *store, outbox_bytes processor_id) {
  int64_t last = 0;
  outbox_bytes held;
  int code = transaction_enter(store);
  if (code != OUTBOX_OK) return code;
  sqlite3_str *text = sqlite3_str_new(store->db);
  for (size_t i = 0; i < store->batch.range_count; i++)
    lease_name(text, store->batch.ranges[i], &last);
  code = lease_finish(store, text, &held);
  if (code == OUTBOX_OK) code = sql_process(store, HOLD_SQL, "tt", processor_id, held);
  sqlite3_free((void *)held.data);
  return code;
}

int outbox_renew_claim(outbox_store *store, outbox_bytes processor_id, int64_t deadline,
                       bool *renewed) {
  int64_t now;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code == OUTBOX_OK)
    code = sql_process(store, RENEW_INTERVALS_SQL, "tii", processor_id, deadline, now);
  if (code == OUTBOX_OK) *renewed = sqlite3_changes(store->db) > 0;
  return code;
}

int outbox_release_claim(outbox_store *store, outbox_bytes processor_id) {
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = sql_process(store, DELETE_INTERVALS_SQL, "t", processor_id);
  return code;
}

/* --- Reading the claims ---------------------------------------------------------------------- */

int outbox_leases(outbox_store *store) {
  int code = transaction_enter(store);
  if (code != OUTBOX_OK) return code;
  return sql_query(store, lease_select_sql, &store->reading, "");
}

int outbox_next_lease(outbox_store *store, outbox_lease *lease) {
  int code = reading_next(store);
  if (code != OUTBOX_ROW) return code;
  lease_read(store->reading, lease);
  lease->except = lease->namespaces.size == 0 || *(const char *)lease->namespaces.data == '-';
  if (lease->namespaces.size > 0) {
    lease->namespaces.data = (const char *)lease->namespaces.data + 1;
    lease->namespaces.size--;
  }
  return OUTBOX_ROW;
}
