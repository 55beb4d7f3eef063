/***
Methods of a store that settle entries: delivered, to be retried, dead, or put back.
@submodule outbox.store
*/
#include "shim.h"

/* --- After a delivery ------------------------------------------------------------------------ */

/***
Deletes entries, ready or delayed, because they were delivered. Ignores those that are not there.

An id means the entry that this store has read under its claim, even if plain SQL or the application
has published the id again since. An id that was not read under the claim is ignored. While the
store has no claim, an id means whatever waits under it, unless it was read under a claim that was
lost. These rules hold for `retry_entry` and `bury_entry`, too. The store remembers what it has read
until the claim is released.
@function store:delete_entries
@tparam string|outbox.entry ... any number of ids, or of entries as they were read: tables with `id`
and `seq`
@treturn integer how many entries it deleted
@raise `busy`, `full`
*/
static int store_delete_entries(lua_State *L) {
  int64_t deleted;
  int last = lua_gettop(L);
  shim_store *self = shim_check_store(L, 1);
  outbox_identity *entries = lua_newuserdatauv(L, (size_t)last * sizeof *entries, 0);
  size_t count = (size_t)last - 1;
  bool read_last = shim_identify_all(L, 1, 2, last, entries);
  shim_check_store(L, 1);
  shim_check(L, self, self->engine->delete_entries(self->store, entries, count, &deleted));
  if (!self->engine->in_transaction(self->store))
    shim_forget(L, 1, entries, count, read_last && deleted == last - 1);
  lua_pushinteger(L, deleted);
  return 1;
}

/***
Counts a failed attempt and delays an entry, ready or delayed. It keeps its place. Without an error,
no attempt is counted. If the clock is set back by more than 10 s afterwards, the entry falls due at
once.
@function store:retry_entry
@tparam string|outbox.entry entry its id, or the entry as it was read; see `delete_entries`
@tparam number due_at seconds since the Unix epoch
@tparam[opt] string error why the delivery failed; it becomes the entry's `last_error`
@treturn boolean whether the entry was there
@raise `busy`, `full`; what the clock raises
*/
static int store_retry_entry(lua_State *L) {
  bool found;
  shim_store *self = shim_check_store(L, 1);
  int64_t due_at = shim_check_microseconds(L, 3);
  outbox_bytes error = shim_opt_bytes(L, 4);
  outbox_identity entry = shim_identify(L, 1, 2);
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  shim_check(L, self, self->engine->retry_entry(self->store, entry, due_at, error, &found));
  lua_pushboolean(L, found);
  return 1;
}

/***
Counts a failed attempt and makes a dead letter of an entry, ready or delayed. Without an error, no
attempt is counted, because the attempts before were enough. A scheduled message is meant only by
its id, and gets its `seq` now.
@function store:bury_entry
@tparam string|outbox.entry entry its id, or the entry as it was read; see `delete_entries`
@tparam[opt] string error why the delivery failed; it becomes the entry's `last_error`
@treturn boolean whether the entry was there
@raise `busy`, `full`; what the clock raises
*/
static int store_bury_entry(lua_State *L) {
  bool found;
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes error = shim_opt_bytes(L, 3);
  outbox_identity entry = shim_identify(L, 1, 2);
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  shim_check(L, self, self->engine->bury_entry(self->store, entry, error, &found));
  lua_pushboolean(L, found);
  return 1;
}

/* --- Dead letters ---------------------------------------------------------------------------- */

/* The strings from argument `first` up. They stay on the stack, so their bytes stay valid. */
static outbox_bytes *check_ids(lua_State *L, int first, size_t *count) {
  int top = lua_gettop(L);
  *count = top < first ? 0 : (size_t)(top - first + 1);
  outbox_bytes *ids = lua_newuserdatauv(L, *count * sizeof *ids, 0);
  for (size_t i = 0; i < *count; i++)
    ids[i] = shim_check_bytes(L, first + (int)i);
  return ids;
}

typedef int by_ids(outbox_store *store, const outbox_bytes *ids, size_t count, int64_t *found);

static int call_by_ids(lua_State *L, shim_store *self, by_ids *function) {
  size_t count;
  int64_t found = 0;
  outbox_bytes *ids = check_ids(L, 2, &count);
  shim_check_store(L, 1);
  shim_check(L, self, function(self->store, ids, count, &found));
  lua_pushinteger(L, found);
  return 1;
}

/***
Moves dead letters back to the end of the outbox, with the same id, a new `seq` and no attempts
counted. So an old message comes after newer ones of its key that were delivered meanwhile, and a
receiver that has forgotten its id takes it for a new one. Ignores ids that are not there.
@function store:requeue_entries
@tparam string ... any number of ids
@treturn integer how many dead letters it moved
@raise `duplicate` where plain SQL has published such an id again; `busy`, `full`
*/
static int store_requeue_entries(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  return call_by_ids(L, self, self->engine->requeue_entries);
}

/***
Deletes dead letters for good. Ignores ids that are not there.
@function store:purge_entries
@tparam string ... any number of ids
@treturn integer how many dead letters it deleted
@raise `busy`, `full`
*/
static int store_purge_entries(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  return call_by_ids(L, self, self->engine->purge_entries);
}

/* --- The methods ----------------------------------------------------------------------------- */

static const luaL_Reg METHODS[] = {
    {"delete_entries", store_delete_entries}, {"retry_entry", store_retry_entry},
    {"bury_entry", store_bury_entry},         {"requeue_entries", store_requeue_entries},
    {"purge_entries", store_purge_entries},   {NULL, NULL}};

void shim_add_settling(lua_State *L) {
  luaL_setfuncs(L, METHODS, 0);
}
