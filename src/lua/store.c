/***
A store: one connection to the database that holds the outbox. `outbox.open` and `outbox.attach`
make one.

All methods raise on failure: an `outbox.error`, a table with a `code` and a `message`, when the
database reports something; an ordinary argument error for a wrong call. Whatever is raised, the
database is as it was before the call. The codes: `busy`, `cantopen`, `closed`, `constraint`,
`corrupt`, `disconnected`, `duplicate`, `encoding`, `error`, `forked`, `full`, `io`, `misuse`,
`newer`, `nomem`, `notadb`, `readonly`, `schema`, `toobig`.
@classmod outbox.store
*/
#include "shim.h"

/* --- What the store was opened with ---------------------------------------------------------- */

/***
Returns the clock that the store was opened with, as a table; `outbox.clock` by default.
@function store:clock
@treturn outbox.clock
*/
static int store_clock(lua_State *L) {
  shim_check_store(L, 1);
  lua_getiuservalue(L, 1, CLOCK_VALUE);
  return 1;
}

/***
Returns the prefix of the tables' names.
@function store:prefix
@treturn string
*/
static int store_prefix(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  lua_pushstring(L, self->engine->prefix(self->store));
  return 1;
}

/***
Tells how SQL for the store's database is to be written.
@function store:dialect
@treturn string the name of the engine, "sqlite" or "postgres"
@treturn string the first parameter of a statement, "?" or "$1"
@local
*/
static int store_dialect(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  lua_pushstring(L, self->engine->name);
  lua_pushstring(L, self->engine->parameter);
  return 2;
}

/* --- Publishing ------------------------------------------------------------------------------ */

static void check_first(lua_State *L) {
  shim_check_usable(L, lua_touserdata(L, 1), 1);
}

/***
Adds messages to the outbox, in this order, all or none. They become part of the transaction that is
open on the store. If none is open, the call has a transaction of its own.
@function store:publish
@tparam outbox.message ... one table for each message. Every field is optional: `id`, `namespace`,
`key` (or an integer: 7 is the text "7"), `payload` (strings), `headers` (a table of strings) and
`deliver_at` (a number, seconds since the Unix epoch). Fields are read raw, without metamethods
@treturn string... the id of each entry
@raise `duplicate`, `constraint`, `toobig`, `busy`, `full`; what the clock or the ID generator
raises
*/
static int store_publish(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  return shim_publish(L, self, lua_gettop(L), 1, check_first);
}

/* --- Migrating and closing ------------------------------------------------------------------- */

/***
Creates the outbox's tables, or brings those of an older version up to date, in one transaction. It
is harmless to run it again, or in two processes at once.
@function store:migrate
@raise `newer` when the tables are from a newer version of this library; `busy`, `full`
*/
static int store_migrate(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  shim_check(L, self, self->engine->migrate(self->store));
  return 0;
}

/***
Closes the store, and rolls back what is open on it. Closing it again does nothing. A to-be-closed
variable and the garbage collector do this as well.
@function store:close
@raise `misuse` in the middle of another call: in a hook of the application's connection, or in the
clock when `claim_entries` calls it inside the write lock
*/
static int store_close(lua_State *L) {
  shim_store *self = luaL_checkudata(L, 1, STORE);
  shim_check_clock(L, self);
  int code = shim_close(self);
  shim_check(L, self, code);
  return 0;
}

static int store_tostring(lua_State *L) {
  shim_store *self = luaL_checkudata(L, 1, STORE);
  lua_pushfstring(L, STORE " (%s): %p", self->store != NULL ? "open" : "closed", (void *)self);
  return 1;
}

/* --- The type -------------------------------------------------------------------------------- */

static const luaL_Reg METHODS[] = {{"clock", store_clock},
                                   {"prefix", store_prefix},
                                   {"dialect", store_dialect},
                                   {"publish", store_publish},
                                   {"migrate", store_migrate},
                                   {"close", store_close},
                                   {NULL, NULL}};

static const luaL_Reg METAMETHODS[] = {
    {"__gc", store_close}, {"__close", store_close}, {"__tostring", store_tostring}, {NULL, NULL}};

void shim_open_store(lua_State *L) {
  luaL_newmetatable(L, STORE);
  luaL_setfuncs(L, METAMETHODS, 0);
  luaL_newlib(L, METHODS);
  shim_add_claiming(L);
  shim_add_lane(L);
  shim_add_settling(L);
  shim_add_listing(L);
  shim_add_steering(L);
  lua_pushvalue(L, -1);
  lua_setfield(L, -3, "__index");
  lua_setfield(L, -3, "store"); /* where the module `outbox` adds the methods that are in Lua */
  lua_pop(L, 1);
}
