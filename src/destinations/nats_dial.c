/*
** Connecting to a NATS server, in a thread of its own.
*/
#define _GNU_SOURCE

#include "nats_dial.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
** A server may ask for TLS though the URL does not say so, and the library would do it. The client
** must know whether there is TLS, so none must succeed: no certificate has this name.
*/
#define NO_HOST ":"

struct nats_dial {
  pthread_mutex_t lock; /* of all below `tls` */
  int bell[2];
  int count; /* hosts */
  natsOptions **options;
  bool tls;
  int owners; /* the client and the thread: the last one frees */
  int tried;  /* hosts that did not answer */
  bool over;
  natsConnection *connection;
  int fd;
  char reason[256];
};

/* Blocks all signals in the calling thread, and so in the threads that it starts: none of the
   library's must run a handler of the application. */
static void block_signals(sigset_t *former) {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, former);
}

/*
** The library has threads, so it must never be unloaded: therefore neither must this module, which
** Lua unloads at its end. The library also has the whole process ignore SIGPIPE, which is undone.
*/
bool nats_dial_open(void) {
  static const char HERE = 0; /* something in this module */
  Dl_info self;
  struct sigaction pipe;
  sigset_t former;
  if (dladdr(&HERE, &self) == 0 || dlopen(self.dli_fname, RTLD_NOW | RTLD_NODELETE) == NULL)
    return false;
  block_signals(&former);
  sigaction(SIGPIPE, NULL, &pipe);
  natsStatus status = nats_Open(-1);
  sigaction(SIGPIPE, &pipe, NULL);
  pthread_sigmask(SIG_SETMASK, &former, NULL);
  return status == NATS_OK;
}

/* --- Options --------------------------------------------------------------------------------- */

/* The descriptor is all that we need of an event loop. `loop` is the nats_dial. */
static natsStatus attach(void **data, void *loop, natsConnection *connection, natsSock fd) {
  (void)data, (void)connection;
  fcntl(fd, F_SETFD, FD_CLOEXEC);
  ((nats_dial *)loop)->fd = fd;
  return NATS_OK;
}

static natsStatus ignore_change(void *data, bool add) {
  (void)data, (void)add;
  return NATS_OK;
}

static natsStatus detach(void *data) {
  (void)data;
  return NATS_OK;
}

/* Newer versions of the library write errors to stderr unless there is a handler. */
static void ignore_error(natsConnection *connection, natsSubscription *subscription,
                         natsStatus status, void *data) {
  (void)connection, (void)subscription, (void)status, (void)data;
}

/* The table of TLS is at `index`. */
static natsStatus set_tls(lua_State *L, int index, natsOptions *options, const char *name) {
  const char *ca_file = client_option(L, index, "ca_file");
  const char *cert_file = client_option(L, index, "cert_file");
  lua_getfield(L, index, "verify");
  bool verify = lua_toboolean(L, -1);
  lua_pop(L, 1);
  natsStatus status = natsOptions_SetSecure(options, true);
  if (status == NATS_OK) status = natsOptions_SetExpectedHostname(options, name);
  if (status == NATS_OK && ca_file != NULL)
    status = natsOptions_LoadCATrustedCertificates(options, ca_file);
  if (status == NATS_OK && cert_file != NULL)
    status =
        natsOptions_LoadCertificatesChain(options, cert_file, client_option(L, index, "key_file"));
  if (status == NATS_OK && !verify) status = natsOptions_SkipServerVerification(options, true);
  return status;
}

/*
** With an event loop the library neither waits nor starts a thread. It must not connect again: it
** would keep messages meanwhile, and send them later, out of order. The server sends PINGs, and
** broker.lua bounds all waiting; so the library needs no timer for PINGs of its own.
*/
static natsStatus set_options(lua_State *L, int index, int host, nats_dial *self,
                              natsOptions *options) {
  const char *user = client_option(L, index, "user"), *token = client_option(L, index, "token");
  const char *credentials = client_option(L, index, "credentials");
  lua_Integer timeout = client_number(L, index, "timeout", 5000);
  natsStatus status = natsOptions_SetURL(options, client_option(L, host, "url"));
  if (status == NATS_OK) status = natsOptions_SetName(options, "outbox");
  if (status == NATS_OK) status = natsOptions_SetTimeout(options, timeout);
  if (status == NATS_OK) status = natsOptions_SetWriteDeadline(options, timeout);
  if (status == NATS_OK) status = natsOptions_SetAllowReconnect(options, false);
  if (status == NATS_OK) status = natsOptions_SetPingInterval(options, 0);
  if (status == NATS_OK) status = natsOptions_SetSendAsap(options, true);
  if (status == NATS_OK) status = natsOptions_SetErrorHandler(options, ignore_error, NULL);
  if (status == NATS_OK)
    status = natsOptions_SetEventLoop(options, self, attach, ignore_change, ignore_change, detach);
  if (status == NATS_OK && user != NULL)
    status = natsOptions_SetUserInfo(options, user, client_option(L, index, "password"));
  if (status == NATS_OK && token != NULL) status = natsOptions_SetToken(options, token);
  if (status == NATS_OK && credentials != NULL)
    status = natsOptions_SetUserCredentialsFromFiles(options, credentials, NULL);
  if (status != NATS_OK) return status;
  self->tls = lua_getfield(L, index, "tls") == LUA_TTABLE;
  return self->tls ? set_tls(L, lua_gettop(L), options, client_option(L, host, "name"))
                   : natsOptions_SetExpectedHostname(options, NO_HOST);
}

