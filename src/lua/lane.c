/***
Methods of a store that serves a processor: see `outbox.processor`, which uses them.
@submodule outbox.store
*/
#include <stdlib.h>

#include "shim.h"

#define MAX_VERDICTS 200000

static const char *const ORDERINGS[] = {[OUTBOX_ORDERING_NONE] = "none",
                                        [OUTBOX_ORDERING_KEY] = "key",
                                        [OUTBOX_ORDERING_STRICT] = "strict",
                                        [OUTBOX_ORDERING_STRICT + 1] = NULL};

static const char *const OUTCOMES[] = {
    [OUTBOX_AGAIN] = "again",     [OUTBOX_DELIVERED] = "delivered", [OUTBOX_RETRY] = "retry",
    [OUTBOX_PUT_OFF] = "put off", [OUTBOX_BURY] = "bury",           [OUTBOX_BURY + 1] = NULL};

static const char *const PLACES[] = {
    [OUTBOX_ANYWHERE] = "anywhere", [OUTBOX_OLDEST] = "oldest", [OUTBOX_NEWEST] = "newest",
    [OUTBOX_RANDOM] = "random",     [OUTBOX_PLACE] = "place",   [OUTBOX_PLACE + 1] = NULL};

/* The string in a field of the table at the index, which holds it; no value where it is nil. */
static outbox_bytes field_bytes(lua_State *L, int index, const char *name) {
  outbox_bytes bytes = {NULL, 0};
  int type = lua_getfield(L, index, name);
  if (type == LUA_TSTRING)
    bytes.data = lua_tolstring(L, -1, &bytes.size);
  else if (type != LUA_TNIL)
    luaL_error(L, "%s must be a string", name);
  lua_pop(L, 1);
  return bytes;
}

static int64_t field_time(lua_State *L, int index, const char *name) {
  int64_t time = 0;
  if (lua_getfield(L, index, name) != LUA_TNIL) time = shim_check_microseconds(L, lua_gettop(L));
  lua_pop(L, 1);
  return time;
}

/***
Begins the work of a processor on this store.
@function store:serve
@tparam table options `processor_id`; `namespaces`, an array, default all; `except`, true to serve
all but these; `ordering`, "key", "none" or "strict"; `duration` of the claim, in seconds
@raise `misuse` on an attached store, or where it serves a processor already
@local
*/
static int store_serve(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  outbox_service service = {.processor_id = field_bytes(L, 2, "processor_id"),
                            .ordering = (enum outbox_ordering)shim_opt_name(
                                L, 2, "ordering", ORDERINGS, OUTBOX_ORDERING_KEY),
                            .duration = field_time(L, 2, "duration"),
                            .except = shim_opt_boolean(L, 2, "except")};
  if (lua_getfield(L, 2, "namespaces") == LUA_TTABLE) {
    int array = lua_gettop(L);
    size_t count = lua_rawlen(L, array);
    luaL_argcheck(L, count <= MAX_VERDICTS, 2, "too many namespaces");
    outbox_bytes *names = lua_newuserdatauv(L, (count + 1) * sizeof *names, 0);
    for (size_t i = 0; i < count; i++) {
      luaL_argcheck(L, lua_rawgeti(L, array, (lua_Integer)i + 1) == LUA_TSTRING, 2,
                    "namespaces must be strings");
      names[i].data = lua_tolstring(L, -1, &names[i].size); /* the array holds it */
      lua_pop(L, 1);
    }
    service.namespaces = names;
    service.namespace_count = count;
  } else {
    service.except = true;
  }
  shim_check(L, self, self->engine->serve(self->store, &service));
  return 0;
}

static void read_verdict(lua_State *L, int index, outbox_verdict *verdict) {
  int type = lua_type(L, index);
  *verdict = (outbox_verdict){.outcome = OUTBOX_AGAIN};
  if (type == LUA_TBOOLEAN) {
    if (lua_toboolean(L, index)) verdict->outcome = OUTBOX_DELIVERED;
    return;
  }
  luaL_checktype(L, index, LUA_TTABLE);
  verdict->outcome =
      (enum outbox_outcome)shim_opt_name(L, index, "outcome", OUTCOMES, OUTBOX_AGAIN);
  verdict->at = field_time(L, index, "at");
  verdict->error = field_bytes(L, index, "error");
  verdict->entry.id = field_bytes(L, index, "id");
  verdict->entry.seq = shim_opt_integer(L, index, "seq", INT64_MIN, 0);
}

/* Room for verdicts that is kept: a new userdata for each batch would keep the collector busy. */
static outbox_verdict *reserve(lua_State *L, shim_store *self, size_t count) {
  if (count <= self->verdict_room) return self->verdicts;
  outbox_verdict *larger = realloc(self->verdicts, count * sizeof *larger);
  if (larger == NULL) luaL_error(L, "not enough memory");
  self->verdicts = larger;
  self->verdict_room = count;
  return larger;
}

