/*
** outbox.destinations.nats: a connection to a NATS server, through its library, cnats. Messages are
** published one after the other; JetStream answers each, in any order, to an inbox.
**
** The library's own asynchronous publishing (js_PublishMsgAsync) has no descriptor to wait for, and
** tells of failures alone, in a thread of its own. So messages are published as requests, each with
** a reply subject: the inbox and the number of the message. The library believes to be in an event
** loop, which is `work`: it reads and writes nothing unless `work` tells it to, and has no thread
** here. Two things could wait nevertheless, both with TLS: reading, if a record has not arrived as
** a whole, so that is looked at first; and writing, while the descriptor takes no more, at most
** for the timeout.
*/
#define _DEFAULT_SOURCE

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "nats_dial.h"

#define NATS "outbox.destinations.nats"
#define PIECE 65536 /* bytes that the library gets at a time: it moves what it has not sent */
#define RECORD_HEADER                                                                              \
  5 /* bytes of a TLS record's header; the last two are the length of the rest */

typedef struct client {
  nats_dial *dial;            /* NULL once it is closed */
  natsConnection *connection; /* NULL until it is connected */
  natsSubscription *answers;
  char inbox[64]; /* the reply subjects without their numbers */
  int fd;
  bool tls;
  natsMsg **messages; /* `count`, of which the first `given` are published; NULL once answered */
  size_t count, given, answered;
  size_t unheard;            /* messages, not known which, that nobody listens to */
  size_t size;               /* bytes of those that are not published yet */
  unsigned long long number; /* of the first message, in its reply subject */
  natsMsg *answer;           /* the one that is being looked at */
} client;

static client *check(lua_State *L) {
  client *self = luaL_checkudata(L, 1, NATS);
  if (self->dial == NULL) luaL_error(L, "the client is closed");
  return self;
}

/* Has the library read or write. Only with TLS it might raise SIGPIPE; there it also looks at
   errno, which the end of a connection does not set. */
static void process(client *self, void (*event)(natsConnection *connection)) {
  client_guard guard;
  errno = 0;
  if (self->tls) client_guard_begin(&guard);
  event(self->connection);
  if (self->tls) client_guard_end(&guard);
}

static void drop_messages(client *self) {
  for (size_t i = 0; i < self->count; i++)
    natsMsg_Destroy(self->messages[i]);
  free(self->messages);
  self->messages = NULL;
  self->count = self->given = self->answered = self->unheard = self->size = 0;
}

/*
** A connection that is closed while the library still has something to send would first wait for
** the server. One that has ended does not: therefore it is ended, which the library must read.
*/
static int close_client(lua_State *L) {
  client *self = luaL_checkudata(L, 1, NATS);
  drop_messages(self);
  natsMsg_Destroy(self->answer);
  if (self->connection != NULL) {
    shutdown(self->fd, SHUT_RDWR);
    while (!natsConnection_IsClosed(self->connection))
      process(self, natsConnection_ProcessReadEvent);
  }
  natsSubscription_Destroy(self->answers);
  natsConnection_Destroy(self->connection);
  nats_dial_drop(self->dial);
  memset(self, 0, sizeof *self);
  return 0;
}

/* connect(target): begins to connect; nats_dial.h describes the target. Returns the client. */
static int connect_client(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  client *self = client_make(L, NATS, sizeof *self);
  self->tls = lua_getfield(L, 1, "tls") == LUA_TTABLE;
  lua_pop(L, 1);
  const char *reason = nats_dial_begin(L, 1, &self->dial);
  if (reason != NULL) return client_lose(L, reason);
  lua_settop(L, 2);
  return 1;
}

/* Subscribes to the answers. */
static natsStatus begin(client *self) {
  char subject[sizeof self->inbox + 1];
  natsInbox *inbox = NULL;
  natsStatus status = natsInbox_Create(&inbox);
  if (status != NATS_OK) return status;
  snprintf(self->inbox, sizeof self->inbox, "%s.", inbox);
  natsInbox_Destroy(inbox);
  snprintf(subject, sizeof subject, "%s*", self->inbox);
  status = natsConnection_SubscribeSync(&self->answers, self->connection, subject);
  return status == NATS_OK ? natsSubscription_SetPendingLimits(self->answers, -1, -1) : status;
}

