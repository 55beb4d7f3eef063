/*
** Dead letters: put back, or purged.
*/
#include "../columns.h"
#include "derived.h"
#include "operations.h"

/* It has a source from now on, so that no copies are made of it. */
static const char REQUEUE_DEAD_SQL[] =
    "INSERT INTO " READY " (seq, " MESSAGE_COLUMNS ", last_error, source_id)"
    " SELECT " NEXT_SEQ("@") ", " MESSAGE_COLUMNS
                             ", last_error, coalesce(source_id, id) FROM @dead WHERE id = ?1";

static const char DELETE_DEAD_SQL[] = "DELETE FROM @dead WHERE id = ?1";

/* Puts a dead letter among the ready. Where its id is there already, that is why SQLite refuses. */
static int put_back(outbox_store *store, outbox_bytes id) {
  int64_t seq;
  bool taken;
  int code = sql_run(store, REQUEUE_DEAD_SQL, "t", id);
  if (code != OUTBOX_CONSTRAINT) return code;
  code = derived_find(store, id, &seq, &taken);
  if (code != OUTBOX_OK) return code;
  return taken ? store_fail_duplicate(store) : OUTBOX_CONSTRAINT;
}

/* Takes dead letters out of their table; with `requeue`, puts each among the ready first. */
static int take_out(outbox_store *store, const outbox_bytes *ids, size_t count, bool requeue,
                    int64_t *taken) {
  int64_t found = 0;
  *taken = 0;
  if (count == 0) return OUTBOX_OK; /* then the lock is not needed */
  int code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  for (size_t i = 0; i < count && code == OUTBOX_OK; i++) {
    if (requeue) code = put_back(store, ids[i]);
    if (code == OUTBOX_OK) code = sql_run(store, DELETE_DEAD_SQL, "t", ids[i]);
    if (code == OUTBOX_OK) found += sqlite3_changes(store->db);
  }
  code = transaction_end(store, code);
  if (code == OUTBOX_OK) *taken = found;
  return code;
}

int outbox_requeue_entries(outbox_store *store, const outbox_bytes *ids, size_t count,
                           int64_t *requeued) {
  return take_out(store, ids, count, true, requeued);
}

int outbox_purge_entries(outbox_store *store, const outbox_bytes *ids, size_t count,
                         int64_t *purged) {
  return take_out(store, ids, count, false, purged);
}