/* Reads the verdicts at the index: true or false for all in hand, or an array, which holds them. */
static void read_verdicts(lua_State *L, shim_store *self, int index, size_t *count) {
  bool all = lua_isboolean(L, index), delivered = lua_toboolean(L, index);
  *count = 0;
  if (all)
    while (self->engine->batch(self->store, *count) != NULL)
      ++*count;
  else if (!lua_isnoneornil(L, index))
    *count = (luaL_checktype(L, index, LUA_TTABLE), lua_rawlen(L, index));
  luaL_argcheck(L, *count <= MAX_VERDICTS, index, "too many verdicts");
  outbox_verdict *verdicts = reserve(L, self, *count);
  int top = lua_gettop(L);
  for (size_t i = 0; i < *count; i++) {
    if (all) {
      verdicts[i] = (outbox_verdict){.outcome = delivered ? OUTBOX_DELIVERED : OUTBOX_AGAIN};
      continue;
    }
    lua_rawgeti(L, index, (lua_Integer)i + 1);
    read_verdict(L, top + 1, &verdicts[i]);
    lua_settop(L, top);
  }
}

/* Reads the array in the field "avoid", if there is one. Pushes what holds it. */
static void read_avoid(lua_State *L, int index, outbox_want *want) {
  int type = lua_getfield(L, index, "avoid");
  int list = lua_gettop(L);
  size_t count = type == LUA_TTABLE ? lua_rawlen(L, list) : 0;
  luaL_argcheck(L, count <= MAX_VERDICTS, index, "too many places");
  int64_t *places = lua_newuserdatauv(L, (count + 1) * sizeof *places, 0);
  for (size_t i = 0; i < count; i++) {
    lua_rawgeti(L, list, (lua_Integer)i + 1);
    places[i] = lua_tointeger(L, -1);
    lua_pop(L, 1);
  }
  want->avoid = places;
  want->avoid_count = count;
}

static outbox_want read_want(lua_State *L, int index) {
  luaL_checktype(L, index, LUA_TTABLE);
  return (outbox_want){
      .batch_size = shim_opt_integer(L, index, "batch_size", 0, 0),
      .batch_bytes = shim_opt_integer(L, index, "batch_bytes", 0, 0),
      .where = (enum outbox_where)shim_opt_name(L, index, "where", PLACES, OUTBOX_ANYWHERE),
      .namespace = field_bytes(L, index, "namespace"),
      .place = shim_opt_integer(L, index, "place", INT64_MIN, 0),
      .join = shim_opt_boolean(L, index, "join"),
      .leave = shim_opt_boolean(L, index, "leave")};
}

static void push_suspects(lua_State *L, const shim_store *self) {
  const outbox_suspect *suspect;
  lua_newtable(L);
  for (size_t i = 0; (suspect = self->engine->suspects(self->store, i)) != NULL; i++) {
    lua_createtable(L, 0, 3);
    lua_pushlstring(L, suspect->id.data, suspect->id.size);
    lua_setfield(L, -2, "id");
    lua_pushlstring(L, suspect->namespace.data, suspect->namespace.size);
    lua_setfield(L, -2, "namespace");
    lua_pushinteger(L, suspect->place);
    lua_setfield(L, -2, "seq");
    lua_rawseti(L, -2, (lua_Integer)i + 1);
  }
}

static void set_flag(lua_State *L, const char *name, bool flag) {
  if (!flag) return;
  lua_pushboolean(L, true);
  lua_setfield(L, -2, name);
}

