/*
** Which entry an id means. It may have been published again since it was read; so a store remembers
** the place of each entry that it has read under its claim.
**
** User values: CLAIMS_VALUE has for each processor with a claim a table from ids to places;
** READ_VALUE is the one of these that was used last; and OLD_VALUE is the one that a processor had
** when its claim was lost, or when it claimed last and many were remembered: its batch may still be
** settled.
**
** An entry that is deleted in a transaction is not forgotten at once, because the transaction may
** be rolled back; nor is one that is buried. When many are remembered, those that are gone are
** forgotten.
*/
#include "shim.h"

#define MAX_REMEMBERED 100000   /* entries */
#define NOWHERE (INT64_MIN + 1) /* the place of no entry */
#define FEW 8                   /* so few are forgotten faster one by one */
#define MANY 10000              /* so many are worth forgetting */

static int64_t count(lua_State *L, int table) {
  int64_t number = 0;
  for (lua_pushnil(L); lua_next(L, table) != 0; lua_pop(L, 1))
    number++;
  return number;
}

/* The number of entries that are remembered under the claims, counted again. */
static void recount(lua_State *L, shim_store *self, int index) {
  self->remembered = 0;
  if (lua_getiuservalue(L, index, CLAIMS_VALUE) == LUA_TTABLE)
    for (lua_pushnil(L); lua_next(L, -2) != 0; lua_pop(L, 1))
      self->remembered += count(L, lua_gettop(L));
  lua_pop(L, 1);
}

/* Forgets the entries of the table on the top that do not wait any more. */
static void sweep(lua_State *L, shim_store *self) {
  for (lua_pushnil(L); lua_next(L, -2) != 0; lua_pop(L, 1)) {
    outbox_identity entry = {.seq = lua_tointeger(L, -1)};
    bool waits;
    entry.id.data = lua_tolstring(L, -2, &entry.id.size);
    shim_check(L, self->store, outbox_is_waiting(self->store, entry, &waits));
    if (waits) continue;
    lua_pushvalue(L, -2);
    lua_pushnil(L);
    lua_rawset(L, -5);
  }
}

static void sweep_all(lua_State *L, shim_store *self, int index) {
  if (lua_getiuservalue(L, index, CLAIMS_VALUE) == LUA_TTABLE)
    for (lua_pushnil(L); lua_next(L, -2) != 0; lua_pop(L, 1))
      sweep(L, self);
  lua_pop(L, 1);
}

/* Pops the table on the top and makes it that of the processor. Nil forgets the processor. */
static void set_claim(lua_State *L, int index, int processor) {
  int table = lua_gettop(L);
  if (lua_getiuservalue(L, index, CLAIMS_VALUE) != LUA_TTABLE) {
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, index, CLAIMS_VALUE);
  }
  int claims = lua_gettop(L);
  lua_pushvalue(L, processor);
  lua_pushvalue(L, table);
  lua_rawset(L, claims);
  lua_settop(L, table);
  lua_setiuservalue(L, index, READ_VALUE);
}

/* Pushes the table of the processor, or nil. */
static bool push_claim(lua_State *L, int index, int processor) {
  if (lua_getiuservalue(L, index, CLAIMS_VALUE) == LUA_TTABLE) {
    lua_pushvalue(L, processor);
    lua_rawget(L, -2);
    lua_remove(L, -2);
  }
  return lua_istable(L, -1);
}

void shim_push_memory(lua_State *L, int index, int processor) {
  if (push_claim(L, index, processor)) return;
  lua_pop(L, 1);
  lua_newtable(L);
}

void shim_remember(lua_State *L, shim_store *self, int index, int processor, size_t read) {
  if (read == 0) {
    lua_pop(L, 1);
    return;
  }
  set_claim(L, index, processor);
  self->remembered += (int64_t)read; /* at most: some may have been read before */
  if (self->remembered <= MAX_REMEMBERED) return;
  sweep_all(L, self, index);
  recount(L, self, index);
  if (self->remembered > MAX_REMEMBERED)
    shim_raise(L, "misuse", "more than 100000 entries were read that are not settled");
}

void shim_renew_memory(lua_State *L, shim_store *self, int index, int processor) {
  if (self->remembered <= MANY) return;
  if (push_claim(L, index, processor)) {
    lua_setiuservalue(L, index, OLD_VALUE);
    lua_newtable(L);
    set_claim(L, index, processor);
    recount(L, self, index);
  } else {
    lua_pop(L, 1);
  }
}

/* Whether no processor has a claim. Then the store has no table of them any more. */
static bool is_last(lua_State *L, int index) {
  int top = lua_gettop(L);
  bool last = true;
  if (lua_getiuservalue(L, index, CLAIMS_VALUE) == LUA_TTABLE) {
    lua_pushnil(L);
    last = lua_next(L, -2) == 0;
  }
  lua_settop(L, top);
  if (last) {
    lua_pushnil(L);
    lua_setiuservalue(L, index, CLAIMS_VALUE);
  }
  return last;
}

