/*
** outbox.destinations.amqp: a connection to a RabbitMQ server, through librabbitmq. Messages are
** published on one channel, on which the broker confirms each by its number, the delivery tag.
*/
#define _DEFAULT_SOURCE

#include <amqp.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

#include "amqp_login.h"

#define AMQP "outbox.destinations.amqp"
#define CHANNEL 1
#define PIECE 32768 /* bytes of a payload in one frame: RabbitMQ takes 4096 to 131072 */
#define PERSISTENT 2
#define OPENING 2 /* answers until the channel confirms */
#define MAX_SHORT 255

/* The places in an item. From HEADERS on there are names and values by turns. */
enum { EXCHANGE = 1, ROUTING_KEY, PAYLOAD, MESSAGE_ID, TIMESTAMP, CONTENT_TYPE, HEADERS };

/* What became of an item. A message that is returned is confirmed, too, but later. */
enum { OPEN, RETURNED, ANSWERED };

typedef struct client {
  amqp_connection_state_t connection; /* NULL once it is closed */
  bool logged_in, mandatory;
  int opening;                        /* answers that are due before the channel confirms */
  size_t count, answered;             /* items */
  char *states;                       /* of the items */
  size_t lowest;                      /* the items before this one are answered, counted from 0 */
  uint64_t first;                     /* the delivery tag of the first item */
  size_t item;                        /* the one that is being written */
  enum { METHOD, HEADER, BODY } part; /* of that item, to be written next */
  size_t given;                       /* bytes of its payload that are written */
  size_t bytes;                       /* of all payloads, not yet written */
  char blocked[MAX_SHORT + 1];        /* why the broker does not read, or empty */
} client;

static const struct timeval NO_TIME = {0, 0};

static client *check(lua_State *L) {
  client *self = luaL_checkudata(L, 1, AMQP);
  if (self->connection == NULL) luaL_error(L, "the client is closed");
  return self;
}

/*
** Whether a frame can be sent without waiting, which librabbitmq would do. Linux says so while at
** least a third of the buffer is free; that has room for the largest frame.
*/
static bool is_writable(const client *self) {
  struct pollfd wanted = {.fd = amqp_get_sockfd(self->connection), .events = POLLOUT};
  return poll(&wanted, 1, 0) == 1;
}

/* librabbitmq raises no SIGPIPE. */
static int close_client(lua_State *L) {
  client *self = luaL_checkudata(L, 1, AMQP);
  if (self->connection != NULL) {
    amqp_connection_close_t method = {.reply_code = AMQP_REPLY_SUCCESS};
    if (self->logged_in && is_writable(self)) /* the answer is not awaited */
      amqp_send_method(self->connection, 0, AMQP_CONNECTION_CLOSE_METHOD, &method);
    amqp_destroy_connection(self->connection);
  }
  free(self->states);
  memset(self, 0, sizeof *self);
  lua_pushnil(L);
  lua_rawsetp(L, LUA_REGISTRYINDEX, self);
  return 0;
}

/*
** connect(target): connects to `host` and `port`, with TLS where there is a table `tls`, and logs
** in as `user` with `password`, for the `vhost`. This blocks for at most `timeout` seconds. Returns
** the client.
*/
static int connect_client(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  client *self = client_make(L, AMQP, sizeof *self);
  self->first = 1;
  lua_getfield(L, 1, "mandatory");
  self->mandatory = lua_toboolean(L, -1);
  lua_pop(L, 1);
  self->connection = amqp_new_connection();
  if (self->connection == NULL) return luaL_error(L, "not enough memory");
  const char *reason = amqp_login_begin(L, 1, self->connection);
  if (reason == NULL) {
    amqp_channel_open_t open = {.out_of_band = amqp_empty_bytes};
    amqp_confirm_select_t select = {.nowait = 0};
    self->logged_in = true;
    self->opening = OPENING;
    int status = amqp_send_method(self->connection, CHANNEL, AMQP_CHANNEL_OPEN_METHOD, &open);
    if (status == AMQP_STATUS_OK)
      status = amqp_send_method(self->connection, CHANNEL, AMQP_CONFIRM_SELECT_METHOD, &select);
    if (status == AMQP_STATUS_OK) return 1;
    reason = amqp_login_reason(status);
  }
  client_lose(L, reason);
  lua_pushcfunction(L, close_client); /* not only when it is collected */
  lua_pushvalue(L, 2);
  lua_call(L, 1, 0);
  return 2;
}

