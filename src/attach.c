/*
** Attaching: a store on a connection that somebody else has opened, and will close.
*/
#define _GNU_SOURCE

#include <dlfcn.h>
#include <stdint.h>
#include <unistd.h>

#include "store.h"

/*
** SQLite will call into this code for as long as the process lasts, whoever loaded it, and whatever
** unloads it: a Lua state that closes, for instance. A program's own code is not found, and stays.
*/
void outbox_pin(void) {
  static const char HERE = 0;
  Dl_info object;
  if (dladdr(&HERE, &object) != 0)
    dlopen(object.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
}

/*
** SQLite has no hook for the close of a connection, but destroys its functions then. So each store
** adds one that nobody calls, whose data is this.
*/
struct notice {
  outbox_store *store; /* NULL once that is closed, which may well come first */
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

/* The name is the notice's address, which no other one has while this one is there. */
static int await_close(outbox_store *store) {
  notice *notice = store->notice = sqlite3_malloc(sizeof *notice);
  if (notice == NULL) return outbox_fail(store, OUTBOX_NOMEM, "out of memory");
  notice->store = store;
  sqlite3_snprintf(sizeof notice->name, notice->name, "outbox_attached_%llx",
                   (unsigned long long)(uintptr_t)notice);
  if (sqlite3_create_function_v2(store->db, notice->name, 0, SQLITE_UTF8 | SQLITE_DIRECTONLY,
                                 notice, refuse, NULL, NULL, connection_closed) == SQLITE_OK)
    return OUTBOX_OK;
  store->notice =
      NULL; /* SQLite has destroyed it, and with it the store's connection is forgotten */
  return outbox_fail(store, OUTBOX_NOMEM, "out of memory");
}

int outbox_borrow(outbox_store **out, sqlite3 *db, const outbox_options *options) {
  int code = outbox_make_store(out, options);
  if (code != OUTBOX_OK) return code;
  outbox_store *store = *out;
  store->attached = true;
  store->db = db;
  code = outbox_check_encoding(store);
  if (code != OUTBOX_OK) store->db = NULL;
  return code;
}

int outbox_attach(outbox_store **out, sqlite3 *db, const outbox_options *options) {
  outbox_pin();
  int code = outbox_borrow(out, db, options);
  return code == OUTBOX_OK ? await_close(*out) : code;
}

void outbox_detach(outbox_store *store) {
  notice *notice = store->notice;
  bool ours = store->db != NULL && store->pid == getpid();
  if (ours) {
    outbox_finish(store);
    while (store->depth > 0)
      outbox_rollback(store);
  }
  if (notice == NULL) return;
  notice->store = NULL;
  /* Busy while any statement runs there: then it stays until the connection is closed. */
  if (ours)
    sqlite3_create_function_v2(store->db, notice->name, 0, SQLITE_UTF8, NULL, NULL, NULL, NULL,
                               NULL);
}
