/***
Making stores: on a connection of their own, or on a connection of the application's.
@module outbox.opening
*/
#include <string.h>
#include <unistd.h>

#include "shim.h"

/* --- Common to both -------------------------------------------------------------------------- */

/*
** Keeps an option in a user value of the store: a table with a function `method`, or that function
** alone. Returns whether the option is there.
*/
static bool set_callback(lua_State *L, int store_index, int options, const char *option,
                         const char *method, int value) {
  switch (lua_getfield(L, options, option)) {
  case LUA_TNIL: lua_pop(L, 1); return false;
  case LUA_TFUNCTION:
    lua_createtable(L, 0, 2);
    lua_insert(L, -2);
    lua_setfield(L, -2, method);
    break;
  case LUA_TTABLE:
    if (lua_getfield(L, -1, method) != LUA_TFUNCTION)
      luaL_argerror(L, options, lua_pushfstring(L, "%s must have a function '%s'", option, method));
    lua_pop(L, 1);
    break;
  default:
    luaL_argerror(L, options,
                  lua_pushfstring(L, "%s must be a function or a table, not a %s", option,
                                  luaL_typename(L, -1)));
  }
  lua_setiuservalue(L, store_index, value);
  return true;
}

/* Whether the engine's stores are counted, see shim_opened. */
static bool is_counted(const outbox_engine *engine) {
  return engine == &outbox_sqlite;
}

/*
** Pushes a store without a connection. The functions that call this have two upvalues: the default
** clock, and the counter of the open stores.
*/
static shim_store *push_store(lua_State *L, const outbox_engine *engine) {
  shim_opened *opened = lua_touserdata(L, lua_upvalueindex(2));
  if (is_counted(engine) && opened->count > 0 && opened->pid != getpid())
    shim_raise(L, "forked",
               "this process was forked from one with an open store; it cannot open any, because "
               "SQLite's locks do not survive a fork");
  if (is_counted(engine)) opened->pid = getpid();
  shim_store *self = lua_newuserdatauv(L, sizeof *self, STORE_VALUES);
  memset(self, 0, sizeof *self);
  self->engine = engine;
  luaL_setmetatable(L, STORE);
  lua_pushvalue(L, lua_upvalueindex(1));
  lua_setiuservalue(L, -2, CLOCK_VALUE);
  lua_pushvalue(L, lua_upvalueindex(2));
  lua_setiuservalue(L, -2, OPENED_VALUE);
  return self;
}

/* Reads the options that both know from the table at the index, for the store on the top. */
static void read_options(lua_State *L, shim_store *self, int index, outbox_options *options) {
  int store_index = lua_gettop(L);
  if (lua_getfield(L, index, "prefix") != LUA_TNIL) {
    luaL_argcheck(L, lua_type(L, -1) == LUA_TSTRING, index, "prefix must be a string");
    outbox_bytes prefix = shim_check_bytes(L, -1);
    luaL_argcheck(L, outbox_is_prefix(prefix), index, "the prefix is not a plain identifier");
    options->prefix = prefix.data; /* nothing is collected before the core copies it */
  }
  self->lua_clock = set_callback(L, store_index, index, "clock", "now", CLOCK_VALUE);
  self->lua_id_generator =
      set_callback(L, store_index, index, "id_generator", "generate_id", ID_GENERATOR_VALUE);
  if (self->lua_clock) {
    options->clock = shim_answer_clock;
    options->clock_context = self;
  }
  lua_settop(L, store_index);
}

/*
** now(): the time by the server of the store that is the upvalue. For the default clock of such a
** store, because its claims are made and judged by that time.
*/
static int server_now(lua_State *L) {
  const shim_store *self = lua_touserdata(L, lua_upvalueindex(1));
  int64_t now;
  if (self->store == NULL || self->engine->now(self->store, &now) != OUTBOX_OK)
    outbox_system_clock(NULL, &now);
  shim_push_seconds(L, now);
  return 1;
}

/* Sets the clock of the store on the top, which has none of its own. */
static void set_server_clock(lua_State *L) {
  lua_createtable(L, 0, 2);
  lua_pushvalue(L, -2);
  lua_pushcclosure(L, server_now, 1);
  lua_setfield(L, -2, "now");
  lua_getfield(L, lua_upvalueindex(1), "sleep");
  lua_setfield(L, -2, "sleep");
  lua_setiuservalue(L, -2, CLOCK_VALUE);
}

/* Counts the store that the core has made. Raises if it failed; the options are at the index. */
static void finish_store(lua_State *L, shim_store *self, int index, int code) {
  if (self->store == NULL) shim_raise(L, outbox_code_name(OUTBOX_NOMEM), "not enough memory");
  if (code == OUTBOX_MISUSE) shim_refuse(L, self, index);
  shim_check(L, self, code);
  if (!is_counted(self->engine)) return;
  self->opened = lua_touserdata(L, lua_upvalueindex(2));
  self->opened->count++;
}

