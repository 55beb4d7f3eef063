/*
** What the clients of all brokers share: their type, their results, and a guard against SIGPIPE.
*/
#define _DEFAULT_SOURCE

#include "client.h"

#include <errno.h>
#include <string.h>
#include <time.h>

int client_module(lua_State *L, const char *name, lua_CFunction connect, const luaL_Reg *methods) {
  luaL_newmetatable(L, name);
  lua_newtable(L);
  luaL_setfuncs(L, methods, 0);
  lua_getfield(L, -1, "close");
  lua_pushvalue(L, -1);
  lua_setfield(L, -4, "__gc");
  lua_setfield(L, -3, "__close");
  lua_setfield(L, -2, "__index");
  lua_newtable(L);
  lua_pushcfunction(L, connect);
  lua_setfield(L, -2, "connect");
  return 1;
}

void *client_make(lua_State *L, const char *name, size_t size) {
  void *self = lua_newuserdatauv(L, size, 1);
  memset(self, 0, size);
  lua_newtable(L);
  lua_setiuservalue(L, -2, 1);
  luaL_setmetatable(L, name);
  return self;
}

const char *client_option(lua_State *L, int index, const char *name) {
  lua_getfield(L, index, name);
  const char *text = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : NULL;
  lua_pop(L, 1);
  return text;
}

lua_Integer client_number(lua_State *L, int index, const char *name, lua_Integer none) {
  lua_getfield(L, index, name);
  lua_Integer number = luaL_optinteger(L, -1, none);
  lua_pop(L, 1);
  return number;
}

int client_lose(lua_State *L, const char *reason) {
  lua_pushnil(L);
  lua_pushstring(L, reason);
  return 2;
}

/* --- Results --------------------------------------------------------------------------------- */

void client_begin(lua_State *L, int index, size_t count) {
  index = lua_absindex(L, index);
  lua_createtable(L, (int)count, 0);
  lua_setiuservalue(L, index, 1);
}

void client_confirm(lua_State *L, int index, size_t item) {
  index = lua_absindex(L, index);
  lua_pushboolean(L, true);
  client_refuse(L, index, item);
}

void client_refuse(lua_State *L, int index, size_t item) {
  index = lua_absindex(L, index);
  lua_getiuservalue(L, index, 1);
  lua_insert(L, -2);
  lua_rawseti(L, -2, (lua_Integer)item);
  lua_pop(L, 1);
}

int client_results(lua_State *L) {
  luaL_checktype(L, 1, LUA_TUSERDATA);
  lua_getiuservalue(L, 1, 1);
  return 1;
}

/* --- SIGPIPE --------------------------------------------------------------------------------- */

static void only_pipe(sigset_t *set) {
  sigemptyset(set);
  sigaddset(set, SIGPIPE);
}

void client_guard_begin(client_guard *guard) {
  sigset_t pipe, pending;
  only_pipe(&pipe);
  sigemptyset(&pending);
  sigpending(&pending);
  guard->pending = sigismember(&pending, SIGPIPE) == 1;
  pthread_sigmask(SIG_BLOCK, &pipe, &guard->former);
}

/* Takes away the signal that came meanwhile. One that was there before is not ours. */
void client_guard_end(const client_guard *guard) {
  static const struct timespec NO_TIME = {0, 0};
  int error = errno;
  sigset_t pipe;
  only_pipe(&pipe);
  if (!guard->pending)
    while (sigtimedwait(&pipe, NULL, &NO_TIME) < 0 && errno == EINTR)
      continue;
  pthread_sigmask(SIG_SETMASK, &guard->former, NULL);
  errno = error;
}
