/*
** What falls due: scheduled entries become ready, and the times of retries follow the clock. A
** retry that is due stays where it is, and is handed out from there.
*/
#include "operations.h"

#define MOST_PROMOTED 1000

static const char LOOK_SQL[] =
    "SELECT coalesce((SELECT due_at FROM @delayed WHERE due_at > $1 ORDER BY due_at LIMIT 1), 0),"
    " EXISTS (SELECT FROM @delayed WHERE delayed_at > $2)";

static const char CORRECT_SQL[] =
    "UPDATE @delayed SET due_at = least(due_at, $2), delayed_at = $2 WHERE seq IN"
    " (SELECT seq FROM @delayed WHERE delayed_at > $1 LIMIT 10000)";

static const char PROMOTE_SQL[] = "SELECT @promote($1, $2)";

int due_look(outbox_store *store, int64_t now, int64_t *due_at, bool *ahead) {
  int code = sql_run(store, LOOK_SQL, "ii", now, time_future(store, now));
  if (code != OUTBOX_OK) return code;
  *due_at = sql_int(sql_result(store, 0), 0, 0);
  *ahead = sql_bool(sql_result(store, 0), 0, 1);
  return OUTBOX_OK;
}

int due_correct(outbox_store *store, int64_t now) {
  return sql_run(store, CORRECT_SQL, "ii", time_future(store, now), now);
}

int due_promote(outbox_store *store, int64_t now, bool *more) {
  int code = sql_run(store, PROMOTE_SQL, "ii", now, (int64_t)MOST_PROMOTED);
  *more = code == OUTBOX_OK && sql_int(sql_result(store, 0), 0, 0) == MOST_PROMOTED;
  return code;
}
