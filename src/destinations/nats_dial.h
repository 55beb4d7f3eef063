/*
** Connecting to a NATS server. natsConnection_Connect waits: for the name server, the server and,
** without any limit, for the other side of a TLS handshake. So it runs in a thread of its own,
** which touches no Lua. A client that gives up leaves it to itself: it ends after its host.
*/
#ifndef OUTBOX_DESTINATIONS_NATS_DIAL_H
#define OUTBOX_DESTINATIONS_NATS_DIAL_H

#include <nats/nats.h>

#include "client.h"

#pragma GCC visibility push(hidden)

typedef struct nats_dial nats_dial;

/* Opens the library. May be called again. Returns false if it cannot. */
bool nats_dial_open(void);

/*
** Begins to connect to the first of the hosts that answers. The table at `index` has the array
** `hosts`, each with its `url` and its `name`, which a certificate must have; `timeout`, of each
** host, in milliseconds; perhaps `user` and `password`, `token` or `credentials`, a file; and with
** TLS the table `tls`, with `verify` and perhaps `ca_file`, `cert_file` and `key_file`. Returns
** NULL, or why it cannot. What it has made until then is in `out`.
*/
const char *nats_dial_begin(lua_State *L, int index, nats_dial **out);

/* A descriptor that can be read when something has happened. */
int nats_dial_bell(const nats_dial *self);

/*
** Returns 0 if it is connected: then the caller owns the connection, and `fd` is its descriptor. Or
** how many hosts are still to be tried; or -1 if none of them answered.
*/
int nats_dial_poll(nats_dial *self, natsConnection **connection, int *fd);

/* Why no host answered. */
const char *nats_dial_reason(const nats_dial *self);

/* NULL is allowed. */
void nats_dial_drop(nats_dial *self);

#pragma GCC visibility pop

#endif
