/*
** Publishing: messages become entries, in the transaction that is open.
*/
#include <string.h>

#include "store.h"

#define INSERT "INSERT INTO @entries (id, namespace, key, payload, headers, created_at) VALUES "
#define ROW "(?, ?, ?, ?, ?, ?)"
#define ROW_TYPES "tttbti"
#define FOUR_ROWS ROW "," ROW "," ROW "," ROW

static const char INSERT_READY_SQL[] = INSERT ROW;

/* AUTOINCREMENT writes its counter once a statement: many rows in one cost a third less. */
#define ROWS 16
static const char INSERT_READY_ROWS_SQL[] =
    INSERT FOUR_ROWS "," FOUR_ROWS "," FOUR_ROWS "," FOUR_ROWS;

static const char INSERT_DELAYED_SQL[] =
    "INSERT INTO @delayed (id, namespace, key, payload, headers, created_at, due_at)"
    " VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

/* An id is unique in the whole outbox; SQL's UNIQUE can only see to one table. */
static const char FIND_ID_SQL[] = "SELECT EXISTS (SELECT 1 FROM @entries WHERE id = ?1)"
                                  " OR EXISTS (SELECT 1 FROM @delayed WHERE id = ?1)"
                                  " OR EXISTS (SELECT 1 FROM @dead WHERE id = ?1)";

static int check_id(outbox_store *store, outbox_bytes id) {
  sqlite3_stmt *statement;
  int code = outbox_query(store, FIND_ID, FIND_ID_SQL, &statement, "t", id);
  if (code != OUTBOX_OK) return code;
  code = outbox_step(store, statement);
  if (code != OUTBOX_ROW) return code;
  bool found = sqlite3_column_int(statement, 0);
  outbox_reset(store, statement);
  return found ? outbox_fail_duplicate(store) : OUTBOX_OK;
}

static outbox_bytes namespace_of(const outbox_message *m) {
  return m->namespace.data != NULL ? m->namespace : (outbox_bytes){"", 0};
}

static int insert(outbox_store *store, const outbox_message *m, int64_t now) {
  if (m->deliver_at > now)
    return outbox_run(store, INSERT_DELAYED, INSERT_DELAYED_SQL, ROW_TYPES "i", m->id,
                      namespace_of(m), m->key, m->payload, m->headers, now, m->deliver_at);
  return outbox_run(store, INSERT_READY, INSERT_READY_SQL, ROW_TYPES, m->id, namespace_of(m),
                    m->key, m->payload, m->headers, now);
}

static int insert_rows(outbox_store *store, const outbox_message *m, int64_t now) {
  sqlite3_stmt *statement;
  int code = outbox_query(store, INSERT_READY_ROWS, INSERT_READY_ROWS_SQL, &statement, "");
  for (int i = 0; i < ROWS && code == OUTBOX_OK; i++, m++)
    code = outbox_bind(store, statement, 1 + i * (int)strlen(ROW_TYPES), ROW_TYPES, m->id,
                       namespace_of(m), m->key, m->payload, m->headers, now);
  if (code != OUTBOX_OK) return code;
  code = outbox_step(store, statement);
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

/* Whether the next ROWS messages are there and none of them is to be delayed. */
static bool all_ready(const outbox_message *messages, size_t count, int64_t now) {
  if (count < ROWS) return false;
  for (int i = 0; i < ROWS; i++)
    if (messages[i].deliver_at > now) return false;
  return true;
}

static int generate_ids(outbox_store *store, outbox_message *messages, size_t count, int64_t now) {
  bool uuid = store->id_generator == outbox_uuid_v7 || store->id_generator == outbox_uuid_v4;
  for (outbox_message *m = messages; m < messages + count; m++) {
    if (m->id.data != NULL) continue;
    if (store->id_generator(store->id_generator_context, now, m) != 0 || m->id.data == NULL)
      return outbox_fail(store, OUTBOX_CALLBACK, "the ID generator failed");
    m->unique = uuid;
  }
  return OUTBOX_OK;
}

int outbox_generate_ids(outbox_store *store, outbox_message *messages, size_t count) {
  int64_t now;
  int code = outbox_enter(store);
  if (code == OUTBOX_OK) code = outbox_now(store, &now);
  return code == OUTBOX_OK ? generate_ids(store, messages, count, now) : code;
}

/* Publishes; `scope`, whether that takes a transaction, or a savepoint, of its own. */
static int write(outbox_store *store, outbox_message *messages, size_t count, int64_t now,
                 bool scope) {
  int code = scope ? outbox_begin(store) : OUTBOX_OK;
  if (code != OUTBOX_OK) return code;
  while (count > 0 && code == OUTBOX_OK) {
    size_t rows = all_ready(messages, count, now) ? ROWS : 1;
    for (size_t i = 0; i < rows && code == OUTBOX_OK; i++) {
      if (!messages[i].unique) code = check_id(store, messages[i].id);
      messages[i].unique = false; /* from now on it may well be there */
    }
    if (code == OUTBOX_OK)
      code = rows == 1 ? insert(store, messages, now) : insert_rows(store, messages, now);
    messages += rows;
    count -= rows;
  }
  return scope ? outbox_end(store, code) : code;
}

int outbox_publish(outbox_store *store, outbox_message *messages, size_t count) {
  int64_t now;
  int code = outbox_check_transaction(store);
  if (code == OUTBOX_OK) code = outbox_now(store, &now);
  if (code == OUTBOX_OK) code = generate_ids(store, messages, count, now);
  if (code != OUTBOX_OK) return code;
  /* A single insert is atomic without any transaction, unless its id must be looked for first. */
  bool looking = count == 1 && !messages->unique && sqlite3_get_autocommit(store->db);
  /* An application asks for the rowid of its own last insert, not of ours. */
  sqlite3_int64 rowid = sqlite3_last_insert_rowid(store->db);
  code = write(store, messages, count, now, count > 1 || looking);
  if (store->attached) sqlite3_set_last_insert_rowid(store->db, rowid);
  return code;
}
