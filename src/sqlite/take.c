/*
** Taking entries: whether one is the processor's, whether a retry holds it back, and whether it
** still fits into the batch.
*/
#include "../columns.h"
#include "walk.h"

/* Columns 2 and 3 are the namespace and the key in all of these. */
const char take_walk_sql[] = "SELECT seq, NULL, namespace, key FROM " READY
                             " WHERE seq > ?1 AND seq <= ?2 ORDER BY seq LIMIT 0 + ?3";

const char take_ready_sql[] =
    "SELECT seq, " READY_ENTRY_COLUMNS ", nonce FROM " READY " WHERE seq = ?1";

const char take_delayed_sql[] =
    "SELECT position, " ENTRY_COLUMNS " FROM @delayed WHERE position = ?1";

static const char HELD_SQL[] = "SELECT position FROM @delayed"
                               " WHERE namespace = ?1 AND key = ?2 AND position < ?3 LIMIT 1";

static const char HELD_STRICT_SQL[] =
    "SELECT position, NULL, namespace FROM @delayed WHERE position < ?1 ORDER BY position"
    " LIMIT 0 + ?2";

/* --- Whose it is ----------------------------------------------------------------------------- */

bool take_is_ours(const reading *r, sqlite3_stmt *row, item *item) {
  item->entry.seq = sqlite3_column_int64(row, 0);
  item->entry.namespace = sql_column(row, 2);
  item->entry.key = sql_column(row, 3);
  item->space = box_space(item->entry.namespace);
  uint64_t line = item->entry.key.data != NULL ? box_line(item->space, item->entry.key) : 0;
  item->class = box_class(line, item->entry.seq);
  item->line = line;
  if (r->lane->ordering == OUTBOX_ORDERING_STRICT) item->line = 2; /* all wait in one */
  if (r->lane->ordering == OUTBOX_ORDERING_NONE) item->line = 0;
  return (r->mask >> item->class & 1) != 0 &&
         box_serves(r->lane->namespaces, item->entry.namespace);
}

/* --- Who is held back ------------------------------------------------------------------------ */

static int fetch_held_strictly(outbox_store *store, int64_t place, bool *held, int64_t *head) {
  sqlite3_stmt *row;
  int code = sql_query(store, HELD_STRICT_SQL, &row, "ii", place, (int64_t)LOOK);
  if (code != OUTBOX_OK) return code;
  while (!*held && (code = sql_step(store, row)) == OUTBOX_ROW) {
    *held = box_serves(store->lane->namespaces, sql_column(row, 2));
    *head = sqlite3_column_int64(row, 0);
  }
  if (code == OUTBOX_ROW) sql_reset(store, row);
  return code == OUTBOX_ROW || code == OUTBOX_DONE ? OUTBOX_OK : code;
}

int take_find_holder(outbox_store *store, const outbox_entry *entry, bool *held, int64_t *head) {
  enum outbox_ordering ordering = store->lane->ordering;
  *held = false;
  if (ordering == OUTBOX_ORDERING_STRICT) return fetch_held_strictly(store, entry->seq, held, head);
  if (ordering == OUTBOX_ORDERING_NONE || entry->key.data == NULL) return OUTBOX_OK;
  return sql_fetch(store, HELD_SQL, head, 1, held, "tti", entry->namespace, entry->key, entry->seq);
}

int take_is_held(const reading *r, const item *item, bool *held, int64_t *head) {
  *held = false;
  return item->line != 0 && r->retries ? take_find_holder(r->store, &item->entry, held, head)
                                       : OUTBOX_OK;
}

/* --- Taking an entry ------------------------------------------------------------------------- */

/* Adds the entry of a row that has all columns. r->full: it would not fit, and was not added. */
int take_row(reading *r, sqlite3_stmt *row, const item *item) {
  items *found = r->found;
  size_t count = found->count;
  int64_t bytes = found->bytes;
  int code = lane_add(r->store, found, row, item);
  if (code != OUTBOX_OK) return code;
  const outbox_entry *entry = &found->items[count].entry, *first = &found->items[0].entry;
  static const outbox_bytes LAPSED = {OUTBOX_LAPSED, sizeof OUTBOX_LAPSED - 1};
  bool alone = bytes_equal(entry->last_error, LAPSED);
  bool too_large = r->want->batch_bytes > 0 && found->bytes > r->want->batch_bytes;
  r->full = alone || (count > 0 && bytes_equal(first->last_error, LAPSED));
  if (count == 0 || !(r->full || too_large)) return OUTBOX_OK;
  r->full = true;
  found->count = count;
  found->bytes = bytes;
  return OUTBOX_OK;
}

/* The same for an entry of which only the place is known. *taken: it is still there, and fitted. */
int take_place(reading *r, const item *item, bool *taken) {
  sqlite3_stmt *row;
  size_t count = r->found->count;
  int code = sql_query(r->store, item->delayed ? take_delayed_sql : take_ready_sql, &row, "i",
                       item->entry.seq);
  if (code == OUTBOX_OK) code = sql_step(r->store, row);
  if (code == OUTBOX_ROW) {
    code = take_row(r, row, item);
    sql_reset(r->store, row);
  } else if (code == OUTBOX_DONE) {
    code = OUTBOX_OK;
  }
  *taken = r->found->count > count;
  return code;
}

bool take_is_enough(const reading *r) {
  return r->full || (int64_t)r->found->count >= r->want->batch_size;
}
