/*
** How a claimed entry ends: deleted once delivered, delayed for a retry, or buried.
*/
#include <string.h>

#include "store.h"

static const char DELETE_READY_SQL[] = "DELETE FROM @entries WHERE id = ?1";

static const char DELETE_RANGE_SQL[] = "DELETE FROM @entries WHERE seq BETWEEN ?1 AND ?2";

static const char DELETE_DELAYED_SQL[] = "DELETE FROM @delayed WHERE id = ?1";

static const char DELAY_READY_SQL[] =
    "INSERT INTO @delayed (id, namespace, key, payload, headers, created_at, attempts, last_error,"
    " due_at, position)"
    " SELECT id, namespace, key, payload, headers, created_at, attempts + 1, ?2, ?3, seq"
    " FROM @entries WHERE id = ?1";

static const char BURY_READY_SQL[] =
    "INSERT INTO @dead (" ENTRY_COLUMNS ", died_at)"
    " SELECT seq, id, namespace, key, payload, headers, created_at, attempts + 1, ?2, ?3"
    " FROM @entries WHERE id = ?1";

/* How often the database was changed: by others, and by this connection. */
static int count_changes(outbox_store *store, int64_t *data_version, int64_t *changes) {
  sqlite3_stmt *statement = store->statements[DATA_VERSION];
  int code = outbox_step(store, statement);
  if (code != OUTBOX_ROW) return code;
  *data_version = sqlite3_column_int64(statement, 0);
  *changes = sqlite3_total_changes64(store->db);
  outbox_reset(statement);
  return OUTBOX_OK;
}

int outbox_start_batch(outbox_store *store) {
  batch *batch = &store->batch;
  batch->count = batch->size = 0;
  /* What a transaction has written may be rolled back, and its seq be given again. */
  batch->open = sqlite3_get_autocommit(store->db);
  return count_changes(store, &batch->data_version, &batch->changes);
}

void outbox_remember(outbox_store *store, const outbox_entry *entry) {
  batch *batch = &store->batch;
  size_t size = batch->size + sizeof(size_t) + entry->id.size;
  if (batch->count == 0) batch->first_seq = entry->seq;
  bool usable = entry->seq == batch->first_seq + (int64_t)batch->count;
  if (usable && size > batch->capacity) {
    char *ids = sqlite3_realloc64(batch->ids, 2 * size);
    if (ids != NULL) {
      batch->ids = ids;
      batch->capacity = 2 * size;
    }
  }
  if (!usable || size > batch->capacity) { /* no harm: it will be deleted one by one */
    batch->open = false;
    batch->count = 0;
    return;
  }
  memcpy(batch->ids + batch->size, &entry->id.size, sizeof(size_t));
  memcpy(batch->ids + batch->size + sizeof(size_t), entry->id.data, entry->id.size);
  batch->size = size;
  batch->count++;
}

/* Whether the ids are those of the last batch, all and in order, and it still is as it was read. */
static bool is_batch(outbox_store *store, const outbox_bytes *ids, size_t count) {
  const batch *batch = &store->batch;
  int64_t data_version, changes;
  if (count == 0 || count != batch->count ||
      count_changes(store, &data_version, &changes) != OUTBOX_OK ||
      data_version != batch->data_version || changes != batch->changes)
    return false;
  const char *id = batch->ids;
  for (size_t i = 0; i < count; i++) {
    size_t size;
    memcpy(&size, id, sizeof size);
    id += sizeof size;
    if (size != ids[i].size || memcmp(id, ids[i].data, size) != 0) return false;
    id += size;
  }
  return true;
}

int outbox_delete_entries(outbox_store *store, const outbox_bytes *ids, size_t count,
                          int64_t *deleted) {
  size_t found = 0;
  *deleted = 0;
  if (count == 0) return OUTBOX_OK; /* no need of the lock */
  int code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  if (is_batch(store, ids, count)) {
    code = outbox_run(store, DELETE_RANGE, DELETE_RANGE_SQL, "ii", store->batch.first_seq,
                      store->batch.first_seq + (int64_t)count - 1);
    if (code == OUTBOX_OK) found = (size_t)sqlite3_changes(store->db);
  }
  for (size_t i = 0; i < count && found < count && code == OUTBOX_OK; i++) {
    code = outbox_run(store, DELETE_READY, DELETE_READY_SQL, "t", ids[i]);
    if (code == OUTBOX_OK && sqlite3_changes(store->db) == 0)
      code = outbox_run(store, DELETE_DELAYED, DELETE_DELAYED_SQL, "t", ids[i]);
    if (code == OUTBOX_OK) found += (size_t)sqlite3_changes(store->db);
  }
  code = outbox_end(store, code);
  if (code == OUTBOX_OK) *deleted = (int64_t)found;
  return code;
}

/* Takes an entry out of the ready ones once `copy` has put it elsewhere. */
static int move(outbox_store *store, enum statement which, const char *copy, outbox_bytes id,
                outbox_bytes error, int64_t time, bool *found) {
  bool moved = false;
  int code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = outbox_run(store, which, copy, "tti", id, error, time);
  if (code == OUTBOX_OK) {
    moved = sqlite3_changes(store->db) > 0;
    if (moved) code = outbox_run(store, DELETE_READY, DELETE_READY_SQL, "t", id);
  }
  code = outbox_end(store, code);
  if (code == OUTBOX_OK) *found = moved;
  return code;
}

int outbox_retry_entry(outbox_store *store, outbox_bytes id, int64_t due_at, outbox_bytes error,
                       bool *found) {
  return move(store, DELAY_READY, DELAY_READY_SQL, id, error, due_at, found);
}

int outbox_bury_entry(outbox_store *store, outbox_bytes id, outbox_bytes error, bool *found) {
  int64_t now;
  int code = outbox_enter(store);
  if (code == OUTBOX_OK) code = outbox_now(store, &now);
  if (code != OUTBOX_OK) return code;
  return move(store, BURY_READY, BURY_READY_SQL, id, error, now, found);
}
