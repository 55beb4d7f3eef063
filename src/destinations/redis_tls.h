/*
** TLS for connections of hiredis: a library of its own, which comes with hiredis 1.0 or newer.
*/
#ifndef OUTBOX_DESTINATIONS_REDIS_TLS_H
#define OUTBOX_DESTINATIONS_REDIS_TLS_H

#include <hiredis/hiredis.h>

#include "client.h"

#pragma GCC visibility push(hidden)

typedef struct redis_tls redis_tls;

/*
** Makes what connections need: the table at `index` has `ca_file`, `cert_file` and `key_file`.
** Returns NULL, or why it cannot; the text is constant.
*/
const char *redis_tls_make(lua_State *L, int index, const char *host, redis_tls **out);

/* Begins TLS on a connection that is connected. On failure the connection has the error. */
int redis_tls_begin(redis_tls *tls, redisContext *context);

/* NULL is allowed. */
void redis_tls_free(redis_tls *tls);

#pragma GCC visibility pop

#endif
