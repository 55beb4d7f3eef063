/*
** The arguments of every function that Lua can call. An argument may be any value, also a function
** or a finalizer that raises, yields or calls outbox again. values.lua chooses the calls and their
** arguments. This program contains Lua and the shim, so that libFuzzer measures their coverage.
**
** A failing call must raise or return a string, or a table with a code and a message. It must
** change nothing and leave no transaction open. No leases may overlap, and the database must be
** intact.
**
** All inputs share one Lua state. After each input, the garbage collector frees its values and
** stores. SQLite must then use as much memory as before.
*/
#define _POSIX_C_SOURCE 200809L

#include <lauxlib.h>
#include <lualib.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "../../src/lua/shim.h"
#include "fuzz.h"

int luaopen_outbox_core(lua_State *L);
const char *__asan_default_options(void);

/* Overwrites freed memory, so that a read of it is noticed: neither Lua nor SQLite checks it. */
const char *__asan_default_options(void) {
  return "max_free_fill_size=4096:free_fill_byte=85";
}

static input in;
static char path[64];

/* --- The database ---------------------------------------------------------------------------- */

static unsigned char *migrated; /* a database with the outbox's tables */
static sqlite3_int64 migrated_size;

static void make_image(void) {
  outbox_store *store;
  if (outbox_open(&store, ":memory:", NULL) != OUTBOX_OK) fail("image: cannot be made");
  sqlite3 *db = outbox_connection(store);
  sqlite3_exec(db, "PRAGMA page_size = 1024", NULL, NULL, NULL);
  if (outbox_migrate(store) != OUTBOX_OK) fail("image: cannot be made");
  unsigned char *bytes = sqlite3_serialize(db, "main", &migrated_size, 0);
  migrated = malloc((size_t)migrated_size); /* outside of SQLite's count */
  memcpy(migrated, bytes, (size_t)migrated_size);
  sqlite3_free(bytes);
  outbox_close(store);
}

/* Returns the connection of the store that is the first argument, or NULL if it has none. */
static sqlite3 *connection(lua_State *L) {
  shim_store *self = luaL_testudata(L, 1, STORE);
  return self != NULL && self->store != NULL ? outbox_connection(self->store) : NULL;
}

/* fill(store): gives a database in memory the outbox's tables. This is faster than a migration. */
static int fill(lua_State *L) {
  sqlite3 *db = connection(L);
  unsigned char *copy = sqlite3_malloc64((sqlite3_uint64)migrated_size);
  memcpy(copy, migrated, (size_t)migrated_size);
  int code = sqlite3_deserialize(db, "main", copy, migrated_size, migrated_size,
                                 SQLITE_DESERIALIZE_FREEONCLOSE | SQLITE_DESERIALIZE_RESIZEABLE);
  if (code != SQLITE_OK) fail("image: %s", sqlite3_errmsg(db));
  return 0;
}

/* in_transaction(store): returns whether the store has left a transaction open. */
static int in_transaction(lua_State *L) {
  sqlite3 *db = connection(L);
  shim_store *self = luaL_testudata(L, 1, STORE);
  lua_pushboolean(L, db != NULL && !self->attached && !sqlite3_get_autocommit(db));
  return 1;
}

static uint64_t hash(uint64_t sum, const void *bytes, size_t size) {
  for (size_t i = 0; i < size; i++)
    sum = (sum ^ ((const unsigned char *)bytes)[i]) * UINT64_C(0x100000001b3);
  return sum;
}

/* contents(store): returns a hash of the contents of the tables, or nil if there are none. */
static int contents(lua_State *L) {
  static const char SQL[] =
      "SELECT 1, seq, id, namespace, key, payload, headers, attempts, last_error, 0, 0"
      " FROM outbox_entries UNION ALL"
      " SELECT 2, seq, id, namespace, key, payload, headers, attempts, last_error, due_at, position"
      " FROM outbox_delayed UNION ALL"
      " SELECT 3, seq, id, namespace, key, payload, headers, attempts, last_error, died_at, 0"
      " FROM outbox_dead UNION ALL"
      " SELECT 4, first_seq, last_seq, processor_id, held, namespaces, classes, 0, 0, 0, 0"
      " FROM outbox_claims";
  sqlite3 *db = connection(L);
  sqlite3_stmt *row;
  uint64_t sum = 0;
  if (db == NULL || sqlite3_prepare_v2(db, SQL, -1, &row, NULL) != SQLITE_OK) return 0;
  while (sqlite3_step(row) == SQLITE_ROW)
    for (int i = 0; i < 11; i++) {
      int type = sqlite3_column_type(row, i);
      sum = hash(sum, &type, sizeof type);
      sum = hash(sum, sqlite3_column_blob(row, i), (size_t)sqlite3_column_bytes(row, i));
    }
  sqlite3_finalize(row);
  lua_pushinteger(L, (lua_Integer)sum);
  return 1;
}

static void expect_none(sqlite3 *db, const char *what, const char *sql) {
  sqlite3_stmt *row;
  if (sqlite3_prepare_v2(db, sql, -1, &row, NULL) != SQLITE_OK) return; /* no tables yet */
  if (sqlite3_step(row) == SQLITE_ROW) fail("%s: %s", what, sqlite3_column_text(row, 0));
  sqlite3_finalize(row);
}