/* The library's last error in this thread, without "(file.c:line): ". */
static const char *explain(natsStatus status) {
  const char *text = nats_GetLastError(NULL);
  if (text == NULL || *text == '\0') return natsStatus_GetText(status);
  const char *end = *text == '(' ? strstr(text, "): ") : NULL;
  return end != NULL ? end + 3 : text;
}

/* --- The thread ------------------------------------------------------------------------------ */

static void release(nats_dial *self) {
  pthread_mutex_lock(&self->lock);
  int owners = --self->owners;
  pthread_mutex_unlock(&self->lock);
  if (owners > 0) return;
  natsConnection_Destroy(self->connection);
  for (int i = 0; i < self->count; i++)
    natsOptions_Destroy(self->options[i]);
  free(self->options);
  close(self->bell[0]);
  close(self->bell[1]);
  pthread_mutex_destroy(&self->lock);
  free(self);
}

/* Returns whether to go on with the next host. */
static bool note(nats_dial *self, natsStatus status, natsConnection *connection) {
  pthread_mutex_lock(&self->lock);
  self->connection = connection;
  if (status != NATS_OK) {
    self->tried++;
    snprintf(self->reason, sizeof self->reason, "%s",
             status == NATS_SSL_ERROR && !self->tls ? "the server wants TLS: its URL is tls://..."
                                                    : explain(status));
  }
  self->over = status == NATS_OK || self->tried == self->count;
  bool more = !self->over && self->owners > 1;
  pthread_mutex_unlock(&self->lock);
  return write(self->bell[1], "", 1) == 1 && more;
}

static void *dial(void *argument) {
  nats_dial *self = argument;
  natsStatus status;
  natsConnection *connection;
  int i = 0;
  do {
    connection = NULL;
    status = natsConnection_Connect(&connection, self->options[i++]);
  } while (note(self, status, connection));
  release(self);
  nats_ReleaseThreadMemory();
  return NULL;
}

/* Returns false if there cannot be one. */
static bool start(nats_dial *self) {
  pthread_attr_t detached;
  pthread_t thread;
  sigset_t former;
  if (pthread_attr_init(&detached) != 0) return false;
  pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
  block_signals(&former);
  self->owners = 2;
  bool started = pthread_create(&thread, &detached, dial, self) == 0;
  if (!started) self->owners = 1;
  pthread_sigmask(SIG_SETMASK, &former, NULL);
  pthread_attr_destroy(&detached);
  return started;
}

/* --- For the client -------------------------------------------------------------------------- */

static nats_dial *make(int count) {
  nats_dial *self = calloc(1, sizeof *self);
  natsOptions **options = calloc((size_t)count, sizeof *options);
  if (self == NULL || options == NULL || pipe(self->bell) != 0) {
    free(options);
    free(self);
    return NULL;
  }
  for (int i = 0; i < 2; i++) {
    fcntl(self->bell[i], F_SETFD, FD_CLOEXEC);
    fcntl(self->bell[i], F_SETFL, O_NONBLOCK);
  }
  pthread_mutex_init(&self->lock, NULL);
  self->options = options;
  self->count = count;
  self->owners = 1;
  return self;
}

const char *nats_dial_begin(lua_State *L, int index, nats_dial **out) {
  natsStatus status = NATS_OK;
  index = lua_absindex(L, index);
  lua_getfield(L, index, "hosts");
  int hosts = lua_gettop(L), count = (int)lua_rawlen(L, hosts);
  nats_dial *self = *out = make(count);
  if (self == NULL) return "not enough memory or descriptors";
  for (int i = 0; i < count && status == NATS_OK; i++) {
    lua_rawgeti(L, hosts, i + 1);
    status = natsOptions_Create(&self->options[i]);
    if (status == NATS_OK) status = set_options(L, index, hosts + 1, self, self->options[i]);
    lua_settop(L, hosts);
  }
  if (status != NATS_OK) return explain(status);
  return start(self) ? NULL : "no thread can be started";
}

int nats_dial_bell(const nats_dial *self) {
  return self->bell[0];
}

int nats_dial_poll(nats_dial *self, natsConnection **connection, int *fd) {
  char rings[16];
  while (read(self->bell[0], rings, sizeof rings) > 0)
    continue;
  pthread_mutex_lock(&self->lock);
  int left = self->over ? -1 : self->count - self->tried;
  if (self->connection != NULL) {
    *connection = self->connection;
    *fd = self->fd;
    self->connection = NULL;
    left = 0;
  }
  pthread_mutex_unlock(&self->lock);
  return left;
}

const char *nats_dial_reason(const nats_dial *self) {
  return self->reason;
}

void nats_dial_drop(nats_dial *self) {
  if (self != NULL) release(self);
}
