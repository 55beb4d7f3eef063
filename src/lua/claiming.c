/***
Methods of a store for a processor: claim entries, read them, keep the claim, wait for more.
@submodule outbox.store
*/
#include "shim.h"

/* --- Claiming -------------------------------------------------------------------------------- */

/***
Claims entries for a processor: entries that nobody has claimed, its own, whose claim gets the new
deadline, and entries of a claim whose deadline is before now. First moves delayed entries that are
due back among the ready ones, at most 1,000 a call. Takes the same time whatever the backlog; with
a limit, time in proportion to that. Writes nothing when there is nothing to claim.

The clock is asked twice: before the database is entered, and inside the write lock, because a
process that was stopped in between must not take a live claim for a lapsed one.

Where a lapsed claim, or one of the processor's own, still names entries as in hand, each of these
is charged a failed attempt, with `outbox.LAPSED` as its `last_error`.
@function store:claim_entries
@tparam string processor_id
@tparam number deadline seconds since the Unix epoch; at this moment the claim still holds
@tparam[opt] table options `limit` (an integer of at least 1): claim at most that many entries, its
own first, then the oldest. `exclusive` (a boolean): claim nothing while another processor has a
live claim, else everything, and what is published until the deadline too. The two exclude each
other
@treturn boolean whether the processor has claimed any entries, new ones or its own
@treturn ?number when to claim again even if nobody commits, because an entry falls due or another
processor's claim lapses: seconds since the Unix epoch; nil: never
@treturn ?integer the lowest place (`seq`) to which an entry came back from a retry; nil: none did
@treturn boolean whether the claim was to be exclusive and another processor has a live claim
@raise `busy`, `full`; what the clock raises; `callback` when it raises or yields inside the lock;
`moved` when the database file was deleted or replaced
*/
static int store_claim_entries(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes processor_id = shim_check_bytes(L, 2);
  int64_t deadline = shim_check_microseconds(L, 3);
  int64_t limit = 0;
  bool exclusive = false;
  outbox_claimed claimed;
  static const char *const OPTIONS[] = {"limit", "exclusive", NULL};
  if (shim_check_options(L, 4, OPTIONS)) {
    limit = shim_opt_integer(L, 4, "limit", 1, 0);
    exclusive = shim_opt_boolean(L, 4, "exclusive");
    luaL_argcheck(L, limit == 0 || !exclusive, 4, "a claim cannot be exclusive and have a limit");
  }
  shim_renew_memory(L, self, 1, 2);
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  self->claiming = self->lua_clock ? L : NULL;
  self->answered = false;
  self->status = LUA_OK;
  int code = outbox_claim_entries(self->store, processor_id, deadline, limit, exclusive, &claimed);
  self->claiming = NULL;
  if (self->status == LUA_ERRMEM) lua_error(L); /* of the clock, called inside the lock */
  if (self->status != LUA_OK) {
    luaL_tolstring(L, -1, NULL);
    shim_raise(L, outbox_code_name(OUTBOX_CALLBACK),
               lua_pushfstring(L, "the clock failed: %s", lua_tostring(L, -1)));
  }
  shim_check(L, self->store, code);
  if (!claimed.any) shim_forget_claim(L, self, 1, 2, true);
  lua_pushboolean(L, claimed.any);
  if (claimed.again_at != 0)
    shim_push_seconds(L, claimed.again_at);
  else
    lua_pushnil(L);
  if (claimed.restored_from != INT64_MAX)
    lua_pushinteger(L, claimed.restored_from);
  else
    lua_pushnil(L);
  lua_pushboolean(L, claimed.refused);
  return 4;
}

/* --- Reading --------------------------------------------------------------------------------- */

static int64_t check_count(lua_State *L, int index) {
  luaL_checktype(L, index, LUA_TNUMBER);
  lua_Integer count = luaL_checkinteger(L, index);
  luaL_argcheck(L, count > 0, index, "must be above 0");
  return count;
}

/* The strings in the array on the top, which is an option's; a copy of it holds them. */
static outbox_bytes *check_array(lua_State *L, int index, size_t *count) {
  int array = lua_gettop(L), copy = array + 1;
  *count = lua_rawlen(L, array);
  lua_newtable(L);
  for (size_t i = 1; i <= *count; i++) {
    int type = lua_rawgeti(L, array, (lua_Integer)i);
    luaL_argcheck(L, type == LUA_TSTRING, index, "an array of strings is wanted");
    lua_rawseti(L, copy, (lua_Integer)i);
  }
  outbox_bytes *strings = lua_newuserdatauv(L, *count * sizeof *strings, 0);
  for (size_t i = 0; i < *count; i++) {
    lua_rawgeti(L, copy, (lua_Integer)i + 1);
    strings[i].data = lua_tolstring(L, -1, &strings[i].size);
    lua_pop(L, 1);
  }
  return strings;
}

