/*
** The top floor: what attaching offers the extension, the handshake and outbox_close.
*/
#ifndef OUTBOX_ATTACH_H
#define OUTBOX_ATTACH_H

#include "transaction.h"

#pragma GCC visibility push(hidden)

/* Keeps the shared object that holds this code loaded until the process ends. */
void attach_pin(void);

/* As outbox_attach, but nothing will tell the store that the connection is closed. */
int attach_borrow(outbox_store **store, sqlite3 *db, const outbox_options *options);

/* Lets go of the connection of an attached store. */
void attach_detach(outbox_store *store);

#pragma GCC visibility pop

#endif
