/*
** What becomes of an entry, ready or delayed: deleted once delivered, delayed for a retry, buried;
** or charged, because its processor died with it in hand.
*/
#include "../columns.h"
#include "derived.h"
#include "operations.h"

#define MIN_RUN 4 /* entries; fewer are deleted faster one by one */

static const char MARK_SQL[] = MARK_SEQ("@", "?1");

static const char FIND_SCHEDULED_SQL[] =
    "SELECT seq FROM @delayed WHERE id = ?1 AND position IS NULL";

#define THE_READY " FROM " ENTRIES " AS entry WHERE seq = ?1 AND id = ?2"

/* A delayed entry that was ready before is known by its position. INT64_MIN is any place. */
#define IS_THE_DELAYED " WHERE id = ?2 AND ?1 IN (position, -9223372036854775808)"
#define THE_DELAYED " FROM @delayed AS entry" IS_THE_DELAYED

static const char DELETE_READY_SQL[] =
    "DELETE FROM " READY " WHERE seq = ?1 AND (id = ?2 OR (id IS NULL AND CASE WHEN source_id"
    " IS NULL THEN nonce = ?3 AND created_at = ?4 ELSE " COPY_ID " = ?2 END))";

static const char DELETE_DELAYED_SQL[] = "DELETE" THE_DELAYED;

/*
** Whether both ends of a range are there. Compares their ids, because seq starts again from 1 if
** somebody has emptied the tables. Not a part of the deletion: SQLite deletes in one pass only
** where there is no subquery.
*/
#define BOTH_ENDS                                                                                  \
  "(SELECT id FROM " ENTRIES " WHERE seq = ?1) = ?3"                                               \
  " AND (SELECT id FROM " ENTRIES " WHERE seq = ?2) = ?4"
static const char CHECK_ENDS_SQL[] = "SELECT " BOTH_ENDS;

/* Whether the whole range is there, which takes longer to find out. */
static const char CHECK_RANGE_SQL[] = "SELECT " BOTH_ENDS " AND (SELECT count(*) FROM " READY
                                      " WHERE seq BETWEEN ?1 AND ?2) = ?2 - ?1 + 1";

static const char DELETE_RANGE_SQL[] = "DELETE FROM " READY " WHERE seq BETWEEN ?1 AND ?2";

/* The id; changed where plain SQL has published it twice and the table holds the other one. */
#define FREE_ID(table, place)                                                                      \
  "CASE WHEN EXISTS (SELECT 1 FROM " table " AS other WHERE other.id = entry.id)"                  \
  " THEN id || '~' || " place " ELSE id END, "
#define ID_IN_DELAYED FREE_ID("@delayed", "seq")
#define ID_IN_DEAD FREE_ID("@dead", "seq")
#define DELAYED_ID_IN_DEAD FREE_ID("@dead", "position")

/* ?3 is the attempts to add, ?4 the error, ?5 the time until when it waits, ?6 now. */
#define CHARGED ", attempts + ?3, coalesce(?4, last_error), source_id"

static const char DELAY_READY_SQL[] =
    "INSERT INTO @delayed (" ENTRY_COLUMNS ", due_at, position, delayed_at)"
    " SELECT " ID_IN_DELAYED MESSAGE_COLUMNS_BUT_ID CHARGED ", ?5, seq, ?6" THE_READY;

static const char DELAY_AGAIN_SQL[] =
    "UPDATE @delayed SET attempts = attempts + ?3, last_error = coalesce(?4, last_error),"
    " due_at = ?5, delayed_at = CASE WHEN position IS NOT NULL THEN ?6 END" IS_THE_DELAYED;

static const char BURY_READY_SQL[] =
    "INSERT INTO @dead (seq, " ENTRY_COLUMNS ", died_at)"
    " SELECT seq, " ID_IN_DEAD MESSAGE_COLUMNS_BUT_ID CHARGED ", ?6" THE_READY;

