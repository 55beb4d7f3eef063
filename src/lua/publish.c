/*
** Publishing: messages, which are Lua tables, become messages of the core.
*/
#include <stdio.h>
#include <string.h>

#include "../columns.h"
#include "shim.h"

/* --- The rules of a message ------------------------------------------------------------------ */

enum { ID, NAMESPACE, KEY, PAYLOAD, HEADERS, DELIVER_AT, FIELDS };

static const char *const FIELD_NAMES[FIELDS] = {"id",      "namespace", "key",
                                                "payload", "headers",   "deliver_at"};

static const int FIELD_TYPES[FIELDS] = {LUA_TSTRING, LUA_TSTRING, LUA_TSTRING,
                                        LUA_TSTRING, LUA_TTABLE,  LUA_TNUMBER};

/* The field that the value at the index names; FIELDS: none. */
static int find_field(lua_State *L, int index) {
  size_t size;
  if (lua_type(L, index) != LUA_TSTRING) return FIELDS;
  const char *name = lua_tolstring(L, index, &size);
  int field = 0;
  while (field < FIELDS &&
         (name[0] != FIELD_NAMES[field][0] || strcmp(name, FIELD_NAMES[field]) != 0))
    field++;
  return field < FIELDS && strlen(name) == size ? field : FIELDS;
}

/* Says that the value at the index is no table, as luaL_checktype does. */
static const char *say_no_table(lua_State *L, int index) {
  const char *type = luaL_typename(L, index);
  if (luaL_getmetafield(L, index, "__name") == LUA_TSTRING)
    type = lua_tostring(L, -1);
  else if (lua_type(L, index) == LUA_TLIGHTUSERDATA)
    type = "light userdata";
  return lua_pushfstring(L, "table expected, got %s", type);
}

/* Says why a field of a message, its name and its value on the top, cannot be one. */
static const char *say_bad_field(lua_State *L, int field) {
  if (field == FIELDS && lua_type(L, -2) == LUA_TNUMBER)
    return lua_pushliteral(L, "a list is not a message: pass messages as arguments");
  if (field == FIELDS) return lua_pushfstring(L, "unknown field '%s'", luaL_tolstring(L, -2, NULL));
  const char *wanted = lua_typename(L, FIELD_TYPES[field]), *type = luaL_typename(L, -1);
  if (field == KEY) {
    wanted = "string or an integer";
    if (lua_type(L, -1) == LUA_TNUMBER) type = "float";
  }
  return lua_pushfstring(L, "field '%s' must be a %s, not a %s", FIELD_NAMES[field], wanted, type);
}

/* Room for the text of an integer key. */
typedef char shim_digits[24];

/*
** The text of the integer key on the top, written to `digits`. Without them it has a size and no
** data, which says that there must be room.
*/
static outbox_bytes text_of_key(lua_State *L, shim_digits *digits) {
  outbox_bytes text = {NULL, sizeof *digits};
  if (digits == NULL) return text;
  text.data = *digits;
  text.size =
      (size_t)snprintf(*digits, sizeof *digits, LUA_INTEGER_FMT, (LUAI_UACINT)lua_tointeger(L, -1));
  return text;
}

static bool lacks_room(const outbox_message *message) {
  return message->key.data == NULL && message->key.size > 0;
}

/*
** Reads the message at the index, which is above 0. Returns NULL, or the reason why it is none, a
** string on the top. Neither calls into Lua nor allocates for a good message: its strings stay
** where they are as long as nobody changes the table. Leaves the headers out.
*/
static const char *read_message(lua_State *L, int index, outbox_message *message,
                                shim_digits *digits) {
  outbox_bytes *const strings[] = {[ID] = &message->id,
                                   [NAMESPACE] = &message->namespace,
                                   [KEY] = &message->key,
                                   [PAYLOAD] = &message->payload};
  memset(message, 0, offsetof(outbox_message, generated_id));
  if (lua_type(L, index) != LUA_TTABLE) return say_no_table(L, index);
  for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1)) {
    int field = find_field(L, -2);
    if (field == FIELDS || lua_type(L, -1) != FIELD_TYPES[field]) {
      if (field != KEY || !lua_isinteger(L, -1)) return say_bad_field(L, field);
      message->key = text_of_key(L, digits);
    } else if (field <= PAYLOAD)
      strings[field]->data = lua_tolstring(L, -1, &strings[field]->size);
    else if (field == DELIVER_AT && !shim_microseconds(lua_tonumber(L, -1), &message->deliver_at))
      return lua_pushliteral(L, "field 'deliver_at' is out of range");
  }
  return NULL;
}

/***
Checks a message as `publish` does, for other ways to publish. Does not look into its headers.
@function check_message
@tparam any message
@treturn ?string the reason why it cannot be published; nil where it can
*/
static int check_message(lua_State *L) {
  outbox_message message;
  return read_message(L, 1, &message, NULL) != NULL;
}

/* --- Publishing ------------------------------------------------------------------------------ */

static void need_message(lua_State *L, int argument, outbox_message *message, shim_digits *digits) {
  const char *reason = read_message(L, argument, message, digits);
  if (reason != NULL) luaL_argerror(L, argument, reason);
}