/* --- Sending --------------------------------------------------------------------------------- */

static const char *check_text(lua_State *L, int item, int field, size_t *size) {
  if (lua_rawgeti(L, item, field) != LUA_TSTRING) luaL_error(L, "field %d is no string", field);
  const char *text = lua_tolstring(L, -1, size);
  lua_pop(L, 1); /* the table keeps it alive */
  return text;
}

/* Makes the message of the item on top of the stack. */
static void make_message(lua_State *L, client *self, natsMsg **out) {
  char reply[sizeof self->inbox + 20];
  size_t size;
  int item = lua_gettop(L), count = (int)lua_rawlen(L, item);
  const char *subject = check_text(L, item, 1, NULL);
  const char *payload = check_text(L, item, 2, &size);
  snprintf(reply, sizeof reply, "%s%llu", self->inbox, self->number + (out - self->messages));
  if (size > INT32_MAX) luaL_error(L, "the payload is too large");
  natsStatus status = natsMsg_Create(out, subject, reply, payload, (int)size);
  for (int i = 3; i < count && status == NATS_OK; i += 2) {
    const char *name = check_text(L, item, i, NULL);
    status = natsMsgHeader_Set(*out, name, check_text(L, item, i + 1, NULL));
  }
  if (status != NATS_OK) luaL_error(L, "%s", natsStatus_GetText(status));
  self->size += size;
}

