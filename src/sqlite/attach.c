/*
** Attaching: a store on a connection that the application has opened and will close.
*/
#define _GNU_SOURCE

#include <dlfcn.h>
#include <stdint.h>

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
** SQLite has no hook for the close of a connection. But sqlite3_close disconnects the connection's
** virtual tables before it looks for statements, and destroys its modules when it is done. So each
** store adds a module with a table that nobody reads. Its statements may outlive a call: they are
** finalized when the table is disconnected. The connection may stay open after that, because a
** statement of the application's keeps it so; then the store keeps none any more.
*/
struct notice {
  sqlite3_vtab table;  /* first: SQLite gives this back to us */
  outbox_store *store; /* NULL once the store is closed */
  int holders;         /* the module and its table, which SQLite destroys in any order */
  char name[40];
};

static void let_go(notice *notice) {
  if (--notice->holders == 0) sqlite3_free(notice);
}

static int connect_table(sqlite3 *db, void *context, int count, const char *const *arguments,
                         sqlite3_vtab **table, char **message) {
  (void)count, (void)arguments, (void)message;
  notice *notice = context;
  int sqlite_code = sqlite3_declare_vtab(db, "CREATE TABLE x (y)");
  if (sqlite_code != SQLITE_OK) return sqlite_code;
  notice->store->keeps = true;
  notice->holders++;
  *table = &notice->table;
  return SQLITE_OK;
}

static int disconnect_table(sqlite3_vtab *table) {
  notice *notice = (struct notice *)table;
  outbox_store *store = notice->store;
  if (store != NULL) store->keeps = false;
  if (store != NULL && !store->working) sql_finalize(store);
  let_go(notice);
  return SQLITE_OK;
}

static int refuse_to_read(sqlite3_vtab *table, sqlite3_index_info *plan) {
  (void)table, (void)plan;
  return SQLITE_CONSTRAINT;
}

static void connection_closed(void *context) {
  notice *notice = context;
  if (notice->store != NULL) {
    notice->store->db = NULL;
    notice->store->notice = NULL;
    notice->store = NULL;
  }
  let_go(notice);
}

/* It can neither be read nor created: its one table is there as soon as somebody names it. */
static const sqlite3_module MODULE = {
    .xConnect = connect_table, .xBestIndex = refuse_to_read, .xDisconnect = disconnect_table};

/* The name holds the notice's address, so no two modules have the same name. */
static int await_close(outbox_store *store) {
  char pragma[80];
  notice *notice = store->notice = sqlite3_malloc(sizeof *notice);
  if (notice == NULL) return store_fail_nomem(store);
  notice->store = store;
  notice->holders = 1;
  sqlite3_snprintf(sizeof notice->name, notice->name, "outbox_attached_%llx",
                   (unsigned long long)(uintptr_t)notice);
  sqlite3_snprintf(sizeof pragma, pragma, "PRAGMA table_info(%s)", notice->name);
  if (sqlite3_create_module_v2(store->db, notice->name, &MODULE, notice, connection_closed) !=
      SQLITE_OK) {
    store->notice = NULL; /* SQLite has destroyed it, and so the store has no connection any more */
    return store_fail_nomem(store);
  }
  sql_configure(store, pragma, NULL, NULL); /* connects the table; if that fails, none are kept */
  return OUTBOX_OK;
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
  bool ours = store->db != NULL && store_is_ours(store);
  if (ours) {
    outbox_finish(store);
    while (store->depth > 0)
      outbox_rollback(store);
  }
  if (ours) sql_finalize(store);
  if (notice == NULL) return;
  notice->store = NULL;
  if (ours) sqlite3_create_module_v2(store->db, notice->name, NULL, NULL, NULL);
}
