/*
** The third floor: the batch in hand, by the places of its entries.
*/
#ifndef OUTBOX_BATCH_H
#define OUTBOX_BATCH_H

#include "statement.h"

#pragma GCC visibility push(hidden)

/* Begins a batch: forgets the one before. */
void batch_start(outbox_store *store);

/* Adds an entry that was read, by its seq. OUTBOX_ROW; fails with NOMEM. */
int batch_add(outbox_store *store, int64_t seq);

/* Whether the batch holds every entry of the range. */
bool batch_holds(const outbox_store *store, range wanted);

#pragma GCC visibility pop

#endif
