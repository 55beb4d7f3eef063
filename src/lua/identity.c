/*
** Which entry an id means. It may have been published again since it was read; so a store remembers
** the place of each entry that it has read under its claim.
**
** User values: CLAIMS_VALUE has for each processor with a claim the places that it has read;
** READ_VALUE has those that were used last; and OLD_VALUE has those that a processor had when its
** claim was lost, or when it claimed last and many were remembered: its batch may still be settled.
**
** An entry that is deleted in a transaction is not forgotten at once, because the transaction may
** be rolled back; nor is one that is buried. When many are remembered, those that are gone are
** forgotten.
*/
#include "shim.h"

#define MAX_REMEMBERED 100000   /* entries, of a claim */
#define MANY 10000              /* so many are worth forgetting */
#define NOWHERE (INT64_MIN + 1) /* the place of no entry */

/* The places at the top; NULL where there are none. */
static shim_places *top_places(lua_State *L) {
  return lua_touserdata(L, -1);
}

/* Pops the places on the top and makes them those of the processor. Nil forgets the processor. */
static void set_claim(lua_State *L, int index, int processor) {
  int places = lua_gettop(L);
  if (lua_getiuservalue(L, index, CLAIMS_VALUE) != LUA_TTABLE) {
    lua_newtable(L);
    lua_pushvalue(L, -1);
    lua_setiuservalue(L, index, CLAIMS_VALUE);
  }
  int claims = lua_gettop(L);
  lua_pushvalue(L, processor);
  lua_pushvalue(L, places);
  lua_rawset(L, claims);
  lua_settop(L, places);
  lua_setiuservalue(L, index, READ_VALUE);
}

/* Pushes the places of the processor, or nil. */
static bool push_claim(lua_State *L, int index, int processor) {
  if (lua_getiuservalue(L, index, CLAIMS_VALUE) == LUA_TTABLE) {
    lua_pushvalue(L, processor);
    lua_rawget(L, -2);
    lua_remove(L, -2);
  }
  return top_places(L) != NULL;
}

bool shim_push_memory(lua_State *L, int index, int processor) {
  if (push_claim(L, index, processor)) return true;
  lua_pop(L, 1);
  shim_push_places(L);
  return false;
}

void shim_remember(lua_State *L, shim_store *self, int index, int processor, bool known) {
  shim_places *places = top_places(L);
  if (shim_count_places(places) == 0) {
    lua_pop(L, 1);
    return;
  }
  if (known)
    lua_setiuservalue(L, index, READ_VALUE);
  else
    set_claim(L, index, processor);
  if (shim_count_places(places) <= MAX_REMEMBERED) return;
  shim_sweep_places(L, places, self);
  if (shim_count_places(places) > MAX_REMEMBERED)
    shim_raise(L, "misuse", "more than 100000 entries were read that are not settled");
}

void shim_renew_memory(lua_State *L, int index, int processor) {
  if (push_claim(L, index, processor) && shim_count_places(top_places(L)) > MANY) {
    lua_setiuservalue(L, index, OLD_VALUE);
    shim_push_places(L);
    set_claim(L, index, processor);
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

void shim_forget_claim(lua_State *L, int index, int processor, bool lost) {
  bool known = push_claim(L, index, processor);
  if (known) {
    lua_pushnil(L);
    set_claim(L, index, processor);
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

/* Whether the value on the top is the places of entries that have the id. Leaves it there. */
static bool holds(lua_State *L, outbox_bytes id, int64_t *seq) {
  return top_places(L) != NULL && shim_find_place(top_places(L), id, seq);
}

/* The places that have the id; NULL if none have. They are the store's, so they stay. */
static shim_places *places_of(lua_State *L, int index, outbox_bytes id, int64_t *seq) {
  int top = lua_gettop(L);
  shim_places *found = NULL;
  lua_getiuservalue(L, index, READ_VALUE);
  if (holds(L, id, seq)) found = top_places(L);
  if (found == NULL && lua_getiuservalue(L, index, CLAIMS_VALUE) == LUA_TTABLE)
    for (lua_pushnil(L); found == NULL && lua_next(L, -2) != 0; lua_pop(L, 1))
      if (holds(L, id, seq)) found = top_places(L);
  if (found == NULL) {
    lua_getiuservalue(L, index, OLD_VALUE);
    if (holds(L, id, seq)) found = top_places(L);
  }
  lua_settop(L, top);
  return found;
}

/* Where the store has no claim, an id means whatever waits under it. */
static int64_t locate(lua_State *L, int index, outbox_bytes id) {
  int64_t seq;
  if (places_of(L, index, id, &seq) != NULL) return seq;
  bool claims = lua_getiuservalue(L, index, CLAIMS_VALUE) == LUA_TTABLE;
  lua_pop(L, 1);
  return claims ? NOWHERE : OUTBOX_ANY_SEQ;
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
    entry.seq = locate(L, index, entry.id);
  }
  return entry;
}

bool shim_identify_all(lua_State *L, int index, int first, int last, outbox_identity *entries) {
  lua_getiuservalue(L, index, READ_VALUE);
  const shim_places *read = top_places(L);
  bool read_last = read != NULL;
  for (int argument = first; argument <= last; argument++) {
    outbox_identity *entry = &entries[argument - first];
    if (read != NULL && lua_type(L, argument) == LUA_TSTRING) {
      entry->id.data = lua_tolstring(L, argument, &entry->id.size);
      if (shim_find_place(read, entry->id, &entry->seq)) continue;
    }
    *entry = shim_identify(L, index, argument);
    read_last = false;
  }
  lua_pop(L, 1);
  return read_last;
}

void shim_forget(lua_State *L, int index, const outbox_identity *entries, size_t count,
                 bool read_last) {
  lua_getiuservalue(L, index, READ_VALUE);
  shim_places *read = top_places(L);
  lua_pop(L, 1);
  if (read_last && shim_count_places(read) == count) {
    shim_forget_places(read);
    return;
  }
  for (size_t i = 0; i < count; i++) {
    int64_t seq;
    shim_places *places = places_of(L, index, entries[i].id, &seq);
    if (places != NULL) shim_forget_place(places, entries[i].id);
  }
}
