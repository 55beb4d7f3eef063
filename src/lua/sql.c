/***
Methods of a transaction that run the application's SQL.
@submodule outbox.transaction
*/
#include <string.h>

#include "shim.h"

/* --- Arguments ------------------------------------------------------------------------------- */

enum { FEW = 16 };

/* The SQL at index 2 and the values behind it. The bytes are those of strings on the stack. */
typedef struct statement {
  const char *sql;
  outbox_value *values; /* in `few`, or in a userdata on the stack */
  size_t count;
  outbox_value few[FEW];
} statement;

static outbox_value check_value(lua_State *L, int index) {
  outbox_value value = {.type = OUTBOX_NULL};
  switch (lua_type(L, index)) {
  case LUA_TNIL: break;
  case LUA_TBOOLEAN:
    value.type = OUTBOX_BOOLEAN;
    value.boolean = lua_toboolean(L, index);
    break;
  case LUA_TNUMBER:
    value.type = lua_isinteger(L, index) ? OUTBOX_INTEGER : OUTBOX_REAL;
    if (value.type == OUTBOX_INTEGER)
      value.integer = lua_tointeger(L, index);
    else
      value.real = lua_tonumber(L, index);
    break;
  case LUA_TSTRING:
    value.type = OUTBOX_TEXT;
    value.bytes.data = lua_tolstring(L, index, &value.bytes.size);
    break;
  default:
    if (luaL_testudata(L, index, BLOB) == NULL)
      luaL_argerror(L, index, lua_pushfstring(L, "a %s cannot be bound", luaL_typename(L, index)));
    value.type = OUTBOX_BLOB;
    lua_getiuservalue(L, index, 1);
    value.bytes.data = lua_tolstring(L, -1, &value.bytes.size); /* the blob holds it */
    lua_pop(L, 1);
  }
  return value;
}

static void check_statement(lua_State *L, statement *it) {
  int last = lua_gettop(L);
  outbox_bytes sql = shim_check_bytes(L, 2);
  it->sql = sql.data;
  luaL_argcheck(L, strlen(it->sql) == sql.size, 2, "SQL cannot contain a NUL; bind it");
  it->count = (size_t)(last - 2);
  it->values = it->few;
  if (it->count > FEW) it->values = lua_newuserdatauv(L, it->count * sizeof *it->values, 0);
  for (size_t i = 0; i < it->count; i++)
    it->values[i] = check_value(L, 3 + (int)i);
}

/* Wrong SQL is an argument error. It has the code MISUSE, and so has a transaction that ended. */
static void check_result(lua_State *L, shim_store *store, int code) {
  if (code == OUTBOX_MISUSE) {
    shim_check(L, store, store->engine->check_transaction(store->store));
    shim_refuse(L, store, 2);
  }
  shim_check(L, store, code);
}

/* --- Methods --------------------------------------------------------------------------------- */

/***
Runs one SQL statement.
@function txn:execute
@tparam string sql one statement, without `BEGIN`, `COMMIT` or `ROLLBACK`; comments may follow it
@tparam nil|boolean|integer|number|string|outbox.blob ... a value for each parameter. SQLite binds
a boolean as 1 or 0. A string is bound as TEXT
@treturn integer how many rows it inserted, updated or deleted
@raise `constraint` and all other codes; `error` for SQL that the database does not understand
*/
static int transaction_execute(lua_State *L) {
  statement statement;
  int64_t changed;
  shim_check_transaction(L);
  check_statement(L, &statement);
  shim_store *store = shim_check_transaction(L)->store; /* a finalizer may have ended it */
  check_result(L, store,
               store->engine->execute(store->store, statement.sql, statement.values,
                                      statement.count, &changed));
  lua_pushinteger(L, changed);
  return 1;
}