/* check(store): fails if claims overlap or the database is damaged. */
static int check(lua_State *L) {
  sqlite3 *db = connection(L);
  if (db == NULL) return 0;
  expect_none(db, "claims overlap",
              "SELECT a.lease FROM outbox_claims AS a JOIN outbox_claims AS b ON a.lease < b.lease"
              " WHERE a.first_seq <= b.last_seq AND b.first_seq <= a.last_seq"
              " AND (a.classes & b.classes) <> 0");
  expect_none(db, "integrity",
              "SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check <> 'ok'");
  return 0;
}

/* --- The input ------------------------------------------------------------------------------- */

/* take(): returns the next byte of the input as a number, 0 if none is left. */
static int take_byte(lua_State *L) {
  lua_pushinteger(L, take(&in));
  return 1;
}

/* left(): returns whether any byte of the input is left. */
static int is_left(lua_State *L) {
  lua_pushboolean(L, in.size > 0);
  return 1;
}

/* bytes(count): returns the next bytes of the input as a string. */
static int take_bytes(lua_State *L) {
  size_t count = (size_t)luaL_checkinteger(L, 1);
  if (count > in.size) count = in.size;
  lua_pushlstring(L, (const char *)in.data, count);
  in.data += count;
  in.size -= count;
  return 1;
}

/* --- Strange values -------------------------------------------------------------------------- */

/* userdata(): returns a userdata whose type has a store's name, but which is not a store. */
static int new_userdata(lua_State *L) {
  lua_newuserdatauv(L, 8, 1);
  lua_newtable(L);
  lua_pushliteral(L, STORE);
  lua_setfield(L, -2, "__name");
  lua_setmetatable(L, -2);
  return 1;
}

/* pointer(number): returns a light userdata, NULL if the number is 0. */
static int new_pointer(lua_State *L) {
  static char here;
  lua_pushlightuserdata(L, luaL_checkinteger(L, 1) == 0 ? NULL : &here);
  return 1;
}

/* fail(message) */
static int fail_in_lua(lua_State *L) {
  fail("%s", luaL_checkstring(L, 1));
  return 0;
}

static const luaL_Reg FUNCTIONS[] = {{"fill", fill},
                                     {"in_transaction", in_transaction},
                                     {"contents", contents},
                                     {"check", check},
                                     {"take", take_byte},
                                     {"left", is_left},
                                     {"bytes", take_bytes},
                                     {"userdata", new_userdata},
                                     {"pointer", new_pointer},
                                     {"fail", fail_in_lua},
                                     {NULL, NULL}};

static int open_fuzz(lua_State *L) {
  luaL_newlib(L, FUNCTIONS);
  lua_pushstring(L, path);
  lua_setfield(L, -2, "path");
  return 1;
}

/* --- The state ------------------------------------------------------------------------------- */

/* Loads the script, and before it the optional modules that are installed. */
static const char PREPARE[] =
    "package.path = 'lua/?.lua'"
    " for _, name in ipairs({ 'cjson', 'luasql.sqlite3' }) do pcall(require, name) end"
    " local script = assert(loadfile('spec/fuzz/values.lua'))"
    " io = { stderr = { write = function() end } }" /* a processor reports errors there */
    " return script";

/* Returns a new Lua state with the script on its stack. */
static lua_State *open_state(void) {
  lua_State *L = luaL_newstate();
  luaL_openlibs(L);
  luaL_requiref(L, "outbox.core", luaopen_outbox_core, 0);
  luaL_requiref(L, "fuzz", open_fuzz, 0);
  lua_settop(L, 0);
  if (luaL_loadstring(L, PREPARE) != LUA_OK || lua_pcall(L, 0, 1, 0) != LUA_OK)
    fail("script: %s", lua_tostring(L, -1));
  return L;
}

/* --- The target ------------------------------------------------------------------------------ */

static void remove_files(void) {
  static const char *const SUFFIXES[] = {"", "-wal", "-shm", "-journal"};
  for (int i = 0; i < 4; i++) {
    char name[80];
    snprintf(name, sizeof name, "%s%s", path, SUFFIXES[i]);
    unlink(name);
  }
}

static lua_State *prepare(void) {
  const char *directory = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
  snprintf(path, sizeof path, "%s/outbox_values_%d", directory, (int)getpid());
  make_image();
  outbox_install();
  return open_state();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static lua_State *L;
  if (L == NULL) L = prepare();
  int64_t used = sqlite3_memory_used();
  in = (input){data, size};
  lua_pushvalue(L, 1);
  if (lua_pcall(L, 0, 0, 0) != LUA_OK) fail("script: %s", luaL_tolstring(L, -1, NULL));
  for (int i = 0; i < 3 && (i == 0 || sqlite3_memory_used() != used); i++)
    lua_gc(L, LUA_GCCOLLECT);
  if (sqlite3_memory_used() != used)
    fail("memory: %lld bytes were not given back", (long long)(sqlite3_memory_used() - used));
  remove_files();
  return 0;
}
