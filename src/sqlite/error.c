/*
** Errors: a code, and a message that is kept on the store.
*/
#include <stdarg.h>
#include <string.h>

#include "store.h"

#ifdef OUTBOX_EXTENSION
#pragma GCC visibility push(hidden)
SQLITE_EXTENSION_INIT1 /* where SQLITE_EXTENSION_INIT2 in extension.c puts the pointers */
#pragma GCC visibility pop
#endif

    const char *
    outbox_error_message(const outbox_store *store) {
  return store->message;
}

int outbox_code(int sqlite_code) {
  switch (sqlite_code & 0xff) {
  case SQLITE_OK: return OUTBOX_OK;
  case SQLITE_BUSY:
  case SQLITE_LOCKED: return OUTBOX_BUSY;
  case SQLITE_CANTOPEN:
  case SQLITE_PERM: return OUTBOX_CANTOPEN;
  case SQLITE_CONSTRAINT: return OUTBOX_CONSTRAINT;
  case SQLITE_CORRUPT: return OUTBOX_CORRUPT;
  case SQLITE_FULL: return OUTBOX_FULL;
  case SQLITE_IOERR: return OUTBOX_IO;
  case SQLITE_MISUSE: return OUTBOX_MISUSE;
  case SQLITE_NOMEM: return OUTBOX_NOMEM;
  case SQLITE_NOTADB: return OUTBOX_NOTADB;
  case SQLITE_READONLY: return OUTBOX_READONLY;
  case SQLITE_TOOBIG: return OUTBOX_TOOBIG;
  default: return OUTBOX_ERROR;
  }
}

int store_fail(outbox_store *store, int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  sqlite3_vsnprintf(sizeof store->message, store->message, format, arguments);
  va_end(arguments);
  return code;
}

int store_fail_nomem(outbox_store *store) {
  return store_fail(store, OUTBOX_NOMEM, "out of memory");
}

int store_fail_duplicate(outbox_store *store) {
  return store_fail(store, OUTBOX_DUPLICATE, "an entry with this id is already in the outbox");
}

int store_fail_reentered(outbox_store *store) {
  return store_fail(store, OUTBOX_MISUSE, "the store is in the middle of another call");
}

int store_fail_sqlite(outbox_store *store) {
  int sqlite_code = sqlite3_extended_errcode(store->db);
  if (sqlite_code == SQLITE_BUSY_SNAPSHOT)
    return store_fail(store, OUTBOX_BUSY,
                      "this transaction began by reading and the database has changed since; "
                      "begin it with BEGIN IMMEDIATE");
  int code = outbox_code(sqlite_code);
  return store_fail(store, code != OUTBOX_OK ? code : OUTBOX_ERROR, "%s",
                    sqlite3_errmsg(store->db));
}

bool store_is_refusal(const outbox_store *store, int code, const char *kind, const char *column) {
  char message[200];
  if (code != OUTBOX_CONSTRAINT) return false;
  sqlite3_snprintf(sizeof message, message, "%s constraint failed: %s%s", kind, store->prefix,
                   column);
  return sqlite3_stricmp(store->message, message) == 0; /* the table may be spelt otherwise */
}