static const char BURY_DELAYED_SQL[] =
    "INSERT INTO @dead (seq, " ENTRY_COLUMNS ", died_at)"
    " SELECT position, " DELAYED_ID_IN_DEAD MESSAGE_COLUMNS_BUT_ID CHARGED ", ?6" THE_DELAYED
    " AND position IS NOT NULL";

static const char IS_WAITING_SQL[] = "SELECT EXISTS (SELECT 1 FROM " READY " WHERE seq = ?1)"
                                     " OR EXISTS (SELECT 1 FROM @delayed WHERE position = ?1)";

/* ?3 is now, ?4 whether a lane held them: it hands out retries before they are due, too. */
#define IN_HAND " WHERE position BETWEEN ?1 AND ?2 AND (?4 OR due_at <= ?3)"

#define DIED "attempts = attempts + 1, last_error = '" OUTBOX_LAPSED "'"

static const char CHARGE_READY_SQL[] = "UPDATE " READY " SET " DIED " WHERE seq BETWEEN ?1 AND ?2";

static const char CHARGE_DELAYED_SQL[] =
    "UPDATE @delayed SET " DIED ", due_at = min(due_at, ?3)" IN_HAND;

static const char SUSPECT_READY_SQL[] =
    "INSERT OR IGNORE INTO @delayed (" ENTRY_COLUMNS ", due_at, position, delayed_at)"
    " SELECT " ID_IN_DELAYED MESSAGE_COLUMNS_BUT_ID ", attempts, '" OUTBOX_OVERTIME "', source_id,"
    " ?3, seq, ?3 FROM " ENTRIES " AS entry WHERE seq BETWEEN ?1 AND ?2";

static const char DELETE_SUSPECTED_SQL[] =
    "DELETE FROM " READY " WHERE seq IN"
    " (SELECT position FROM @delayed WHERE position BETWEEN ?1 AND ?2)";

static const char SUSPECT_DELAYED_SQL[] =
    "UPDATE @delayed SET last_error = '" OUTBOX_OVERTIME "', due_at = ?3" IN_HAND;

/* --- One entry ------------------------------------------------------------------------------- */

/* Runs SQL on one entry. *found: whether that changed a row. */
static int change(outbox_store *store, const char *sql, outbox_identity entry,
                  const outbox_verdict *verdict, int64_t now, bool *found) {
  bool charged = verdict->outcome == OUTBOX_RETRY ||
                 (verdict->outcome == OUTBOX_BURY && verdict->error.data != NULL);
  int code = sql_process(store, sql, "ititii", entry.seq, entry.id, (int64_t)charged,
                         verdict->error, verdict->at, now);
  *found = code == OUTBOX_OK && sqlite3_changes(store->db) > 0;
  return code;
}

int settle_mark(outbox_store *store, int64_t seq) {
  return sql_process(store, MARK_SQL, "i", seq);
}

static int remove_ready(outbox_store *store, outbox_identity entry) {
  derived id = {0};
  int64_t nonce = -1; /* no row's */
  if (derived_read(entry.id, &id) && id.seq == derived_bits(entry.seq)) nonce = id.nonce;
  return sql_process(store, DELETE_READY_SQL, "itii", entry.seq, entry.id, nonce, id.created_at);
}

static int remove_entry(outbox_store *store, outbox_identity entry, bool delayed, bool *found) {
  int code = delayed ? sql_process(store, DELETE_DELAYED_SQL, "it", entry.seq, entry.id)
                     : remove_ready(store, entry);
  *found = code == OUTBOX_OK && sqlite3_changes(store->db) > 0;
  return code;
}

static int settle_in(outbox_store *store, outbox_verdict *verdict, outbox_identity entry,
                     bool delayed, int64_t now) {
  bool removed, buries = verdict->outcome == OUTBOX_BURY;
  if (verdict->outcome == OUTBOX_DELIVERED)
    return remove_entry(store, entry, delayed, &verdict->found);
  const char *sql = buries    ? delayed ? BURY_DELAYED_SQL : BURY_READY_SQL
                    : delayed ? DELAY_AGAIN_SQL
                              : DELAY_READY_SQL;
  int code = change(store, sql, entry, verdict, now, &verdict->found);
  if (code != OUTBOX_OK || !verdict->found || (delayed && !buries)) return code;
  return remove_entry(store, entry, delayed, &removed);
}

