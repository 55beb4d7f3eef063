/***
A transaction, which `store:transaction` passes to its function.
@classmod outbox.transaction
*/
#include <string.h>

#include "shim.h"

/* --- Beginning and ending, for store:transaction ---------------------------------------------- */

/*
** new(store): a transaction that has not begun. It is begun by a call of its own, so that no error
** can come between its begin and its close.
*/
static int new_transaction(lua_State *L) {
  shim_store *store = shim_check_store(L, 1);
  if (store->attached)
    shim_raise(L, "misuse", "the connection has transactions of the application's; use those");
  shim_transaction *self = lua_newuserdatauv(L, sizeof *self, TRANSACTION_VALUES);
  memset(self, 0, sizeof *self);
  luaL_setmetatable(L, TRANSACTION);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, STORE_VALUE);
  lua_pushthread(L);
  lua_setiuservalue(L, -2, OWNER_VALUE);
  self->store = store;
  return 1;
}

/* begin(txn) */
static int begin(lua_State *L) {
  shim_transaction *self = luaL_checkudata(L, 1, TRANSACTION);
  lua_getiuservalue(L, 1, STORE_VALUE);
  shim_store *store = shim_check_store(L, 2);
  shim_check(L, store, store->engine->begin(store->store));
  if (store->innermost == NULL) store->owner = L;
  self->outer = store->innermost;
  self->open = true;
  store->innermost = self;
  return 0;
}

/* commit(txn, ...): returns its arguments after the transaction. */
static int commit(lua_State *L) {
  shim_transaction *self = shim_check_transaction(L);
  shim_store *store = self->store;
  while (store->innermost != self)
    shim_roll_back(store->innermost);
  shim_pop_transaction(store);
  shim_check(L, store, store->engine->commit(store->store));
  return lua_gettop(L) - 1;
}

static int transaction_close(lua_State *L) {
  shim_transaction *self = luaL_checkudata(L, 1, TRANSACTION);
  if (self->open) shim_check_idle(L, self->store);
  shim_roll_back(self);
  return 0;
}

/* --- Methods --------------------------------------------------------------------------------- */

/* Checks again: a callback, or a finalizer, may have ended the transaction. */
static void check_first(lua_State *L) {
  shim_check_open(L, lua_touserdata(L, 1));
}

/***
Adds messages to the outbox, as `store:publish` does, in this transaction.
@function txn:publish
@tparam outbox.message ... one table for each message
@treturn string... the id of each entry
@raise as `store:publish` does
*/
static int transaction_publish(lua_State *L) {
  shim_transaction *self = shim_check_transaction(L);
  int last = lua_gettop(L);
  lua_getiuservalue(L, 1, STORE_VALUE);
  return shim_publish(L, self->store, last, last + 1, check_first);
}

/* --- The type -------------------------------------------------------------------------------- */

static const luaL_Reg METHODS[] = {{"publish", transaction_publish}, {NULL, NULL}};

static const luaL_Reg METAMETHODS[] = {
    {"__gc", transaction_close}, {"__close", transaction_close}, {NULL, NULL}};

static const luaL_Reg FUNCTIONS[] = {
    {"new", new_transaction}, {"begin", begin}, {"commit", commit}, {NULL, NULL}};

void shim_open_transaction(lua_State *L) {
  luaL_newmetatable(L, TRANSACTION);
  luaL_setfuncs(L, METAMETHODS, 0);
  luaL_newlib(L, METHODS);
  shim_add_sql(L);
  lua_setfield(L, -2, "__index");
  lua_pop(L, 1);
  luaL_setfuncs(L, FUNCTIONS, 0);
}