/* send(items): each an array of the subject, the payload, and names and values of headers. */
static int send_messages(lua_State *L) {
  client *self = check(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  size_t count = lua_rawlen(L, 2);
  client_begin(L, 1, count);
  self->number += self->count;
  drop_messages(self);
  self->messages = calloc(count, sizeof *self->messages);
  if (self->messages == NULL) return luaL_error(L, "not enough memory");
  self->count = count;
  for (size_t i = 0; i < count; i++) {
    lua_rawgeti(L, 2, (lua_Integer)i + 1);
    make_message(L, self, &self->messages[i]);
    lua_pop(L, 1);
  }
  return 0;
}

/* Notes that a message is answered, by what is on top of the stack. */
static void settle(lua_State *L, client *self, size_t i) {
  natsMsg_Destroy(self->messages[i]);
  self->messages[i] = NULL;
  self->answered++;
  client_refuse(L, 1, i + 1);
}

/* How many bytes the library has not sent yet. */
static size_t buffered(const client *self) {
  int size = natsConnection_Buffered(self->connection);
  return size > 0 ? (size_t)size : 0;
}

static natsStatus publish_next(lua_State *L, client *self) {
  size_t i = self->given++;
  self->size -= (size_t)natsMsg_GetDataLength(self->messages[i]);
  natsStatus status = natsConnection_PublishMsg(self->connection, self->messages[i]);
  if (status != NATS_MAX_PAYLOAD) return status;
  lua_pushliteral(L, "max_payload");
  settle(L, self, i);
  return NATS_OK;
}

static bool takes_more(const client *self) {
  struct pollfd wanted = {.fd = self->fd, .events = POLLOUT};
  return poll(&wanted, 1, 0) > 0;
}

/* Publishes until all is sent, or the descriptor takes no more. */
static natsStatus write_messages(lua_State *L, client *self) {
  natsStatus status = NATS_OK;
  do {
    while (status == NATS_OK && self->given < self->count && buffered(self) < PIECE)
      status = publish_next(L, self);
    if (status != NATS_OK || buffered(self) == 0 || !takes_more(self)) break;
    process(self, natsConnection_ProcessWriteEvent);
  } while (buffered(self) == 0 && self->given < self->count);
  return status;
}

/* --- Answers --------------------------------------------------------------------------------- */

/* Whether the library can read without waiting. */
static bool has_arrived(const client *self) {
  unsigned char header[RECORD_HEADER];
  int size;
  ssize_t count = recv(self->fd, header, sizeof header, MSG_PEEK | MSG_DONTWAIT);
  if (count <= 0) return count == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
  if (!self->tls) return true;
  return count == RECORD_HEADER && ioctl(self->fd, FIONREAD, &size) == 0 &&
         size >= RECORD_HEADER + (header[3] << 8 | header[4]);
}

/* Notes the answer that has been read: its text, which is JSON. */
static void note_answer(lua_State *L, client *self) {
  const char *number = strrchr(natsMsg_GetSubject(self->answer), '.');
  unsigned long long i =
      number != NULL ? strtoull(number + 1, NULL, 10) - self->number : UINT64_MAX;
  if (i >= self->given || self->messages[i] == NULL) return;
  lua_pushlstring(L, natsMsg_GetData(self->answer), (size_t)natsMsg_GetDataLength(self->answer));
  settle(L, self, i);
}

/* Of a message that nobody listens to the library says only that there is one. */
static void take_answers(lua_State *L, client *self) {
  natsStatus status;
  while ((status = natsSubscription_NextMsg(&self->answer, self->answers, 0)) == NATS_OK ||
         status == NATS_NO_RESPONDERS) {
    if (status == NATS_OK)
      note_answer(L, self);
    else
      self->unheard++;
    natsMsg_Destroy(self->answer);
    self->answer = NULL;
  }
}

/* After each piece that was read the answers are taken: after the end they would be lost. */
static void read_answers(lua_State *L, client *self) {
  while (!natsConnection_IsClosed(self->connection) && has_arrived(self)) {
    process(self, natsConnection_ProcessReadEvent);
    take_answers(L, self);
  }
}

/* Once all others are answered it is clear which messages nobody listens to. */
static void find_unheard(lua_State *L, client *self) {
  if (self->unheard == 0 || self->answered + self->unheard < self->count) return;
  for (size_t i = 0; i < self->count; i++)
    if (self->messages[i] != NULL) {
      lua_pushliteral(L, "no responders");
      settle(L, self, i);
    }
}

/* Why the connection must not be used any more, or NULL. */
static const char *find_error(const client *self, natsStatus status) {
  const char *text = NULL;
  natsStatus last = natsConnection_GetLastError(self->connection, &text);
  if (last == NATS_OK && status == NATS_OK && natsConnection_IsClosed(self->connection))
    status = NATS_CONNECTION_CLOSED;
  if (last == NATS_OK) return status == NATS_OK ? NULL : natsStatus_GetText(status);
  return text != NULL && *text != '\0' ? text : natsStatus_GetText(last);
}

/* work(): see broker.lua. */
static int work(lua_State *L) {
  client *self = check(L);
  natsStatus status = NATS_OK;
  if (self->connection == NULL) {
    int hosts = nats_dial_poll(self->dial, &self->connection, &self->fd);
    if (hosts < 0) return client_lose(L, nats_dial_reason(self->dial));
    if (hosts > 0) {
      lua_pushinteger(L, hosts);
      return 1;
    }
    status = begin(self);
  }
  if (status == NATS_OK) {
    read_answers(L, self);
    status = write_messages(L, self);
    find_unheard(L, self);
  }
  const char *reason = find_error(self, status);
  if (reason != NULL) return client_lose(L, reason);
  size_t pieces = (buffered(self) + self->size + PIECE - 1) / PIECE;
  lua_pushinteger(L, (lua_Integer)(pieces + self->count - self->answered));
  return 1;
}

static int pollfd(lua_State *L) {
  const client *self = check(L);
  lua_pushinteger(L, self->connection != NULL ? self->fd : nats_dial_bell(self->dial));
  return 1;
}

static int events(lua_State *L) {
  const client *self = check(L);
  lua_pushstring(L, self->connection != NULL && buffered(self) > 0 ? "rw" : "r");
  return 1;
}

static const luaL_Reg METHODS[] = {
    {"work", work},     {"send", send_messages}, {"results", client_results},
    {"pollfd", pollfd}, {"events", events},      {"close", close_client},
    {NULL, NULL}};

int luaopen_outbox_destinations_nats(lua_State *L);

int luaopen_outbox_destinations_nats(lua_State *L) {
  if (!nats_dial_open()) return luaL_error(L, "the library of NATS cannot be opened");
  return client_module(L, NATS, connect_client, METHODS);
}
