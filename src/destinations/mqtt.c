/*
** outbox.destinations.mqtt: a connection to a broker of MQTT 5, through libmosquitto, without its
** thread. Messages are published with QoS 1, and each is answered by a PUBACK. libmosquitto itself
** keeps what the broker's Receive Maximum holds back, and sends it in order.
*/
#define _DEFAULT_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <mosquitto.h>
#include <mqtt_protocol.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "client.h"

#define MQTT "outbox.destinations.mqtt"
#define LIBRARY "libmosquitto.so.1"
#define SYSTEM_CERTIFICATES "/etc/ssl/certs"
#define NO_MQTT_5 "the broker does not speak MQTT 5"
#define MAX_TEXT 65535     /* bytes of a string of MQTT */
#define MAX_BODY 0xfffffff /* bytes of a packet after its length */
#define FIRST_PROPERTY 4   /* its place in an item */

typedef struct item {
  int mid;  /* libmosquitto's number for it */
  int code; /* the reason code of its PUBACK, or UNANSWERED */
} item;

enum { UNANSWERED = -1 };

typedef struct client {
  struct mosquitto *handle; /* NULL once it is closed */
  bool tls, retain;
  bool connecting;     /* TCP has no answer yet */
  bool connected;      /* the broker has accepted us */
  uint32_t expiry;     /* of each message, in seconds; 0: none */
  uint32_t max_packet; /* bytes that the broker takes */
  item *items;
  size_t count, answered;
  size_t first;                   /* no item before this one waits for its answer */
  size_t unwritten;               /* at least as often as we may have to write */
  mosquitto_property *properties; /* of the message that is being published */
  char reason[256];               /* why the connection is lost, or "" */
} client;

static client *check(lua_State *L) {
  client *self = luaL_checkudata(L, 1, MQTT);
  if (self->handle == NULL) luaL_error(L, "the client is closed");
  return self;
}

/* Notes why the connection is lost. The first reason is the cause of later ones. */
static void lose(client *self, const char *text, const char *detail) {
  if (self->reason[0] == '\0') snprintf(self->reason, sizeof self->reason, "%s%s", text, detail);
}

/* `code` is an error of libmosquitto. */
static void lose_by(client *self, int code) {
  int error = errno;
  if (code == MOSQ_ERR_EAI)
    lose(self, gai_strerror(error), "");
  else if (code == MOSQ_ERR_ERRNO && error != 0)
    lose(self, strerror(error), "");
  else if (!self->connected && (code == MOSQ_ERR_PROTOCOL || code == MOSQ_ERR_MALFORMED_PACKET))
    lose(self, NO_MQTT_5, "");
  else
    lose(self, mosquitto_strerror(code == MOSQ_ERR_ERRNO ? MOSQ_ERR_CONN_LOST : code), "");
}

