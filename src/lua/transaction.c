/***
What `store:transaction` hands to its function.
@classmod outbox.transaction
*/

/*
** There is also the iterator `outbox.rows` over what a query of the user's gives. A transaction
** knows its iterators, and a store its transactions: whatever ends first takes along what is in it,
** in whatever order the garbage collector comes.
*/
#include <sqlite3.h>
#include <string.h>

#include "shim.h"

typedef struct rows rows;

/* User values: the store, and the coroutine that began it, whose address must stay taken. */
enum { STORE_VALUE = 1, OWNER_VALUE, TRANSACTION_VALUES = OWNER_VALUE };

struct transaction {
  shim_store *store;
  transaction *outer; /* the one that it is nested in */
  rows *first;        /* its open iterators */
  bool open;
};

/* A statement of the user's. User value: the transaction. */
struct rows {
  transaction *transaction; /* NULL once closed */
  bool done;                /* closed because there are no more */
  bool busy;                /* a row is being made of it: then its statement is closed later */
  sqlite3_stmt *statement;
  rows *previous, *next;
};

/* --- Ending ---------------------------------------------------------------------------------- */

static void close_rows(rows *self) {
  if (self->transaction == NULL) return;
  if (self->previous != NULL)
    self->previous->next = self->next;
  else
    self->transaction->first = self->next;
  if (self->next != NULL) self->next->previous = self->previous;
  sqlite3 *db = outbox_connection(self->transaction->store->store); /* in a child: the parent's */
  if (db != NULL && !self->busy) sqlite3_finalize(self->statement);
  self->transaction = NULL;
}

/* Takes the innermost transaction off the store's list; the core has yet to end it. */
static void pop(shim_store *store) {
  transaction *self = store->innermost;
  while (self->first != NULL)
    close_rows(self->first);
  store->innermost = self->outer;
  self->open = false;
}

static void roll_back(transaction *self) {
  shim_store *store = self->store;
  while (self->open) {
    pop(store);
    outbox_rollback(store->store);
  }
}

void shim_close_transactions(shim_store *self) {
  while (self->innermost != NULL)
    roll_back(self->innermost);
}

static int transaction_close(lua_State *L) {
  transaction *self = luaL_checkudata(L, 1, TRANSACTION);
  if (self->open) shim_check_idle(L, self->store);
  roll_back(self);
  return 0;
}

/* --- Beginning and committing, for store:transaction ------------------------------------------ */

/* new(store): one that has not begun, so that no error can come between its begin and its close. */
static int new (lua_State *L) {
  shim_store *store = shim_check_store(L, 1);
  if (store->attached)
    shim_raise(L, "misuse", "the connection has transactions of the application's; use those");
  transaction *self = lua_newuserdatauv(L, sizeof *self, TRANSACTION_VALUES);
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
  transaction *self = luaL_checkudata(L, 1, TRANSACTION);
  lua_getiuservalue(L, 1, STORE_VALUE);
  shim_store *store = shim_check_store(L, 2);
  shim_check(L, store, outbox_begin(store->store));
  if (store->innermost == NULL) store->owner = L;
  self->outer = store->innermost;
  self->open = true;
  store->innermost = self;
  return 0;
}

static transaction *check_open(lua_State *L) {
  transaction *self = luaL_checkudata(L, 1, TRANSACTION);
  if (!self->open) shim_raise(L, "closed", "the transaction has ended");
  shim_check_idle(L, self->store);
  return self;
}

/* commit(txn, ...): gives back what follows the transaction. */
static int commit(lua_State *L) {
  transaction *self = check_open(L);
  shim_store *store = self->store;
  while (store->innermost != self)
    roll_back(store->innermost);
  pop(store);
  shim_check(L, store, outbox_commit(store->store));
  return lua_gettop(L) - 1;
}

/* --- Statements of the user's ---------------------------------------------------------------- */

/* Raises what SQLite has just reported on the connection, after closing the statement. */
static int raise_sqlite(lua_State *L, rows *self) {
  sqlite3 *db = outbox_connection(self->transaction->store->store);
  const char *code = outbox_code_name(outbox_code(sqlite3_extended_errcode(db)));
  const char *message = lua_pushstring(L, sqlite3_errmsg(db));
  close_rows(self);
  return shim_raise(L, code, message);
}

