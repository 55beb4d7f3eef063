/*
** outbox.destinations.redis: a connection to a Redis server, through hiredis. Commands are sent in
** one go; their replies come in the same order.
*/
#define _DEFAULT_SOURCE

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "redis_tls.h"

#define REDIS "outbox.destinations.redis"
#define MAX_ARGUMENTS 64
#define PIECE 65536 /* bytes that hiredis gets at a time: it moves what it has not sent */

typedef struct client {
  redisContext *context; /* NULL once it is closed */
  redis_tls *tls;        /* NULL without TLS */
  bool connecting, sending;
  char *out; /* commands: `size` bytes, of which hiredis has got the first `given` */
  size_t size, given, room;
  size_t count, answered; /* commands */
  redisReply *reply;      /* the one that is being looked at */
} client;

static client *check(lua_State *L) {
  client *self = luaL_checkudata(L, 1, REDIS);
  if (self->context == NULL) luaL_error(L, "the client is closed");
  return self;
}

static int close_client(lua_State *L) {
  client *self = luaL_checkudata(L, 1, REDIS);
  client_guard guard;
  client_guard_begin(&guard); /* TLS says good-bye */
  if (self->reply != NULL) freeReplyObject(self->reply);
  if (self->context != NULL) redisFree(self->context);
  redis_tls_free(self->tls);
  client_guard_end(&guard);
  free(self->out);
  memset(self, 0, sizeof *self);
  return 0;
}

/* Where the server closes a TLS connection, hiredis reports an error of the system that is none. */
static int lose(lua_State *L, const redisContext *context) {
  bool known = strcmp(context->errstr, strerror(0)) != 0;
  return client_lose(L, known ? context->errstr : "the server closed the connection");
}

/*
** connect(target): begins to connect to `host` and `port`, or to the socket `path`; with TLS where
** there is a table `tls`. Returns the client.
*/
static int connect_client(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  const char *path = client_option(L, 1, "path"), *host = client_option(L, 1, "host");
  int port = (int)client_number(L, 1, "port", 6379);
  client *self = client_make(L, REDIS, sizeof *self);
  if (lua_getfield(L, 1, "tls") == LUA_TTABLE) {
    const char *reason = redis_tls_make(L, lua_gettop(L), host, &self->tls);
    if (reason != NULL) return client_lose(L, reason);
  }
  lua_pop(L, 1);
  self->context = path != NULL ? redisConnectUnixNonBlock(path) : redisConnectNonBlock(host, port);
  if (self->context == NULL) return luaL_error(L, "not enough memory");
  if (self->context->err) return lose(L, self->context);
  self->connecting = true;
  return 1;
}

/* --- Sending --------------------------------------------------------------------------------- */

static bool reserve(client *self, size_t size) {
  if (size <= self->room - self->size) return true;
  size_t room = (self->size + size) * 2;
  char *out = realloc(self->out, room);
  if (out == NULL) return false;
  self->out = out;
  self->room = room;
  return true;
}

/* Appends the command whose arguments are in the table on top of the stack. */
static void append_command(lua_State *L, client *self) {
  const char *arguments[MAX_ARGUMENTS];
  size_t sizes[MAX_ARGUMENTS];
  sds command;
  int count = (int)lua_rawlen(L, -1);
  if (count > MAX_ARGUMENTS) luaL_error(L, "too many arguments");
  for (int i = 0; i < count; i++) {
    if (lua_rawgeti(L, -1, i + 1) != LUA_TSTRING) luaL_error(L, "argument %d is no string", i + 1);
    arguments[i] = lua_tolstring(L, -1, &sizes[i]);
    lua_pop(L, 1); /* the table keeps it alive */
  }
  int size = redisFormatSdsCommandArgv(&command, count, arguments, sizes);
  bool fits = size >= 0 && reserve(self, (size_t)size);
  if (fits) memcpy(self->out + self->size, command, (size_t)size);
  if (size >= 0) redisFreeSdsCommand(command);
  if (!fits) luaL_error(L, "not enough memory");
  self->size += (size_t)size;
}