/***
Runs a query and iterates over its rows: `for row in txn:rows("SELECT ...") do`. The query is closed
when the loop is left early, and when the transaction ends.
@function txn:rows
@tparam string sql one statement, as for `txn:execute`
@tparam nil|boolean|integer|number|string|outbox.blob ... a value for each parameter, likewise
@treturn function the iterator. Each row is a table by column name, in which a NULL is nil
@raise as `txn:execute` does, also on the way
*/
static int transaction_rows(lua_State *L) {
  statement statement;
  shim_check_transaction(L);
  check_statement(L, &statement);
  shim_rows *self = lua_newuserdatauv(L, sizeof *self, 1);
  memset(self, 0, sizeof *self);
  luaL_setmetatable(L, ROWS);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  shim_transaction *transaction = shim_check_transaction(L); /* a finalizer may have ended it */
  shim_store *store = transaction->store;
  self->engine = store->engine;
  check_result(L, store,
               store->engine->query(store->store, &self->rows, statement.sql, statement.values,
                                    statement.count));
  self->transaction = transaction;
  self->next = transaction->first;
  if (self->next != NULL) self->next->previous = self;
  transaction->first = self;
  lua_pushnil(L);
  lua_pushnil(L);
  lua_pushvalue(L, -3); /* the closing value */
  return 4;
}

/* --- The iterator ---------------------------------------------------------------------------- */

static void push_value(lua_State *L, outbox_value value) {
  switch (value.type) {
  case OUTBOX_NULL: lua_pushnil(L); break;
  case OUTBOX_BOOLEAN: lua_pushboolean(L, value.boolean); break;
  case OUTBOX_INTEGER: lua_pushinteger(L, value.integer); break;
  case OUTBOX_REAL: lua_pushnumber(L, value.real); break;
  case OUTBOX_TEXT:
  case OUTBOX_BLOB: lua_pushlstring(L, value.bytes.data, value.bytes.size); break;
  }
}

static int push_row(lua_State *L) {
  const shim_rows *self = lua_touserdata(L, 1);
  int columns = self->engine->column_count(self->rows);
  lua_createtable(L, 0, columns);
  for (int i = 0; i < columns; i++) {
    push_value(L, self->engine->column(self->rows, i));
    lua_setfield(L, -2, self->engine->column_name(self->rows, i));
  }
  return 1;
}

/*
** The call that makes the row is protected, because Lua may run out of memory. A finalizer that the
** collector runs meanwhile may do anything but ask for the next row. It may even close the store.
*/
static int rows_next(lua_State *L) {
  shim_rows *self = luaL_checkudata(L, 1, ROWS);
  if (self->done) return 0;
  if (self->busy) shim_raise(L, "busy", "the iterator is in the middle of a row");
  if (self->transaction == NULL) return shim_raise(L, "closed", "the transaction has ended");
  shim_store *store = self->transaction->store;
  shim_check_idle(L, store);
  int code = self->engine->next_row(self->rows);
  if (code == OUTBOX_MISUSE || code == OUTBOX_FORKED) shim_check(L, store, code);
  if (code != OUTBOX_ROW) {
    shim_close_rows(self);
    self->done = code == OUTBOX_DONE;
    if (!self->done) shim_check(L, store, code);
    return 0;
  }
  self->busy = true;
  lua_pushcfunction(L, push_row);
  lua_pushlightuserdata(L, self);
  int status = lua_pcall(L, 1, 1, 0);
  self->busy = false;
  if (self->transaction == NULL) self->engine->close_rows(self->rows);
  if (status != LUA_OK) lua_error(L);
  return 1;
}

static int rows_close(lua_State *L) {
  shim_close_rows(luaL_checkudata(L, 1, ROWS));
  return 0;
}

/* --- The type -------------------------------------------------------------------------------- */

static const luaL_Reg METHODS[] = {
    {"execute", transaction_execute}, {"rows", transaction_rows}, {NULL, NULL}};

static const luaL_Reg METAMETHODS[] = {
    {"__call", rows_next}, {"__gc", rows_close}, {"__close", rows_close}, {NULL, NULL}};

void shim_add_sql(lua_State *L) {
  luaL_setfuncs(L, METHODS, 0);
}

void shim_open_sql(lua_State *L) {
  luaL_newmetatable(L, ROWS);
  luaL_setfuncs(L, METAMETHODS, 0);
  lua_pop(L, 1);
}
