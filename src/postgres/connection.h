/*
** The second floor: the connection to the server, and what its errors mean.
*/
#ifndef OUTBOX_PG_CONNECTION_H
#define OUTBOX_PG_CONNECTION_H

#include "store.h"

#pragma GCC visibility push(hidden)

/*
** Connects, or connects again after the connection was lost, and sets the session up. Fails with
** CANTOPEN; again, with DISCONNECTED; with ENCODING, READONLY; with MISUSE for what is no
** PostgreSQL, or an old one.
*/
int connection_open(outbox_store *store);

/*
** Sets the session up, also for a processor if there is one. Where a pooler gives it to others when
** a transaction ends, these settings hold for one transaction, and are sent with each.
*/
int connection_set(outbox_store *store);

/* A second connection to the same server, for a thread or for LISTEN. NULL: there is none. */
PGconn *connection_make(const char *url);

/* Closes a connection. In a forked child it only lets go of the descriptor. */
void connection_close(PGconn *db, pid_t pid);

/* Whether the connection was lost. */
bool connection_is_lost(const outbox_store *store);

/*
** Records the error of a result that the server has just given. `own`: it is of one of our
** statements, so what it lacks is the schema.
*/
int connection_fail(outbox_store *store, const PGresult *result, bool own);

#pragma GCC visibility pop

#endif
