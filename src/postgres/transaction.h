/*
** The fourth floor: transactions, and savepoints in them. Every operation begins here.
*/
#ifndef OUTBOX_PG_TRANSACTION_H
#define OUTBOX_PG_TRANSACTION_H

#include "statement.h"

#pragma GCC visibility push(hidden)

/*
** Begins an operation: ends the reading under way, and connects again where the connection was lost
** outside a transaction. Fails with FORKED, MISUSE, DISCONNECTED. transaction_ready checks the
** schema, too.
*/
int transaction_enter(outbox_store *store);
int transaction_ready(outbox_store *store);

/* Ends the innermost begin: commits it if the code is OUTBOX_OK, else rolls it back. */
int transaction_end(outbox_store *store, int code);

/*
** Around the statements of one round trip that writes: they are one transaction, or a part of the
** one that is open, which stays usable where they fail. The second returns what sql_end returns;
** *first becomes the index of the first statement between the two.
*/
void transaction_start(outbox_store *store, int *first);
int transaction_finish(outbox_store *store);

#pragma GCC visibility pop

#endif
