/*
** A consumer of RabbitMQ, for the specs. Its calls wait.
**
**     client = rabbitmq.connect(port [, user, password, vhost])   guest, guest and "/" by default
**     client:declare(queue [, exchange, routing_key])   makes a durable queue, and binds it
**     messages = client:get(queue)   takes all its messages, each a table: exchange, routing_key,
**                                    body, delivery_mode, timestamp, message_id, content_type,
**                                    headers
**     count = client:count(queue)
**     client:delete(queue)
**     client:close()
*/
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <lauxlib.h>
#include <lua.h>

#define RABBITMQ "rabbitmq.client"

typedef struct client {
  amqp_connection_state_t connection;
} client;

static amqp_connection_state_t check(lua_State *L) {
  client *self = luaL_checkudata(L, 1, RABBITMQ);
  if (self->connection == NULL) luaL_error(L, "the client is closed");
  return self->connection;
}

static int close_client(lua_State *L) {
  client *self = luaL_checkudata(L, 1, RABBITMQ);
  if (self->connection != NULL) amqp_destroy_connection(self->connection);
  self->connection = NULL;
  return 0;
}

static amqp_bytes_t bytes(lua_State *L, int index) {
  amqp_bytes_t text = amqp_empty_bytes;
  text.bytes = (void *)luaL_optlstring(L, index, "", &text.len);
  return text;
}

static void push(lua_State *L, amqp_bytes_t text) {
  lua_pushlstring(L, text.bytes, text.len);
}

static void must(lua_State *L, amqp_rpc_reply_t reply) {
  if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION)
    luaL_error(L, "rabbitmq: %s", amqp_error_string2(reply.library_error));
  if (reply.reply_type != AMQP_RESPONSE_NORMAL) luaL_error(L, "rabbitmq: the broker refuses");
}

static int connect_client(lua_State *L) {
  int port = (int)luaL_checkinteger(L, 1);
  const char *user = luaL_optstring(L, 2, "guest"), *password = luaL_optstring(L, 3, "guest");
  const char *vhost = luaL_optstring(L, 4, "/");
  client *self = lua_newuserdatauv(L, sizeof *self, 0);
  self->connection = amqp_new_connection();
  luaL_setmetatable(L, RABBITMQ);
  amqp_socket_t *socket = self->connection != NULL ? amqp_tcp_socket_new(self->connection) : NULL;
  if (socket == NULL) return luaL_error(L, "rabbitmq: not enough memory");
  if (amqp_socket_open(socket, "127.0.0.1", port) != AMQP_STATUS_OK)
    return luaL_error(L, "rabbitmq: nobody listens");
  must(L,
       amqp_login(self->connection, vhost, 0, 131072, 0, AMQP_SASL_METHOD_PLAIN, user, password));
  amqp_channel_open(self->connection, 1);
  must(L, amqp_get_rpc_reply(self->connection));
  return 1;
}

static int declare(lua_State *L) {
  amqp_connection_state_t connection = check(L);
  amqp_queue_declare(connection, 1, bytes(L, 2), 0, 1, 0, 0, amqp_empty_table);
  must(L, amqp_get_rpc_reply(connection));
  if (!lua_isnoneornil(L, 3)) {
    amqp_queue_bind(connection, 1, bytes(L, 2), bytes(L, 3), bytes(L, 4), amqp_empty_table);
    must(L, amqp_get_rpc_reply(connection));
  }
  return 0;
}

static int count_messages(lua_State *L) {
  amqp_connection_state_t connection = check(L);
  amqp_queue_declare_ok_t *queue =
      amqp_queue_declare(connection, 1, bytes(L, 2), 1, 0, 0, 0, amqp_empty_table);
  must(L, amqp_get_rpc_reply(connection));
  lua_pushinteger(L, queue->message_count);
  return 1;
}

static int delete_queue(lua_State *L) {
  amqp_connection_state_t connection = check(L);
  amqp_queue_delete(connection, 1, bytes(L, 2), 0, 0);
  must(L, amqp_get_rpc_reply(connection));
  return 0;
}

static void push_headers(lua_State *L, const amqp_table_t *table) {
  lua_newtable(L);
  for (int i = 0; i < table->num_entries; i++) {
    const amqp_field_value_t *field = &table->entries[i].value;
    push(L, table->entries[i].key);
    if (field->kind == AMQP_FIELD_KIND_BOOLEAN)
      lua_pushboolean(L, field->value.boolean);
    else if (field->kind == AMQP_FIELD_KIND_I64)
      lua_pushinteger(L, field->value.i64);
    else if (field->kind == AMQP_FIELD_KIND_UTF8)
      push(L, field->value.bytes);
    else
      luaL_error(L, "rabbitmq: a header of the kind '%c'", field->kind);
    lua_settable(L, -3);
  }
}

static void push_message(lua_State *L, const amqp_message_t *message) {
  const amqp_basic_properties_t *properties = &message->properties;
  lua_pushinteger(L, properties->delivery_mode);
  lua_setfield(L, -2, "delivery_mode");
  lua_pushinteger(L, (lua_Integer)properties->timestamp);
  lua_setfield(L, -2, "timestamp");
  push(L, properties->message_id);
  lua_setfield(L, -2, "message_id");
  if (properties->_flags & AMQP_BASIC_CONTENT_TYPE_FLAG) {
    push(L, properties->content_type);
    lua_setfield(L, -2, "content_type");
  }
  push_headers(L, &properties->headers);
  lua_setfield(L, -2, "headers");
  push(L, message->body);
  lua_setfield(L, -2, "body");
}

static int get(lua_State *L) {
  amqp_connection_state_t connection = check(L);
  amqp_bytes_t queue = bytes(L, 2);
  lua_newtable(L);
  for (lua_Integer i = 1;; i++) {
    amqp_message_t message;
    amqp_rpc_reply_t reply = amqp_basic_get(connection, 1, queue, 1);
    must(L, reply);
    if (reply.reply.id != AMQP_BASIC_GET_OK_METHOD) return 1;
    amqp_basic_get_ok_t *ok = reply.reply.decoded;
    lua_newtable(L);
    push(L, ok->exchange);
    lua_setfield(L, -2, "exchange");
    push(L, ok->routing_key);
    lua_setfield(L, -2, "routing_key");
    must(L, amqp_read_message(connection, 1, &message, 0));
    push_message(L, &message);
    amqp_destroy_message(&message);
    amqp_maybe_release_buffers(connection);
    lua_rawseti(L, -2, i);
  }
}

static const luaL_Reg METHODS[] = {{"declare", declare},     {"count", count_messages},
                                   {"delete", delete_queue}, {"get", get},
                                   {"close", close_client},  {NULL, NULL}};

int luaopen_rabbitmq(lua_State *L);

int luaopen_rabbitmq(lua_State *L) {
  luaL_newmetatable(L, RABBITMQ);
  lua_pushcfunction(L, close_client);
  lua_setfield(L, -2, "__gc");
  lua_newtable(L);
  luaL_setfuncs(L, METHODS, 0);
  lua_setfield(L, -2, "__index");
  lua_newtable(L);
  lua_pushcfunction(L, connect_client);
  lua_setfield(L, -2, "connect");
  return 1;
}
