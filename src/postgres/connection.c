/*
** The connection: made, set up, lost and made again; and the codes of its errors.
*/
#define _POSIX_C_SOURCE 200809L

#include "connection.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define OLDEST 130000 /* has pg_current_xact_id() and pg_snapshot_xmin() */

/* --- Errors ---------------------------------------------------------------------------------- */

/* The codes of SQLSTATEs, or of their classes. */
static const struct {
  const char *state;
  int code;
} CODES[] = {
    {"23", OUTBOX_CONSTRAINT}, /* integrity constraint */
    {"55P03", OUTBOX_BUSY},    /* lock_timeout */
    {"57014", OUTBOX_BUSY},    /* statement_timeout */
    {"40", OUTBOX_BUSY},       /* deadlock, serialization */
    {"25006", OUTBOX_READONLY},  {"42501", OUTBOX_READONLY},
    {"22021", OUTBOX_ENCODING},  {"22P05", OUTBOX_ENCODING},
    {"53100", OUTBOX_FULL},      {"53200", OUTBOX_NOMEM},
    {"53", OUTBOX_BUSY},         {"54", OUTBOX_TOOBIG},
    {"08P01", OUTBOX_ERROR}, /* another number of parameters */
    {"08", OUTBOX_DISCONNECTED}, {"57P", OUTBOX_DISCONNECTED},
    {"58030", OUTBOX_IO},        {"XX001", OUTBOX_CORRUPT},
    {"XX002", OUTBOX_CORRUPT},   {"25P02", OUTBOX_MISUSE},
    {"OB001", OUTBOX_DUPLICATE},
};

static int code_of(const char *state, bool own) {
  if (strncmp(state, "42", 2) == 0 && strcmp(state, "42501") != 0)
    return own ? OUTBOX_SCHEMA : OUTBOX_ERROR;
  for (size_t i = 0; i < sizeof CODES / sizeof *CODES; i++)
    if (strncmp(state, CODES[i].state, strlen(CODES[i].state)) == 0) return CODES[i].code;
  return OUTBOX_ERROR;
}

/* Whether a constraint is one of ours on an id. */
static bool is_of_id(const outbox_store *store, const char *constraint) {
  size_t size = strlen(store->prefix);
  if (constraint == NULL || strncmp(constraint, store->prefix, size) != 0) return false;
  return strcmp(constraint + size, "entries_id_key") == 0 ||
         strcmp(constraint + size, "delayed_id_key") == 0;
}

/* The server ends the session then, and so does a pooler, which has no codes of its own for it. */
static bool is_fatal(const PGresult *result) {
  const char *severity = PQresultErrorField(result, PG_DIAG_SEVERITY_NONLOCALIZED);
  if (severity == NULL) severity = PQresultErrorField(result, PG_DIAG_SEVERITY);
  return severity != NULL && strcmp(severity, "FATAL") == 0;
}

bool connection_is_lost(const outbox_store *store) {
  return store->db == NULL || PQstatus(store->db) == CONNECTION_BAD;
}

int connection_fail(outbox_store *store, const PGresult *result, bool own) {
  const char *state = result != NULL ? PQresultErrorField(result, PG_DIAG_SQLSTATE) : NULL;
  /*
  ** Where sending has failed, libpq takes the connection for good until reading fails, too. Before
  ** the end there may be a last word of the server.
  */
  for (int i = 0; i < 8 && state == NULL && !connection_is_lost(store); i++)
    PQconsumeInput(store->db);
  const char *text = result != NULL ? PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY) : NULL;
  if (text == NULL) text = PQerrorMessage(store->db);
  if (text == NULL || text[0] == '\0') text = "the server gave no reason";
  int code = connection_is_lost(store) || is_fatal(result) ? OUTBOX_DISCONNECTED
             : state == NULL                               ? OUTBOX_ERROR
                                                           : code_of(state, own);
  if (code == OUTBOX_CONSTRAINT && strcmp(state, "23505") == 0 &&
      is_of_id(store, PQresultErrorField(result, PG_DIAG_CONSTRAINT_NAME)))
    code = OUTBOX_DUPLICATE;
  if (code == OUTBOX_DUPLICATE)
    return store_fail(store, code, "an entry with this id is already in the outbox");
  if (code == OUTBOX_SCHEMA) store->migrated = false;
  store_fail(store, code, code == OUTBOX_SCHEMA ? "call migrate first (%s)" : "%s", text);
  size_t size = strlen(store->message); /* libpq's own messages end with a newline */
  while (size > 0 && store->message[size - 1] == '\n')
    store->message[--size] = '\0';
  return code;
}

/* --- Connecting ------------------------------------------------------------------------------ */

static void ignore(void *context, const char *message) {
  (void)context, (void)message;
}

PGconn *connection_make(const char *url) {
  PGconn *db = PQconnectdb(url);
  if (db != NULL) PQsetNoticeProcessor(db, ignore, NULL);
  return db;
}

/* libpq would tell the server that the parent's session is over. */
void connection_close(PGconn *db, pid_t pid) {
  if (db == NULL) return;
  if (pid == getpid())
    PQfinish(db);
  else if (PQsocket(db) >= 0)
    close(PQsocket(db));
}

static const char *const SYNCHRONOUS[] = {[OUTBOX_SYNCHRONOUS_OFF] = "off",
                                          [OUTBOX_SYNCHRONOUS_NORMAL] = "local",
                                          [OUTBOX_SYNCHRONOUS_FULL] = "on",
                                          [OUTBOX_SYNCHRONOUS_EXTRA] = "remote_apply"};

