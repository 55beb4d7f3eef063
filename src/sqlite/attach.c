/*
** Attaching: a store on a connection that the application has opened and will close.
*/
#define _GNU_SOURCE

#include <dlfcn.h>
#include <stdint.h>
#include <unistd.h>

#include "attach.h"

/*
** SQLite may call into this code until the process ends. A Lua state that closes would unload it. A
** program's own code is not found here; it stays loaded anyway.
*/
void attach_pin(void) {
  static const char HERE = 0;
  Dl_info object;
  if (dladdr(&HERE, &object) != 0)
    dlopen(object.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
}

/*
** SQLite has no hook for the close of a connection, but it destroys the connection's functions
** then. So each store adds a function that nobody calls, and this is its data.
*/
struct notice {
  outbox_store *store; /* NULL once the store is closed */
  char name[40];
};

static void connection_closed(void *context) {
  notice *notice = context;
  if (notice->store != NULL) {
    notice->store->db = NULL;
    notice->store->notice = NULL;
  }
  sqlite3_free(notice);
}

static void refuse(sqlite3_context *context, int count, sqlite3_value **values) {
  (void)count, (void)values;
  sqlite3_result_error(context, "this function only waits for the connection to be closed", -1);
}

/* The name holds the notice's address, so no two functions have the same name. */
static int await_close(outbox_store *store) {
  notice *notice = store->notice = sqlite3_malloc(sizeof *notice);
  if (notice == NULL) return store_fail_nomem(store);
  notice->store = store;
  sqlite3_snprintf(sizeof notice->name, notice->name, "outbox_attached_%llx",
                   (unsigned long long)(uintptr_t)notice);
  if (sqlite3_create_function_v2(store->db, notice->name, 0, SQLITE_UTF8 | SQLITE_DIRECTONLY,
                                 notice, refuse, NULL, NULL, connection_closed) == SQLITE_OK)
    return OUTBOX_OK;
  store->notice = NULL; /* SQLite has destroyed it, and so the store has no connection any more */
  return store_fail_nomem(store);
}

int attach_borrow(outbox_store **out, sqlite3 *db, const outbox_options *options) {
  int code = store_make(out, options);
  if (code != OUTBOX_OK) return code;
  outbox_store *store = *out;
  store->attached = true;
  store->db = db;
  code = sql_check_encoding(store);
  if (code != OUTBOX_OK) store->db = NULL;
  return code;
}

int outbox_attach(outbox_store **out, sqlite3 *db, const outbox_options *options) {
  attach_pin();
  int code = attach_borrow(out, db, options);
  return code == OUTBOX_OK ? await_close(*out) : code;
}

void attach_detach(outbox_store *store) {
  notice *notice = store->notice;
  bool ours = store->db != NULL && store->pid == getpid();
  if (ours) {
    outbox_finish(store);
    while (store->depth > 0)
      outbox_rollback(store);
  }
  if (notice == NULL) return;
  notice->store = NULL;
  /* Fails while a statement runs there: then the function stays until the connection is closed. */
  if (ours)
    sqlite3_create_function_v2(store->db, notice->name, 0, SQLITE_UTF8, NULL, NULL, NULL, NULL,
                               NULL);
}
