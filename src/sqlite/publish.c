/*
** Publishing: messages become entries, in the transaction that is open.
*/
#include <string.h>

#include "../columns.h"
#include "operations.h"

#define INSERT "INSERT INTO " ENTRIES " (" MESSAGE_COLUMNS ") VALUES "
#define ROW "(?, ?, ?, ?, ?, ?)"
#define ROW_TYPES "tttbti"
#define FOUR_ROWS ROW "," ROW "," ROW "," ROW

static const char INSERT_READY_SQL[] = INSERT ROW;

/* AUTOINCREMENT writes its counter per statement, so one with many rows costs a third less. */
#define ROWS 16
static const char INSERT_READY_ROWS_SQL[] =
    INSERT FOUR_ROWS "," FOUR_ROWS "," FOUR_ROWS "," FOUR_ROWS;

static const char INSERT_DELAYED_SQL[] =
    "INSERT INTO @delayed (" MESSAGE_COLUMNS ", due_at) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

static outbox_bytes namespace_of(const outbox_message *m) {
  return m->namespace.data != NULL ? m->namespace : (outbox_bytes){"", 0};
}

/* An id is unique in the whole outbox. SQL's UNIQUE covers one table. */
#define IS_TAKEN(id)                                                                               \
  "EXISTS (SELECT 1 FROM " ENTRIES " WHERE id = " id ")"                                           \
  " OR EXISTS (SELECT 1 FROM @delayed WHERE id = " id ")"                                          \
  " OR EXISTS (SELECT 1 FROM @dead WHERE id = " id ")"

static const char FIND_ID_SQL[] =
    "SELECT " IS_TAKEN("?1") " OR EXISTS (SELECT 1 FROM @subscriptions WHERE namespace = ?2"
                             " AND (" IS_TAKEN("?1 || ':' || copy") "))";

/* Checks that the id of a message is new, or the ids of its copies. */
static int check_id(outbox_store *store, const outbox_message *m) {
  int64_t taken;
  bool found;
  int code = sql_fetch(store, FIND_ID_SQL, &taken, 1, &found, "tt", m->id, namespace_of(m));
  return code == OUTBOX_OK && taken ? store_fail_duplicate(store) : code;
}

/*
** Why SQLite has refused to insert messages: DUPLICATE where an id of theirs is taken or is there
** twice. Otherwise it is another constraint, perhaps of a trigger of the application's, and the
** message is SQLite's. The ids are looked for, because a trigger may insert other ids into the same
** tables.
*/
static int explain_refusal(outbox_store *store, const outbox_message *messages, size_t count) {
  int code = OUTBOX_OK;
  for (size_t i = 0; i < count && code == OUTBOX_OK; i++) {
    code = check_id(store, &messages[i]);
    for (size_t j = 0; j < i && code == OUTBOX_OK; j++)
      if (bytes_equal(messages[j].id, messages[i].id)) code = store_fail_duplicate(store);
  }
  return code == OUTBOX_OK ? OUTBOX_CONSTRAINT : code;
}

static int insert(outbox_store *store, const outbox_message *m, int64_t now) {
  if (m->deliver_at > now)
    return sql_run(store, INSERT_DELAYED_SQL, ROW_TYPES "i", m->id, namespace_of(m), m->key,
                   m->payload, m->headers, now, m->deliver_at);
  return sql_run(store, INSERT_READY_SQL, ROW_TYPES, m->id, namespace_of(m), m->key, m->payload,
                 m->headers, now);
}

static int insert_rows(outbox_store *store, const outbox_message *m, int64_t now) {
  sqlite3_stmt *statement;
  int code = sql_query(store, INSERT_READY_ROWS_SQL, &statement, "");
  for (int i = 0; i < ROWS && code == OUTBOX_OK; i++, m++)
    code = sql_bind(store, statement, 1 + i * (int)strlen(ROW_TYPES), ROW_TYPES, m->id,
                    namespace_of(m), m->key, m->payload, m->headers, now);
  if (code != OUTBOX_OK) return code;
  code = sql_step(store, statement);
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

/* Whether ROWS messages are left and the first ROWS are to be ready at once. */
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
      return store_fail(store, OUTBOX_CALLBACK, "the ID generator failed");
    m->unique = uuid;
  }
  return OUTBOX_OK;
}

int outbox_generate_ids(outbox_store *store, outbox_message *messages, size_t count) {
  int64_t now;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  return code == OUTBOX_OK ? generate_ids(store, messages, count, now) : code;
}

/* Inserts the messages; with `scope`, in a transaction or a savepoint of its own. */
static int write(outbox_store *store, outbox_message *messages, size_t count, int64_t now,
                 bool scope) {
  int code = scope ? outbox_begin(store) : OUTBOX_OK;
  if (code != OUTBOX_OK) return code;
  while (count > 0 && code == OUTBOX_OK) {
    size_t rows = all_ready(messages, count, now) ? ROWS : 1;
    for (size_t i = 0; i < rows && code == OUTBOX_OK; i++) {
      if (!messages[i].unique) code = check_id(store, &messages[i]);
      messages[i].unique = false; /* from now on the id is there */
    }
    if (code == OUTBOX_OK)
      code = rows == 1 ? insert(store, messages, now) : insert_rows(store, messages, now);
    if (code == OUTBOX_CONSTRAINT) code = explain_refusal(store, messages, rows);
    messages += rows;
    count -= rows;
  }
  return scope ? transaction_end(store, code) : code;
}

int outbox_publish(outbox_store *store, outbox_message *messages, size_t count) {
  int64_t now;
  int code = outbox_check_transaction(store);
  if (code == OUTBOX_OK) code = store_now(store, &now);
  if (code == OUTBOX_OK) code = generate_ids(store, messages, count, now);
  if (code != OUTBOX_OK) return code;
  /* A single insert is atomic by itself, unless its id must be looked for first. */
  bool looking = count == 1 && !messages->unique && sqlite3_get_autocommit(store->db);
  /* The application asks its connection for the rowid of its own last insert, not of ours. */
  sqlite3_int64 rowid = sqlite3_last_insert_rowid(store->db);
  code = write(store, messages, count, now, count > 1 || looking);
  if (store->attached) sqlite3_set_last_insert_rowid(store->db, rowid);
  return code;
}
