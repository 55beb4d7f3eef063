/*
** outbox.destinations.kafka: a producer of librdkafka. The library's own threads talk to the
** brokers, and they block all signals; what became of a message is reported by rd_kafka_poll, in
** the thread of Lua. Each message gets its report within message.timeout.ms.
*/
#define _DEFAULT_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client.h"

#define KAFKA "outbox.destinations.kafka"
#define LIBRARY "librdkafka.so.1"

typedef struct outcome {
  rd_kafka_resp_err_t code;
  bool known; /* reported, or refused by the library itself */
  bool sent;  /* the library has taken it over */
} outcome;

typedef struct client {
  rd_kafka_t *producer; /* NULL once it is closed */
  pid_t owner;          /* a forked child has no threads of the library */
  int ends[2];          /* a pipe, readable when there is something to report */
  outcome *outcomes;    /* of the `count` items sent last */
  size_t count, left;   /* `left` have no outcome yet */
  char trouble[256];    /* the last error of a connection since an item was confirmed */
} client;

static client *check(lua_State *L) {
  client *self = luaL_checkudata(L, 1, KAFKA);
  if (self->producer == NULL) luaL_error(L, "the client is closed");
  if (self->owner != getpid()) luaL_error(L, "the client is another process's");
  return self;
}

/*
** Waits for the threads of the library, which takes some milliseconds, unless one of them looks up
** the name of a host. What has no report is dropped.
*/
static int close_client(lua_State *L) {
  client *self = luaL_checkudata(L, 1, KAFKA);
  if (self->producer == NULL) return 0;
  if (self->owner == getpid()) {
    rd_kafka_purge(self->producer, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT |
                                       RD_KAFKA_PURGE_F_NON_BLOCKING);
    rd_kafka_destroy(self->producer);
  }
  close(self->ends[0]); /* after the threads, which write to the other end */
  close(self->ends[1]);
  free(self->outcomes);
  memset(self, 0, sizeof *self);
  return 0;
}

/* --- Connecting ------------------------------------------------------------------------------ */

static void report(rd_kafka_t *producer, const rd_kafka_message_t *message, void *opaque) {
  client *self = opaque;
  outcome *out = &self->outcomes[(uintptr_t)message->_private];
  (void)producer;
  out->code = message->err;
  out->known = true;
  self->left--;
  if (message->err == RD_KAFKA_RESP_ERR_NO_ERROR) self->trouble[0] = '\0';
}

static void note_trouble(rd_kafka_t *producer, int code, const char *reason, void *opaque) {
  client *self = opaque;
  (void)producer;
  if (code != RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN) /* it does not say why */
    snprintf(self->trouble, sizeof self->trouble, "%s", reason);
}

/* Without one the library writes to stderr. Its threads call this. */
static void drop_log(const rd_kafka_t *producer, int level, const char *facility,
                     const char *text) {
  (void)producer, (void)level, (void)facility, (void)text;
}

/* Sets the properties, names and values by turns, of the array at index 1. Raises nothing. */
static bool configure(lua_State *L, rd_kafka_conf_t *conf, char *reason, size_t size) {
  size_t count = lua_rawlen(L, 1);
  for (size_t i = 1; i < count; i += 2) {
    lua_rawgeti(L, 1, (lua_Integer)i);
    lua_rawgeti(L, 1, (lua_Integer)i + 1);
    bool strings = lua_type(L, -2) == LUA_TSTRING && lua_type(L, -1) == LUA_TSTRING;
    if (!strings) snprintf(reason, size, "property %zu is no string", i / 2 + 1);
    if (!strings || rd_kafka_conf_set(conf, lua_tostring(L, -2), lua_tostring(L, -1), reason,
                                      size) != RD_KAFKA_CONF_OK)
      return false;
    lua_pop(L, 2);
  }
  return true;
}

