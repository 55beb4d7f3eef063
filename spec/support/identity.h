/*
** Entries by their ids alone, for tests to which the place does not matter.
*/
#ifndef IDENTITY_H
#define IDENTITY_H

#include "../../src/outbox.h"

static inline outbox_identity any(outbox_bytes id) {
  return (outbox_identity){id, OUTBOX_ANY_SEQ};
}

/* Deletes at most 512 entries. */
static inline int delete_any(outbox_store *store, const outbox_bytes *ids, size_t count,
                             int64_t *deleted) {
  outbox_identity entries[512];
  for (size_t i = 0; i < count; i++)
    entries[i] = any(ids[i]);
  return outbox_delete_entries(store, entries, count, deleted);
}

#endif
