/*
** How a connection to an AMQP broker is made: TCP, TLS, the login.
*/
#define _DEFAULT_SOURCE

#include "amqp_login.h"

#include <amqp_ssl_socket.h>
#include <amqp_tcp_socket.h>
#include <errno.h>
#include <openssl/ssl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

#define FRAME_MAX 131072 /* the default of RabbitMQ */
#define NO_HEARTBEATS 0  /* librabbitmq sends them only while it is called */
#define SEND_BUFFER 212992
#define MAX_SECONDS 1e9

const char *amqp_login_reason(int status) {
  if (status == AMQP_STATUS_TIMEOUT) return "no answer in time";
  if (status == AMQP_STATUS_SOCKET_ERROR && errno != 0 && errno != EINPROGRESS)
    return strerror(errno);
  return amqp_error_string2(status);
}

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static struct timeval left_until(double deadline) {
  double seconds = deadline - now();
  if (seconds < 0) seconds = 0;
  struct timeval left = {.tv_sec = (time_t)seconds};
  left.tv_usec = (suseconds_t)((seconds - (double)left.tv_sec) * 1e6);
  return left;
}

/* Returns NULL, or what is wrong with the options of TLS in the table at `index`. */
static const char *prepare_tls(lua_State *L, int index, amqp_socket_t *tls) {
  const char *ca_file = client_option(L, index, "ca_file");
  const char *cert_file = client_option(L, index, "cert_file");
  const char *key_file = client_option(L, index, "key_file");
  lua_getfield(L, index, "verify");
  bool verify = lua_toboolean(L, -1);
  lua_pop(L, 1);
  amqp_ssl_socket_set_verify_peer(tls, verify);
  amqp_ssl_socket_set_verify_hostname(tls, verify);
  amqp_ssl_socket_set_key_passwd(tls, ""); /* otherwise OpenSSL asks on the terminal */
  if (ca_file == NULL)
    SSL_CTX_set_default_verify_paths(amqp_ssl_socket_get_context(tls));
  else if (amqp_ssl_socket_set_cacert(tls, ca_file) != AMQP_STATUS_OK)
    return "ca_file has no certificate";
  if (cert_file != NULL && amqp_ssl_socket_set_key(tls, cert_file, key_file) != AMQP_STATUS_OK)
    return "cert_file and key_file are no certificate and its key";
  return NULL;
}

/* Sets `out` to a new socket, which belongs to the connection. Returns NULL, or a reason. */
static const char *make_socket(lua_State *L, int index, amqp_connection_state_t connection,
                               amqp_socket_t **out) {
  const char *reason = NULL;
  bool secure = lua_getfield(L, index, "tls") == LUA_TTABLE;
  amqp_set_initialize_ssl_library(0); /* OpenSSL does it; librabbitmq would leak memory */
  *out = secure ? amqp_ssl_socket_new(connection) : amqp_tcp_socket_new(connection);
  if (*out == NULL)
    reason = "not enough memory";
  else if (secure)
    reason = prepare_tls(L, lua_gettop(L), *out);
  lua_pop(L, 1);
  return reason;
}

static amqp_table_entry_t entry(const char *name, uint8_t kind) {
  return (amqp_table_entry_t){.key = amqp_cstring_bytes(name), .value = {.kind = kind}};
}

static amqp_table_entry_t yes(const char *name) {
  amqp_table_entry_t made = entry(name, AMQP_FIELD_KIND_BOOLEAN);
  made.value.value.boolean = 1;
  return made;
}

/* Without the capability basic.nack RabbitMQ closes the channel instead. */
static amqp_rpc_reply_t log_in(lua_State *L, int index, amqp_connection_state_t connection) {
  amqp_table_entry_t capabilities[] = {yes("publisher_confirms"), yes("basic.nack"),
                                       yes("connection.blocked")};
  amqp_table_entry_t properties[] = {entry("product", AMQP_FIELD_KIND_UTF8),
                                     entry("capabilities", AMQP_FIELD_KIND_TABLE)};
  properties[0].value.value.bytes = amqp_cstring_bytes("outbox");
  properties[1].value.value.table = (amqp_table_t){.num_entries = 3, .entries = capabilities};
  amqp_table_t table = {.num_entries = 2, .entries = properties};
  return amqp_login_with_properties(
      connection, client_option(L, index, "vhost"), 0, FRAME_MAX, NO_HEARTBEATS, &table,
      AMQP_SASL_METHOD_PLAIN, client_option(L, index, "user"), client_option(L, index, "password"));
}

static const char *why_refused(lua_State *L, amqp_rpc_reply_t reply) {
  if (reply.reply_type == AMQP_RESPONSE_LIBRARY_EXCEPTION)
    return amqp_login_reason(reply.library_error);
  if (reply.reply.id != AMQP_CONNECTION_CLOSE_METHOD) return "the login was refused";
  const amqp_connection_close_t *close = reply.reply.decoded;
  return lua_pushlstring(L, close->reply_text.bytes, close->reply_text.len);
}

const char *amqp_login_begin(lua_State *L, int index, amqp_connection_state_t connection) {
  lua_getfield(L, index, "timeout");
  double seconds = lua_tonumber(L, -1);
  lua_pop(L, 1);
  double deadline = now() + (seconds < MAX_SECONDS ? seconds : MAX_SECONDS);
  amqp_socket_t *socket;
  const char *reason = make_socket(L, index, connection, &socket);
  if (reason != NULL) return reason;
  struct timeval left = left_until(deadline);
  errno = 0;
  int status = amqp_socket_open_noblock(socket, client_option(L, index, "host"),
                                        (int)client_number(L, index, "port", 0), &left);
  if (status != AMQP_STATUS_OK) return amqp_login_reason(status);
  int size = SEND_BUFFER; /* see is_writable in amqp.c */
  setsockopt(amqp_get_sockfd(connection), SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
  left = left_until(deadline);
  status = amqp_set_handshake_timeout(connection, &left);
  if (status != AMQP_STATUS_OK) return amqp_login_reason(status);
  amqp_rpc_reply_t reply = log_in(L, index, connection);
  return reply.reply_type == AMQP_RESPONSE_NORMAL ? NULL : why_refused(L, reply);
}
