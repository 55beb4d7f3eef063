/*
** A program that uses SQLite itself, and runs Lua in several states and threads. These install
** outbox and attach stores. After they are closed, the program's connections must open and work as
** before.
*/
#define _POSIX_C_SOURCE 200809L

#include <lauxlib.h>
#include <lualib.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static const char SCRIPT[] =
    "local outbox = require('outbox')\n"
    "outbox.install()\n"
    "local connection = require('luasql.sqlite3').sqlite3():connect(':memory:')\n"
    "store = outbox.attach(connection)\n"
    "store:migrate()\n"
    "store:publish({}, {})\n"
    "assert(store:stats().ready == 2)\n"
    "if arg == 1 then connection:close() end\n";

static void check(int ok, const char *what) {
  if (ok) return;
  printf("%s\n", what);
  fflush(stdout);
  _exit(1);
}

static void use_sqlite(void) {
  sqlite3 *db;
  check(sqlite3_open(":memory:", &db) == SQLITE_OK, "cannot open");
  check(sqlite3_exec(db, "CREATE TABLE t (x); INSERT INTO t VALUES (1)", NULL, NULL, NULL) ==
            SQLITE_OK,
        sqlite3_errmsg(db));
  sqlite3_exec(db, "SELECT outbox_handshake()", NULL, NULL, NULL);
  check(sqlite3_close(db) == SQLITE_OK, "cannot close");
}

/* A Lua state attaches to a connection of the program, which is in use and outlives the state. */
static void lend_connection(void) {
  static const char LEND[] = "local found, lsqlite3 = pcall(require, 'lsqlite3')\n"
                             "if found then\n"
                             "  store = require('outbox').attach(lsqlite3.open_ptr(db))\n"
                             "  store:migrate()\n"
                             "  store:publish({})\n"
                             "end\n";
  sqlite3 *db;
  sqlite3_stmt *statement;
  check(sqlite3_open(":memory:", &db) == SQLITE_OK, "cannot open");
  sqlite3_prepare_v2(db, "SELECT 1 UNION SELECT 2", -1, &statement, NULL);
  check(sqlite3_step(statement) == SQLITE_ROW, "no row");
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  lua_pushlightuserdata(L, db);
  lua_setglobal(L, "db");
  check(luaL_dostring(L, LEND) == LUA_OK, lua_tostring(L, -1));
  lua_close(L);
  check(sqlite3_step(statement) == SQLITE_ROW, "no second row");
  sqlite3_finalize(statement);
  check(sqlite3_close(db) == SQLITE_OK, "cannot close what was lent");
}

static void *run_lua(void *context) {
  for (int i = 0; i < 20; i++) {
    lua_State *L = luaL_newstate();
    luaL_openlibs(L);
    lua_pushinteger(L, *(int *)context);
    lua_setglobal(L, "arg");
    check(luaL_dostring(L, SCRIPT) == LUA_OK, lua_tostring(L, -1));
    lua_close(L);
    use_sqlite();
  }
  return NULL;
}

int main(void) {
  pthread_t threads[4];
  int numbers[4];
  lend_connection(); /* first, while nothing is installed yet */
  for (int i = 0; i < 4; i++) {
    numbers[i] = i % 2;
    check(pthread_create(&threads[i], NULL, run_lua, &numbers[i]) == 0, "no thread");
  }
  for (int i = 0; i < 100; i++)
    use_sqlite();
  for (int i = 0; i < 4; i++)
    pthread_join(threads[i], NULL);
  use_sqlite();
  puts("all is well");
  return 0;
}