/*
** A TEMP table of the same name is never meant. The last columns are the clock, the start, and the
** number of the session: a pooler tells its clients numbers of its own.
*/
#define WHO                                                                                        \
  "SELECT version(), current_setting('server_encoding'), pg_is_in_recovery(),"                     \
  " quote_ident(coalesce((SELECT n.nspname FROM pg_class AS c JOIN pg_namespace AS n"              \
  " ON n.oid = c.relnamespace WHERE c.relname = '%sschema' AND pg_table_is_visible(c.oid)"         \
  " AND c.relpersistence <> 't' LIMIT 1), current_schema())),"                                     \
  " (extract(epoch FROM clock_timestamp()) * 1000000)::bigint,"                                    \
  " (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, pg_backend_pid()"

/*
** `p`: for the transaction alone. The second half of being read-only is for that transaction. What
** takes a lock and then looks, in one round trip, must see what was committed while it waited.
*/
#define SETTINGS                                                                                   \
  "SELECT set_config('client_encoding', 'UTF8', p), set_config('lock_timeout', '%d', p),"          \
  " set_config('standard_conforming_strings', 'on', p),"                                           \
  " set_config('default_transaction_isolation', 'read committed', p),"                             \
  " set_config('synchronous_commit', '%s', p),"                                                    \
  " set_config('default_transaction_read_only', '%s', p),"                                         \
  " set_config('transaction_read_only', %s, true)%s FROM (VALUES (%s)) AS v (p)"

/* The order of an index is what a reading needs; whoever sorts has to read all first. */
#define PLANS                                                                                      \
  ", set_config('plan_cache_mode', 'force_generic_plan', p), set_config('enable_seqscan', 'off',"  \
  " p), set_config('enable_bitmapscan', 'off', p), set_config('jit', 'off', p)"

/* Judges what the server says of itself. */
static int judge(outbox_store *store, const PGresult *result) {
  const char *version = PQgetvalue(result, 0, 0), *encoding = PQgetvalue(result, 0, 1);
  if (strncmp(version, "PostgreSQL", 10) != 0 || strstr(version, "CockroachDB") != NULL ||
      strstr(version, "-YB-") != NULL)
    return store_fail(store, OUTBOX_MISUSE,
                      "the server is %.60s, which has no advisory locks that keep the order of "
                      "commits, or no LISTEN: the outbox needs PostgreSQL",
                      version);
  if (PQserverVersion(store->db) < OLDEST)
    return store_fail(store, OUTBOX_MISUSE, "the server is older than PostgreSQL 13");
  if (strcmp(encoding, "UTF8") != 0)
    return store_fail(store, OUTBOX_ENCODING, "the database's encoding is %s, not UTF8", encoding);
  if (PQgetvalue(result, 0, 2)[0] == 't' && store->mode != OUTBOX_READ)
    return store_fail(store, OUTBOX_READONLY, "the server is a standby, which cannot be written");
  if (PQgetisnull(result, 0, 3))
    return store_fail(store, OUTBOX_SCHEMA, "no schema of the search_path exists");
  return OUTBOX_OK;
}

int connection_set(outbox_store *store) {
  bool reads = store->mode == OUTBOX_READ;
  snprintf(store->settings, sizeof store->settings, SETTINGS,
           store->busy_timeout > 0 ? store->busy_timeout : 1, SYNCHRONOUS[store->synchronous],
           reads ? "on" : "off", reads ? "'on'" : "current_setting('transaction_read_only')",
           store->lane != NULL ? PLANS : "", store->pooled ? "true" : "false");
  PGresult *result = PQexec(store->db, store->settings);
  int code =
      PQresultStatus(result) == PGRES_TUPLES_OK ? OUTBOX_OK : connection_fail(store, result, false);
  PQclear(result);
  return code;
}

static int set_up(outbox_store *store) {
  char sql[800];
  int64_t before, after;
  snprintf(sql, sizeof sql, WHO, store->prefix);
  outbox_system_clock(NULL, &before);
  PGresult *result = PQexec(store->db, sql);
  outbox_system_clock(NULL, &after);
  int code = PQresultStatus(result) == PGRES_TUPLES_OK ? judge(store, result)
                                                       : connection_fail(store, result, false);
  if (code == OUTBOX_OK) {
    store->skew = strtoll(PQgetvalue(result, 0, 4), NULL, 10) - (before + (after - before) / 2);
    store->connected_at = strtoll(PQgetvalue(result, 0, 4), NULL, 10);
    store->server_started = strtoll(PQgetvalue(result, 0, 5), NULL, 10);
    store->pooled = strtol(PQgetvalue(result, 0, 6), NULL, 10) != PQbackendPID(store->db);
    free(store->schema);
    store->schema = strdup(PQgetvalue(result, 0, 3));
    if (store->schema == NULL) code = store_fail_nomem(store);
  }
  PQclear(result);
  return code == OUTBOX_OK ? connection_set(store) : code;
}

int connection_open(outbox_store *store) {
  bool again = store->sessions > 0;
  connection_close(store->db, store->pid);
  store->db = connection_make(store->url);
  if (store->db == NULL) return store_fail_nomem(store);
  for (int i = 0; i < store->statement_count; i++)
    store->statements[i].prepared = false;
  store->migrated = false;
  if (PQstatus(store->db) != CONNECTION_OK) {
    connection_fail(store, NULL, false);
    return again ? OUTBOX_DISCONNECTED : OUTBOX_CANTOPEN;
  }
  int code = set_up(store);
  if (code == OUTBOX_OK) {
    store->sessions++;
  } else { /* a standby, for instance: the next call may get to another server */
    connection_close(store->db, store->pid);
    store->db = NULL;
  }
  return code;
}
