/*
** How a claimed entry ends: deleted once delivered, delayed for a retry, or buried.
*/
#include "../columns.h"
#include "operations.h"

static const char DELETE_READY_SQL[] = "DELETE FROM @entries WHERE id = ?1";

/*
** Whether the whole range is there. Compares the ids at both ends, because seq starts again from 1
** if somebody has emptied the tables. Not a part of the deletion: SQLite deletes in one pass only
** where there is no subquery.
*/
static const char CHECK_RANGE_SQL[] =
    "SELECT (SELECT count(*) FROM @entries WHERE seq BETWEEN ?1 AND ?2) = ?2 - ?1 + 1"
    " AND (SELECT id FROM @entries WHERE seq = ?1) = ?3"
    " AND (SELECT id FROM @entries WHERE seq = ?2) = ?4";

static const char DELETE_RANGE_SQL[] = "DELETE FROM @entries WHERE seq BETWEEN ?1 AND ?2";

static const char DELETE_DELAYED_SQL[] = "DELETE FROM @delayed WHERE id = ?1";

/* The attempts and the last error. With an error in ?2 one more attempt is counted. */
#define COUNTED "attempts + (?2 IS NOT NULL), coalesce(?2, last_error)"

/* The id; changed where plain SQL has published it twice and the table holds the other one. */
#define FREE_ID(table)                                                                             \
  "CASE WHEN EXISTS (SELECT 1 FROM " table " WHERE id = ?1) THEN id || '~' || seq ELSE id END"

static const char DELAY_READY_SQL[] =
    "INSERT INTO @delayed (" ENTRY_COLUMNS ", due_at, position)"
    " SELECT " FREE_ID("@delayed") ", " MESSAGE_COLUMNS_BUT_ID ", " COUNTED ", ?3, seq"
                                   " FROM @entries WHERE id = ?1";

static const char MOVE_DUE_SQL[] = "UPDATE @delayed SET due_at = ?2 WHERE id = ?1";

static const char BURY_READY_SQL[] =
    "INSERT INTO @dead (seq, " ENTRY_COLUMNS ", died_at)"
    " SELECT seq, " FREE_ID("@dead") ", " MESSAGE_COLUMNS_BUT_ID ", " COUNTED ", ?3"
                                     " FROM @entries WHERE id = ?1";

/* Deletes a range of the batch, whose entries have these ids, if it is whole. Counts them. */
static int delete_range(outbox_store *store, range range, const outbox_bytes *ids, size_t *found) {
  int64_t whole;
  bool any;
  int code = sql_fetch(store, CHECK_RANGE_SQL, &whole, 1, &any, "iitt", range.first, range.last,
                       ids[0], ids[range.last - range.first]);
  if (code != OUTBOX_OK || !whole) return code;
  code = sql_process(store, DELETE_RANGE_SQL, "ii", range.first, range.last);
  if (code == OUTBOX_OK) *found += (size_t)(range.last - range.first) + 1;
  return code;
}

int outbox_delete_entries(outbox_store *store, const outbox_bytes *ids, size_t count,
                          int64_t *deleted) {
  size_t found = 0, first = 0;
  *deleted = 0;
  if (count == 0) return OUTBOX_OK; /* then the lock is not needed */
  int code = outbox_check_transaction(store);
  if (code != OUTBOX_OK) return code;
  size_t ranges = batch_is(store, ids, count) ? store->batch.range_count : 0;
  if (ranges > count / 4) ranges = 0;
  if (ranges == 1 && !sqlite3_get_autocommit(store->db)) {
    /* One statement needs no savepoint; that would cost as much as the deletion. */
    code = delete_range(store, store->batch.ranges[0], ids, &found);
    ranges = 0;
    if (code != OUTBOX_OK || found == count) {
      *deleted = (int64_t)found;
      return code;
    }
  }
  code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  for (size_t i = 0; i < ranges && code == OUTBOX_OK; i++) {
    range range = store->batch.ranges[i];
    code = delete_range(store, range, ids + first, &found);
    first += (size_t)(range.last - range.first) + 1;
  }
  for (size_t i = 0; i < count && found < count && code == OUTBOX_OK; i++) {
    code = sql_process(store, DELETE_READY_SQL, "t", ids[i]);
    if (code == OUTBOX_OK && sqlite3_changes(store->db) == 0)
      code = sql_process(store, DELETE_DELAYED_SQL, "t", ids[i]);
    if (code == OUTBOX_OK) found += (size_t)sqlite3_changes(store->db);
  }
  code = transaction_end(store, code);
  if (code == OUTBOX_OK) *deleted = (int64_t)found;
  return code;
}

/* Moves a ready entry to another table: `copy` puts it there. */
static int move(outbox_store *store, const char *copy, outbox_bytes id, outbox_bytes error,
                int64_t time, bool *found) {
  bool moved = false;
  int code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = sql_process(store, copy, "tti", id, error, time);
  if (code == OUTBOX_OK) {
    moved = sqlite3_changes(store->db) > 0;
    if (moved) code = sql_process(store, DELETE_READY_SQL, "t", id);
  }
  code = transaction_end(store, code);
  if (code == OUTBOX_OK) *found = moved;
  return code;
}

int outbox_retry_entry(outbox_store *store, outbox_bytes id, int64_t due_at, outbox_bytes error,
                       bool *found) {
  int code = move(store, DELAY_READY_SQL, id, error, due_at, found);
  if (code != OUTBOX_OK || *found || error.data != NULL) return code;
  code = sql_process(store, MOVE_DUE_SQL, "ti", id, due_at);
  if (code == OUTBOX_OK) *found = sqlite3_changes(store->db) > 0;
  return code;
}

int outbox_bury_entry(outbox_store *store, outbox_bytes id, outbox_bytes error, bool *found) {
  int64_t now;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code != OUTBOX_OK) return code;
  return move(store, BURY_READY_SQL, id, error, now, found);
}
