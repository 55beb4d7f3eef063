/*
** What operators set: subscriptions and pauses. And what processors have found down.
*/
#include <stdlib.h>

#include "lane.h"

static const char SUBSCRIBE_SQL[] =
    "INSERT INTO @subscriptions (namespace, copy) VALUES ($1, $2) ON CONFLICT DO NOTHING";

static const char UNSUBSCRIBE_SQL[] =
    "DELETE FROM @subscriptions WHERE namespace = $1 AND copy = $2";

static const char SUBSCRIPTIONS_SQL[] = "SELECT namespace, copy FROM @subscriptions ORDER BY "
                                        "namespace COLLATE \"C\", copy COLLATE \"C\"";

static const char PAUSE_SQL[] =
    "INSERT INTO @pauses (namespace, paused_at) VALUES ($1, $2) ON CONFLICT DO NOTHING";

static const char RESUME_SQL[] = "DELETE FROM @pauses WHERE namespace = $1";

static const char PAUSES_SQL[] =
    "SELECT namespace, paused_at FROM @pauses ORDER BY namespace COLLATE \"C\"";

static const char FORGET_SQL[] =
    "DELETE FROM @outages WHERE lease = $1 OR lease NOT IN (SELECT lease FROM @claims)";

static const char NOTE_SQL[] =
    "INSERT INTO @outages (namespace, lease, down_since, error)"
    " SELECT DISTINCT ON (n) n, $4::bigint, since, e"
    " FROM unnest($1::text[], $2::bigint[], $3::text[]) AS t (n, since, e)";

/* Runs a statement that writes. *changed: whether it has changed a row. */
static int change(outbox_store *store, const char *sql, outbox_bytes a, outbox_bytes b,
                  const int64_t *time, bool *changed) {
  int first;
  *changed = false;
  int code = outbox_check_transaction(store);
  if (code == OUTBOX_OK) code = sql_check_schema(store);
  if (code != OUTBOX_OK) return code;
  transaction_start(store, &first);
  if (time != NULL)
    sql_add(store, sql, "ti", a, *time);
  else if (b.data != NULL)
    sql_add(store, sql, "tt", a, b);
  else
    sql_add(store, sql, "t", a);
  code = transaction_finish(store);
  if (code == OUTBOX_OK) *changed = sql_changes(sql_result(store, first)) > 0;
  return code;
}

static int start(outbox_store *store, const char *sql) {
  int code = transaction_ready(store);
  if (code == OUTBOX_OK) code = sql_run(store, sql, "");
  if (code == OUTBOX_OK) reading_start(store);
  return code;
}

/* --- Subscriptions --------------------------------------------------------------------------- */

int outbox_subscribe(outbox_store *store, outbox_bytes namespace, outbox_bytes copy, bool *added) {
  return change(store, SUBSCRIBE_SQL, namespace, copy, NULL, added);
}

int outbox_unsubscribe(outbox_store *store, outbox_bytes namespace, outbox_bytes copy,
                       bool *removed) {
  return change(store, UNSUBSCRIBE_SQL, namespace, copy, NULL, removed);
}

int outbox_subscriptions(outbox_store *store) {
  return start(store, SUBSCRIPTIONS_SQL);
}

int outbox_next_subscription(outbox_store *store, outbox_subscription *subscription) {
  const PGresult *result;
  int row, code = reading_next(store, &result, &row);
  if (code == OUTBOX_ROW)
    *subscription = (outbox_subscription){sql_bytes(result, row, 0), sql_bytes(result, row, 1)};
  return code;
}

/* --- Pauses ---------------------------------------------------------------------------------- */

int outbox_pause(outbox_store *store, outbox_bytes namespace, bool *paused) {
  int64_t now;
  *paused = false;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  return code == OUTBOX_OK
             ? change(store, PAUSE_SQL, namespace, (outbox_bytes){NULL, 0}, &now, paused)
             : code;
}

int outbox_resume(outbox_store *store, outbox_bytes namespace, bool *resumed) {
  return change(store, RESUME_SQL, namespace, (outbox_bytes){NULL, 0}, NULL, resumed);
}

int outbox_paused_namespaces(outbox_store *store) {
  return start(store, PAUSES_SQL);
}

int outbox_next_paused(outbox_store *store, outbox_paused *paused) {
  const PGresult *result;
  int row, code = reading_next(store, &result, &row);
  if (code == OUTBOX_ROW)
    *paused = (outbox_paused){sql_bytes(result, row, 0), sql_int(result, row, 1)};
  return code;
}

/* --- Outages --------------------------------------------------------------------------------- */

/* The rows go with the claim: they are of a lease, whose number is never used again. */
int outbox_note_outages(outbox_store *store, const outbox_outage *outages, size_t count,
                        bool *noted) {
  array names = {0}, since = {0}, errors = {0};
  *noted = false;
  int code = transaction_ready(store);
  if (code != OUTBOX_OK || store->lane == NULL || store->lane->lease == 0) return code;
  char **copies = calloc(count + 1, sizeof *copies);
  if (copies == NULL) return store_fail_nomem(store);
  for (size_t i = 0; i < count; i++) {
    array_add_bytes(&names, outages[i].namespace);
    array_add_int(&since, outages[i].down_since);
    array_add_bytes(&errors, text_clean(outages[i].error, &copies[i]));
  }
  sql_start(store);
  sql_add(store, FORGET_SQL, "i", store->lane->lease);
  if (count > 0) sql_add(store, NOTE_SQL, "TITi", &names, &since, &errors, store->lane->lease);
  code = sql_end(store);
  array_free(&names);
  array_free(&since);
  array_free(&errors);
  for (size_t i = 0; i < count; i++)
    free(copies[i]);
  free(copies);
  *noted = code == OUTBOX_OK;
  return code;
}
