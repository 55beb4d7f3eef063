/*
** How a connection to an AMQP broker is made.
*/
#ifndef OUTBOX_DESTINATIONS_AMQP_LOGIN_H
#define OUTBOX_DESTINATIONS_AMQP_LOGIN_H

#include <amqp.h>

#include "client.h"

#pragma GCC visibility push(hidden)

/*
** Connects to where the table at `index` says, and logs in: see connect_client in amqp.c. Blocks
** for at most the `timeout`, because librabbitmq has no other way; finding the address of the host
** is not limited. Returns NULL, or why it did not succeed; the stack keeps that alive.
*/
const char *amqp_login_begin(lua_State *L, int index, amqp_connection_state_t connection);

/* What a status of librabbitmq means. */
const char *amqp_login_reason(int status);

#pragma GCC visibility pop

#endif
