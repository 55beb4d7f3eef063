/*
** What the heartbeat writes: see ../heartbeat.h. Its thread has a connection of its own. It moves
** the deadline by the time that has passed, so it needs no clock.
*/
#include "../heartbeat.h"

#include <string.h>

#include "operations.h"

static const char BEAT_SQL[] =
    "UPDATE @claims SET deadline = deadline + ?2, claimed_at = claimed_at + ?2"
    " WHERE processor_id = ?1";

/* What is in hand now counts as slow, not as lost with its processor. */
static const char MARK_SQL[] = "UPDATE @claims SET held = '" OVERTIME "' || held"
                               " WHERE processor_id = ?1 AND held NOT LIKE '" OVERTIME "%'";

typedef struct writer {
  char *path, *beat_sql, *mark_sql;
  lock_wait lock_wait;
  sqlite3 *db;
  sqlite3_stmt *beat, *mark;
} writer;

/* --- In the thread --------------------------------------------------------------------------- */

static bool prepare(writer *writer, const char *sql, sqlite3_stmt **statement) {
  return sqlite3_prepare_v2(writer->db, sql, -1, statement, NULL) == SQLITE_OK;
}

static bool connect(writer *writer) {
  if (writer->db != NULL) return true;
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX;
  if (sqlite3_open_v2(writer->path, &writer->db, flags, NULL) != SQLITE_OK ||
      sqlite3_exec(writer->db, "PRAGMA synchronous = NORMAL", NULL, NULL, NULL) != SQLITE_OK ||
      !prepare(writer, writer->beat_sql, &writer->beat) ||
      !prepare(writer, writer->mark_sql, &writer->mark)) {
    sqlite3_finalize(writer->beat);
    sqlite3_close(writer->db);
    writer->beat = NULL;
    writer->db = NULL;
    return false;
  }
  store_wait_for_locks(writer->db, &writer->lock_wait);
  return true;
}

static bool write_claim(void *context, outbox_bytes processor_id, int64_t passed, bool overtime) {
  writer *writer = context;
  if (!connect(writer)) return false;
  sqlite3_stmt *statement = overtime ? writer->mark : writer->beat;
  sqlite3_bind_text64(statement, 1, processor_id.data, processor_id.size, SQLITE_STATIC,
                      SQLITE_UTF8);
  if (!overtime) sqlite3_bind_int64(statement, 2, passed);
  sqlite3_step(statement);
  return sqlite3_reset(statement) == SQLITE_OK;
}

static void free_writer(void *context) {
  writer *writer = context;
  sqlite3_finalize(writer->beat);
  sqlite3_finalize(writer->mark);
  sqlite3_close(writer->db);
  sqlite3_free(writer->path);
  sqlite3_free(writer->beat_sql);
  sqlite3_free(writer->mark_sql);
  sqlite3_free(writer);
}

/* --- The owner ------------------------------------------------------------------------------- */

static int make(outbox_store *store, const char *path) {
  writer *writer = sqlite3_malloc(sizeof *writer);
  if (writer == NULL) return store_fail_nomem(store);
  memset(writer, 0, sizeof *writer);
  writer->lock_wait = store->lock_wait;
  writer->path = sqlite3_mprintf("%s", path);
  writer->beat_sql = sql_expand(store, BEAT_SQL);
  writer->mark_sql = sql_expand(store, MARK_SQL);
  if (writer->path == NULL || writer->beat_sql == NULL || writer->mark_sql == NULL) {
    free_writer(writer);
    return store_fail_nomem(store);
  }
  int code =
      heartbeat_make(&store->heartbeat, (heartbeat_writer){write_claim, free_writer, writer});
  if (code == OUTBOX_NOMEM) return store_fail_nomem(store);
  return code == OUTBOX_OK ? OUTBOX_OK
                           : store_fail(store, code, "no thread can be started for the heartbeat");
}

int outbox_start_heartbeat(outbox_store *store, outbox_bytes processor_id, int64_t interval,
                           int64_t max_duration) {
  int code = transaction_enter(store);
  const char *path = code == OUTBOX_OK ? sqlite3_db_filename(store->db, "main") : NULL;
  if (path == NULL || path[0] == '\0')
    return code; /* nobody else can claim in a database in memory */
  if (store->heartbeat == NULL) code = make(store, path);
  if (code != OUTBOX_OK) return code;
  code = heartbeat_start(store->heartbeat, processor_id, interval, max_duration);
  return code == OUTBOX_OK ? OUTBOX_OK : store_fail_nomem(store);
}

void outbox_stop_heartbeat(outbox_store *store) {
  if (store->heartbeat != NULL && store_is_ours(store)) heartbeat_stop(store->heartbeat);
}

void heartbeat_close(outbox_store *store) {
  heartbeat *heartbeat = store->heartbeat;
  store->heartbeat = NULL;
  if (heartbeat != NULL && store_is_ours(store)) heartbeat_end(heartbeat); /* else the parent's */
}