/* Makes the producer, or says why not. */
static bool make_producer(lua_State *L, client *self, char *reason, size_t size) {
  rd_kafka_conf_t *conf = rd_kafka_conf_new();
  rd_kafka_conf_set_opaque(conf, self);
  rd_kafka_conf_set_dr_msg_cb(conf, report);
  rd_kafka_conf_set_error_cb(conf, note_trouble);
  rd_kafka_conf_set_log_cb(conf, drop_log);
  if (configure(L, conf, reason, size))
    self->producer = rd_kafka_new(RD_KAFKA_PRODUCER, conf, reason, size);
  if (self->producer == NULL) rd_kafka_conf_destroy(conf);
  return self->producer != NULL;
}

static bool make_pipe(int ends[2]) {
  if (pipe(ends) != 0) return false;
  for (int i = 0; i < 2; i++) {
    fcntl(ends[i], F_SETFD, FD_CLOEXEC);
    fcntl(ends[i], F_SETFL, O_NONBLOCK);
  }
  return true;
}

/*
** connect(properties): an array of names and values by turns, those of librdkafka. Without
** `bootstrap.servers` it connects to nothing, which shows whether the properties are accepted.
*/
static int connect_client(lua_State *L) {
  char reason[512];
  luaL_checktype(L, 1, LUA_TTABLE);
  client *self = client_make(L, KAFKA, sizeof *self);
  if (!make_pipe(self->ends)) return client_lose(L, strerror(errno));
  self->owner = getpid();
  if (!make_producer(L, self, reason, sizeof reason)) {
    close(self->ends[0]);
    close(self->ends[1]);
    return client_lose(L, reason);
  }
  rd_kafka_queue_t *queue = rd_kafka_queue_get_main(self->producer);
  rd_kafka_queue_io_event_enable(queue, self->ends[1], "!", 1);
  rd_kafka_queue_destroy(queue);
  lua_settop(L, 2);
  return 1;
}

/* --- Sending --------------------------------------------------------------------------------- */

/* The headers of an item: from the fifth on, names and values by turns. NULL if one is no text. */
static rd_kafka_headers_t *make_headers(lua_State *L, int item) {
  size_t count = lua_rawlen(L, item);
  rd_kafka_headers_t *headers = rd_kafka_headers_new(count / 2);
  for (size_t i = 5; i < count; i += 2) {
    size_t name_size, size;
    lua_rawgeti(L, item, (lua_Integer)i);
    lua_rawgeti(L, item, (lua_Integer)i + 1);
    if (lua_type(L, -2) != LUA_TSTRING || lua_type(L, -1) != LUA_TSTRING) {
      rd_kafka_headers_destroy(headers);
      return NULL;
    }
    const char *name = lua_tolstring(L, -2, &name_size), *value = lua_tolstring(L, -1, &size);
    rd_kafka_header_add(headers, name, (ssize_t)name_size, value, (ssize_t)size);
    lua_pop(L, 2);
  }
  return headers;
}

/* Hands over the item on top of the stack, which keeps its strings alive. */
static void produce(lua_State *L, client *self, size_t place) {
  size_t key_size = 0, size = 0;
  int item = lua_gettop(L);
  luaL_checktype(L, item, LUA_TTABLE);
  for (int i = 1; i <= 4; i++)
    lua_rawgeti(L, item, i);
  const char *topic = luaL_checkstring(L, item + 1), *key = lua_tolstring(L, item + 2, &key_size);
  const char *payload = lua_tolstring(L, item + 3, &size);
  lua_Integer milliseconds = luaL_checkinteger(L, item + 4);
  rd_kafka_headers_t *headers = make_headers(L, item);
  if (headers == NULL) luaL_error(L, "a header is no string");
  rd_kafka_vu_t values[] = {{.vtype = RD_KAFKA_VTYPE_TOPIC, .u.cstr = topic},
                            {.vtype = RD_KAFKA_VTYPE_MSGFLAGS, .u.i = RD_KAFKA_MSG_F_COPY},
                            {.vtype = RD_KAFKA_VTYPE_KEY, .u.mem = {(void *)key, key_size}},
                            {.vtype = RD_KAFKA_VTYPE_VALUE, .u.mem = {(void *)payload, size}},
                            {.vtype = RD_KAFKA_VTYPE_TIMESTAMP, .u.i64 = milliseconds},
                            {.vtype = RD_KAFKA_VTYPE_OPAQUE, .u.ptr = (void *)(uintptr_t)place},
                            {.vtype = RD_KAFKA_VTYPE_HEADERS, .u.headers = headers}};
  rd_kafka_error_t *error =
      rd_kafka_produceva(self->producer, values, sizeof values / sizeof *values);
  outcome *out = &self->outcomes[place];
  out->sent = error == NULL;
  if (error != NULL) {
    out->code = rd_kafka_error_code(error);
    out->known = true;
    self->left--;
    rd_kafka_error_destroy(error);
    rd_kafka_headers_destroy(headers);
  }
}

