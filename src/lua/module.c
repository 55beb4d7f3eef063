/***
The module `outbox.core`: errors, time, UUIDs and blobs; the types have files of their own.
Users have of it what `require("outbox")` gives them; the rest is for the modules in Lua.
@module outbox.core
*/
#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "shim.h"

/* --- Errors ---------------------------------------------------------------------------------- */

int shim_raise(lua_State *L, const char *code, const char *message) {
  lua_createtable(L, 0, 2);
  lua_pushstring(L, code);
  lua_setfield(L, -2, "code");
  lua_pushstring(L, message);
  lua_setfield(L, -2, "message");
  luaL_setmetatable(L, ERROR);
  return lua_error(L);
}

static int error_tostring(lua_State *L) {
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_getfield(L, 1, "message");
  lua_getfield(L, 1, "code");
  lua_pushfstring(L, "outbox: %s (%s)", luaL_tolstring(L, 2, NULL), luaL_tolstring(L, 3, NULL));
  return 1;
}

/* --- Time ------------------------------------------------------------------------------------ */

bool shim_microseconds(double seconds, int64_t *microseconds) {
  if (!(fabs(seconds) <= 1e11)) return false; /* a NaN neither */
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

/***
The time of day.
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
Blocks the process for some time, or until a signal comes, so that a handler set by `debug.sethook`
gets its turn.
@function clock.sleep
@tparam number seconds not negative
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
An ID generator: UUIDv7, whose ids rise with time. The default.
@function uuid_v7
@tparam[opt] table clock its `now()` is the time in the id, unless an id made before is later;
default the system's
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
  state->left = 0; /* a forked child must not use what its parent has left */
  return push_uuid(L, outbox_uuid_v7, state, now);
}

/***
An ID generator: UUIDv4, all random. The larger the outbox, the slower it makes publishing.
@function uuid_v4
@treturn string 36 characters
*/
static int uuid_v4(lua_State *L) {
  return push_uuid(L, outbox_uuid_v4, NULL, 0);
}

/* --- Blobs ----------------------------------------------------------------------------------- */

/***
Marks a string to be bound as a BLOB instead of as TEXT by `txn:execute` and `txn:rows`.
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

/* --- Tables ---------------------------------------------------------------------------------- */

/***
The values of some fields of each table in an array: what a loop does in Lua, in half the time.
@function columns
@tparam {table,...} tables
@tparam string ... names of fields
@treturn table... for each field an array, with a hole where a table has none
*/
static int columns(lua_State *L) {
  int fields = lua_gettop(L) - 1;
  luaL_checktype(L, 1, LUA_TTABLE);
  lua_Integer count = (lua_Integer)lua_rawlen(L, 1);
  luaL_checkstack(L, fields + 3, "too many fields");
  for (int field = 0; field < fields; field++)
    lua_createtable(L, (int)count, 0);
  for (lua_Integer i = 1; i <= count; i++) {
    lua_rawgeti(L, 1, i);
    luaL_checktype(L, -1, LUA_TTABLE);
    for (int field = 0; field < fields; field++) {
      lua_pushvalue(L, 2 + field);
      lua_rawget(L, -2);
      lua_rawseti(L, 2 + fields + field, i);
    }
    lua_pop(L, 1);
  }
  return fields;
}

/* --- Files ----------------------------------------------------------------------------------- */

/***
Has what was written to a file reach the disk.
@function sync
@tparam file file of Lua's io library
@treturn boolean true; or nil, what went wrong and its number, as in that library
*/
static int sync_file(lua_State *L) {
  luaL_Stream *stream = luaL_checkudata(L, 1, LUA_FILEHANDLE);
  luaL_argcheck(L, stream->closef != NULL, 1, "closed file");
  return luaL_fileresult(L, fflush(stream->f) == 0 && fsync(fileno(stream->f)) == 0, NULL);
}

/* --- Module ---------------------------------------------------------------------------------- */

static const luaL_Reg CLOCK[] = {{"now", clock_now}, {"sleep", clock_sleep}, {NULL, NULL}};

static const luaL_Reg FUNCTIONS[] = {
    {"uuid_v4", uuid_v4}, {"blob", blob}, {"columns", columns}, {"sync", sync_file}, {NULL, NULL}};

int luaopen_outbox_core(lua_State *L);

int luaopen_outbox_core(lua_State *L) {
  luaL_newmetatable(L, ERROR);
  lua_pushcfunction(L, error_tostring);
  lua_setfield(L, -2, "__tostring");
  luaL_newmetatable(L, BLOB);

  luaL_newlib(L, FUNCTIONS);
  outbox_uuid_state *state = lua_newuserdatauv(L, sizeof *state, 0);
  memset(state, 0, sizeof *state);
  lua_pushcclosure(L, uuid_v7, 1);
  lua_setfield(L, -2, "uuid_v7");
  luaL_newlib(L, CLOCK);
  lua_setfield(L, -2, "clock");
  lua_pushliteral(L, OUTBOX_LAPSED);
  lua_setfield(L, -2, "LAPSED");
  lua_pushliteral(L, OUTBOX_VERSION);
  lua_setfield(L, -2, "_VERSION");
  shim_open_store(L);
  shim_open_transaction(L);
  shim_open_process(L);
  return 1;
}
