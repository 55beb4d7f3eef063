/*
** Copies: what is published to a namespace with subscriptions becomes a row for each of them, in
** the place of its own. Triggers make them for plain SQL, and of what is scheduled: see schema.c.
**
** A statement makes all copies of its messages, so it is atomic by itself. None reads the table
** that it writes to, because SQLite would put the rows into a temporary table first.
*/
#include "../columns.h"
#include "operations.h"

#define COLUMNS "(" MESSAGE_COLUMNS_BUT_ID ", source_id, nonce, "

/* How many copies of a message come before this one. */
#define RANK                                                                                       \
  "(SELECT count(*) FROM @subscriptions AS b WHERE b.namespace = s.namespace AND b.copy < s.copy)"

/*
** A hidden copy gets the seq behind which it is found. A trigger may take it: then the row is
** refused. SQLite gives any other copy a seq above all that are there, but for the first one.
*/
static const char READY_HIDDEN_SQL[] =
    "INSERT INTO " READY " " COLUMNS "seq) SELECT s.copy, ?3, ?4, ?5, ?6, ?2, 0, ?7 + " RANK
    " FROM @subscriptions AS s WHERE s.namespace = ?1 ORDER BY s.copy";

static const char READY_SQL[] =
    "INSERT INTO " READY " " COLUMNS "id, seq) SELECT s.copy, ?3, ?4, ?5, ?6, ?2, 0,"
    " ?2 || ':' || s.copy, CASE WHEN s.copy = (SELECT min(copy) FROM @subscriptions"
    " WHERE namespace = ?1) THEN ?7 END"
    " FROM @subscriptions AS s WHERE s.namespace = ?1 ORDER BY s.copy";

#define ROW "(?, ?, ?, ?, ?, ?, ?)"
#define ROW_TYPES "ttbtiti"
#define FOUR_ROWS ROW ", " ROW ", " ROW ", " ROW

/* column6 is the id; NULL: its copies are hidden, and column7 is the seq of the first one. */
static const char READY_ROWS_SQL[] =
    "INSERT INTO " READY " " COLUMNS "id, seq) SELECT s.copy, column2, column3, column4, column5,"
    " column1, 0, column6 || ':' || s.copy, CASE WHEN column6 IS NULL THEN column7 + " RANK
    " END FROM (VALUES " FOUR_ROWS ", " FOUR_ROWS ", " FOUR_ROWS ", " FOUR_ROWS
    ") CROSS JOIN @subscriptions AS s WHERE s.namespace = ?";

int copies_make(outbox_store *store, outbox_bytes namespace, const outbox_message *m,
                const copies_place *place) {
  return sql_run(store, place->hidden ? READY_HIDDEN_SQL : READY_SQL, "tttbtii", namespace, m->id,
                 m->key, m->payload, m->headers, place->created_at, place->seq);
}

int copies_make_rows(outbox_store *store, outbox_bytes namespace, const outbox_message *m,
                     const copies_place *places) {
  enum { COLUMNS_OF_ROW = sizeof ROW_TYPES - 1 };
  const outbox_bytes none = {NULL, 0};
  sqlite3_stmt *statement;
  int code = sql_query(store, READY_ROWS_SQL, &statement, "");
  for (int i = 0; i < COPIES_ROWS && code == OUTBOX_OK; i++)
    code = sql_bind(store, statement, 1 + i * COLUMNS_OF_ROW, ROW_TYPES, m[i].id, m[i].key,
                    m[i].payload, m[i].headers, places[i].created_at,
                    places[i].hidden ? none : m[i].id, places[i].seq);
  if (code == OUTBOX_OK)
    code = sql_bind(store, statement, 1 + COPIES_ROWS * COLUMNS_OF_ROW, "t", namespace);
  return code == OUTBOX_OK ? sql_finish(store, statement) : code;
}