/***
Reads entries that a processor has claimed and whose claim has not lapsed, in the order of their
commits. Reading takes nothing: the same call again returns the same entries.
@function store:get_claimed_entries
@tparam string processor_id
@tparam integer batch_size at most this many entries; at least 1
@tparam[opt] table options `ordering`: which entries are held back while an earlier one waits for
its retry, "none" (the default), "key" (later entries of its namespace and key) or "strict" (all
later entries). `after` (an integer): where an earlier reading ended. `batch_bytes`: at most so many
bytes, at least 1, but at least one entry; those of `id`, `namespace`, `key`, `payload` and
`headers` count. `except`: an array of namespaces to leave out. `hold` (a boolean): note in the
claim that these entries are in hand, so that they are charged if the processor dies. With `hold`,
it is best to make this call in one transaction with the settlement of the batch before. `remember`
(a boolean, default true): remember these entries, so that `delete_entries`, `retry_entry` and
`bury_entry` mean them by their ids; if it is false, give them the entries
@treturn {outbox.entry,...} each with `id`, `namespace`, `key`, `payload`, `headers`, `created_at`
(seconds since the Unix epoch), `attempts` (failed deliveries), `last_error` and `seq` (its place in
the order of commits: it rises within a key, and a dead letter that is requeued gets a new one)
@treturn ?integer with options: where the reading ended, for the `after` of the next one. A reading
ends early after it has looked at 10,000 entries, or before the entry that exceeds `batch_bytes`. It
has reached the end when this number does not change
@raise `busy`, `full` with `hold`; `misuse` when 100,000 entries are remembered; what the clock
raises
*/
static int store_get_claimed_entries(lua_State *L) {
  static const char *const OPTIONS[] = {"ordering", "after",    "batch_bytes", "except",
                                        "hold",     "remember", NULL};
  static const char *const ORDERINGS[] = {[OUTBOX_ORDERING_NONE] = "none",
                                          [OUTBOX_ORDERING_KEY] = "key",
                                          [OUTBOX_ORDERING_STRICT] = "strict",
                                          [OUTBOX_ORDERING_STRICT + 1] = NULL};
  outbox_selection selection = {.after = INT64_MIN};
  bool hold = false, remember = true;
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes processor_id = shim_check_bytes(L, 2);
  int64_t batch_size = check_count(L, 3);
  bool selected = shim_check_options(L, 4, OPTIONS);
  if (selected) {
    lua_settop(L, 4);
    selection.ordering = (enum outbox_ordering)shim_opt_name(L, 4, "ordering", ORDERINGS, 0);
    selection.after = shim_opt_integer(L, 4, "after", INT64_MIN, INT64_MIN);
    selection.batch_bytes = shim_opt_integer(L, 4, "batch_bytes", 1, 0);
    hold = shim_opt_boolean(L, 4, "hold");
    if (lua_getfield(L, 4, "remember") != LUA_TNIL) remember = shim_opt_boolean(L, 4, "remember");
    if (lua_getfield(L, 4, "except") != LUA_TNIL) {
      luaL_argcheck(L, lua_type(L, -1) == LUA_TTABLE, 4, "except must be an array of strings");
      selection.except = check_array(L, 4, &selection.except_count);
    }
  }
  int memory = 0;
  if (remember) {
    shim_push_memory(L, 1, 2);
    memory = lua_gettop(L);
  }
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  size_t read = shim_push_batch(L, self,
                                outbox_get_claimed_entries(self->store, processor_id, batch_size,
                                                           selected ? &selection : NULL),
                                memory);
  int64_t read_to = selected ? outbox_read_to(self->store) : 0;
  if (remember) {
    lua_pushvalue(L, memory);
    shim_remember(L, self, 1, 2, read);
    shim_check_store(L, 1); /* remembering allocates, and a finalizer may close the store */
  }
  /* Last, because it writes: nothing may fail after it. With nothing in hand, the claim says so. */
  if (hold && read > 0) shim_check(L, self->store, outbox_hold_batch(self->store, processor_id));
  if (!selected) return 1;
  lua_pushinteger(L, read_to);
  return 2;
}

/* --- Keeping the claim ----------------------------------------------------------------------- */

