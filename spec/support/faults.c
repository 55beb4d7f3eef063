/*
** Makes calls to the operating system fail, for the specs; see spec/core/faults.h.
**
**     faults.begin()              affects all databases that are opened from now on
**     faults.finish()
**     faults.kinds                a list of names
**     faults.arm(kind, n, for_ever)   the n-th call of a kind fails; if for_ever, all later too
**     failed = faults.disarm()
*/
#include <lauxlib.h>
#include <lua.h>

#include "../core/faults.h"

static int faults_begin(lua_State *L) {
  (void)L;
  begin_faults();
  return 0;
}

static int faults_finish(lua_State *L) {
  (void)L;
  end_faults();
  return 0;
}

static int faults_arm(lua_State *L) {
  int n = (int)luaL_checkinteger(L, 2);
  arm_fault((enum fault)(luaL_checkinteger(L, 1) - 1), n, lua_toboolean(L, 3));
  return 0;
}

static int faults_disarm(lua_State *L) {
  lua_pushboolean(L, disarm_fault());
  return 1;
}

int luaopen_faults(lua_State *L);

int luaopen_faults(lua_State *L) {
  static const luaL_Reg FUNCTIONS[] = {{"begin", faults_begin},
                                       {"finish", faults_finish},
                                       {"arm", faults_arm},
                                       {"disarm", faults_disarm},
                                       {NULL, NULL}};
  luaL_newlib(L, FUNCTIONS);
  lua_createtable(L, FAULTS, 0);
  for (int i = 0; i < FAULTS; i++) {
    lua_pushstring(L, FAULT_NAMES[i]);
    lua_rawseti(L, -2, i + 1);
  }
  lua_setfield(L, -2, "kinds");
  return 1;
}
