/*
** Runs operations in Lua again and again, and makes a later allocation fail each time: of Lua or of
** SQLite, first alone and then with all that follow.
**
**     starved script.lua
**
** The script returns a list of operations. Each is a table with a `name` and three functions:
** `prepare()`, whose result is passed to the others; `run(it)`, in which allocations fail; and
** `check(it, ok, problem)`. With `once`, allocations only fail alone. With `many`, it allocates so
** often that fewer of them fail in the short form.
*/
#include <lauxlib.h>
#include <lualib.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>

#include "../core/allocations.h"

/* Lua requires that shrinking a block does not fail. */
static void *allocate(void *context, void *memory, size_t old, size_t size) {
  (void)context;
  if (size == 0) {
    free(memory);
    return NULL;
  }
  if ((memory == NULL || size > old) && allocation_fails()) return NULL;
  return realloc(memory, size);
}

enum { NEVER = 1000000 }; /* more allocations than an operation needs */
enum { WRONG = -1, NO_MORE = -2 };

static int fail(const char *what, const char *why) {
  printf("%s: %s\n", what, why);
  fflush(stdout); /* the sanitizer may end the process, because of a leak, before the exit does */
  return WRONG;
}

/* Pushes a field of the number-th operation. */
static void get_field(lua_State *L, int number, const char *name) {
  lua_rawgeti(L, 1, number);
  lua_getfield(L, -1, name);
  lua_remove(L, -2);
}

/* Returns how many allocations later the next one fails. */
static int find_step(lua_State *L, int number) {
  if (getenv("OUTBOX_LONG") != NULL) return 7;
  get_field(L, number, "many");
  int many = lua_toboolean(L, -1);
  lua_pop(L, 1);
  return many ? 97 : 13;
}

/* Returns whether an allocation failed; WRONG after an error; NO_MORE without such an operation. */
static int try_one(const char *script, int number, int n, int for_ever, int *step) {
  char what[120];
  int64_t memory = sqlite3_memory_used();
  lua_State *L = lua_newstate(allocate, NULL);
  if (L == NULL) return fail(script, "no memory");
  luaL_openlibs(L);
  if (luaL_dofile(L, script) != LUA_OK) return fail(script, luaL_tolstring(L, -1, NULL));
  if (lua_rawlen(L, 1) < (size_t)number) {
    lua_close(L);
    return NO_MORE;
  }
  *step = find_step(L, number);
  get_field(L, number, "name");
  snprintf(what, sizeof what, "%s, allocation %d%s", lua_tostring(L, -1), n,
           for_ever ? " and on" : "");
  get_field(L, number, "once");
  if (for_ever && lua_toboolean(L, -1)) {
    lua_close(L);
    return 0;
  }
  get_field(L, number, "prepare");
  if (lua_pcall(L, 0, 1, 0) != LUA_OK) return fail(what, luaL_tolstring(L, -1, NULL));

  get_field(L, number, "check");
  lua_pushvalue(L, -2);
  get_field(L, number, "run");
  lua_pushvalue(L, -2);
  arm_allocation(n, for_ever);
  int status = lua_pcall(L, 1, 0, 0);
  int failed = disarm_allocation();

  lua_pushboolean(L, status == LUA_OK);
  if (status == LUA_OK)
    lua_pushnil(L);
  else
    lua_rotate(L, -2, 1); /* the error is the last argument */
  if (lua_pcall(L, 3, 0, 0) != LUA_OK) return fail(what, luaL_tolstring(L, -1, NULL));
  lua_close(L);
  if (n < NEVER && sqlite3_memory_used() != memory) return fail(what, "leaks memory");
  return failed;
}

int main(int argc, char **argv) {
  int tried = 0, failed, number = 1, step;
  if (argc != 2) return 2;
  begin_allocations();
  /* First without a failure, which allocates what is never freed. */
  for (; (failed = try_one(argv[1], number, NEVER, 0, &step)) == 0; number++)
    for (int for_ever = 0; for_ever < 2; for_ever++) {
      int n = 1;
      for (; (failed = try_one(argv[1], number, n, for_ever, &step)) > 0; n += step)
        tried++;
      if (failed < 0) return 1;
    }
  if (failed != NO_MORE) return 1;
  printf("TALLY\tallocation in Lua\t%d\t0\t0\n", tried);
  return 0;
}
