/*
** Copies: a trigger that makes them of what is published to a namespace with subscriptions.
**
** It is the same for everyone who publishes. It is there only while there is a subscription, so
** without one nothing is slower. It runs before the insertion, and writes the copies in its place.
*/
#include "../columns.h"
#include "derived.h"
#include "operations.h"

/* A row that has a source is a copy, or was published before. */
#define IS_SUBSCRIBED                                                                              \
  " WHEN NEW.source_id IS NULL AND typeof(NEW.id) IN ('text', 'null') AND EXISTS"                  \
  " (SELECT 1 FROM @@subscriptions WHERE namespace = NEW.namespace)"
#define COPY_TO(table, id, column)                                                                 \
  " BEGIN INSERT INTO " table                                                                      \
  " (id, namespace, key, payload, headers, created_at, source_id" column ") SELECT " id            \
  " || ':' || s.copy, s.copy, NEW.key, NEW.payload, NEW.headers,"                                  \
  " NEW.created_at, " id
#define INSTEAD                                                                                    \
  " FROM @@subscriptions AS s WHERE s.namespace = NEW.namespace ORDER BY s.copy;"                  \
  " SELECT RAISE(IGNORE); END;"

/* The first copy takes the next seq. SQLite gives each other one a seq above all that are there. */
#define SEQ_OF_COPY                                                                                \
  ", CASE WHEN EXISTS (SELECT 1 FROM @@subscriptions AS before WHERE before.namespace ="           \
  " s.namespace AND before.copy < s.copy) THEN NULL ELSE " NEXT_SEQ("@@") " END"

#define PROMISED_ID                                                                                \
  "coalesce(NEW.id, CASE WHEN " IS_DERIVABLE("NEW.") " THEN " DERIVED_ID("NEW.") " END)"

static const char BEGIN_COPYING[] =
    "CREATE TRIGGER IF NOT EXISTS @copy BEFORE INSERT ON @@ready" IS_SUBSCRIBED COPY_TO(
        "@@ready", PROMISED_ID, ", seq") SEQ_OF_COPY INSTEAD
    "CREATE TRIGGER IF NOT EXISTS @copy_scheduled BEFORE INSERT ON @@delayed" IS_SUBSCRIBED
    " AND NEW.position IS NULL" COPY_TO("@@delayed", "NEW.id", ", due_at") ", NEW.due_at" INSTEAD;

static const char END_COPYING[] =
    "DROP TRIGGER IF EXISTS @copy; DROP TRIGGER IF EXISTS @copy_scheduled;";

static const char ANY_SQL[] = "SELECT EXISTS (SELECT 1 FROM @subscriptions)";

int copies_follow(outbox_store *store) {
  int64_t any = 0;
  bool found;
  int code = sql_fetch(store, ANY_SQL, &any, 1, &found, "");
  return code == OUTBOX_OK ? sql_execute(store, any ? BEGIN_COPYING : END_COPYING) : code;
}
