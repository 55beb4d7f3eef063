/*
** Publishing: messages, as Lua tables, become those of the core.
*/
#include <string.h>

#include "shim.h"

enum { ID, NAMESPACE, KEY, PAYLOAD, HEADERS, DELIVER_AT, FIELDS };

static const char *const FIELD_NAMES[FIELDS] = {"id",      "namespace", "key",
                                                "payload", "headers",   "deliver_at"};

static int find_field(lua_State *L, int argument) {
  const char *name = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "";
  for (int field = 0; field < FIELDS; field++)
    if (name[0] == FIELD_NAMES[field][0] && strcmp(name, FIELD_NAMES[field]) == 0) return field;
  name = luaL_tolstring(L, -2, NULL);
  return luaL_argerror(L, argument, lua_pushfstring(L, "unknown field '%s'", name));
}

static void check_field(lua_State *L, int argument, int field, int type) {
  if (lua_type(L, -1) != type)
    luaL_argerror(L, argument,
                  lua_pushfstring(L, "field '%s' must be a %s, not a %s", FIELD_NAMES[field],
                                  lua_typename(L, type), luaL_typename(L, -1)));
}

/*
** Reads a message without calling into Lua: its strings stay where they are as long as nobody
** changes the table. The headers are left out.
*/
static void read_message(lua_State *L, int argument, outbox_message *message) {
  outbox_bytes *const strings[] = {[ID] = &message->id,
                                   [NAMESPACE] = &message->namespace,
                                   [KEY] = &message->key,
                                   [PAYLOAD] = &message->payload};
  memset(message, 0, offsetof(outbox_message, generated_id));
  for (lua_pushnil(L); lua_next(L, argument); lua_pop(L, 1)) {
    int field = find_field(L, argument);
    if (field == HEADERS) {
      check_field(L, argument, field, LUA_TTABLE);
    } else if (field == DELIVER_AT) {
      check_field(L, argument, field, LUA_TNUMBER);
      luaL_argcheck(L, shim_microseconds(lua_tonumber(L, -1), &message->deliver_at), argument,
                    "field 'deliver_at' is out of range");
    } else {
      check_field(L, argument, field, LUA_TSTRING);
      strings[field]->data = lua_tolstring(L, -1, &strings[field]->size);
    }
  }
}

/* Calls the ID generator for a message; its id replaces what is at the index. */
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

int shim_publish(lua_State *L, shim_store *self, int last, int store_index,
                 void check(lua_State *L)) {
  outbox_message one, *messages = &one;
  int count = last - 1;
  luaL_argcheck(L, count > 0, 2, "table expected, got no value");
  luaL_checkstack(L, count + LUA_MINSTACK, "too many messages");
  if (count > 1) messages = lua_newuserdatauv(L, (size_t)count * sizeof *messages, 0);

  shim_read_clock(L, self, store_index); /* before the messages, which it may change */
  lua_pushstring(L, FIELD_NAMES[HEADERS]);
  lua_pushstring(L, FIELD_NAMES[ID]);
  int ids = lua_gettop(L) - 1; /* an id lies as far above as its message above the bottom */
  bool calls = self->lua_id_generator;
  for (int i = 2; i <= last; i++) {
    outbox_message *message = &messages[i - 2];
    luaL_checktype(L, i, LUA_TTABLE);
    lua_pushvalue(L, ids);
    calls |= lua_rawget(L, i) != LUA_TNIL;
    lua_pop(L, 1);
    lua_pushvalue(L, ids + 1);
    lua_rawget(L, i);
    message->id = bytes_at(L, -1);
    message->unique = false;
  }
  for (int i = 2; i <= last && calls; i++) /* nothing is called for what cannot be published */
    read_message(L, i, &messages[i - 2]);
  check(L);
  if (!self->lua_id_generator)
    shim_check(L, self, outbox_generate_ids(self->store, messages, (size_t)count));
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

  /*
  ** The messages are read now that all is called: that, and any finalizer which the collector ran,
  ** may have changed them, and freed their strings. The ids are there already, for what has been
  ** published must not fail for want of room for them.
  */
  for (int i = 2; i <= last; i++) {
    outbox_message *message = &messages[i - 2];
    bool unique = message->unique;
    read_message(L, i, message);
    if (calls) {
      lua_rawgeti(L, -1, i);
      message->headers = bytes_at(L, -1);
      lua_pop(L, 1);
    }
    message->id = bytes_at(L, ids + i);
    message->unique = unique;
  }
  shim_check(L, self, outbox_publish(self->store, messages, (size_t)count));
  lua_settop(L, ids + last);
  return count;
}
