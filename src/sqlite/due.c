/*
** What falls due: scheduled entries become ready, and the times of retries follow the clock. A
** retry that is due stays where it is, and is handed out from there.
*/
#include "../columns.h"
#include "operations.h"

#define MOST_PROMOTED 1000     /* entries at a time: keeps the transaction short */
#define MOST_CORRECTED "10000" /* likewise */

static const char ANY_SQL[] = "SELECT 1 FROM @delayed WHERE due_at >= ?1 LIMIT 1";

static const char LOOK_SQL[] =
    "SELECT (SELECT due_at FROM @delayed WHERE due_at > ?1 ORDER BY due_at LIMIT 1),"
    " EXISTS (SELECT 1 FROM @delayed WHERE delayed_at > ?2)";

static const char CORRECT_AHEAD_SQL[] =
    "UPDATE @delayed SET due_at = min(due_at, ?2), delayed_at = ?2 WHERE seq IN"
    " (SELECT seq FROM @delayed WHERE delayed_at > ?1 LIMIT " MOST_CORRECTED ")";

static const char SELECT_SCHEDULED_SQL[] =
    "SELECT seq FROM @delayed WHERE position IS NULL AND due_at <= ?1 ORDER BY due_at, seq"
    " LIMIT 0 + ?2";

/*
** It has a source from now on: what was published before is not copied. Where plain SQL has
** published the id again meanwhile, the entry gets another id: if it waited instead, the two might
** wait for each other.
*/
static const char PROMOTE_SQL[] =
    "INSERT INTO " READY " (seq, " ENTRY_COLUMNS ")"
    " SELECT " NEXT_SEQ("@") ", CASE WHEN EXISTS (SELECT 1 FROM " READY
                             " WHERE id = d.id) THEN d.id || '~' || seq"
                             " ELSE d.id END, " MESSAGE_COLUMNS_BUT_ID
                             ", attempts, last_error, coalesce(source_id, id)"
                             " FROM @delayed AS d"
                             " WHERE seq = ?1 AND position IS NULL AND due_at <= ?2";

static const char DELETE_SCHEDULED_SQL[] =
    "DELETE FROM @delayed WHERE seq = ?1 AND position IS NULL";

int64_t due_future(const outbox_store *store, int64_t now) {
  return clock_later(now, SKEW + store->lock_wait.timeout);
}

int64_t due_earlier(int64_t a, int64_t b) {
  return a == 0 || (b != 0 && b < a) ? b : a;
}

int due_any(outbox_store *store, bool *any) {
  int64_t one;
  return sql_fetch(store, ANY_SQL, &one, 1, any, "i", INT64_MIN);
}

int due_look(outbox_store *store, int64_t now, int64_t *due_at, bool *ahead) {
  int64_t values[2] = {0, 0};
  bool found;
  int code = sql_fetch(store, LOOK_SQL, values, 2, &found, "ii", now, due_future(store, now));
  *due_at = values[0];
  *ahead = values[1] != 0;
  return code;
}

int due_correct(outbox_store *store, int64_t now) {
  return sql_process(store, CORRECT_AHEAD_SQL, "ii", due_future(store, now), now);
}

int due_promote(outbox_store *store, int64_t seq, int64_t now, bool *promoted) {
  int code = sql_process(store, PROMOTE_SQL, "ii", seq, now);
  *promoted = code == OUTBOX_OK && sqlite3_changes(store->db) > 0;
  if (store_is_refusal(store, code, "UNIQUE", "ready.id")) return OUTBOX_OK;
  return *promoted ? sql_process(store, DELETE_SCHEDULED_SQL, "i", seq) : code;
}

int due_promote_all(outbox_store *store, int64_t now, bool *more) {
  int64_t seqs[MOST_PROMOTED]; /* not set to zero: that would cost a third of a claim */
  int count = 0, promoted = 0;
  sqlite3_stmt *row;
  int code = sql_query(store, SELECT_SCHEDULED_SQL, &row, "ii", now, (int64_t)MOST_PROMOTED);
  if (code != OUTBOX_OK) return code;
  while ((code = sql_step(store, row)) == OUTBOX_ROW)
    seqs[count++] = sqlite3_column_int64(row, 0);
  code = code == OUTBOX_DONE ? OUTBOX_OK : code;
  for (int i = 0; i < count && code == OUTBOX_OK; i++) {
    bool done; /* if not, its other id is taken as well: it waits */
    code = due_promote(store, seqs[i], now, &done);
    promoted += done;
  }
  *more = promoted == MOST_PROMOTED;
  return code;
}