/*
** send(items): each an array of the topic, the key and the payload, false where there is none, the
** time in milliseconds, and the names and values of headers by turns.
*/
static int send_items(lua_State *L) {
  client *self = check(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  size_t count = lua_rawlen(L, 2);
  if (self->left > 0) return luaL_error(L, "the last items have no outcome yet");
  outcome *outcomes = calloc(count + 1, sizeof *outcomes);
  if (outcomes == NULL) return luaL_error(L, "not enough memory");
  free(self->outcomes);
  self->outcomes = outcomes;
  self->count = self->left = count;
  for (size_t i = 0; i < count; i++) {
    lua_rawgeti(L, 2, (lua_Integer)i + 1);
    produce(L, self, i);
    lua_settop(L, 2);
  }
  return 0;
}

/* --- Outcomes -------------------------------------------------------------------------------- */

/* work(): see broker.lua. After a fatal error the producer sends nothing any more. */
static int work(lua_State *L) {
  client *self = check(L);
  char bytes[64], reason[256];
  while (read(self->ends[0], bytes, sizeof bytes) > 0)
    continue;
  rd_kafka_poll(self->producer, 0); /* after reading: what comes now makes the pipe readable */
  if (self->left == 0 &&
      rd_kafka_fatal_error(self->producer, reason, sizeof reason) != RD_KAFKA_RESP_ERR_NO_ERROR)
    return client_lose(L, reason);
  lua_pushinteger(L, (lua_Integer)self->left);
  return 1;
}

/* Pushes what `judge` gets: the name of the error, its text, and whether the item was sent. */
static void push_refusal(lua_State *L, const client *self, const outcome *out) {
  char fatal[256]; /* why the library has dropped all others, too */
  lua_createtable(L, 0, 3);
  lua_pushstring(L, rd_kafka_err2name(out->code));
  lua_setfield(L, -2, "name");
  if (rd_kafka_fatal_error(self->producer, fatal, sizeof fatal) != RD_KAFKA_RESP_ERR_NO_ERROR)
    lua_pushstring(L, fatal);
  else if (out->code == RD_KAFKA_RESP_ERR__MSG_TIMED_OUT && self->trouble[0] != '\0')
    lua_pushfstring(L, "%s: %s", rd_kafka_err2str(out->code), self->trouble);
  else
    lua_pushstring(L, rd_kafka_err2str(out->code));
  lua_setfield(L, -2, "text");
  lua_pushboolean(L, out->sent);
  lua_setfield(L, -2, "sent");
}

static int results(lua_State *L) {
  const client *self = check(L);
  lua_createtable(L, (int)self->count, 0);
  for (size_t i = 0; i < self->count; i++) {
    const outcome *out = &self->outcomes[i];
    if (!out->known) continue;
    if (out->code == RD_KAFKA_RESP_ERR_NO_ERROR)
      lua_pushboolean(L, true);
    else
      push_refusal(L, self, out);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  return 1;
}

static int pollfd(lua_State *L) {
  lua_pushinteger(L, check(L)->ends[0]);
  return 1;
}

static int events(lua_State *L) {
  lua_pushstring(L, "r");
  return 1;
}

static const luaL_Reg METHODS[] = {
    {"work", work},     {"send", send_items},    {"results", results}, {"pollfd", pollfd},
    {"events", events}, {"close", close_client}, {NULL, NULL}};

int luaopen_outbox_destinations_kafka(lua_State *L);

/* Libraries below librdkafka lose memory when they are unloaded with a Lua state: they stay. */
int luaopen_outbox_destinations_kafka(lua_State *L) {
  dlopen(LIBRARY, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
  return client_module(L, KAFKA, connect_client, METHODS);
}
