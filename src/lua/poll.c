/*
** Waiting for a descriptor, and time that passes evenly. For the publishers.
*/
#define _DEFAULT_SOURCE
#define _DARWIN_C_SOURCE

#include <poll.h>
#include <string.h>
#include <time.h>

#include "shim.h"

/***
Waits until a descriptor is ready, or a signal comes.
@function await_descriptor
@tparam integer fd
@tparam string events "r", "w" or "rw"
@tparam number seconds how long to wait at most; one hour where this is more
*/
static int await_descriptor(lua_State *L) {
  static const int64_t HOUR = INT64_C(3600000000);
  struct pollfd wanted = {.fd = (int)luaL_checkinteger(L, 1)};
  const char *events = luaL_checkstring(L, 2);
  int64_t left = shim_check_microseconds(L, 3);
  if (strchr(events, 'r') != NULL) wanted.events |= POLLIN;
  if (strchr(events, 'w') != NULL) wanted.events |= POLLOUT;
  left = left < 0 ? 0 : left < HOUR ? left : HOUR;
  poll(&wanted, 1, (int)((left + 999) / 1000));
  return 0;
}

/***
Returns how much time has passed since some moment, whatever is done to the system's clock.
@function elapsed
@treturn number seconds
*/
static int elapsed(lua_State *L) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  lua_pushnumber(L, (lua_Number)now.tv_sec + (lua_Number)now.tv_nsec / 1e9);
  return 1;
}

static const luaL_Reg FUNCTIONS[] = {
    {"await_descriptor", await_descriptor}, {"elapsed", elapsed}, {NULL, NULL}};

void shim_open_poll(lua_State *L) {
  luaL_setfuncs(L, FUNCTIONS, 0);
}