/* send(commands): each an array of strings. */
static int send_commands(lua_State *L) {
  client *self = check(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  size_t count = lua_rawlen(L, 2);
  client_begin(L, 1, count);
  self->size = self->given = self->count = self->answered = 0;
  for (size_t i = 1; i <= count; i++) {
    lua_rawgeti(L, 2, (lua_Integer)i);
    append_command(L, self);
    lua_pop(L, 1);
  }
  self->count = count;
  return 0;
}

static bool write_commands(client *self) {
  client_guard guard;
  int done = 0;
  client_guard_begin(&guard);
  while (!self->context->err && (self->sending || self->given < self->size)) {
    size_t left = self->size - self->given, piece = left < PIECE ? left : PIECE;
    if (!self->sending &&
        redisAppendFormattedCommand(self->context, self->out + self->given, piece) == REDIS_OK)
      self->given += piece;
    self->sending = true;
    if (redisBufferWrite(self->context, &done) != REDIS_OK || !done) break;
    self->sending = false;
  }
  client_guard_end(&guard);
  return !self->context->err;
}

/* --- Replies --------------------------------------------------------------------------------- */

/* Notes the replies that have been read. Returns false if they are none. */
static bool note_replies(lua_State *L, client *self) {
  while (self->answered < self->count) {
    void *reply = NULL;
    if (redisGetReplyFromReader(self->context, &reply) != REDIS_OK) return false;
    self->reply = reply;
    if (reply == NULL) break;
    self->answered++;
    if (self->reply->type == REDIS_REPLY_ERROR) {
      lua_pushlstring(L, self->reply->str, self->reply->len);
      client_refuse(L, 1, self->answered);
    } else {
      client_confirm(L, 1, self->answered);
    }
    freeReplyObject(self->reply);
    self->reply = NULL;
  }
  return true;
}

/* Reads until nothing more comes: with TLS more may be there than the descriptor tells. */
static bool read_replies(lua_State *L, client *self) {
  client_guard guard;
  size_t before;
  do {
    before = self->answered;
    client_guard_begin(&guard);
    int code = redisBufferRead(self->context);
    client_guard_end(&guard);
    if (code != REDIS_OK || !note_replies(L, self)) return false;
  } while (self->answered > before && self->answered < self->count);
  return true;
}

/* Whether it is connected by now. */
static bool finish_connecting(client *self) {
  struct pollfd wanted = {.fd = self->context->fd, .events = POLLOUT};
  if (poll(&wanted, 1, 0) <= 0) return false;
  self->connecting = false;
  return true;
}

static const char *why_not_connected(const client *self) {
  int error = 0;
  socklen_t size = sizeof error;
  getsockopt(self->context->fd, SOL_SOCKET, SO_ERROR, &error, &size);
  return error != 0 ? strerror(error) : NULL;
}

/* work(): see broker.lua. */
static int work(lua_State *L) {
  client *self = check(L);
  if (self->connecting) {
    if (!finish_connecting(self)) {
      lua_pushinteger(L, 1);
      return 1;
    }
    const char *reason = why_not_connected(self);
    if (reason != NULL) return client_lose(L, reason);
    if (self->tls != NULL && redis_tls_begin(self->tls, self->context) != REDIS_OK)
      return lose(L, self->context);
  }
  if (!write_commands(self) || !read_replies(L, self)) return lose(L, self->context);
  size_t pieces = (self->size - self->given + PIECE - 1) / PIECE + (self->sending ? 1 : 0);
  lua_pushinteger(L, (lua_Integer)(pieces + self->count - self->answered));
  return 1;
}

static int pollfd(lua_State *L) {
  lua_pushinteger(L, check(L)->context->fd);
  return 1;
}

static int events(lua_State *L) {
  const client *self = check(L);
  lua_pushstring(L, self->connecting || self->sending ? "rw" : "r");
  return 1;
}

static const luaL_Reg METHODS[] = {
    {"work", work},     {"send", send_commands}, {"results", client_results},
    {"pollfd", pollfd}, {"events", events},      {"close", close_client},
    {NULL, NULL}};

int luaopen_outbox_destinations_redis(lua_State *L);

int luaopen_outbox_destinations_redis(lua_State *L) {
  client_module(L, REDIS, connect_client, METHODS);
  lua_pushboolean(L, HIREDIS_MAJOR >= 1);
  lua_setfield(L, -2, "has_tls");
  return 1;
}
