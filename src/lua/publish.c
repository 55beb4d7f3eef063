/*
** Publishing: messages, as Lua tables, become those of the core.
*/
#include <string.h>

#include "shim.h"

enum { ID, NAMESPACE, KEY, PAYLOAD, HEADERS, DELIVER_AT, FIELDS };

static const char *const FIELD_NAMES[FIELDS] = {"id",      "namespace", "key",
                                                "payload", "headers",   "deliver_at"};

static int find_field(lua_State *L, int argument) {
  if (lua_type(L, -2) == LUA_TSTRING)
    for (int field = 0; field < FIELDS; field++)
      if (strcmp(lua_tostring(L, -2), FIELD_NAMES[field]) == 0) return field;
  const char *name = luaL_tolstring(L, -2, NULL);
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
** changes the table. The headers are left out; returns whether there are any.
*/
static bool read_message(lua_State *L, int argument, outbox_message *message) {
  outbox_bytes *const strings[] = {[ID] = &message->id,
                                   [NAMESPACE] = &message->namespace,
                                   [KEY] = &message->key,
                                   [PAYLOAD] = &message->payload};
  bool headers = false;
  luaL_checktype(L, argument, LUA_TTABLE);
  memset(message, 0, offsetof(outbox_message, generated_id));
  for (lua_pushnil(L); lua_next(L, argument); lua_pop(L, 1)) {
    int field = find_field(L, argument);
    if (field == HEADERS) {
      check_field(L, argument, field, LUA_TTABLE);
      headers = true;
    } else if (field == DELIVER_AT) {
      check_field(L, argument, field, LUA_TNUMBER);
      luaL_argcheck(L, shim_microseconds(lua_tonumber(L, -1), &message->deliver_at), argument,
                    "field 'deliver_at' is out of range");
    } else {
      check_field(L, argument, field, LUA_TSTRING);
      strings[field]->data = lua_tolstring(L, -1, &strings[field]->size);
    }
  }
  return headers;
}

static void get_field(lua_State *L, int argument, int field) {
  lua_pushstring(L, FIELD_NAMES[field]);
  lua_rawget(L, argument);
}

/* Calls into Lua for a message's headers, as JSON, and its id; both go to the table on the top. */
static void make_fields(lua_State *L, shim_store *self, int store_index, int argument) {
  int made = lua_gettop(L);
  get_field(L, argument, HEADERS);
  if (!lua_isnil(L, -1)) {
    shim_convert_headers(L, "encode");
    lua_rawseti(L, made, FIELDS * argument + HEADERS);
  }
  get_field(L, argument, ID);
  if (self->lua_id_generator && lua_isnil(L, -1)) {
    lua_getiuservalue(L, store_index, ID_GENERATOR_VALUE);
    lua_getfield(L, -1, "generate_id");
    lua_getiuservalue(L, store_index, CLOCK_VALUE);
    lua_pushvalue(L, argument);
    lua_call(L, 2, 1);
    if (lua_type(L, -1) != LUA_TSTRING)
      luaL_error(L, "the ID generator must return a string, not a %s", luaL_typename(L, -1));
    lua_rawseti(L, made, FIELDS * argument + ID);
  }
  lua_settop(L, made);
}

static void set_made(lua_State *L, int argument, int field, outbox_bytes *bytes) {
  if (lua_rawgeti(L, -1, FIELDS * argument + field) == LUA_TSTRING && bytes->data == NULL)
    bytes->data = lua_tolstring(L, -1, &bytes->size);
  lua_pop(L, 1); /* the table holds it */
}

int shim_publish(lua_State *L, shim_store *self, int last, int store_index,
                 void check(lua_State *L)) {
  outbox_message one, *messages = &one;
  size_t count = last > 1 ? (size_t)last - 1 : 0;
  luaL_argcheck(L, count > 0, 2, "table expected, got no value");
  if (count > 1) messages = lua_newuserdatauv(L, count * sizeof *messages, 0);

  shim_read_clock(L, self, store_index); /* before the messages, which it may change */
  bool make = self->lua_id_generator;
  for (int i = 2; i <= last; i++)
    make |= read_message(L, i, &messages[i - 2]);
  if (make) {
    lua_newtable(L);
    for (int i = 2; i <= last; i++)
      make_fields(L, self, store_index, i);
    for (int i = 2; i <= last; i++) { /* once more: what was called may have changed them */
      read_message(L, i, &messages[i - 2]);
      set_made(L, i, HEADERS, &messages[i - 2].headers);
      set_made(L, i, ID, &messages[i - 2].id);
    }
  }
  /* Whatever was called, and any finalizer that the collector ran, may have closed the store. */
  check(L);

  /* The ids are pushed first: what has been published must not fail for want of room for them. */
  shim_check(L, self, outbox_generate_ids(self->store, messages, count));
  luaL_checkstack(L, (int)count, "too many messages");
  for (size_t i = 0; i < count; i++)
    lua_pushlstring(L, messages[i].id.data, messages[i].id.size);
  check(L);
  shim_check(L, self, outbox_publish(self->store, messages, count));
  return (int)count;
}
