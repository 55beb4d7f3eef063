/*
** The third floor: the batch in hand, by the ids and places of its entries.
*/
#ifndef OUTBOX_BATCH_H
#define OUTBOX_BATCH_H

#include "statement.h"

#pragma GCC visibility push(hidden)

/* Begins a batch: forgets the one before. */
void batch_start(outbox_store *store);

/* Adds an entry that was read. Fails with NOMEM. */
int batch_add(outbox_store *store, const outbox_entry *entry);

/* Whether these are the ids of the batch, all of them and in order. */
bool batch_is(const outbox_store *store, const outbox_bytes *ids, size_t count);

#pragma GCC visibility pop

#endif