/* --- Opening --------------------------------------------------------------------------------- */

static bool begins_with(const char *text, const char *start) {
  return strncmp(text, start, strlen(start)) == 0;
}

/*
** The engine for a path or a URL. That for PostgreSQL is the value of a module of another rock,
** which the first such URL loads. It must have been built with the same engine.h.
*/
static const outbox_engine *find_engine(lua_State *L, const char *path) {
  if (!begins_with(path, "postgresql://") && !begins_with(path, "postgres://"))
    return &outbox_sqlite;
  lua_getglobal(L, "require");
  lua_pushliteral(L, "outbox.need");
  lua_call(L, 1, 1);
  lua_pushliteral(L, "outbox.postgres");
  lua_pushliteral(L, "PostgreSQL needs the rock outbox-postgres");
  lua_pushliteral(L, "outbox-postgres");
  lua_call(L, 3, 1);
  const outbox_engine *engine = lua_touserdata(L, -1);
  if (!lua_islightuserdata(L, -1)) luaL_error(L, "the module outbox.postgres is no engine");
  if (strcmp(engine->version, OUTBOX_VERSION) != 0 || engine->size != sizeof *engine)
    shim_raise(L, outbox_code_name(OUTBOX_MISUSE),
               lua_pushfstring(L,
                               "outbox-postgres %s does not fit outbox " OUTBOX_VERSION
                               ": install the same version of both",
                               engine->version));
  lua_pop(L, 1);
  return engine;
}

/***
Opens a database and makes a store of it. The argument is the path of an SQLite database, or, where
it begins with `postgresql://` or `postgres://`, the URL of a PostgreSQL database, which needs the
rock outbox-postgres.

SQLite: creates the file where there is none. Puts the database into WAL mode, which is kept in the
file. A path that begins with `file:` is a URI, as SQLite defines them.

The functions among the options are called without a self, whenever they are needed, and before the
database is entered. So they may raise. Only `claim_entries` calls the clock once more inside the
write lock: there it must be quick, must not use the store (`misuse`), and if it raises or yields
the claim is rolled back (`callback`).
@function outbox.open
@tparam string path or URL
@tparam[opt] table options `prefix` (a string): of the tables' names, default "outbox_"; 1 to 64
letters, digits and underscores, no digit first. `mode`: "create" (the default); "write", which
needs a database that is there; or "read", which also changes nothing, so that the file need not be
writable. `synchronous`: when a commit waits for the disk,
"off", "normal" (enough for a processor), "full" (the default, right for publishing) or "extra".
`busy_timeout` (a number): how many seconds to wait for another connection's lock, default 5.
`clock`: a function that returns the time in seconds since the Unix epoch, or a table with that
function as `now`; default: the system's clock, or the clock of the PostgreSQL server.
`id_generator`: a function `(clock, message)` that returns an id, or a table with
that function as `generate_id`; default: a UUIDv7 that is made of the entry's place, which needs no
room in the database
@treturn outbox.store
@raise `cantopen`, `notadb`, `readonly`, `busy`, `encoding`; `misuse` where the rock outbox-postgres
is of another version; for a path, `forked` in a process that was forked from one with an open store
on a path: that one must close its stores before it forks, or fork before it opens any
*/
static int open_store(lua_State *L) {
  static const char *const OPTIONS[] = {"prefix", "mode",         "synchronous", "busy_timeout",
                                        "clock",  "id_generator", NULL};
  static const char *const MODES[] = {[OUTBOX_CREATE] = "create",
                                      [OUTBOX_WRITE] = "write",
                                      [OUTBOX_READ] = "read",
                                      [OUTBOX_READ + 1] = NULL};
  static const char *const SYNCHRONOUS[] = {[OUTBOX_SYNCHRONOUS_OFF] = "off",
                                            [OUTBOX_SYNCHRONOUS_NORMAL] = "normal",
                                            [OUTBOX_SYNCHRONOUS_FULL] = "full",
                                            [OUTBOX_SYNCHRONOUS_EXTRA] = "extra",
                                            [OUTBOX_SYNCHRONOUS_EXTRA + 1] = NULL};
  outbox_bytes path = shim_check_bytes(L, 1);
  luaL_argcheck(L, strlen(path.data) == path.size, 1, "a path cannot contain a NUL");
  outbox_options options = OUTBOX_DEFAULTS;
  lua_settop(L, 2);
  shim_store *self = push_store(L, find_engine(L, path.data));
  if (shim_check_options(L, 2, OPTIONS)) {
    options.synchronous = (enum outbox_synchronous)shim_opt_name(L, 2, "synchronous", SYNCHRONOUS,
                                                                 (int)options.synchronous);
    options.mode = (enum outbox_mode)shim_opt_name(L, 2, "mode", MODES, (int)options.mode);
    if (lua_getfield(L, 2, "busy_timeout") != LUA_TNIL) {
      double seconds = lua_tonumber(L, -1);
      luaL_argcheck(L, lua_type(L, -1) == LUA_TNUMBER && seconds >= 0 && seconds <= 1e6, 2,
                    "busy_timeout must be a number of seconds, at least 0");
      options.busy_timeout = (int)(seconds * 1000);
    }
    lua_settop(L, 3);
    read_options(L, self, 2, &options);
  }
  finish_store(L, self, 2, self->engine->open(&self->store, path.data, &options));
  if (self->engine != &outbox_sqlite && !self->lua_clock) set_server_clock(L);
  return 1;
}