int settle_entry(outbox_store *store, outbox_verdict *verdict, outbox_identity entry, bool delayed,
                 int64_t now) {
  verdict->found = verdict->outcome == OUTBOX_AGAIN;
  if (verdict->found) return OUTBOX_OK;
  int code = settle_in(store, verdict, entry, delayed, now);
  if (code == OUTBOX_OK && !verdict->found) /* somebody has moved it meanwhile */
    code = settle_in(store, verdict, entry, !delayed, now);
  return code;
}

int settle_run(outbox_store *store, outbox_identity first, outbox_identity last, bool whole,
               int64_t *deleted) {
  int64_t good = 0;
  bool any;
  *deleted = 0;
  if (last.seq - first.seq + 1 < MIN_RUN) return OUTBOX_OK;
  int code = sql_fetch(store, whole ? CHECK_RANGE_SQL : CHECK_ENDS_SQL, &good, 1, &any, "iitt",
                       first.seq, last.seq, first.id, last.id);
  if (code != OUTBOX_OK || !good) return code;
  code = sql_process(store, DELETE_RANGE_SQL, "ii", first.seq, last.seq);
  if (code == OUTBOX_OK) *deleted = sqlite3_changes64(store->db);
  return code;
}

/* --- Entries in hand of a claim that has lapsed ---------------------------------------------- */

int settle_charge(outbox_store *store, range places, bool lane, int64_t now) {
  int code = sql_process(store, CHARGE_READY_SQL, "ii", places.first, places.last);
  return code == OUTBOX_OK ? sql_process(store, CHARGE_DELAYED_SQL, "iiii", places.first,
                                         places.last, now, (int64_t)lane)
                           : code;
}

int settle_suspect(outbox_store *store, range places, bool lane, int64_t now) {
  int code = sql_process(store, SUSPECT_DELAYED_SQL, "iiii", places.first, places.last, now,
                         (int64_t)lane);
  if (code == OUTBOX_OK)
    code = sql_process(store, SUSPECT_READY_SQL, "iii", places.first, places.last, now);
  if (code == OUTBOX_OK) code = settle_mark(store, places.last);
  return code == OUTBOX_OK
             ? sql_process(store, DELETE_SUSPECTED_SQL, "ii", places.first, places.last)
             : code;
}

/* --- By hand --------------------------------------------------------------------------------- */

int outbox_is_waiting(outbox_store *store, int64_t seq, bool *waits) {
  int64_t found = 0;
  bool any;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = sql_fetch(store, IS_WAITING_SQL, &found, 1, &any, "i", seq);
  *waits = found != 0;
  return code;
}

/* Where only the id is known, finds the place of the ready entry that has it, if there is one. */
static int locate(outbox_store *store, outbox_identity *entry, bool *delayed) {
  bool found;
  *delayed = false;
  if (entry->seq != OUTBOX_ANY_SEQ) return OUTBOX_OK;
  int code = derived_find(store, entry->id, &entry->seq, &found);
  *delayed = !found;
  return code;
}

/* Gives a place to the scheduled entry that has this id, so that it can be buried. */
static int place(outbox_store *store, outbox_identity *entry, bool *placed) {
  int64_t seq = 0;
  *placed = false;
  int code = sql_fetch(store, FIND_SCHEDULED_SQL, &seq, 1, placed, "t", entry->id);
  if (code != OUTBOX_OK || !*placed) return code;
  code = due_promote(store, seq, INT64_MAX, placed);
  entry->seq = sqlite3_last_insert_rowid(store->db);
  return code;
}