/* What was not sent yet must not arrive after what is sent next: the kernel drops it, too. */
static void abandon(client *self) {
  struct linger at_once = {.l_onoff = 1, .l_linger = 0};
  setsockopt(mosquitto_socket(self->handle), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}

static void release(client *self) {
  client_guard guard;
  client_guard_begin(&guard);
  if (self->connected && self->reason[0] == '\0' && self->answered == self->count)
    mosquitto_disconnect_v5(self->handle, 0, NULL);
  else if (self->handle != NULL)
    abandon(self);
  mosquitto_destroy(self->handle);
  client_guard_end(&guard);
  mosquitto_property_free_all(&self->properties);
  free(self->items);
  memset(self, 0, sizeof *self);
}

static int close_client(lua_State *L) {
  release(luaL_checkudata(L, 1, MQTT));
  return 0;
}

/* --- Callbacks: libmosquitto holds locks, so they do not touch Lua --------------------------- */

static void on_connect(struct mosquitto *handle, void *object, int code, int flags,
                       const mosquitto_property *properties) {
  client *self = object;
  uint8_t qos = 2, retains = 1;
  (void)handle, (void)flags;
  mosquitto_property_read_byte(properties, MQTT_PROP_MAXIMUM_QOS, &qos, false);
  mosquitto_property_read_byte(properties, MQTT_PROP_RETAIN_AVAILABLE, &retains, false);
  mosquitto_property_read_int32(properties, MQTT_PROP_MAXIMUM_PACKET_SIZE, &self->max_packet,
                                false);
  if (code == MQTT_RC_UNSUPPORTED_PROTOCOL_VERSION)
    lose(self, NO_MQTT_5, "");
  else if (code != 0)
    lose(self, "refused: ", mosquitto_reason_string(code));
  else if (qos == 0)
    lose(self, "the broker has no QoS 1", "");
  else if (self->retain && !retains)
    lose(self, "the broker retains no messages", "");
  else
    self->connected = true;
}

static void on_publish(struct mosquitto *handle, void *object, int mid, int code,
                       const mosquitto_property *properties) {
  client *self = object;
  size_t i = self->first;
  (void)handle, (void)properties;
  while (i < self->count && (self->items[i].mid != mid || self->items[i].code != UNANSWERED))
    i++;
  if (i == self->count) return;
  self->items[i].code = code;
  self->answered++;
  while (self->first < self->count && self->items[self->first].code != UNANSWERED)
    self->first++;
}

static void on_disconnect(struct mosquitto *handle, void *object, int code,
                          const mosquitto_property *properties) {
  (void)handle, (void)properties;
  if (code >= MQTT_RC_UNSPECIFIED) /* else it is no reason code */
    lose(object, "disconnected: ", mosquitto_reason_string(code));
}

static void on_log(struct mosquitto *handle, void *object, int level, const char *text) {
  (void)handle;
  if (level == MOSQ_LOG_ERR) lose(object, text, ""); /* the only place that has errors of TLS */
}

/* Else OpenSSL would ask for the password of the key on the terminal. */
static int no_password(char *buffer, int size, int writing, void *object) {
  (void)buffer, (void)size, (void)writing, (void)object;
  return 0;
}

/* --- Connecting ------------------------------------------------------------------------------ */

/* Makes the handle. libmosquitto 2.0.11 changes the signal handler of the whole process. */
static struct mosquitto *make_handle(const char *id, client *self) {
  struct sigaction former;
  sigaction(SIGPIPE, NULL, &former);
  struct mosquitto *handle = mosquitto_new(id, true, self);
  sigaction(SIGPIPE, &former, NULL);
  return handle;
}

/* The options of TLS are in the table at `index`. */
static int set_tls(lua_State *L, int index, client *self) {
  const char *ca_file = client_option(L, index, "ca_file");
  lua_getfield(L, index, "verify");
  bool verify = lua_toboolean(L, -1);
  lua_pop(L, 1);
  self->tls = true;
  int code = mosquitto_tls_set(self->handle, ca_file, ca_file == NULL ? SYSTEM_CERTIFICATES : NULL,
                               client_option(L, index, "cert_file"),
                               client_option(L, index, "key_file"), no_password);
  if (code == MOSQ_ERR_INVAL) lose(self, "cannot read 'ca_file', 'cert_file' or 'key_file'", "");
  if (code == MOSQ_ERR_SUCCESS && !verify)
    code = mosquitto_tls_opts_set(self->handle, 0, NULL, NULL);
  return code;
}

static int set_up(lua_State *L, client *self) {
  struct mosquitto *handle = self->handle;
  mosquitto_connect_v5_callback_set(handle, on_connect);
  mosquitto_publish_v5_callback_set(handle, on_publish);
  mosquitto_disconnect_v5_callback_set(handle, on_disconnect);
  mosquitto_log_callback_set(handle, on_log);
  mosquitto_int_option(handle, MOSQ_OPT_PROTOCOL_VERSION, MQTT_PROTOCOL_V5);
  mosquitto_int_option(handle, MOSQ_OPT_TCP_NODELAY, 1);
  mosquitto_int_option(handle, MOSQ_OPT_SEND_MAXIMUM, 65535); /* unless the broker says less */
  int code = mosquitto_username_pw_set(handle, client_option(L, 1, "user"),
                                       client_option(L, 1, "password"));
  if (code == MOSQ_ERR_SUCCESS && lua_getfield(L, 1, "tls") == LUA_TTABLE)
    code = set_tls(L, lua_gettop(L), self);
  return code;
}

/*
** connect(options): begins to connect to `host` and `port` as the client `client_id`; with TLS
** where there is a table `tls`. Returns the client. It blocks only while it looks up the host's
** name, which libmosquitto does not bound. Takes the first address that is not refused at once.
*/
static int connect_client(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  const char *host = client_option(L, 1, "host"), *id = client_option(L, 1, "client_id");
  int port = (int)client_number(L, 1, "port", 1883);
  client *self = client_make(L, MQTT, sizeof *self);
  client_guard guard;
  self->max_packet = UINT32_MAX;
  self->expiry = (uint32_t)client_number(L, 1, "expiry", 0);
  lua_getfield(L, 1, "retain");
  self->retain = lua_toboolean(L, -1);
  self->handle = make_handle(id, self);
  if (self->handle == NULL) return luaL_error(L, "cannot make a client of libmosquitto");
  int code = set_up(L, self);
  client_guard_begin(&guard);
  if (code == MOSQ_ERR_SUCCESS)
    code = mosquitto_connect_bind_async(self->handle, host, port, 0, NULL);
  client_guard_end(&guard);
  self->connecting = true;
  if (code > MOSQ_ERR_SUCCESS) { /* less is no error */
    lose_by(self, code);
    client_lose(L, self->reason);
    release(self);
    return 2;
  }
  lua_settop(L, 2);
  return 1;
}

/* --- Sending --------------------------------------------------------------------------------- */

/* The string at a place of the item on top of the stack, which keeps it alive; or NULL. */
static const char *text_at(lua_State *L, int place, size_t *size) {
  const char *text = NULL;
  if (lua_rawgeti(L, -1, place) == LUA_TSTRING) text = lua_tolstring(L, -1, size);
  lua_pop(L, 1);
  return text;
}

/* How many bytes a number takes as a variable byte integer. */
static size_t varint_size(size_t number) {
  return number < 128 ? 1 : number < 16384 ? 2 : number < 2097152 ? 3 : 4;
}

/* Makes the properties of the item on top of the stack, and adds their bytes to `size`. */
static int make_properties(lua_State *L, client *self, const char *content_type, size_t *size) {
  mosquitto_property **list = &self->properties;
  int code = MOSQ_ERR_SUCCESS, count = (int)lua_rawlen(L, -1);
  if (content_type[0] != '\0') {
    *size += 3 + strlen(content_type);
    code = mosquitto_property_add_string(list, MQTT_PROP_CONTENT_TYPE, content_type);
  }
  if (self->expiry > 0 && code == MOSQ_ERR_SUCCESS) {
    *size += 5;
    code = mosquitto_property_add_int32(list, MQTT_PROP_MESSAGE_EXPIRY_INTERVAL, self->expiry);
  }
  for (int i = FIRST_PROPERTY; i < count && code == MOSQ_ERR_SUCCESS; i += 2) {
    size_t name_size, value_size;
    const char *name = text_at(L, i, &name_size), *value = text_at(L, i + 1, &value_size);
    if (name == NULL || value == NULL) return MOSQ_ERR_INVAL;
    *size += 5 + name_size + value_size;
    code = mosquitto_property_add_string_pair(list, MQTT_PROP_USER_PROPERTY, name, value);
  }
  return code;
}

/*
** Publishes the item on top of the stack, unless it is too large for the broker: libmosquitto
** measures it too short, and 2.0.11 crashes where it finds that out later. Raises nothing.
*/
static int publish(lua_State *L, client *self, item *item) {
  size_t topic_size, payload_size, type_size, properties_size = 0;
  const char *topic = text_at(L, 1, &topic_size), *payload = text_at(L, 2, &payload_size);
  const char *content_type = text_at(L, 3, &type_size);
  if (topic == NULL || payload == NULL || content_type == NULL) return MOSQ_ERR_INVAL;
  int code = make_properties(L, self, content_type, &properties_size);
  size_t body = 2 + topic_size + 2 + varint_size(properties_size) + properties_size + payload_size;
  size_t packet = 1 + varint_size(body) + body;
  if (code == MOSQ_ERR_SUCCESS && (body > MAX_BODY || packet > self->max_packet)) {
    item->code = MQTT_RC_PACKET_TOO_LARGE;
    self->answered++;
  } else if (code == MOSQ_ERR_SUCCESS) {
    code = mosquitto_publish_v5(self->handle, &item->mid, topic, (int)payload_size, payload, 1,
                                self->retain, self->properties);
    self->unwritten += packet;
  }
  mosquitto_property_free_all(&self->properties);
  return code;
}

/*
** send(items): each an array of the topic, the payload, the content type or "", and the names and
** the values of its user properties.
*/
static int send_items(lua_State *L) {
  client *self = check(L);
  luaL_checktype(L, 2, LUA_TTABLE);
  lua_settop(L, 2);
  size_t count = lua_rawlen(L, 2);
  client_guard guard;
  int code = MOSQ_ERR_SUCCESS;
  free(self->items);
  self->count = self->answered = self->first = self->unwritten = 0;
  self->items = calloc(count + 1, sizeof *self->items);
  if (self->items == NULL) return luaL_error(L, "not enough memory");
  self->count = count;
  for (size_t i = 0; i < count; i++)
    self->items[i].code = UNANSWERED;
  client_guard_begin(&guard);
  for (size_t i = 0; i < count && code == MOSQ_ERR_SUCCESS; i++) {
    if (lua_rawgeti(L, 2, (lua_Integer)i + 1) == LUA_TTABLE)
      code = publish(L, self, &self->items[i]);
    else
      code = MOSQ_ERR_INVAL;
    lua_pop(L, 1);
  }
  client_guard_end(&guard);
  if (code == MOSQ_ERR_INVAL || code == MOSQ_ERR_NOMEM)
    return luaL_error(L, "%s", mosquitto_strerror(code));
  if (code != MOSQ_ERR_SUCCESS) lose_by(self, code);
  return 0;
}

/* --- Working --------------------------------------------------------------------------------- */

static bool is_writable(const client *self) {
  struct pollfd wanted = {.fd = mosquitto_socket(self->handle), .events = POLLOUT};
  return poll(&wanted, 1, 0) > 0;
}

/*
** Looks at the connection before the broker has accepted us: during the handshake of TLS,
** libmosquitto 2.0.11 does not notice that the connection is lost.
*/
static void look(client *self) {
  char byte;
  if (self->connecting && is_writable(self)) self->connecting = false;
  ssize_t size = recv(mosquitto_socket(self->handle), &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  if (size == 0)
    lose_by(self, MOSQ_ERR_CONN_LOST);
  else if (size < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)
    lose_by(self, MOSQ_ERR_ERRNO);
}

static void exchange(client *self) {
  client_guard guard;
  client_guard_begin(&guard);
  int code = mosquitto_loop_read(self->handle, 1);
  if (code == MOSQ_ERR_SUCCESS && mosquitto_want_write(self->handle) && is_writable(self)) {
    code = mosquitto_loop_write(self->handle, 1);
    if (self->unwritten > 0) self->unwritten--;
  }
  if (code == MOSQ_ERR_SUCCESS) code = mosquitto_loop_misc(self->handle);
  client_guard_end(&guard);
  if (code != MOSQ_ERR_SUCCESS) lose_by(self, code);
}

/*
** work(): see broker.lua. What is left counts the bytes, too, less one for each time that some of
** them could be written: so a large message makes progress while it is being sent.
*/
static int work(lua_State *L) {
  client *self = check(L);
  if (!self->connected && self->reason[0] == '\0') look(self);
  if (self->reason[0] == '\0') exchange(self);
  if (self->reason[0] != '\0') return client_lose(L, self->reason);
  size_t left = self->connected ? self->count - self->answered : 1;
  lua_pushinteger(L, (lua_Integer)(left > 0 ? left + self->unwritten : 0));
  return 1;
}

/* results(): true, or the reason code of the PUBACK. */
static int results(lua_State *L) {
  const client *self = check(L);
  client_begin(L, 1, self->count);
  for (size_t i = 0; i < self->count; i++) {
    if (self->items[i].code == MQTT_RC_SUCCESS) {
      client_confirm(L, 1, i + 1);
    } else if (self->items[i].code != UNANSWERED) {
      lua_pushinteger(L, self->items[i].code);
      client_refuse(L, 1, i + 1);
    }
  }
  return client_results(L);
}

static int pollfd(lua_State *L) {
  lua_pushinteger(L, mosquitto_socket(check(L)->handle));
  return 1;
}

/* During the handshake of TLS libmosquitto 2.0.11 may want to write although it has nothing. */
static int events(lua_State *L) {
  const client *self = check(L);
  bool writes = self->connected || !self->tls ? mosquitto_want_write(self->handle) : false;
  lua_pushstring(L, self->connecting || writes ? "rw" : "r");
  return 1;
}

/* is_text(bytes): whether they may be a string of MQTT. */
static int is_text(lua_State *L) {
  size_t size;
  const char *text = luaL_checklstring(L, 1, &size);
  lua_pushboolean(L, size <= MAX_TEXT && mosquitto_validate_utf8(text, (int)size) == 0);
  return 1;
}

/* reason(code): what a reason code means. */
static int reason(lua_State *L) {
  lua_pushstring(L, mosquitto_reason_string((int)luaL_checkinteger(L, 1)));
  return 1;
}

static const luaL_Reg METHODS[] = {
    {"work", work},     {"send", send_items},    {"results", results}, {"pollfd", pollfd},
    {"events", events}, {"close", close_client}, {NULL, NULL}};

static const luaL_Reg FUNCTIONS[] = {{"is_text", is_text}, {"reason", reason}, {NULL, NULL}};

int luaopen_outbox_destinations_mqtt(lua_State *L);

int luaopen_outbox_destinations_mqtt(lua_State *L) {
  dlopen(LIBRARY, RTLD_NOW | RTLD_NODELETE); /* when it is unloaded, it leaks what TLS has made */
  if (mosquitto_lib_init() != MOSQ_ERR_SUCCESS) return luaL_error(L, "cannot start libmosquitto");
  client_module(L, MQTT, connect_client, METHODS);
  luaL_setfuncs(L, FUNCTIONS, 0);
  return 1;
}
