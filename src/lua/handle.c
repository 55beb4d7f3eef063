/*
** The store as a userdata: who may use it, its clock, and what is open on it.
**
** A store knows its open transactions, and a transaction its open iterators. When one of them
** ends, it ends everything inside it, so the order of the garbage collector does not matter.
*/
#include <stdlib.h>
#include <unistd.h>

#include "shim.h"

/* --- Checks ---------------------------------------------------------------------------------- */

/*
** Some bindings begin the application's transaction only with its next statement. The store's work
** before that must not be committed alone, so such a statement is run first.
*/
static void begin_theirs(lua_State *L, shim_store *self, int index) {
  if (outbox_connection(self->store) == NULL || self->engine->in_transaction(self->store)) return;
  lua_getiuservalue(L, index, SELECT_VALUE);
  lua_call(L, 0, 0);
}

void shim_check_clock(lua_State *L, shim_store *self) {
  if (self->asking) shim_raise(L, "misuse", "the store is in the middle of another call");
}

void shim_check_idle(lua_State *L, shim_store *self) {
  shim_check_clock(L, self);
  if (self->reading) shim_raise(L, "busy", "the store is in the middle of a reading");
}

shim_store *shim_check_store(lua_State *L, int index) {
  shim_store *self = luaL_checkudata(L, index, STORE);
  shim_check_usable(L, self, index);
  return self;
}

void shim_check_usable(lua_State *L, shim_store *self, int index) {
  if (self->store == NULL) shim_raise(L, "closed", "the store is closed");
  shim_check_idle(L, self);
  if (self->innermost != NULL && self->owner != L)
    shim_raise(L, "busy", "another coroutine has a transaction open on this store; use its txn");
  if (self->lazy) begin_theirs(L, self, index);
  if (self->store == NULL) shim_raise(L, "closed", "the store is closed");
}

shim_transaction *shim_check_transaction(lua_State *L) {
  shim_transaction *self = luaL_checkudata(L, 1, TRANSACTION);
  shim_check_open(L, self);
  return self;
}

void shim_check_open(lua_State *L, shim_transaction *self) {
  if (!self->open) shim_raise(L, "closed", "the transaction has ended");
  shim_check_idle(L, self->store);
}

/* --- The clock ------------------------------------------------------------------------------- */

void shim_read_clock(lua_State *L, shim_store *self, int index) {
  if (!self->lua_clock) return;
  lua_getiuservalue(L, index, CLOCK_VALUE);
  lua_getfield(L, -1, "now");
  lua_call(L, 0, 1);
  if (lua_type(L, -1) != LUA_TNUMBER || !shim_microseconds(lua_tonumber(L, -1), &self->now))
    luaL_error(L, "the clock's now() must return a time in seconds, not %s",
               luaL_tolstring(L, -1, NULL));
  lua_pop(L, 2);
}

/* The store is the argument. */
static int ask_clock(lua_State *L) {
  shim_read_clock(L, lua_touserdata(L, 1), 1);
  return 0;
}

int shim_answer_clock(void *context, int64_t *now) {
  shim_store *self = context;
  self->status = LUA_OK;
  if (self->claiming != NULL && self->answered) {
    lua_pushcfunction(self->claiming, ask_clock);
    lua_pushvalue(self->claiming, 1);
    self->asking = true;
    self->status = lua_pcall(self->claiming, 1, 0, 0);
    self->asking = false;
  }
  self->answered = true;
  *now = self->now;
  return self->status == LUA_OK ? 0 : -1;
}

void shim_begin_asking(lua_State *L, shim_store *self) {
  self->claiming = self->lua_clock ? L : NULL;
  self->answered = false;
  self->status = LUA_OK;
}

void shim_end_asking(lua_State *L, shim_store *self) {
  self->claiming = NULL;
  if (self->status == LUA_ERRMEM) lua_error(L);
  if (self->status == LUA_OK) return;
  luaL_tolstring(L, -1, NULL);
  shim_raise(L, outbox_code_name(OUTBOX_CALLBACK),
             lua_pushfstring(L, "the clock failed: %s", lua_tostring(L, -1)));
}

/* --- Ending ---------------------------------------------------------------------------------- */

void shim_close_rows(shim_rows *self) {
  if (self->transaction == NULL) return;
  if (self->previous != NULL)
    self->previous->next = self->next;
  else
    self->transaction->first = self->next;
  if (self->next != NULL) self->next->previous = self->previous;
  self->transaction = NULL;
  if (!self->busy) self->engine->close_rows(self->rows);
}

void shim_pop_transaction(shim_store *store) {
  shim_transaction *self = store->innermost;
  while (self->first != NULL)
    shim_close_rows(self->first);
  store->innermost = self->outer;
  self->open = false;
}

void shim_roll_back(shim_transaction *self) {
  shim_store *store = self->store;
  while (self->open) {
    shim_pop_transaction(store);
    store->engine->rollback(store->store);
  }
}

int shim_close(shim_store *self) {
  self->closing = self->reading;
  if (self->closing) return OUTBOX_OK;
  while (self->innermost != NULL)
    shim_roll_back(self->innermost);
  int code = self->engine->close(self->store);
  if (code != OUTBOX_OK) return code;
  if (self->opened != NULL && self->opened->pid == getpid()) self->opened->count--;
  self->opened = NULL;
  self->store = NULL;
  free(self->verdicts);
  self->verdicts = NULL;
  self->verdict_room = 0;
  return OUTBOX_OK;
}