static int settle(outbox_store *store, outbox_identity entry, outbox_verdict verdict, bool *found) {
  bool delayed = false, placed = false;
  int64_t now;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code == OUTBOX_OK) code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  bool by_id = entry.seq == OUTBOX_ANY_SEQ;
  code = locate(store, &entry, &delayed);
  if (code == OUTBOX_OK) code = settle_mark(store, entry.seq);
  if (code == OUTBOX_OK) code = settle_entry(store, &verdict, entry, delayed, now);
  if (code == OUTBOX_OK && !verdict.found && by_id && verdict.outcome == OUTBOX_BURY)
    code = place(store, &entry, &placed);
  if (code == OUTBOX_OK && placed) code = settle_mark(store, entry.seq);
  if (code == OUTBOX_OK && placed) code = settle_entry(store, &verdict, entry, false, now);
  code = transaction_end(store, code);
  if (code == OUTBOX_OK) *found = verdict.found;
  return code;
}

int outbox_retry_entry(outbox_store *store, outbox_identity entry, int64_t due_at,
                       outbox_bytes error, bool *found) {
  outbox_verdict verdict = {
      .outcome = error.data != NULL ? OUTBOX_RETRY : OUTBOX_PUT_OFF, .at = due_at, .error = error};
  return settle(store, entry, verdict, found);
}

int outbox_bury_entry(outbox_store *store, outbox_identity entry, outbox_bytes error, bool *found) {
  return settle(store, entry, (outbox_verdict){.outcome = OUTBOX_BURY, .error = error}, found);
}

/* --- Delivered by hand ----------------------------------------------------------------------- */

/* How many of the entries, from the first on, have one seq after another. */
static size_t run_length(const outbox_identity *entries, size_t count) {
  size_t length = 1;
  while (length < count && entries[length - 1].seq < INT64_MAX &&
         entries[length].seq == entries[length - 1].seq + 1)
    length++;
  return length;
}

/* Deletes a run of entries at once, if they were read last. */
static int delete_run(outbox_store *store, const outbox_identity *run, size_t length, bool whole,
                      int64_t *deleted) {
  outbox_identity first = run[0], last = run[length - 1];
  *deleted = 0;
  return batch_holds(store, (range){first.seq, last.seq})
             ? settle_run(store, first, last, whole, deleted)
             : OUTBOX_OK;
}

static int delete_one(outbox_store *store, outbox_identity entry, int64_t *found) {
  outbox_verdict verdict = {.outcome = OUTBOX_DELIVERED};
  bool delayed;
  bool by_id = entry.seq == OUTBOX_ANY_SEQ;
  int code = locate(store, &entry, &delayed);
  if (code == OUTBOX_OK && by_id) code = settle_mark(store, entry.seq);
  if (code == OUTBOX_OK) code = settle_entry(store, &verdict, entry, delayed, 0);
  *found += code == OUTBOX_OK && verdict.found;
  return code;
}

int outbox_delete_entries(outbox_store *store, const outbox_identity *entries, size_t count,
                          int64_t *deleted) {
  int64_t found = 0, together = 0;
  *deleted = 0;
  if (count == 0) return OUTBOX_OK; /* then the lock is not needed */
  int code = outbox_check_transaction(store);
  if (code != OUTBOX_OK) return code;
  bool alone = sqlite3_get_autocommit(store->db);
  int64_t highest = INT64_MIN;
  for (size_t i = 0; i < count; i++)
    if (entries[i].seq > highest) highest = entries[i].seq;
  if (!alone && run_length(entries, count) == count) {
    /* These need no savepoint; that would cost as much as the deletion. */
    code = settle_mark(store, highest);
    if (code == OUTBOX_OK) code = delete_run(store, entries, count, true, deleted);
    if (code != OUTBOX_OK || *deleted > 0) return code;
  }
  code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = settle_mark(store, highest);
  for (size_t i = 0, length; i < count && code == OUTBOX_OK; i += length) {
    length = run_length(entries + i, count - i);
    code = delete_run(store, entries + i, length, false, &together);
    found += together;
    if (together == (int64_t)length) continue;
    for (size_t j = i; j < i + length && code == OUTBOX_OK; j++)
      code = delete_one(store, entries[j], &found);
  }
  code = transaction_end(store, code);
  if (code == OUTBOX_OK) *deleted = found;
  return code;
}
