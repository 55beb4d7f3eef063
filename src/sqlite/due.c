/*
** How delayed entries that are due become ready again.
*/
#include "../columns.h"
#include "operations.h"

#define MAX_RESTORED 1000 /* entries at a time: keeps the transaction short */

static const char SELECT_DUE_SQL[] =
    "SELECT seq, position FROM @delayed WHERE due_at <= ?1 ORDER BY due_at, seq LIMIT 0 + ?2";

/* Retries that were delayed in the future are due now: the clock was set back since. */
static const char SELECT_AHEAD_SQL[] =
    "SELECT seq, position FROM @delayed WHERE delayed_at > ?1 ORDER BY delayed_at LIMIT 0 + ?2";

/*
** The position of a retry is free, because a seq never comes twice. A scheduled entry has none and
** gets the next seq. Where plain SQL has published the id again meanwhile, the entry that returns
** gets another id: if it waited instead, the two might wait for each other.
*/
static const char RESTORE_DUE_SQL[] =
    "INSERT OR IGNORE INTO @entries (seq, " ENTRY_COLUMNS ")"
    " SELECT position, CASE WHEN EXISTS (SELECT 1 FROM @entries WHERE id = d.id)"
    " THEN d.id || '~' || coalesce(position, seq) ELSE d.id END, " MESSAGE_COLUMNS_BUT_ID
    ", attempts, last_error FROM @delayed AS d WHERE seq = ?1";

static const char DELETE_DUE_SQL[] = "DELETE FROM @delayed WHERE seq = ?1";

/* Delayed entries: where they lie, and to which place each returns. */
typedef struct due {
  int count;
  int64_t seqs[MAX_RESTORED], positions[MAX_RESTORED];
} due;

static int find(outbox_store *store, const char *sql, int64_t time, due *due) {
  sqlite3_stmt *row;
  int code = sql_query(store, sql, &row, "ii", time, (int64_t)(MAX_RESTORED - due->count));
  if (code != OUTBOX_OK) return code;
  while ((code = sql_step(store, row)) == OUTBOX_ROW) {
    bool placed = sqlite3_column_type(row, 1) != SQLITE_NULL;
    due->seqs[due->count] = sqlite3_column_int64(row, 0);
    due->positions[due->count++] = placed ? sqlite3_column_int64(row, 1) : INT64_MAX;
  }
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

int due_restore(outbox_store *store, int64_t now, int64_t future, restored *restored) {
  due due; /* not all set to zero: that would cost a third of a claim */
  int count = 0;
  due.count = 0;
  int code = find(store, SELECT_DUE_SQL, now, &due);
  if (code == OUTBOX_OK && future < INT64_MAX) code = find(store, SELECT_AHEAD_SQL, future, &due);
  for (int i = 0; i < due.count && code == OUTBOX_OK; i++) {
    code = sql_process(store, RESTORE_DUE_SQL, "i", due.seqs[i]);
    if (code != OUTBOX_OK) return code;
    if (sqlite3_changes(store->db) == 0) continue; /* its other id is taken as well: it waits */
    code = sql_process(store, DELETE_DUE_SQL, "i", due.seqs[i]);
    count++;
    if (due.positions[i] < restored->from) restored->from = due.positions[i];
  }
  restored->more = count == MAX_RESTORED;
  return code;
}
