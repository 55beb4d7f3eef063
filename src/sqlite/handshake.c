/*
** The handshake: finds the connection that a binding of another language hides. SQLite tells a
** function of ours, when it is called on that connection, which one it is.
*/
#define _GNU_SOURCE

#include <dlfcn.h>
#include <string.h>

#include "attach.h"

/* Where to put the connection that this thread awaits; NULL: it awaits none. */
static _Thread_local sqlite3 **awaited;

void outbox_await_handshake(sqlite3 **db) {
  awaited = db;
}

static void shake_hands(sqlite3_context *context, int count, sqlite3_value **values) {
  (void)count, (void)values;
  if (awaited != NULL) *awaited = sqlite3_context_db_handle(context);
  sqlite3_result_int(context, awaited != NULL);
}

static int greet(sqlite3 *db, char **message, const sqlite3_api_routines *api) {
  (void)message, (void)api;
  return sqlite3_create_function_v2(db, "outbox_handshake", 0, SQLITE_UTF8 | SQLITE_DIRECTONLY,
                                    NULL, shake_hands, NULL, NULL, NULL);
}

int outbox_install(void) {
  attach_pin();
  return sqlite3_auto_extension((void (*)(void))greet) == SQLITE_OK ? OUTBOX_OK : OUTBOX_NOMEM;
}

bool outbox_shares_sqlite(const void *code) {
  const char *(*function)(void) = sqlite3_libversion;
  void *ours;
  memcpy(&ours, &function, sizeof ours);
  Dl_info binding;
  if (dladdr(code, &binding) == 0) return false;
  void *object = dlopen(binding.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  if (object == NULL) object = dlopen(NULL, RTLD_LAZY);
  if (object == NULL) return false;
  bool shared = dlsym(object, "sqlite3_libversion") == ours;
  dlclose(object);
  return shared;
}
