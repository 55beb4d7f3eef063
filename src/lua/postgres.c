/*
** The module `outbox.postgres`, of the rock outbox-postgres. Its value is the address of the
** engine, for outbox.open. It uses no other file of the shim, which is in another shared object.
*/
#include <lauxlib.h>
#include <lua.h>

#include "../engine.h"

int luaopen_outbox_postgres(lua_State *L);

int luaopen_outbox_postgres(lua_State *L) {
  lua_pushlightuserdata(L, (void *)&outbox_postgres);
  return 1;
}
