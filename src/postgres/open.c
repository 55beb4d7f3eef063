/*
** Opening and closing.
*/
#include <unistd.h>

#include "operations.h"

int outbox_open(outbox_store **out, const char *url, const outbox_options *options) {
  int code = store_make(out, url, options);
  return code == OUTBOX_OK ? connection_open(*out) : code;
}

/* The server rolls back what is open when the connection is closed. */
int outbox_close(outbox_store *store) {
  if (store == NULL) return OUTBOX_OK;
  if (store->working)
    return store_fail(store, OUTBOX_MISUSE, "the store is in the middle of another call");
  outbox_finish(store);
  heartbeat_close(store);
  bell_close(store);
  for (int i = 0; i < store->call_count; i++)
    PQclear(store->calls[i].result);
  if (store->lane != NULL) store->free_lane(store->lane);
  connection_close(store->db, store->pid);
  store_free(store);
  return OUTBOX_OK;
}