/***
The one operation of a processor between two calls of its publisher: settles the batch in hand,
renews the claim, reads the next batch, and notes that it is in hand. `outbox_advance` in
`src/outbox.h` describes it.
@function store:advance
@param verdicts nil where nothing is in hand; true: all was delivered; false: nothing; or an array,
for each entry true (delivered), false (again) or a table with `outcome` ("delivered", "again",
"retry", "put off", "bury"), `at` (seconds since the Unix epoch) and `error` (a string); then for
entries that were put off before, the same with `id` and `seq`. Sets in each table whether the entry
was `found`
@tparam table want `batch_size`, `batch_bytes`, `where` ("anywhere", "oldest", "newest", "random",
"place"), `namespace`, `place`, `avoid` (an array of places), `join`, `leave`
@treturn table `count` of the entries in hand; `lost`, `refused`, `overlapped`, `more`, `uniform`,
`repeats`, true or nil; `deadline` of the claim and `again_at`, seconds since the Unix epoch, or
nil; `suspects`, an array or nil
@raise `busy`, `full`, `moved`; what the clock raises; then the batch is still in hand
@local
*/
static int store_advance(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  outbox_progress progress;
  size_t count;
  lua_settop(L, 3);
  outbox_want want = read_want(L, 3);
  if (want.where == OUTBOX_NEWEST || want.where == OUTBOX_RANDOM) read_avoid(L, 3, &want);
  read_verdicts(L, self, 2, &count);
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  shim_begin_asking(L, self);
  int code = self->engine->advance(self->store, self->verdicts, count, &want, &progress);
  shim_end_asking(L, self);
  shim_check(L, self, code);
  if (lua_istable(L, 2))
    for (size_t i = 0; i < count; i++) {
      if (lua_rawgeti(L, 2, (lua_Integer)i + 1) == LUA_TTABLE)
        set_flag(L, "found", self->verdicts[i].found);
      lua_pop(L, 1);
    }
  lua_createtable(L, 0, 8);
  lua_pushinteger(L, (lua_Integer)progress.count);
  lua_setfield(L, -2, "count");
  set_flag(L, "lost", progress.lost);
  set_flag(L, "refused", progress.refused);
  set_flag(L, "overlapped", progress.overlapped);
  set_flag(L, "more", progress.more);
  set_flag(L, "uniform", progress.uniform);
  set_flag(L, "repeats", progress.repeats);
  if (progress.deadline != 0) shim_set_seconds(L, "deadline", progress.deadline);
  if (progress.again_at != 0) shim_set_seconds(L, "again_at", progress.again_at);
  if (self->engine->suspects(self->store, 0) != NULL) {
    push_suspects(L, self);
    lua_setfield(L, -2, "suspects");
  }
  return 1;
}

/***
The share of the keys that the processor has, as the last `advance` has left it.
@function store:share
@treturn number at most 1
@local
*/
static int store_share(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  lua_pushnumber(L, self->engine->share(self->store));
  return 1;
}

/***
The entries in hand, as `get_claimed_entries` returns them.
@function store:batch
@treturn {outbox.entry,...}
@treturn {number,...} when each was created, in seconds since the Unix epoch
@local
*/
static int store_batch(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  lua_newtable(L);
  lua_pushvalue(L, -1);
  shim_push_hand(L, self);
  lua_insert(L, -2);
  return 2;
}

/***
What names the entries in hand, whatever was done to their tables meanwhile.
@function store:hand
@treturn table arrays of their `ids`, `seqs` and `keys`
@local
*/
static int store_hand(lua_State *L) {
  shim_push_names(L, shim_check_store(L, 1));
  return 1;
}

/***
Leaves the entries of a namespace behind from now on, because its destination is down, but where
they are asked for. `recover` ends that.
@function store:park
@tparam string namespace
@local
*/
static int store_park(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  shim_check(L, self, self->engine->park(self->store, shim_check_bytes(L, 2)));
  return 0;
}

static int store_recover(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  self->engine->recover(self->store, shim_check_bytes(L, 2));
  return 0;
}

/* The outage on the top of the stack, whose bytes stay valid with its table. */
static outbox_outage read_outage(lua_State *L) {
  outbox_outage outage;
  int table = lua_gettop(L);
  lua_getfield(L, table, "namespace");
  outage.namespace = shim_check_bytes(L, -1);
  lua_getfield(L, table, "down_since");
  outage.down_since = shim_check_microseconds(L, -1);
  lua_getfield(L, table, "error");
  outage.error = shim_opt_bytes(L, -1);
  lua_settop(L, table);
  return outage;
}

/***
Writes which namespaces the processor has found down: these, and no other.
@function store:note_outages
@tparam {table,...} outages each with `namespace`, `down_since` (seconds since the Unix epoch), and
`error` (a string)
@treturn boolean whether the processor has a claim; else nothing is written
@raise `busy`, `full`
@local
*/
static int store_note_outages(lua_State *L) {
  bool noted;
  shim_store *self = shim_check_store(L, 1);
  luaL_checktype(L, 2, LUA_TTABLE);
  size_t count = lua_rawlen(L, 2);
  outbox_outage *outages = lua_newuserdatauv(L, (count + 1) * sizeof *outages, 0);
  for (size_t i = 0; i < count; i++) {
    lua_rawgeti(L, 2, (lua_Integer)i + 1);
    outages[i] = read_outage(L);
    lua_pop(L, 1);
  }
  shim_check(L, self, self->engine->note_outages(self->store, outages, count, &noted));
  lua_pushboolean(L, noted);
  return 1;
}

static const luaL_Reg METHODS[] = {{"serve", store_serve},
                                   {"advance", store_advance},
                                   {"share", store_share},
                                   {"batch", store_batch},
                                   {"hand", store_hand},
                                   {"park", store_park},
                                   {"recover", store_recover},
                                   {"note_outages", store_note_outages},
                                   {NULL, NULL}};

void shim_add_lane(lua_State *L) {
  luaL_setfuncs(L, METHODS, 0);
}
