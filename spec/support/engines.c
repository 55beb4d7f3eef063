/*
** Engines for the specs, without a database. Their stores tell how they were opened, and run SQL by
** writing it down. The module's function makes the light userdata that is an engine's module.
*/
#include <lauxlib.h>
#include <lua.h>
#include <stdlib.h>
#include <string.h>

#include "../../src/engine.h"

int luaopen_engines(lua_State *L);

struct outbox_store {
  char path[100], prefix[100];
};

struct outbox_rows {
  int row; /* 1: there is one, and it is the next */
  bool value;
};

static char log[10000]; /* all SQL, a line each */
static outbox_options options_given;

static int open_store(outbox_store **store, const char *path, const outbox_options *options) {
  *store = calloc(1, sizeof **store);
  if (*store == NULL) return OUTBOX_NOMEM;
  strncpy((*store)->path, path, sizeof(*store)->path - 1);
  strncpy((*store)->prefix, options->prefix, sizeof(*store)->prefix - 1);
  options_given = *options;
  return strstr(path, "lost") != NULL ? OUTBOX_DISCONNECTED : OUTBOX_OK;
}

static int close_store(outbox_store *store) {
  free(store);
  return OUTBOX_OK;
}

static const char *error_message(const outbox_store *store) {
  return store->path;
}

static const char *prefix(const outbox_store *store) {
  return store->prefix;
}

static int succeed(outbox_store *store) {
  (void)store;
  return OUTBOX_OK;
}

static int now(outbox_store *store, int64_t *time) {
  (void)store;
  *time = 1000000;
  return OUTBOX_OK;
}

static void write_down(const char *sql) {
  strncat(log, sql, sizeof log - strlen(log) - 1);
  strncat(log, "\n", sizeof log - strlen(log) - 1);
}

static int execute(outbox_store *store, const char *sql, const outbox_value *values, size_t count,
                   int64_t *changed) {
  (void)store;
  write_down(sql);
  for (size_t i = 0; i < count; i++)
    if (values[i].type == OUTBOX_BOOLEAN) write_down(values[i].boolean ? "true" : "false");
  *changed = 1;
  return OUTBOX_OK;
}

/* Gives one row: whether the SQL was run for the first time. */
static int query(outbox_store *store, outbox_rows **rows, const char *sql,
                 const outbox_value *values, size_t count) {
  (void)store, (void)values, (void)count;
  *rows = calloc(1, sizeof **rows);
  if (*rows == NULL) return OUTBOX_NOMEM;
  (*rows)->value = strstr(log, sql) == NULL;
  write_down(sql);
  return OUTBOX_OK;
}

static int next_row(outbox_rows *rows) {
  return rows->row++ == 0 ? OUTBOX_ROW : OUTBOX_DONE;
}

static int column_count(const outbox_rows *rows) {
  return rows->row == 1;
}

static const char *column_name(const outbox_rows *rows, int column) {
  (void)rows, (void)column;
  return "missing";
}

static outbox_value column_value(const outbox_rows *rows, int column) {
  (void)column;
  return (outbox_value){.type = OUTBOX_BOOLEAN, .boolean = rows->value};
}

static void close_rows(outbox_rows *rows) {
  free(rows);
}

/* make([version [, excess]]): an engine whose struct is `excess` bytes larger than it should be. */
static int make(lua_State *L) {
  static outbox_engine engines[100]; /* each lives as long as the process */
  static size_t count;
  if (count == sizeof engines / sizeof *engines) return luaL_error(L, "too many engines");
  outbox_engine *engine = &engines[count++];
  lua_pushvalue(L, 1);
  luaL_ref(L, LUA_REGISTRYINDEX); /* the version's text lives on */
  *engine = (outbox_engine){.version = luaL_optstring(L, 1, OUTBOX_VERSION),
                            .size = sizeof *engine + (size_t)luaL_optinteger(L, 2, 0),
                            .name = "postgres",
                            .parameter = "$1",
                            .open = open_store,
                            .close = close_store,
                            .error_message = error_message,
                            .now = now,
                            .prefix = prefix,
                            .begin = succeed,
                            .commit = succeed,
                            .rollback = succeed,
                            .check_transaction = succeed,
                            .execute = execute,
                            .query = query,
                            .next_row = next_row,
                            .column_count = column_count,
                            .column_name = column_name,
                            .column = column_value,
                            .close_rows = close_rows};
  lua_pushlightuserdata(L, engine);
  return 1;
}

/* options(): the mode, `synchronous` and `busy_timeout` that the last store was opened with. */
static int options(lua_State *L) {
  lua_pushinteger(L, options_given.mode);
  lua_pushinteger(L, options_given.synchronous);
  lua_pushinteger(L, options_given.busy_timeout);
  return 3;
}

/* sql(): what was written down since the last call. */
static int sql(lua_State *L) {
  lua_pushstring(L, log);
  log[0] = '\0';
  return 1;
}

int luaopen_engines(lua_State *L) {
  static const luaL_Reg FUNCTIONS[] = {
      {"make", make}, {"options", options}, {"sql", sql}, {NULL, NULL}};
  luaL_newlib(L, FUNCTIONS);
  return 1;
}
