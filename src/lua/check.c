/*
** The ground floor of the shim: the error type, checks of arguments, conversions.
*/
#include <math.h>
#include <string.h>

#include "shim.h"

/* --- Errors ---------------------------------------------------------------------------------- */

/* The message is copied first: a finalizer that runs later may close the store that holds it. */
int shim_raise(lua_State *L, const char *code, const char *message) {
  lua_pushstring(L, message);
  lua_createtable(L, 0, 2);
  lua_insert(L, -2);
  lua_setfield(L, -2, "message");
  lua_pushstring(L, code);
  lua_setfield(L, -2, "code");
  luaL_setmetatable(L, ERROR);
  return lua_error(L);
}

void shim_check(lua_State *L, const shim_store *self, int code) {
  if (code != OUTBOX_OK)
    shim_raise(L, outbox_code_name(code), self->engine->error_message(self->store));
}

int shim_refuse(lua_State *L, const shim_store *self, int index) {
  return luaL_argerror(L, index, lua_pushstring(L, self->engine->error_message(self->store)));
}

static int error_tostring(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_getfield(L, 1, "message");
  lua_getfield(L, 1, "code");
  lua_pushfstring(L, "outbox: %s (%s)", luaL_tolstring(L, 2, NULL), luaL_tolstring(L, 3, NULL));
  return 1;
}

/* --- Strings --------------------------------------------------------------------------------- */

outbox_bytes shim_check_bytes(lua_State *L, int index) {
  luaL_checktype(L, index, LUA_TSTRING);
  outbox_bytes bytes;
  bytes.data = lua_tolstring(L, index, &bytes.size);
  return bytes;
}

outbox_bytes shim_opt_bytes(lua_State *L, int index) {
  return lua_isnoneornil(L, index) ? (outbox_bytes){NULL, 0} : shim_check_bytes(L, index);
}

void shim_convert_headers(lua_State *L, const char *function) {
  lua_getglobal(L, "require");
  lua_pushliteral(L, "outbox.headers");
  lua_call(L, 1, 1);
  lua_getfield(L, -1, function);
  lua_insert(L, -3);
  lua_pop(L, 1);
  lua_call(L, 1, 1);
}

/* --- Options --------------------------------------------------------------------------------- */

bool shim_check_options(lua_State *L, int index, const char *const *names) {
  if (lua_isnoneornil(L, index)) return false;
  luaL_checktype(L, index, LUA_TTABLE);
  for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1)) {
    int i = 0;
    const char *name = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "";
    while (names[i] != NULL && strcmp(name, names[i]) != 0)
      i++;
    if (names[i] == NULL) {
      name = luaL_tolstring(L, -2, NULL);
      luaL_argerror(L, index, lua_pushfstring(L, "unknown option '%s'", name));
    }
  }
  return true;
}

int64_t shim_opt_integer(lua_State *L, int index, const char *option, int64_t minimum,
                         int64_t standard) {
  if (lua_getfield(L, index, option) == LUA_TNIL) return standard;
  int is_integer;
  int64_t value = lua_tointegerx(L, -1, &is_integer);
  if (!is_integer || lua_type(L, -1) != LUA_TNUMBER || value < minimum)
    luaL_argerror(
        L, index,
        lua_pushfstring(L, "%s must be an integer, at least %I", option, (LUAI_UACINT)minimum));
  return value;
}

bool shim_opt_boolean(lua_State *L, int index, const char *option) {
  int type = lua_getfield(L, index, option);
  if (type != LUA_TNIL && type != LUA_TBOOLEAN)
    luaL_argerror(L, index, lua_pushfstring(L, "%s must be a boolean", option));
  return lua_toboolean(L, -1);
}

int shim_opt_name(lua_State *L, int index, const char *option, const char *const *names,
                  int standard) {
  if (lua_getfield(L, index, option) == LUA_TNIL) return standard;
  const char *name = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
  luaL_Buffer known;
  for (int i = 0; names[i] != NULL; i++)
    if (strcmp(name, names[i]) == 0) return i;
  luaL_buffinit(L, &known);
  for (int i = 0; names[i] != NULL; i++) {
    lua_pushfstring(L, "%s\"%s\"", i > 0 ? ", " : "", names[i]);
    luaL_addvalue(&known);
  }
  luaL_pushresult(&known);
  const char *list = lua_tostring(L, -1);
  return luaL_argerror(L, index, lua_pushfstring(L, "%s must be one of %s", option, list));
}

/* --- Time ------------------------------------------------------------------------------------ */

bool shim_microseconds(double seconds, int64_t *microseconds) {
  if (!(fabs(seconds) <= 1e11)) return false; /* refuses a NaN too */
  *microseconds = (int64_t)llround(seconds * 1e6);
  return true;
}

int64_t shim_check_microseconds(lua_State *L, int index) {
  int64_t microseconds = 0;
  luaL_checktype(L, index, LUA_TNUMBER);
  bool ok = shim_microseconds(luaL_checknumber(L, index), &microseconds);
  luaL_argcheck(L, ok, index, "time out of range");
  return microseconds;
}

void shim_push_seconds(lua_State *L, int64_t microseconds) {
  lua_pushnumber(L, (lua_Number)microseconds / 1e6);
}

void shim_set_seconds(lua_State *L, const char *field, int64_t microseconds) {
  shim_push_seconds(L, microseconds);
  lua_setfield(L, -2, field);
}

/* --- The module ------------------------------------------------------------------------------ */

void shim_open_check(lua_State *L) {
  static const char *const CODES[] = {
#define NAME(code, name) name,
      OUTBOX_CODES(NAME)
#undef NAME
  };
  luaL_newmetatable(L, ERROR);
  lua_pushcfunction(L, error_tostring);
  lua_setfield(L, -2, "__tostring");
  lua_setfield(L, -2, "Error"); /* for errors that are made in Lua */
  size_t count = sizeof CODES / sizeof *CODES;
  lua_createtable(L, (int)count, 0);
  for (size_t i = 0; i < count; i++) {
    lua_pushstring(L, CODES[i]);
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
  lua_setfield(L, -2, "CODES");
}
