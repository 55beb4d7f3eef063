/***
Methods of a store that show its contents: lists of entries, and counts.
@submodule outbox.store
*/
#include "shim.h"

/* --- Lists ----------------------------------------------------------------------------------- */

typedef int lister(outbox_store *store, outbox_bytes namespace, int64_t after, int64_t limit);

static int list(lua_State *L, shim_store *self, lister *function) {
  outbox_bytes namespace = {NULL, 0};
  int64_t after = INT64_MIN, limit = 100;
  static const char *const OPTIONS[] = {"namespace", "limit", "after", "reverse", NULL};
  if (shim_check_options(L, 2, OPTIONS)) {
    bool reverse = shim_opt_boolean(L, 2, "reverse");
    limit = shim_opt_integer(L, 2, "limit", 1, limit) * (reverse ? -1 : 1);
    after = shim_opt_integer(L, 2, "after", INT64_MIN, reverse ? INT64_MAX : INT64_MIN);
    int type = lua_getfield(L, 2, "namespace");
    luaL_argcheck(L, type == LUA_TNIL || type == LUA_TSTRING, 2, "namespace must be a string");
    namespace = shim_opt_bytes(L, -1);
  }
  shim_check_store(L, 1);
  return shim_push_entries(L, self, function(self->store, namespace, after, limit), true);
}

/***
Lists ready entries, claimed or not, a page at a time.
@function store:ready_entries
@tparam[opt] table options `namespace` (a string): only entries of this one; default: all. `limit`
(an integer of at least 1): at most this many entries, default 100. `after` (an integer): the `seq`
of the last entry of the page before. `reverse` (a boolean): from the last entry to the first
@treturn {outbox.entry,...} in the order of `seq`, which each entry has as well
*/
static int store_ready_entries(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  return list(L, self, self->engine->ready_entries);
}

/***
Lists delayed entries: scheduled messages that wait for their time, and entries that wait for their
retry.
@function store:delayed_entries
@tparam[opt] table options as for `ready_entries`
@treturn {outbox.entry,...} in the order of `seq`, which each entry has as well as `due_at`, seconds
since the Unix epoch
*/
static int store_delayed_entries(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  return list(L, self, self->engine->delayed_entries);
}

/***
Lists dead letters.
@function store:dead_entries
@tparam[opt] table options as for `ready_entries`
@treturn {outbox.entry,...} in the order of `seq`, which each entry has as well as `died_at`,
seconds since the Unix epoch
*/
static int store_dead_entries(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  return list(L, self, self->engine->dead_entries);
}

/***
Finds the entries that have an id: ready, delayed or dead.
@function store:find_entries
@tparam string id
@treturn {outbox.entry,...} each with its `seq`, and with `due_at` where it is delayed or `died_at`
where it is dead, seconds since the Unix epoch. Empty where there is none. There is more than one
only where plain SQL has published an id twice
*/
static int store_find_entries(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes id = shim_check_bytes(L, 2);
  return shim_push_entries(L, self, self->engine->find_entries(self->store, id), true);
}

/* --- Counts ---------------------------------------------------------------------------------- */

/***
Counts the entries. This takes longer the more entries there are.
@function store:stats
@tparam[opt] table options `by_namespace` (a boolean, default false): count by namespace, too. That
reads every entry, outside any lock
@treturn table `ready`, `delayed`, `dead`: numbers of entries. `retries`: how many of the delayed
entries were ready before. `oldest_age`: seconds since the first ready entry was published whose
namespace is not paused, nil without one. `due_at`: when the next delayed entry falls due, seconds
since the Unix epoch, nil without one. `last_seq`: the highest `seq` that a ready entry ever had.
From one call to the next, its growth is the number of entries that became ready. That number minus
the growth of `ready` and `retries` is the number of entries that were delivered or died. `leases`:
an array of tables, one
for each processor, and for a claim by hand one for each interval, with `lease` (a number that none
has again), `processor_id`, `namespaces` (an array, or a table with an array `except`; nil: all),
`classes` (how many of 64: the share of the keys; 0 while it stands by), `first_seq` and `last_seq`
(of a processor the smallest and the largest integer), `deadline` and `claimed_at` (seconds since
the Unix epoch), and `held`, the places of the entries in hand, each relative to the last one before
("17+3,2" is 17 to 20, and 22; after "!", their delivery took too long), nil without one.
`namespaces`, if it was asked for: an array of tables in the order of the names, each with
`namespace`, `ready`, `delayed`, `dead`, `oldest_age`, `due_at`, and, where it is so, `paused_at`,
and `down_since` and `error`, which a live processor has found: seconds since the Unix epoch, and
why
@raise what the clock raises
*/
static int store_stats(lua_State *L) {
  static const char *const OPTIONS[] = {"by_namespace", NULL};
  outbox_counts counts;
  shim_store *self = shim_check_store(L, 1);
  lua_settop(L, 2);
  bool by_namespace = shim_check_options(L, 2, OPTIONS) && shim_opt_boolean(L, 2, "by_namespace");
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  shim_check(L, self, self->engine->count_entries(self->store, &counts));
  lua_createtable(L, 0, 9);
  const struct {
    const char *name;
    int64_t count;
  } NUMBERS[] = {{"ready", counts.ready},
                 {"delayed", counts.delayed},
                 {"dead", counts.dead},
                 {"retries", counts.retries},
                 {"last_seq", counts.last_seq}};
  for (size_t i = 0; i < sizeof NUMBERS / sizeof *NUMBERS; i++) {
    lua_pushinteger(L, NUMBERS[i].count);
    lua_setfield(L, -2, NUMBERS[i].name);
  }
  if (counts.oldest_age >= 0) shim_set_seconds(L, "oldest_age", counts.oldest_age);
  if (counts.delayed > 0) shim_set_seconds(L, "due_at", counts.due_at);
  shim_check_store(L, 1); /* a finalizer may have closed it */
  shim_push_leases(L, self, self->engine->leases(self->store));
  lua_setfield(L, -2, "leases");
  if (!by_namespace) return 1;
  shim_check_store(L, 1);
  shim_push_summaries(L, self, self->engine->summaries(self->store));
  lua_setfield(L, -2, "namespaces");
  return 1;
}

/* --- The methods ----------------------------------------------------------------------------- */

static const luaL_Reg METHODS[] = {{"ready_entries", store_ready_entries},
                                   {"delayed_entries", store_delayed_entries},
                                   {"dead_entries", store_dead_entries},
                                   {"find_entries", store_find_entries},
                                   {"stats", store_stats},
                                   {NULL, NULL}};

void shim_add_listing(lua_State *L) {
  luaL_setfuncs(L, METHODS, 0);
}