/* Prepares the SQL at index 2, which must be one statement and not end the transaction. */
static void prepare(lua_State *L, rows *self) {
  outbox_bytes sql = shim_check_bytes(L, 2);
  shim_store *store = self->transaction->store;
  sqlite3 *db = outbox_connection(store->store);
  const char *rest = sql.data;
  luaL_argcheck(L, strlen(rest) == sql.size, 2, "SQL cannot contain a NUL; bind it");
  store->preparing = true;
  int sqlite_code = sqlite3_prepare_v2(db, rest, -1, &self->statement, &rest);
  store->preparing = false;
  if (sqlite_code == SQLITE_AUTH)
    luaL_argerror(L, 2, "a transaction cannot be begun or ended from within");
  if (sqlite_code != SQLITE_OK) raise_sqlite(L, self);
  luaL_argcheck(L, self->statement != NULL, 2, "there is no statement in it");
  while (*rest != '\0') { /* comments may follow */
    sqlite3_stmt *second = NULL;
    sqlite_code = sqlite3_prepare_v2(db, rest, -1, &second, &rest);
    sqlite3_finalize(second);
    luaL_argcheck(L, sqlite_code == SQLITE_OK && second == NULL, 2, "one statement at a time");
  }
}

static int bind_value(lua_State *L, sqlite3_stmt *statement, int parameter, int index) {
  size_t size;
  const char *bytes;
  switch (lua_type(L, index)) {
  case LUA_TNIL: return sqlite3_bind_null(statement, parameter);
  case LUA_TBOOLEAN: return sqlite3_bind_int(statement, parameter, lua_toboolean(L, index));
  case LUA_TNUMBER:
    if (lua_isinteger(L, index))
      return sqlite3_bind_int64(statement, parameter, lua_tointeger(L, index));
    luaL_argcheck(L, lua_tonumber(L, index) == lua_tonumber(L, index), index, "SQLite has no NaN");
    return sqlite3_bind_double(statement, parameter, lua_tonumber(L, index));
  case LUA_TSTRING:
    bytes = lua_tolstring(L, index, &size);
    return sqlite3_bind_text64(statement, parameter, bytes, size, SQLITE_TRANSIENT, SQLITE_UTF8);
  default:
    if (luaL_testudata(L, index, BLOB) == NULL)
      luaL_argerror(L, index, lua_pushfstring(L, "a %s cannot be bound", luaL_typename(L, index)));
    lua_getiuservalue(L, index, 1);
    bytes = lua_tolstring(L, -1, &size);
    int sqlite_code = sqlite3_bind_blob64(statement, parameter, bytes, size, SQLITE_TRANSIENT);
    lua_pop(L, 1);
    return sqlite_code;
  }
}

/* Pushes an iterator for the SQL at index 2 with the parameters behind it. */
static rows *push_rows(lua_State *L) {
  transaction *transaction = check_open(L);
  shim_store *store = transaction->store;
  int last = lua_gettop(L);
  shim_check(L, store, outbox_check_transaction(store->store));
  rows *self = lua_newuserdatauv(L, sizeof *self, 1);
  memset(self, 0, sizeof *self);
  luaL_setmetatable(L, ROWS);
  lua_pushvalue(L, 1);
  lua_setiuservalue(L, -2, 1);
  check_open(L); /* a finalizer may have closed it */
  self->transaction = transaction;
  self->next = transaction->first;
  if (self->next != NULL) self->next->previous = self;
  transaction->first = self;

  prepare(L, self);
  int wanted = sqlite3_bind_parameter_count(self->statement), given = last - 2;
  if (wanted != given)
    luaL_argerror(L, 2,
                  lua_pushfstring(L, "it has %d parameters, %d values were given", wanted, given));
  for (int i = 1; i <= given; i++)
    if (bind_value(L, self->statement, i, 2 + i) != SQLITE_OK) raise_sqlite(L, self);
  return self;
}

static void push_column(lua_State *L, sqlite3_stmt *statement, int column) {
  switch (sqlite3_column_type(statement, column)) {
  case SQLITE_NULL: lua_pushnil(L); break;
  case SQLITE_INTEGER: lua_pushinteger(L, sqlite3_column_int64(statement, column)); break;
  case SQLITE_FLOAT: lua_pushnumber(L, sqlite3_column_double(statement, column)); break;
  default: {
    const char *bytes = sqlite3_column_blob(statement, column);
    lua_pushlstring(L, bytes != NULL ? bytes : "", (size_t)sqlite3_column_bytes(statement, column));
  }
  }
}

static void check_first(lua_State *L) {
  check_open(L);
}

/***
Adds messages to the outbox, as `store:publish` does, in this transaction.
@function txn:publish
@tparam outbox.message ...
@treturn string... the id of each entry
*/
static int transaction_publish(lua_State *L) {
  transaction *self = check_open(L);
  int last = lua_gettop(L);
  lua_getiuservalue(L, 1, STORE_VALUE);
  return shim_publish(L, self->store, last, last + 1, check_first);
}