/***
Moves the deadline of a processor's claim, even of one that has lapsed, and notes that the processor
has nothing in hand any more.
@function store:renew_claim
@tparam string processor_id
@tparam number deadline seconds since the Unix epoch
@treturn boolean false when the claim is lost, because another processor has taken over
@raise `busy`, `full`; what the clock raises
*/
static int store_renew_claim(lua_State *L) {
  bool renewed;
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes processor_id = shim_check_bytes(L, 2);
  int64_t deadline = shim_check_microseconds(L, 3);
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  shim_check(L, self->store, outbox_renew_claim(self->store, processor_id, deadline, &renewed));
  if (!renewed) shim_forget_claim(L, self, 1, 2, true);
  lua_pushboolean(L, renewed);
  return 1;
}

/***
Starts the heartbeat. Until `stop_heartbeat` it moves the deadline of the processor's claim, every
`interval`, by the time that has passed. It is meant for the time that a publisher's call blocks. A
thread that never touches Lua does this. Starting it is cheap enough for every batch. Does nothing
for a database in memory.
@function store:start_heartbeat
@tparam string processor_id
@tparam number interval seconds from one renewal to the next; half of the claim's duration is good
@tparam number max_duration seconds after which the heartbeat stops by itself, so that others can
take over
@raise `error` when no thread can be started
*/
static int store_start_heartbeat(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes processor_id = shim_check_bytes(L, 2);
  int64_t interval = shim_check_microseconds(L, 3), max_duration = shim_check_microseconds(L, 4);
  shim_check(L, self->store,
             outbox_start_heartbeat(self->store, processor_id, interval, max_duration));
  return 0;
}

/***
Stops the heartbeat, if it beats. After this call the deadline moves no more.
@function store:stop_heartbeat
*/
static int store_stop_heartbeat(lua_State *L) {
  shim_store *self = luaL_checkudata(L, 1, STORE);
  if (self->store != NULL) outbox_stop_heartbeat(self->store);
  return 0;
}

/***
Gives a processor's claim back, so that others need not wait for its deadline. Nothing is charged.
@function store:release_claim
@tparam string processor_id
@raise `busy`, `full`
*/
static int store_release_claim(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes processor_id = shim_check_bytes(L, 2);
  shim_check(L, self->store, outbox_release_claim(self->store, processor_id));
  shim_forget_claim(L, self, 1, 2, false);
  return 0;
}

/* --- Waiting --------------------------------------------------------------------------------- */

/***
Waits until there may be something new since the last `claim_entries` began: a commit of any
process, or a publish on this store. Returns at once where there is. A signal ends the wait too.
@function store:wait
@tparam number timeout seconds to wait at most; 0 does not block
@treturn boolean whether there may be something new
@treturn ?number with a timeout of 0: seconds after which to call this again, because the descriptor
of `pollfd` may stay silent; nil where the descriptor will tell
@raise `misuse` in a transaction; `moved` when the database file was deleted or replaced
*/
static int store_wait(lua_State *L) {
  bool rung;
  int64_t look_again;
  shim_store *self = shim_check_store(L, 1);
  int64_t timeout = shim_check_microseconds(L, 2);
  luaL_argcheck(L, timeout >= 0, 2, "must not be negative");
  shim_check(L, self->store, outbox_wait(self->store, timeout, &rung, &look_again));
  lua_pushboolean(L, rung);
  if (look_again == 0) return 1;
  shim_push_seconds(L, look_again);
  return 2;
}

/***
Returns a descriptor for event loops. It becomes readable when somebody commits. Then `wait(0)` says
whether there is something new, and makes it unreadable again. Never close it.
@function store:pollfd
@treturn ?integer the same for the store's life; nil where there is none
*/
static int store_pollfd(lua_State *L) {
  int fd = outbox_pollfd(shim_check_store(L, 1)->store);
  if (fd < 0) return 0;
  lua_pushinteger(L, fd);
  return 1;
}

/* --- The methods ----------------------------------------------------------------------------- */

static const luaL_Reg METHODS[] = {{"claim_entries", store_claim_entries},
                                   {"get_claimed_entries", store_get_claimed_entries},
                                   {"renew_claim", store_renew_claim},
                                   {"start_heartbeat", store_start_heartbeat},
                                   {"stop_heartbeat", store_stop_heartbeat},
                                   {"release_claim", store_release_claim},
                                   {"wait", store_wait},
                                   {"pollfd", store_pollfd},
                                   {NULL, NULL}};

void shim_add_claiming(lua_State *L) {
  luaL_setfuncs(L, METHODS, 0);
}
