/*
** How a claimed entry ends: deleted once delivered, delayed for a retry, or buried.
*/
#include "../columns.h"
#include "operations.h"

#define MIN_RUN 4 /* entries; fewer are deleted faster one by one */

static const char FIND_READY_SQL[] = "SELECT seq FROM @entries WHERE id = ?1";

static const char DELETE_READY_SQL[] = "DELETE FROM @entries WHERE seq = ?1 AND id = ?2";

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

/* A delayed entry that was ready before is known by its position. INT64_MIN is any place. */
#define THE_DELAYED " WHERE id = ?1 AND ?2 IN (position, -9223372036854775808)"

static const char DELETE_DELAYED_SQL[] = "DELETE FROM @delayed" THE_DELAYED;

/* The attempts and the last error. With an error in ?2 one more attempt is counted. */
#define COUNTED "attempts + (?2 IS NOT NULL), coalesce(?2, last_error)"

/* The id; changed where plain SQL has published it twice and the table holds the other one. */
#define FREE_ID(table)                                                                             \
  "CASE WHEN EXISTS (SELECT 1 FROM " table " WHERE id = ?1) THEN id || '~' || seq ELSE id END"

static const char DELAY_READY_SQL[] =
    "INSERT INTO @delayed (" ENTRY_COLUMNS ", due_at, position, delayed_at)"
    " SELECT " FREE_ID("@delayed") ", " MESSAGE_COLUMNS_BUT_ID ", " COUNTED ", ?3, seq, ?5"
                                   " FROM @entries WHERE seq = ?4 AND id = ?1";

static const char MOVE_DUE_SQL[] =
    "UPDATE @delayed SET due_at = ?3,"
    " delayed_at = CASE WHEN position IS NOT NULL THEN ?4 END" THE_DELAYED;

static const char BURY_READY_SQL[] =
    "INSERT INTO @dead (seq, " ENTRY_COLUMNS ", died_at)"
    " SELECT seq, " FREE_ID("@dead") ", " MESSAGE_COLUMNS_BUT_ID ", " COUNTED ", ?5"
                                     " FROM @entries WHERE seq = ?4 AND id = ?1";

static const char IS_WAITING_SQL[] =
    "SELECT EXISTS (SELECT 1 FROM @entries WHERE seq = ?1 AND id = ?2)"
    " OR EXISTS (SELECT 1 FROM @delayed WHERE id = ?2 AND position = ?1)";

int outbox_is_waiting(outbox_store *store, outbox_identity entry, bool *waits) {
  int64_t found = 0;
  bool any;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK)
    code = sql_fetch(store, IS_WAITING_SQL, &found, 1, &any, "it", entry.seq, entry.id);
  *waits = found != 0;
  return code;
}

/* Where only the id is known, finds the place of the ready entry that has it, if there is one. */
static int locate(outbox_store *store, outbox_identity *entry) {
  bool found;
  if (entry->seq != OUTBOX_ANY_SEQ) return OUTBOX_OK;
  return sql_fetch(store, FIND_READY_SQL, &entry->seq, 1, &found, "t", entry->id);
}

/* --- Delivered ------------------------------------------------------------------------------- */

/* How many of the entries, from the first on, have one seq after another. */
static size_t run_length(const outbox_identity *entries, size_t count) {
  size_t length = 1;
  while (length < count && entries[length - 1].seq < INT64_MAX &&
         entries[length].seq == entries[length - 1].seq + 1)
    length++;
  return length;
}

/*
** Deletes a run of entries by their range, if they were read last and the range is whole. *found
** becomes their number, or 0.
*/
static int delete_run(outbox_store *store, const outbox_identity *run, size_t length,
                      size_t *found) {
  const outbox_identity *first = &run[0], *last = &run[length - 1];
  int64_t whole = 0;
  bool any;
  *found = 0;
  if (length < MIN_RUN || !batch_holds(store, (range){first->seq, last->seq})) return OUTBOX_OK;
  int code = sql_fetch(store, CHECK_RANGE_SQL, &whole, 1, &any, "iitt", first->seq, last->seq,
                       first->id, last->id);
  if (code != OUTBOX_OK || !whole) return code;
  code = sql_process(store, DELETE_RANGE_SQL, "ii", first->seq, last->seq);
  if (code == OUTBOX_OK) *found = length;
  return code;
}

static int delete_one(outbox_store *store, outbox_identity entry, size_t *found) {
  outbox_identity ready = entry;
  int code = locate(store, &ready);
  if (code == OUTBOX_OK) code = sql_process(store, DELETE_READY_SQL, "it", ready.seq, entry.id);
  if (code == OUTBOX_OK && sqlite3_changes(store->db) == 0)
    code = sql_process(store, DELETE_DELAYED_SQL, "ti", entry.id, entry.seq);
  if (code == OUTBOX_OK) *found += (size_t)sqlite3_changes(store->db);
  return code;
}

int outbox_delete_entries(outbox_store *store, const outbox_identity *entries, size_t count,
                          int64_t *deleted) {
  size_t found = 0;
  *deleted = 0;
  if (count == 0) return OUTBOX_OK; /* then the lock is not needed */
  int code = outbox_check_transaction(store);
  if (code != OUTBOX_OK) return code;
  if (!sqlite3_get_autocommit(store->db) && run_length(entries, count) == count) {
    /* One statement needs no savepoint; that would cost as much as the deletion. */
    code = delete_run(store, entries, count, &found);
    if (code != OUTBOX_OK || found == count) {
      *deleted = (int64_t)found;
      return code;
    }
  }
  code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  for (size_t i = 0, length; i < count && code == OUTBOX_OK; i += length) {
    size_t together;
    length = run_length(entries + i, count - i);
    code = delete_run(store, entries + i, length, &together);
    found += together;
    for (size_t j = i; j < i + length && together == 0 && code == OUTBOX_OK; j++)
      code = delete_one(store, entries[j], &found);
  }
  code = transaction_end(store, code);
  if (code == OUTBOX_OK) *deleted = (int64_t)found;
  return code;
}

/* --- Failed ---------------------------------------------------------------------------------- */

/* Moves a ready entry to another table: `copy` puts it there. A dead letter has no due_at. */
static int move(outbox_store *store, const char *copy, outbox_identity entry, outbox_bytes error,
                int64_t due_at, int64_t now, bool *found) {
  bool moved = false;
  int code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = locate(store, &entry);
  if (code == OUTBOX_OK)
    code = sql_process(store, copy, "ttiii", entry.id, error, due_at, entry.seq, now);
  if (code == OUTBOX_OK) {
    moved = sqlite3_changes(store->db) > 0;
    if (moved) code = sql_process(store, DELETE_READY_SQL, "it", entry.seq, entry.id);
  }
  code = transaction_end(store, code);
  if (code == OUTBOX_OK) *found = moved;
  return code;
}

int outbox_retry_entry(outbox_store *store, outbox_identity entry, int64_t due_at,
                       outbox_bytes error, bool *found) {
  int64_t now;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code != OUTBOX_OK) return code;
  code = move(store, DELAY_READY_SQL, entry, error, due_at, now, found);
  if (code != OUTBOX_OK || *found || error.data != NULL) return code;
  code = sql_process(store, MOVE_DUE_SQL, "tiii", entry.id, entry.seq, due_at, now);
  if (code == OUTBOX_OK) *found = sqlite3_changes(store->db) > 0;
  return code;
}

int outbox_bury_entry(outbox_store *store, outbox_identity entry, outbox_bytes error, bool *found) {
  int64_t now;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code != OUTBOX_OK) return code;
  return move(store, BURY_READY_SQL, entry, error, 0, now, found);
}