/***
Runs one SQL statement.
@function txn:execute
@tparam string sql without `BEGIN`, `COMMIT` or `ROLLBACK`
@tparam nil|boolean|integer|number|string|outbox.blob ... a value for each parameter; a boolean is
1 or 0, a string TEXT
@treturn integer how many rows it inserted, updated or deleted
@raise `constraint` and all other codes; `error` for SQL that SQLite does not understand
*/
static int transaction_execute(lua_State *L) {
  rows *self = push_rows(L);
  sqlite3 *db = outbox_connection(self->transaction->store->store);
  sqlite3_int64 before = sqlite3_total_changes64(db);
  int sqlite_code;
  do
    sqlite_code = sqlite3_step(self->statement);
  while (sqlite_code == SQLITE_ROW);
  if (sqlite_code != SQLITE_DONE) return raise_sqlite(L, self);
  bool changed = sqlite3_total_changes64(db) != before;
  close_rows(self);
  lua_pushinteger(L, changed ? sqlite3_changes64(db) : 0);
  return 1;
}

/***
Iterates over the rows of a query: `for row in txn:rows("SELECT ...") do`. Leaving the loop early
closes the query, and so does the end of the transaction.
@function txn:rows
@tparam string sql
@tparam nil|boolean|integer|number|string|outbox.blob ... a value for each parameter
@treturn function the iterator; each row is a table by column name, in which a NULL is nil
*/
static int transaction_rows(lua_State *L) {
  push_rows(L);
  lua_pushnil(L);
  lua_pushnil(L);
  lua_pushvalue(L, -3); /* the closing value */
  return 4;
}

static int push_row(lua_State *L) {
  sqlite3_stmt *statement = lua_touserdata(L, 1);
  int columns = sqlite3_column_count(statement);
  lua_createtable(L, 0, columns);
  for (int i = 0; i < columns; i++) {
    push_column(L, statement, i);
    lua_setfield(L, -2, sqlite3_column_name(statement, i));
  }
  return 1;
}

/* A finalizer that the collector runs meanwhile may do anything but ask for the next row. */
static int rows_next(lua_State *L) {
  rows *self = luaL_checkudata(L, 1, ROWS);
  if (self->done) return 0;
  if (self->busy) shim_raise(L, "busy", "the iterator is in the middle of a row");
  if (self->transaction == NULL) return shim_raise(L, "closed", "the transaction has ended");
  shim_store *store = self->transaction->store;
  shim_check_idle(L, store);
  shim_check(L, store, outbox_check_transaction(store->store));
  int sqlite_code = sqlite3_step(self->statement);
  if (sqlite_code == SQLITE_DONE) {
    close_rows(self);
    self->done = true;
    return 0;
  }
  if (sqlite_code != SQLITE_ROW) return raise_sqlite(L, self);
  self->busy = true;
  lua_pushcfunction(L, push_row);
  lua_pushlightuserdata(L, self->statement);
  int status = lua_pcall(L, 1, 1, 0);
  self->busy = false;
  if (self->transaction == NULL) sqlite3_finalize(self->statement);
  if (status != LUA_OK) lua_error(L);
  return 1;
}

static int rows_close(lua_State *L) {
  close_rows(luaL_checkudata(L, 1, ROWS));
  return 0;
}

/* --- The types ------------------------------------------------------------------------------- */

static const luaL_Reg METHODS[] = {{"publish", transaction_publish},
                                   {"execute", transaction_execute},
                                   {"rows", transaction_rows},
                                   {NULL, NULL}};

static const luaL_Reg METAMETHODS[] = {
    {"__gc", transaction_close}, {"__close", transaction_close}, {NULL, NULL}};

static const luaL_Reg ROWS_METAMETHODS[] = {
    {"__call", rows_next}, {"__gc", rows_close}, {"__close", rows_close}, {NULL, NULL}};

static const luaL_Reg FUNCTIONS[] = {
    {"new", new}, {"begin", begin}, {"commit", commit}, {NULL, NULL}};

void shim_open_transaction(lua_State *L) {
  luaL_newmetatable(L, TRANSACTION);
  luaL_setfuncs(L, METAMETHODS, 0);
  luaL_newlib(L, METHODS);
  lua_setfield(L, -2, "__index");
  luaL_newmetatable(L, ROWS);
  luaL_setfuncs(L, ROWS_METAMETHODS, 0);
  lua_pop(L, 2);
  luaL_setfuncs(L, FUNCTIONS, 0);
}
