/*
** What the heartbeat writes: see ../heartbeat.h. Its thread has a connection of its own. It moves
** the deadline by the time that has passed, so it needs no clock.
*/
#define _POSIX_C_SOURCE 200809L

#include "../heartbeat.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "operations.h"

/* What is set by the statement itself is not left to others where there is a pooler. */
#define OWN_CLAIM                                                                                  \
  " WHERE processor_id = $1 AND set_config('synchronous_commit', 'off', true) IS NOT NULL"         \
  " AND set_config('lock_timeout', '1000', true) IS NOT NULL"

static const char BEAT_SQL[] =
    "UPDATE @claims SET deadline = deadline + $2, claimed_at = claimed_at + $2" OWN_CLAIM;

/* What is in hand now counts as slow, not as lost with its processor. */
static const char MARK_SQL[] = "UPDATE @claims SET overtime = true" OWN_CLAIM " AND $2 >= 0";

typedef struct writer {
  char *url, *beat_sql, *mark_sql;
  PGconn *db;
} writer;

/* --- In the thread --------------------------------------------------------------------------- */

static bool connect(writer *writer) {
  if (writer->db != NULL && PQstatus(writer->db) == CONNECTION_OK) return true;
  connection_close(writer->db, getpid());
  writer->db = connection_make(writer->url);
  return writer->db != NULL && PQstatus(writer->db) == CONNECTION_OK;
}

static bool write_claim(void *context, outbox_bytes processor_id, int64_t passed, bool overtime) {
  writer *writer = context;
  char number[8];
  for (int i = 0; i < 8; i++)
    number[i] = (char)(passed >> (56 - 8 * i) & 0xff);
  if (!connect(writer)) return false;
  PGresult *result =
      PQexecParams(writer->db, overtime ? writer->mark_sql : writer->beat_sql, 2,
                   (const Oid[]){25, 20}, (const char *const[]){processor_id.data, number},
                   (const int[]){(int)processor_id.size, sizeof number}, (const int[]){1, 1}, 1);
  bool good = PQresultStatus(result) == PGRES_COMMAND_OK;
  PQclear(result);
  return good;
}

static void free_writer(void *context) {
  writer *writer = context;
  connection_close(writer->db, getpid());
  free(writer->url);
  free(writer->beat_sql);
  free(writer->mark_sql);
  free(writer);
}

/* --- The owner ------------------------------------------------------------------------------- */

static int make(outbox_store *store) {
  writer *writer = calloc(1, sizeof *writer);
  if (writer == NULL) return store_fail_nomem(store);
  writer->url = strdup(store->url);
  writer->beat_sql = sql_expand(store, BEAT_SQL);
  writer->mark_sql = sql_expand(store, MARK_SQL);
  if (writer->url == NULL || writer->beat_sql == NULL || writer->mark_sql == NULL) {
    free_writer(writer);
    return store_fail_nomem(store);
  }
  int code =
      heartbeat_make(&store->heartbeat, (heartbeat_writer){write_claim, free_writer, writer});
  /* The heartbeat frees the writer. */
  /* cppcheck-suppress memleak */
  if (code == OUTBOX_NOMEM) return store_fail_nomem(store);
  /* cppcheck-suppress memleak */
  return code == OUTBOX_OK ? OUTBOX_OK
                           : store_fail(store, code, "no thread can be started for the heartbeat");
}

int outbox_start_heartbeat(outbox_store *store, outbox_bytes processor_id, int64_t interval,
                           int64_t max_duration) {
  int code = transaction_ready(store);
  /* The connection was lost, and that of the thread may still lead to the server of before. */
  if (code == OUTBOX_OK && store->heartbeat_session != store->sessions) heartbeat_close(store);
  if (code == OUTBOX_OK && store->heartbeat == NULL) code = make(store);
  if (code != OUTBOX_OK) return code;
  store->heartbeat_session = store->sessions;
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