/* --- Sending --------------------------------------------------------------------------------- */

/* The string at a place of the table at `index`, which keeps it alive; else no bytes. */
static amqp_bytes_t bytes_at(lua_State *L, int index, int place) {
  amqp_bytes_t bytes = amqp_empty_bytes;
  if (lua_rawgeti(L, index, place) == LUA_TSTRING)
    bytes.bytes = (void *)lua_tolstring(L, -1, &bytes.len);
  lua_pop(L, 1);
  return bytes;
}

/* Pushes the item, counted from 0; returns its index. */
static int push_item(lua_State *L, const client *self, size_t item) {
  lua_rawgetp(L, LUA_REGISTRYINDEX, self);
  lua_rawgeti(L, -1, (lua_Integer)item + 1);
  lua_remove(L, -2);
  luaL_checktype(L, -1, LUA_TTABLE);
  return lua_gettop(L);
}

/* send(items): each an array, as the places above say. */
static int send_items(lua_State *L) {
  client *self = check(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  size_t count = lua_rawlen(L, 2), bytes = 0;
  lua_pushvalue(L, 2);
  lua_rawsetp(L, LUA_REGISTRYINDEX, self);
  for (size_t i = 0; i < count; i++) {
    bytes += bytes_at(L, push_item(L, self, i), PAYLOAD).len;
    lua_pop(L, 1);
  }
  client_begin(L, 1, count);
  char *states = realloc(self->states, count + 1);
  if (states == NULL) return luaL_error(L, "not enough memory");
  memset(states, OPEN, count + 1);
  self->states = states;
  self->first += self->count;
  self->count = count;
  self->bytes = bytes;
  self->answered = self->lowest = self->item = self->given = 0;
  self->part = METHOD;
  return 0;
}

static int write_method(lua_State *L, client *self, int index) {
  amqp_basic_publish_t method = {.exchange = bytes_at(L, index, EXCHANGE),
                                 .routing_key = bytes_at(L, index, ROUTING_KEY),
                                 .mandatory = self->mandatory};
  self->part = HEADER;
  return amqp_send_method(self->connection, CHANNEL, AMQP_BASIC_PUBLISH_METHOD, &method);
}

static amqp_field_value_t value_at(lua_State *L, int index, int place) {
  amqp_field_value_t field = {.kind = AMQP_FIELD_KIND_UTF8};
  int type = lua_rawgeti(L, index, place);
  if (type == LUA_TBOOLEAN) {
    field.kind = AMQP_FIELD_KIND_BOOLEAN;
    field.value.boolean = lua_toboolean(L, -1);
  } else if (type == LUA_TNUMBER) {
    field.kind = AMQP_FIELD_KIND_I64;
    field.value.i64 = lua_tointeger(L, -1);
  } else {
    field.value.bytes = bytes_at(L, index, place);
  }
  lua_pop(L, 1);
  return field;
}

static int write_header(lua_State *L, client *self, int index) {
  int count = ((int)lua_rawlen(L, index) - HEADERS + 1) / 2;
  amqp_table_entry_t *entries = lua_newuserdatauv(L, (size_t)(count + 1) * sizeof *entries, 0);
  for (int i = 0; i < count; i++)
    entries[i] = (amqp_table_entry_t){.key = bytes_at(L, index, HEADERS + 2 * i),
                                      .value = value_at(L, index, HEADERS + 2 * i + 1)};
  lua_rawgeti(L, index, TIMESTAMP);
  amqp_basic_properties_t properties = {
      ._flags = AMQP_BASIC_HEADERS_FLAG | AMQP_BASIC_DELIVERY_MODE_FLAG |
                AMQP_BASIC_MESSAGE_ID_FLAG | AMQP_BASIC_TIMESTAMP_FLAG,
      .headers = {.num_entries = count, .entries = entries},
      .delivery_mode = PERSISTENT,
      .message_id = bytes_at(L, index, MESSAGE_ID),
      .timestamp = (uint64_t)lua_tointeger(L, -1),
      .content_type = bytes_at(L, index, CONTENT_TYPE)};
  if (properties.content_type.len > 0) properties._flags |= AMQP_BASIC_CONTENT_TYPE_FLAG;
  amqp_frame_t frame = {.frame_type = AMQP_FRAME_HEADER, .channel = CHANNEL};
  frame.payload.properties.class_id = AMQP_BASIC_CLASS;
  frame.payload.properties.body_size = bytes_at(L, index, PAYLOAD).len;
  frame.payload.properties.decoded = &properties;
  self->part = BODY;
  self->given = 0;
  return amqp_send_frame(self->connection, &frame);
}

static int write_piece(lua_State *L, client *self, int index) {
  amqp_bytes_t payload = bytes_at(L, index, PAYLOAD);
  size_t room = (size_t)amqp_get_frame_max(self->connection) - 8, left = payload.len - self->given;
  amqp_frame_t frame = {.frame_type = AMQP_FRAME_BODY, .channel = CHANNEL};
  if (room > PIECE) room = PIECE;
  frame.payload.body_fragment.bytes = (char *)payload.bytes + self->given;
  frame.payload.body_fragment.len = left < room ? left : room;
  self->given += frame.payload.body_fragment.len;
  self->bytes -= frame.payload.body_fragment.len;
  return amqp_send_frame(self->connection, &frame);
}

static int write_frame(lua_State *L, client *self) {
  int index = push_item(L, self, self->item), status;
  if (self->part == METHOD)
    status = write_method(L, self, index);
  else if (self->part == HEADER)
    status = write_header(L, self, index);
  else
    status = write_piece(L, self, index);
  if (self->part == BODY && self->given == bytes_at(L, index, PAYLOAD).len) {
    self->part = METHOD;
    self->item++;
  }
  lua_settop(L, index - 1);
  return status;
}

/* Many small frames become few packets. */
static void cork(const client *self, int on) {
#ifdef TCP_CORK
  setsockopt(amqp_get_sockfd(self->connection), IPPROTO_TCP, TCP_CORK, &on, sizeof on);
#else
  (void)self, (void)on;
#endif
}

static int write_frames(lua_State *L, client *self) {
  int status = AMQP_STATUS_OK;
  if (self->opening > 0 || self->item == self->count) return status;
  cork(self, 1);
  while (status == AMQP_STATUS_OK && self->item < self->count && is_writable(self))
    status = write_frame(L, self);
  cork(self, 0);
  return status;
}

/* --- Answers --------------------------------------------------------------------------------- */

/* Notes the answer to the item of a delivery tag; if `multiple`, also to all items before it. */
static void note_answer(lua_State *L, client *self, uint64_t tag, bool multiple,
                        const char *refusal) {
  if (tag < self->first || tag - self->first >= self->count) return;
  size_t last = (size_t)(tag - self->first);
  for (size_t i = multiple ? self->lowest : last; i <= last; i++) {
    if (self->states[i] == OPEN && refusal != NULL) {
      lua_pushstring(L, refusal);
      client_refuse(L, 1, i + 1);
    } else if (self->states[i] == OPEN) {
      client_confirm(L, 1, i + 1);
    }
    if (self->states[i] != ANSWERED) self->answered++;
    self->states[i] = ANSWERED;
  }
  while (self->lowest < self->count && self->states[self->lowest] == ANSWERED)
    self->lowest++;
}

/* A message comes back that no queue takes. What it was sent with says which it is. */
static void note_return(lua_State *L, client *self, const amqp_basic_properties_t *properties) {
  for (size_t i = self->lowest; i < self->count; i++) {
    if (self->states[i] != OPEN) continue;
    int index = push_item(L, self, i);
    amqp_bytes_t id = bytes_at(L, index, MESSAGE_ID);
    bool same = id.len == properties->message_id.len &&
                (id.len == 0 || memcmp(id.bytes, properties->message_id.bytes, id.len) == 0);
    if (same) {
      lua_pushfstring(L, "NO_ROUTE - exchange '%s' has no queue for the routing key '%s'",
                      (char *)bytes_at(L, index, EXCHANGE).bytes,
                      (char *)bytes_at(L, index, ROUTING_KEY).bytes);
      client_refuse(L, 1, i + 1);
      self->states[i] = RETURNED;
    }
    lua_settop(L, index - 1);
    if (same) return;
  }
}

/*
** The broker closes the channel or the connection. If it does so because of the only message, that
** is the answer. Among others nobody knows which message it means.
*/
static bool note_close(lua_State *L, client *self, int code, amqp_bytes_t text) {
  lua_pushlstring(L, text.bytes, text.len);
  bool refused = code == AMQP_PRECONDITION_FAILED || code == AMQP_CONTENT_TOO_LARGE;
  if (!refused || self->count != 1 || self->answered != 0) return false;
  client_refuse(L, 1, 1);
  self->answered = self->item = 1;
  self->bytes = 0;
  return true;
}

/* Returns false if the connection is lost; then the reason is on top of the stack. */
static bool note_method(lua_State *L, client *self, const amqp_method_t *method) {
  const amqp_basic_ack_t *ack = method->decoded;
  const amqp_basic_nack_t *nack = method->decoded;
  const amqp_channel_close_t *channel = method->decoded;
  const amqp_connection_close_t *connection = method->decoded;
  const amqp_connection_blocked_t *blocked = method->decoded;
  switch (method->id) {
  case AMQP_CHANNEL_OPEN_OK_METHOD:
  case AMQP_CONFIRM_SELECT_OK_METHOD: self->opening--; return true;
  case AMQP_BASIC_ACK_METHOD:
    note_answer(L, self, ack->delivery_tag, ack->multiple, NULL);
    return true;
  case AMQP_BASIC_NACK_METHOD:
    note_answer(L, self, nack->delivery_tag, nack->multiple, "basic.nack");
    return true;
  case AMQP_CONNECTION_BLOCKED_METHOD:
    memcpy(self->blocked, blocked->reason.bytes, blocked->reason.len); /* a short string */
    self->blocked[blocked->reason.len] = '\0';
    return true;
  case AMQP_CONNECTION_UNBLOCKED_METHOD: self->blocked[0] = '\0'; return true;
  case AMQP_CHANNEL_CLOSE_METHOD:
    return note_close(L, self, channel->reply_code, channel->reply_text);
  case AMQP_CONNECTION_CLOSE_METHOD:
    return note_close(L, self, connection->reply_code, connection->reply_text);
  default: /* basic.return, whose header comes next */ return true;
  }
}

/* Reads what has come. Returns like note_method. */
static bool read_frames(lua_State *L, client *self) {
  for (;;) {
    amqp_frame_t frame;
    bool going = true;
    int status = amqp_simple_wait_frame_noblock(self->connection, &frame, &NO_TIME);
    if (status == AMQP_STATUS_TIMEOUT) return true;
    if (status != AMQP_STATUS_OK) {
      lua_pushstring(L, amqp_login_reason(status));
      return false;
    }
    if (frame.frame_type == AMQP_FRAME_METHOD)
      going = note_method(L, self, &frame.payload.method);
    else if (frame.frame_type == AMQP_FRAME_HEADER)
      note_return(L, self, frame.payload.properties.decoded);
    amqp_maybe_release_buffers(self->connection);
    if (!going) return false;
  }
}

/* work(): see broker.lua. What was read says better why the broker closes than a failed write. */
static int work(lua_State *L) {
  client *self = check(L);
  int status = write_frames(L, self);
  const char *reason = amqp_login_reason(status); /* before errno changes */
  if (!read_frames(L, self)) return client_lose(L, lua_tostring(L, -1));
  if (status != AMQP_STATUS_OK) return client_lose(L, reason);
  size_t unwritten = self->count - self->item + self->bytes / PIECE;
  size_t unanswered = self->count - self->answered + (size_t)self->opening;
  lua_pushinteger(L, (lua_Integer)(unwritten + unanswered));
  return 1;
}

/* obstacle(): see broker.lua. */
static int obstacle(lua_State *L) {
  const client *self = check(L);
  if (self->blocked[0] == '\0') return 0;
  lua_pushfstring(L, "connection.blocked: %s", self->blocked);
  return 1;
}

static int pollfd(lua_State *L) {
  lua_pushinteger(L, amqp_get_sockfd(check(L)->connection));
  return 1;
}

static int events(lua_State *L) {
  const client *self = check(L);
  lua_pushstring(L, self->opening == 0 && self->item < self->count ? "rw" : "r");
  return 1;
}

static const luaL_Reg METHODS[] = {
    {"work", work},     {"send", send_items}, {"results", client_results}, {"obstacle", obstacle},
    {"pollfd", pollfd}, {"events", events},   {"close", close_client},     {NULL, NULL}};

int luaopen_outbox_destinations_amqp(lua_State *L);

int luaopen_outbox_destinations_amqp(lua_State *L) {
  return client_module(L, AMQP, connect_client, METHODS);
}
