/*
** The rows of the table of claims: reading them, and what becomes of the entries that were in hand
** when one lapses.
*/
#include "lease.h"

#include <stdlib.h>

const char lease_select_sql[] =
    "SELECT lease, processor_id, namespaces, classes, first_seq, last_seq, deadline, claimed_at,"
    " held FROM @claims ORDER BY first_seq, lease";

static const char DELETE_CLAIM_SQL[] = "DELETE FROM @claims WHERE lease = ?1";

/* --- Rows ------------------------------------------------------------------------------------ */

void lease_read(sqlite3_stmt *row, outbox_lease *lease) {
  *lease = (outbox_lease){.lease = sqlite3_column_int64(row, 0),
                          .processor_id = sql_column(row, 1),
                          .namespaces = sql_column(row, 2),
                          .classes = (uint64_t)sqlite3_column_int64(row, 3),
                          .first_seq = sqlite3_column_int64(row, 4),
                          .last_seq = sqlite3_column_int64(row, 5),
                          .deadline = sqlite3_column_int64(row, 6),
                          .claimed_at = sqlite3_column_int64(row, 7)};
  /* As text, which ends with a NUL; sql_column gives the same bytes. */
  if (sqlite3_column_text(row, 8) != NULL) lease->held = sql_column(row, 8);
}

int lease_each(outbox_store *store, lease_visitor *visit, void *context) {
  sqlite3_stmt *row;
  outbox_lease lease;
  int code = sql_query(store, lease_select_sql, &row, "");
  if (code != OUTBOX_OK) return code;
  while ((code = sql_step(store, row)) == OUTBOX_ROW) {
    lease_read(row, &lease);
    code = visit(context, &lease);
    if (code == OUTBOX_OK) continue;
    sql_reset(store, row);
    return code;
  }
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

bool lease_is_lane(const outbox_lease *lease) {
  return lease->first_seq == INT64_MIN && lease->last_seq == INT64_MAX;
}

bool lease_has_lapsed(const outbox_store *store, const outbox_lease *lease, int64_t now) {
  return lease->deadline < now || lease->claimed_at > due_future(store, now);
}

int64_t lease_lapses_at(const outbox_lease *lease) {
  return clock_later(lease->deadline, 1);
}

/* --- What is in hand ------------------------------------------------------------------------- */

/* The numbers are unsigned, because the places need not be in order. */
void lease_name(sqlite3_str *text, range places, int64_t *last) {
  sqlite3_str_appendf(text, sqlite3_str_length(text) > 0 ? ",%lld" : "%lld",
                      (int64_t)((uint64_t)places.first - (uint64_t)*last));
  if (places.last > places.first)
    sqlite3_str_appendf(text, "+%lld", (int64_t)((uint64_t)places.last - (uint64_t)places.first));
  *last = places.last;
}

int lease_finish(outbox_store *store, sqlite3_str *text, outbox_bytes *held) {
  bool good = sqlite3_str_errcode(text) == SQLITE_OK;
  size_t size = (size_t)sqlite3_str_length(text);
  *held = (outbox_bytes){sqlite3_str_finish(text), size};
  return good ? OUTBOX_OK : store_fail_nomem(store);
}

/* Takes the next range of places off a text. False at the end, or where it is damaged. */
static bool next_places(const char **text, range *places) {
  char *end;
  if (**text == ',') ++*text;
  int64_t first = (int64_t)((uint64_t)places->last + (uint64_t)strtoll(*text, &end, 10));
  if (end == *text) return false;
  int64_t more = *end == '+' ? strtoll(end + 1, &end, 10) : 0;
  if (more < 0 || first > INT64_MAX - more) return false;
  *places = (range){first, first + more};
  *text = end;
  return true;
}

int lease_charge(outbox_store *store, const outbox_lease *lease, int64_t now) {
  range places = {0, 0};
  const char *held = lease->held.data;
  bool overtime = held != NULL && *held == OVERTIME[0];
  int code = OUTBOX_OK;
  if (overtime) held++;
  while (held != NULL && code == OUTBOX_OK && next_places(&held, &places))
    code = (overtime ? settle_suspect : settle_charge)(store, places, lease_is_lane(lease), now);
  return code;
}

int lease_remove(outbox_store *store, int64_t lease) {
  return sql_process(store, DELETE_CLAIM_SQL, "i", lease);
}

int lease_reap(outbox_store *store, const outbox_lease *lease, int64_t now) {
  int64_t number = lease->lease;
  int code = lease_charge(store, lease, now);
  return code == OUTBOX_OK ? lease_remove(store, number) : code;
}