/* Calls the ID generator for a message. The id replaces the value at the index. */
static void generate_id(lua_State *L, int store_index, int argument, int index) {
  lua_getiuservalue(L, store_index, ID_GENERATOR_VALUE);
  lua_getfield(L, -1, "generate_id");
  lua_getiuservalue(L, store_index, CLOCK_VALUE);
  lua_pushvalue(L, argument);
  lua_call(L, 2, 1);
  if (lua_type(L, -1) != LUA_TSTRING)
    luaL_error(L, "the ID generator must return a string, not a %s", luaL_typename(L, -1));
  lua_replace(L, index);
  lua_pop(L, 1);
}

/* Puts a message's headers, as JSON, into the array on the top. */
static void encode_headers(lua_State *L, int argument) {
  lua_pushstring(L, FIELD_NAMES[HEADERS]);
  if (lua_rawget(L, argument) != LUA_TNIL) shim_convert_headers(L, "encode");
  lua_rawseti(L, -2, argument);
}

/* The string at the index; no value if there is none. */
static outbox_bytes bytes_at(lua_State *L, int index) {
  outbox_bytes bytes = {NULL, 0};
  if (lua_type(L, index) == LUA_TSTRING) bytes.data = lua_tolstring(L, index, &bytes.size);
  return bytes;
}

/*
** Reads all messages, which are at the indexes from 2 to `last`. Their ids are above `ids`, and
** above these a table with their headers, if they have any. Returns false where an integer key
** lacks room because there are no `digits`.
**
** They are read after all calls, because a callback, or a finalizer that the collector ran, may
** have changed them and freed their strings. The ids are on the stack already, so that a publish
** that has succeeded cannot fail because there is no room for them.
*/
static bool read_messages(lua_State *L, int last, int ids, bool have_headers,
                          outbox_message *messages, shim_digits *digits) {
  for (int i = 2; i <= last; i++) {
    outbox_message *message = &messages[i - 2];
    bool unique = message->unique;
    need_message(L, i, message, digits != NULL ? &digits[i - 2] : NULL);
    if (lacks_room(message)) {
      message->unique = unique;
      return false;
    }
    if (have_headers) {
      lua_rawgeti(L, ids + last + 1, i);
      message->headers = bytes_at(L, -1);
      lua_pop(L, 1);
    }
    message->id = bytes_at(L, ids + i);
    message->unique = unique;
  }
  return true;
}

int shim_publish(lua_State *L, shim_store *self, int last, int store_index,
                 void check(lua_State *L)) {
  outbox_message one, *messages = &one;
  int count = last - 1;
  luaL_argcheck(L, count > 0, 2, "table expected, got no value");
  luaL_checkstack(L, count + LUA_MINSTACK, "too many messages");
  if (count > 1) messages = lua_newuserdatauv(L, (size_t)count * sizeof *messages, 0);

  shim_read_clock(L, self, store_index); /* before the messages, which it may change */
  lua_pushstring(L, FIELD_NAMES[DELIVER_AT]);
  lua_pushstring(L, FIELD_NAMES[HEADERS]);
  lua_pushstring(L, FIELD_NAMES[ID]);
  int ids = lua_gettop(L) - 1; /* the id of the message at index i will be at ids + i */
  bool calls = self->lua_id_generator;
  for (int i = 2; i <= last; i++) {
    outbox_message *message = &messages[i - 2];
    if (lua_type(L, i) != LUA_TTABLE) luaL_argerror(L, i, say_no_table(L, i));
    memset(message, 0, offsetof(outbox_message, generated_id));
    lua_pushvalue(L, ids - 1);
    if (lua_rawget(L, i) == LUA_TNUMBER) /* a bad one is refused later */
      shim_microseconds(lua_tonumber(L, -1), &message->deliver_at);
    lua_pushvalue(L, ids);
    calls |= lua_rawget(L, i) != LUA_TNIL;
    lua_pop(L, 2);
    lua_pushvalue(L, ids + 1);
    lua_rawget(L, i);
    message->id = bytes_at(L, -1);
  }
  for (int i = 2; i <= last && calls; i++) /* nothing is called when one cannot be published */
    need_message(L, i, &messages[i - 2], NULL);
  check(L);
  if (!self->lua_id_generator)
    shim_check(L, self, self->engine->generate_ids(self->store, messages, (size_t)count));
  for (int i = 2; i <= last; i++) {
    if (!lua_isnil(L, ids + i)) continue;
    if (self->lua_id_generator) {
      generate_id(L, store_index, i, ids + i);
    } else {
      lua_pushlstring(L, messages[i - 2].id.data, messages[i - 2].id.size);
      lua_replace(L, ids + i);
    }
  }
  if (calls) lua_newtable(L);
  for (int i = 2; i <= last && calls; i++)
    encode_headers(L, i);
  check(L);

  if (!read_messages(L, last, ids, calls, messages, NULL)) {
    shim_digits *digits = lua_newuserdatauv(L, (size_t)count * sizeof *digits, 0);
    check(L); /* the collector may have run */
    read_messages(L, last, ids, calls, messages, digits);
  }
  shim_check(L, self, self->engine->publish(self->store, messages, (size_t)count));
  lua_settop(L, ids + last);
  return count;
}

/* --- The module ------------------------------------------------------------------------------ */

void shim_open_publish(lua_State *L) {
  lua_pushcfunction(L, check_message);
  lua_setfield(L, -2, "check_message");
  lua_pushliteral(L, MESSAGE_COLUMNS);
  lua_setfield(L, -2, "MESSAGE_COLUMNS");
}
