/*
** Migration: the steps that bring the tables to this version.
*/
#include <stdlib.h>

#include "../uuid.h"
#include "schema.h"
#include "transaction.h"

/* Two processes at once: the second finds nothing to do. */
static const char LOCK_SQL[] = "SELECT pg_advisory_xact_lock(1869967992, hashtext('@schema'))";

/* Reads a table: only so the session learns of what another has created meanwhile. */
static const char IS_THERE_SQL[] =
    "SELECT to_regclass('@schema') IS NOT NULL FROM pg_class LIMIT 1";

static const char VERSION_SQL[] = "SELECT version, space FROM @schema";

static const char SET_VERSION_SQL[] = "UPDATE @schema SET version = $1";

/* Finds the version; 0: there are no tables. */
static int find_version(outbox_store *store, int64_t *version) {
  *version = 0;
  int code = sql_run(store, IS_THERE_SQL, "");
  if (code != OUTBOX_OK || !sql_bool(sql_result(store, 0), 0, 0)) return code;
  code = sql_run(store, VERSION_SQL, "");
  if (code != OUTBOX_OK) return code;
  *version = sql_int(sql_result(store, 0), 0, 0);
  store->space = (int)sql_int(sql_result(store, 0), 0, 1);
  if (*version > SCHEMA_VERSION)
    return store_fail(store, OUTBOX_NEWER, "the tables are of version %d, from a newer outbox",
                      (int)*version);
  return OUTBOX_OK;
}

/* The first number of the advisory locks: those of others in the database should be different. */
static int choose_space(outbox_store *store) {
  uint32_t number;
  if (!uuid_random(&store->uuid_state, &number, sizeof number))
    return store_fail(store, OUTBOX_ERROR, "the system has no random numbers");
  store->space = (int)(number >> 1);
  return OUTBOX_OK;
}

static int climb(outbox_store *store) {
  int64_t version = 0;
  int code = sql_run(store, LOCK_SQL, "");
  if (code == OUTBOX_OK) code = find_version(store, &version);
  if (code != OUTBOX_OK || version == SCHEMA_VERSION) return code;
  if (version == 0) code = choose_space(store);
  for (int64_t step = version; step < SCHEMA_VERSION && code == OUTBOX_OK; step++)
    for (const char *const *script = schema_steps[step]; *script != NULL && code == OUTBOX_OK;
         script++)
      code = sql_script(store, *script);
  return code == OUTBOX_OK ? sql_run(store, SET_VERSION_SQL, "i", (int64_t)SCHEMA_VERSION) : code;
}

/* Who may not create tables may run it all the same where there is nothing to do. */
int outbox_migrate(outbox_store *store) {
  int64_t version = 0;
  int code = transaction_enter(store);
  if (code == OUTBOX_OK) code = find_version(store, &version);
  if (code != OUTBOX_OK || version == SCHEMA_VERSION) return code;
  code = outbox_begin(store);
  return code == OUTBOX_OK ? transaction_end(store, climb(store)) : code;
}
