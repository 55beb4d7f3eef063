/*
** Copies: what is published to a namespace with subscriptions becomes a row for each of them, in
** the place of its own. For plain SQL a trigger makes them: see schema.c.
**
** A statement makes all copies of its messages, so it is atomic by itself. None reads the table
** that it writes to, because SQLite would put the rows into a temporary table first.
*/
#include "../columns.h"
#include "operations.h"

#define COLUMNS "(id, " MESSAGE_COLUMNS_BUT_ID ", source_id"

static const char DELAYED_SQL[] =
    "INSERT INTO @delayed " COLUMNS ", due_at) SELECT ?2 || ':' || s.copy, s.copy, ?3, ?4, ?5, ?6,"
    " ?2, ?7 FROM @subscriptions AS s WHERE s.namespace = ?1";

/*
** SQLite gives a copy a seq above all that are there. The first one gets the seq that is bound. ?8
** is the id again, or NULL where copies store none.
*/
static const char READY_SQL[] =
    "INSERT INTO " READY " " COLUMNS ", nonce, seq) SELECT ?8 || ':' || s.copy, s.copy, ?3, ?4, ?5,"
    " ?6, ?2, 0, CASE WHEN s.copy = (SELECT min(copy) FROM @subscriptions WHERE namespace = ?1)"
    " THEN ?7 END FROM @subscriptions AS s WHERE s.namespace = ?1 ORDER BY s.copy";

#define ROW "(?, ?, ?, ?, ?, ?)"
#define ROW_TYPES "ttbtit"
#define FOUR_ROWS ROW ", " ROW ", " ROW ", " ROW

static const char READY_ROWS_SQL[] =
    "INSERT INTO " READY " " COLUMNS ", nonce) SELECT column6 || ':' || s.copy, s.copy, column2,"
    " column3, column4, column5, column1, 0 FROM (VALUES " FOUR_ROWS ", " FOUR_ROWS ", " FOUR_ROWS
    ", " FOUR_ROWS ") CROSS JOIN @subscriptions AS s WHERE s.namespace = ?";

int copies_schedule(outbox_store *store, outbox_bytes namespace, const outbox_message *m,
                    int64_t created_at) {
  return sql_run(store, DELAYED_SQL, "tttbtii", namespace, m->id, m->key, m->payload, m->headers,
                 created_at, m->deliver_at);
}

/* The id that a copy stores: none where it is found behind its source's seq. */
static outbox_bytes stored_id(const outbox_message *m, const copies_place *place) {
  return place->hidden ? (outbox_bytes){NULL, 0} : m->id;
}

int copies_make(outbox_store *store, outbox_bytes namespace, const outbox_message *m,
                const copies_place *place) {
  return sql_run(store, READY_SQL, "tttbtiit", namespace, m->id, m->key, m->payload, m->headers,
                 place->created_at, place->seq, stored_id(m, place));
}

int copies_make_rows(outbox_store *store, outbox_bytes namespace, const outbox_message *m,
                     const copies_place *places) {
  enum { COLUMNS_OF_ROW = sizeof ROW_TYPES - 1 };
  sqlite3_stmt *statement;
  int code = sql_query(store, READY_ROWS_SQL, &statement, "");
  for (int i = 0; i < COPIES_ROWS && code == OUTBOX_OK; i++)
    code = sql_bind(store, statement, 1 + i * COLUMNS_OF_ROW, ROW_TYPES, m[i].id, m[i].key,
                    m[i].payload, m[i].headers, places[i].created_at, stored_id(&m[i], &places[i]));
  if (code == OUTBOX_OK)
    code = sql_bind(store, statement, 1 + COPIES_ROWS * COLUMNS_OF_ROW, "t", namespace);
  return code == OUTBOX_OK ? sql_finish(store, statement) : code;
}
