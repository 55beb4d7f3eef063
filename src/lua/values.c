/***
The clock, UUIDs and blobs. Of the functions that are written in C, these need no store.
Applications use those that `require("outbox")` gives them.
@module outbox.core
*/
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <string.h>
#include <time.h>

#include "shim.h"

/* --- Time ------------------------------------------------------------------------------------ */

/***
Returns the time of day.
@function clock.now
@treturn number seconds since the Unix epoch, with microseconds
*/
static int clock_now(lua_State *L) {
  int64_t now;
  outbox_system_clock(NULL, &now);
  shim_push_seconds(L, now);
  return 1;
}

/***
Blocks the process for some time. A signal ends the sleep early, so that a handler that
`debug.sethook` has set gets its turn.
@function clock.sleep
@tparam number seconds how long; does not block where this is 0 or negative
*/
static int clock_sleep(lua_State *L) {
  int64_t microseconds = shim_check_microseconds(L, 1);
  if (microseconds < 0) microseconds = 0;
  struct timespec time = {.tv_sec = microseconds / 1000000,
                          .tv_nsec = microseconds % 1000000 * 1000};
  nanosleep(&time, NULL);
  return 0;
}

/* --- UUIDs ----------------------------------------------------------------------------------- */

static int push_uuid(lua_State *L, outbox_id_generator *generator, void *context, int64_t now) {
  outbox_message message;
  if (generator(context, now, &message) != 0) return luaL_error(L, "%s", strerror(errno));
  lua_pushlstring(L, message.id.data, message.id.size);
  return 1;
}

/***
Makes an id: a UUIDv7. These ids rise with time. The default ids are of the same form, but made of
the entry's place, and take no room in the database.
@function uuid_v7
@tparam[opt] table clock a table with a function `now()` that returns seconds since the Unix epoch.
The id holds this time, or the time of the previous id if that is later. Default: the system's
clock
@treturn string 36 characters
*/
static int uuid_v7(lua_State *L) {
  outbox_uuid_state *state = lua_touserdata(L, lua_upvalueindex(1));
  int64_t now = 0;
  if (!lua_isnoneornil(L, 1)) {
    luaL_checktype(L, 1, LUA_TTABLE);
    lua_getfield(L, 1, "now");
    lua_call(L, 0, 1);
    bool ok = lua_type(L, -1) == LUA_TNUMBER && shim_microseconds(lua_tonumber(L, -1), &now);
    luaL_argcheck(L, ok, 1, "its now() must return a time in seconds");
  } else {
    outbox_system_clock(NULL, &now);
  }
  state->left = 0; /* a forked child must not use its parent's random bytes */
  return push_uuid(L, outbox_uuid_v7, state, now);
}

/***
Makes an id: a UUIDv4, which is all random. The larger the outbox is, the slower publishing becomes
with such ids.
@function uuid_v4
@treturn string 36 characters
*/
static int uuid_v4(lua_State *L) {
  return push_uuid(L, outbox_uuid_v4, NULL, 0);
}

/* --- Blobs ----------------------------------------------------------------------------------- */

/***
Wraps a string, so that `txn:execute` and `txn:rows` bind it as a BLOB instead of as TEXT.
@function blob
@tparam string bytes
@treturn outbox.blob
*/
static int blob(lua_State *L) {
  luaL_checktype(L, 1, LUA_TSTRING);
  lua_newuserdatauv(L, 0, 1);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  luaL_setmetatable(L, BLOB);
  return 1;
}

/* --- The module ------------------------------------------------------------------------------ */

static const luaL_Reg CLOCK[] = {{"now", clock_now}, {"sleep", clock_sleep}, {NULL, NULL}};

static const luaL_Reg FUNCTIONS[] = {{"uuid_v4", uuid_v4}, {"blob", blob}, {NULL, NULL}};

void shim_open_values(lua_State *L) {
  luaL_newmetatable(L, BLOB);
  lua_pop(L, 1);
  luaL_setfuncs(L, FUNCTIONS, 0);
  outbox_uuid_state *state = lua_newuserdatauv(L, sizeof *state, 0);
  memset(state, 0, sizeof *state);
  lua_pushcclosure(L, uuid_v7, 1);
  lua_setfield(L, -2, "uuid_v7");
  luaL_newlib(L, CLOCK);
  lua_setfield(L, -2, "clock");
}