/* --- Attaching ------------------------------------------------------------------------------- */

/***
Makes every connection that is opened from now on in this process known to `outbox.attach`, whatever
binding to the same SQLite library opens it. It is harmless to call this again, in any Lua state.
@function outbox.install
@raise `nomem`
*/
static int install(lua_State *L) {
  int code = outbox_install();
  if (code != OUTBOX_OK)
    shim_raise(L, outbox_code_name(code), "connections cannot be made known to outbox");
  return 0;
}

/* Raises the reason why a connection has not answered. The binding's error is on the top. */
static int raise_unknown(lua_State *L, lua_CFunction method) {
  const void *code;
  memcpy(&code, &method, sizeof code);
  if (method == NULL || outbox_shares_sqlite(code))
    lua_pushfstring(L,
                    "the connection does not know outbox (%s): call outbox.install() first, "
                    "then open it",
                    luaL_tolstring(L, -1, NULL));
  else
    lua_pushliteral(L, "the connection is of a second SQLite library in this process, or of no "
                       "SQLite at all; two libraries on one file drop each other's locks: attach "
                       "a function that runs SQL on it instead");
  return shim_raise(L, "misuse", lua_tostring(L, -1));
}

/* Does the handshake. Pushes the error that the function at the index has raised, else nil. */
static struct sqlite3 *shake_hands(lua_State *L, int index) {
  struct sqlite3 *db = NULL;
  lua_pushvalue(L, index);
  outbox_await_handshake(&db);
  int status = lua_pcall(L, 0, 0, 0);
  outbox_await_handshake(NULL);
  if (status == LUA_OK) lua_pushnil(L);
  return db;
}

/*
** attach(select, options, method, pointer, lazy), for outbox.attach. `select` is a function that
** runs the handshake on the connection, with its binding; `method` is a C function of the binding;
** `pointer` is the connection's address, if the binding gives it; `lazy`: the binding begins a
** transaction only with its first statement.
*/
static int attach(lua_State *L) {
  static const char *const OPTIONS[] = {"prefix", "clock", "id_generator", NULL};
  outbox_options options = OUTBOX_DEFAULTS;
  lua_settop(L, 5);
  lua_CFunction method = lua_tocfunction(L, 3);
  const void *code;
  memcpy(&code, &method, sizeof code);
  struct sqlite3 *db = shake_hands(L, 1);
  if (db == NULL && lua_islightuserdata(L, 4) && outbox_shares_sqlite(code))
    db = lua_touserdata(L, 4);
  if (db == NULL) raise_unknown(L, method);
  shim_store *self = push_store(L, &outbox_sqlite);
  int store_index = lua_gettop(L);
  if (shim_check_options(L, 2, OPTIONS)) read_options(L, self, 2, &options);
  self->attached = true;
  self->lazy = lua_toboolean(L, 5);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, store_index, SELECT_VALUE);
  finish_store(L, self, 2, outbox_attach(&self->store, db, &options));
  return 1;
}

/***
Whether a store is on a connection of the application's.
@function is_attached
@tparam outbox.store store
@treturn boolean
*/
static int is_attached(lua_State *L) {
  shim_store *self = luaL_checkudata(L, 1, STORE);
  lua_pushboolean(L, self->attached);
  return 1;
}

/***
Whether a value may be the option `prefix`.
@function is_prefix
@tparam any value
@treturn boolean false for all but strings
*/
static int is_prefix(lua_State *L) {
  bool ok = lua_type(L, 1) == LUA_TSTRING && outbox_is_prefix(shim_check_bytes(L, 1));
  lua_pushboolean(L, ok);
  return 1;
}

/* --- The module ------------------------------------------------------------------------------ */

static const luaL_Reg FUNCTIONS[] = {{"open", open_store},     {"attach", attach},
                                     {"install", install},     {"is_attached", is_attached},
                                     {"is_prefix", is_prefix}, {NULL, NULL}};

void shim_open_opening(lua_State *L) {
  lua_pushliteral(L, OUTBOX_HANDSHAKE);
  lua_setfield(L, -2, "HANDSHAKE");
  lua_getfield(L, -1, "clock");
  shim_opened *opened = lua_newuserdatauv(L, sizeof *opened, 0);
  memset(opened, 0, sizeof *opened);
  luaL_setfuncs(L, FUNCTIONS, 2);
}
