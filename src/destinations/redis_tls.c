/*
** TLS for connections of hiredis. Its library is loaded only where it is needed, so that the rock
** can be built where it is not installed.
*/
#include "redis_tls.h"

#if HIREDIS_MAJOR < 1

const char *redis_tls_make(lua_State *L, int index, const char *host, redis_tls **out) {
  (void)L, (void)index, (void)host, (void)out;
  return "there is no TLS"; /* nobody asks: see `has_tls` */
}

int redis_tls_begin(redis_tls *tls, redisContext *context) {
  (void)tls, (void)context;
  return REDIS_ERR;
}

void redis_tls_free(redis_tls *tls) {
  (void)tls;
}

#else

#include <dlfcn.h>
#include <hiredis/hiredis_ssl.h>
#include <stdlib.h>
#include <string.h>

#define AS_TEXT(x) #x
#define TEXT(x) AS_TEXT(x)
#define HIREDIS "libhiredis.so." TEXT(HIREDIS_SONAME)
#define LIBRARY "libhiredis_ssl.so." TEXT(HIREDIS_SONAME)
#define SYSTEM_CERTIFICATES "/etc/ssl/certs"

struct redis_tls {
  redisSSLContext *context;
  int (*begin)(redisContext *context, redisSSLContext *tls);
  void (*free)(redisSSLContext *tls);
};

/* C has no cast from an object to a function. */
static bool find(void *library, const char *name, void *function, size_t size) {
  void *symbol = dlsym(library, name);
  memcpy(function, &symbol, size);
  return symbol != NULL;
}

const char *redis_tls_make(lua_State *L, int index, const char *host, redis_tls **out) {
  int (*prepare)(void);
  redisSSLContext *(*create)(const char *ca_file, const char *ca_folder, const char *cert_file,
                             const char *key_file, const char *host, redisSSLContextError *error);
  const char *(*explain)(redisSSLContextError error);
  redisSSLContextError error = REDIS_SSL_CTX_NONE;
  const char *ca_file = client_option(L, index, "ca_file");
  /* It uses hiredis, but does not always say so. Lua has loaded that for this module alone. */
  dlopen(HIREDIS, RTLD_NOW | RTLD_GLOBAL | RTLD_NOLOAD);
  void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_NODELETE);
  if (library == NULL) return "rediss: needs " LIBRARY ", which is not installed";
  redis_tls *self = calloc(1, sizeof *self);
  if (self == NULL) return "not enough memory";
  if (!find(library, "redisInitOpenSSL", &prepare, sizeof prepare) ||
      !find(library, "redisCreateSSLContext", &create, sizeof create) ||
      !find(library, "redisSSLContextGetError", &explain, sizeof explain) ||
      !find(library, "redisInitiateSSLWithContext", &self->begin, sizeof self->begin) ||
      !find(library, "redisFreeSSLContext", &self->free, sizeof self->free)) {
    free(self);
    return LIBRARY " is of another version";
  }
  prepare();
  self->context = create(ca_file, ca_file == NULL ? SYSTEM_CERTIFICATES : NULL,
                         client_option(L, index, "cert_file"), client_option(L, index, "key_file"),
                         host, &error);
  if (self->context == NULL) {
    free(self);
    return explain(error);
  }
  *out = self;
  return NULL;
}

int redis_tls_begin(redis_tls *tls, redisContext *context) {
  return tls->begin(context, tls->context);
}

void redis_tls_free(redis_tls *tls) {
  if (tls == NULL) return;
  tls->free(tls->context);
  free(tls);
}

#endif