void shim_forget_claim(lua_State *L, shim_store *self, int index, int processor, bool lost) {
  bool known = push_claim(L, index, processor);
  if (known) {
    lua_pushnil(L);
    set_claim(L, index, processor);
    recount(L, self, index);
  }
  bool last = is_last(L, index);
  if (known && lost) {
    lua_setiuservalue(L, index, OLD_VALUE);
    return;
  }
  lua_pop(L, 1);
  if (lost || !last) return;
  lua_pushnil(L);
  lua_setiuservalue(L, index, OLD_VALUE);
}

/* Whether the value on the top is a table that has the id. Leaves it there. */
static bool holds(lua_State *L, int id, int64_t *seq) {
  if (!lua_istable(L, -1)) return false;
  lua_pushvalue(L, id);
  bool found = lua_rawget(L, -2) == LUA_TNUMBER;
  if (found) *seq = lua_tointeger(L, -1);
  lua_pop(L, 1);
  return found;
}

/* Pushes the table that has the id, if any does, and returns true. */
static bool push_memory_of(lua_State *L, int index, int id, int64_t *seq) {
  lua_getiuservalue(L, index, READ_VALUE);
  if (holds(L, id, seq)) return true;
  lua_pop(L, 1);
  if (lua_getiuservalue(L, index, CLAIMS_VALUE) == LUA_TTABLE)
    for (lua_pushnil(L); lua_next(L, -2) != 0; lua_pop(L, 1))
      if (holds(L, id, seq)) return true;
  lua_pop(L, 1);
  lua_getiuservalue(L, index, OLD_VALUE);
  if (holds(L, id, seq)) return true;
  lua_pop(L, 1);
  return false;
}

/* Where the store has no claim, an id means whatever waits under it. */
static int64_t locate(lua_State *L, int index, int id) {
  int64_t seq;
  int top = lua_gettop(L);
  if (!push_memory_of(L, index, id, &seq))
    seq = lua_getiuservalue(L, index, CLAIMS_VALUE) == LUA_TTABLE ? NOWHERE : OUTBOX_ANY_SEQ;
  lua_settop(L, top);
  return seq;
}

outbox_identity shim_identify(lua_State *L, int index, int argument) {
  outbox_identity entry;
  if (lua_type(L, argument) == LUA_TTABLE) {
    bool listed = lua_getfield(L, argument, "due_at") != LUA_TNIL ||
                  lua_getfield(L, argument, "died_at") != LUA_TNIL;
    luaL_argcheck(L, !listed, argument, "an entry of a list is meant by its id");
    lua_settop(L, lua_gettop(L) - 2);
    luaL_argcheck(L, lua_getfield(L, argument, "seq") == LUA_TNUMBER && lua_isinteger(L, -1),
                  argument, "an entry must have an integer seq");
    entry.seq = lua_tointeger(L, -1);
    luaL_argcheck(L, lua_getfield(L, argument, "id") == LUA_TSTRING, argument,
                  "an entry must have an id, a string");
    lua_replace(L, argument); /* it stays on the stack, so its bytes stay valid */
    lua_pop(L, 1);
    entry.id = shim_check_bytes(L, argument);
  } else {
    entry.id = shim_check_bytes(L, argument);
    entry.seq = locate(L, index, argument);
  }
  return entry;
}

void shim_identify_all(lua_State *L, shim_store *self, int index, int first, int last,
                       outbox_identity *entries) {
  int count = last - first + 1;
  bool from_last = true;
  lua_getiuservalue(L, index, READ_VALUE);
  for (int argument = first; argument <= last; argument++) {
    outbox_identity *entry = &entries[argument - first];
    if (lua_type(L, argument) == LUA_TSTRING && holds(L, argument, &entry->seq)) {
      entry->id.data = lua_tolstring(L, argument, &entry->id.size);
    } else {
      from_last = false;
      *entry = shim_identify(L, index, argument);
    }
  }
  lua_pop(L, 1);
  if (from_last && count == self->remembered && count > FEW)
    lua_createtable(L, 0, count); /* its next batch will be as large */
  else
    lua_pushnil(L);
}

static void forget(lua_State *L, shim_store *self, int index, int id) {
  int64_t seq;
  if (!push_memory_of(L, index, id, &seq)) return;
  lua_pushvalue(L, id);
  lua_pushnil(L);
  lua_rawset(L, -3);
  lua_pop(L, 1);
  if (self->remembered > 0) self->remembered--;
}

/*
** Gives the processor that has read last the table on the top instead of its own. Assigns only to
** fields that exist: it cannot fail.
*/
static void forget_last(lua_State *L, shim_store *self, int index) {
  int table = lua_gettop(L);
  lua_getiuservalue(L, index, CLAIMS_VALUE);
  lua_getiuservalue(L, index, READ_VALUE);
  for (lua_pushnil(L); lua_next(L, -3) != 0; lua_pop(L, 1))
    if (lua_rawequal(L, -1, -3)) break;
  lua_pop(L, 1);
  lua_pushvalue(L, table);
  lua_rawset(L, -4);
  lua_pop(L, 2);
  lua_setiuservalue(L, index, READ_VALUE);
  self->remembered = 0;
}

void shim_forget_all(lua_State *L, shim_store *self, int index, int first, int last,
                     bool everything) {
  if (everything && lua_istable(L, -1)) {
    forget_last(L, self, index);
    return;
  }
  for (int argument = first; argument <= last; argument++)
    forget(L, self, index, argument);
}
