/*
** The fourth floor: transactions, and the beginning of every operation.
*/
#ifndef OUTBOX_TRANSACTION_H
#define OUTBOX_TRANSACTION_H

#include "batch.h"

#pragma GCC visibility push(hidden)

/*
** Begins every operation. Refuses a forked child, a store that is in the middle of a call, and a
** connection that is closed. Ends the reading under way.
*/
int transaction_enter(outbox_store *store);

/* Ends an outbox_begin: commits when `code` is OUTBOX_OK, else rolls back. Returns the result. */
int transaction_end(outbox_store *store, int code);

/*
** Prepares the control statements from `first` to `last`. A store that outbox_open made has them
** from the start, an attached one prepares them before it begins: a rollback must not need memory.
*/
int transaction_prepare(outbox_store *store, enum control first, enum control last);

/* Whether a statement that writes is in the middle of its work. Then a transaction is open. */
bool transaction_is_writing(sqlite3 *db);

/* A number that changes with each commit to the database, and inside a transaction tells of it. */
unsigned transaction_version(outbox_store *store);

/* Runs a control statement. */
int transaction_control(outbox_store *store, enum control which);

#pragma GCC visibility pop

#endif
