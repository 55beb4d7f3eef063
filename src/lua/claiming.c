/***
Methods of a store for processing by hand: claim entries, read them, keep the claim, wait for more.
@submodule outbox.store
*/
#include "shim.h"

/* --- Claiming -------------------------------------------------------------------------------- */

/***
Claims entries by hand: entries that nobody has claimed, the processor's own, whose claim gets the
new deadline, and entries of a claim whose deadline is before now. First moves scheduled entries
that are due to the end of the ready ones, at most 1,000 a call; retries that are due are claimed
where they lie. Takes the same time whatever the backlog; with a limit, time in proportion to that.
Writes nothing when there is nothing to claim. While an `outbox.processor` works on this outbox,
nothing new is claimed; while a claim by hand is alive, processors stand by.

The clock is asked twice: before the database is entered, and inside the write lock, because a
process that was stopped in between must not take a live claim for a lapsed one.

Where a lapsed claim, or one of the processor's own, still names entries as in hand, each of these
is charged a failed attempt, with `outbox.LAPSED` as its `last_error`. Where their delivery took
longer than the heartbeat lasted they are not charged, and `outbox.OVERTIME` is their `last_error`.
@function store:claim_entries
@tparam string processor_id
@tparam number deadline seconds since the Unix epoch; at this moment the claim still holds
@tparam[opt] table options `limit` (an integer of at least 1): claim at most that many entries, its
own first, then the oldest. Those that wait for a retry of their key count, too
@treturn boolean whether the processor has claimed any entries, new ones or its own
@treturn ?number when to claim again even if nobody commits, because an entry falls due or another
processor's claim lapses: seconds since the Unix epoch; nil: never
@raise `busy`, `full`; what the clock raises; `callback` when it raises or yields inside the lock;
`moved` when the database file was deleted or replaced
*/
static int store_claim_entries(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes processor_id = shim_check_bytes(L, 2);
  int64_t deadline = shim_check_microseconds(L, 3);
  int64_t limit = 0;
  outbox_claimed claimed;
  static const char *const OPTIONS[] = {"limit", NULL};
  if (lua_istable(L, 4) && lua_getfield(L, 4, "exclusive") != LUA_TNIL)
    luaL_argerror(L, 4,
                  "there is no option exclusive any more: use a processor, which keeps order "
                  "with several workers, or a limit");
  lua_settop(L, 4);
  if (shim_check_options(L, 4, OPTIONS)) limit = shim_opt_integer(L, 4, "limit", 1, 0);
  shim_renew_memory(L, 1, 2);
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  shim_begin_asking(L, self);
  int code = self->engine->claim_entries(self->store, processor_id, deadline, limit, &claimed);
  shim_end_asking(L, self);
  shim_check(L, self, code);
  if (!claimed.any) shim_forget_claim(L, 1, 2, true);
  lua_pushboolean(L, claimed.any);
  if (claimed.again_at != 0)
    shim_push_seconds(L, claimed.again_at);
  else
    lua_pushnil(L);
  return 2;
}

/* --- Reading --------------------------------------------------------------------------------- */

static int64_t check_count(lua_State *L, int index) {
  luaL_checktype(L, index, LUA_TNUMBER);
  lua_Integer count = luaL_checkinteger(L, index);
  luaL_argcheck(L, count > 0, index, "must be above 0");
  return count;
}

/***
Reads entries that a processor has claimed by hand and whose claim has not lapsed, in the order of
their places: ready ones, and retries that are due. Leaves out those that wait for an earlier retry
of their namespace and key, unless that one is due and claimed, too. Entries without a key wait for
nobody. Reading takes nothing: the same call again returns the same entries.
@function store:get_claimed_entries
@tparam string processor_id
@tparam integer batch_size at most this many entries; at least 1
@tparam[opt] table options `batch_bytes`: at most so many bytes, at least 1, but at least one entry;
those of `id`, `namespace`, `key`, `payload` and `headers` count. `hold` (a boolean): note in the
claim that these entries are in hand, so that they are charged if the processor dies. With `hold`,
it is best to make this call in one transaction with the settlement of the batch before
@treturn {outbox.entry,...} each with `id`, `namespace`, `key`, `payload`, `headers`, `created_at`
(seconds since the Unix epoch), `attempts` (failed deliveries), `last_error`, `seq` (its place in
the order of commits: it rises within a key, and a dead letter that is requeued gets a new one) and,
of a copy, `source_id` (the id of the message, see `subscribe`)
@raise `busy`, `full` with `hold`; `misuse` when the processor has read 100,000 entries that are not
settled; what the clock raises
*/
static int store_get_claimed_entries(lua_State *L) {
  static const char *const OPTIONS[] = {"batch_bytes", "hold", NULL};
  int64_t batch_bytes = 0;
  bool hold = false;
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes processor_id = shim_check_bytes(L, 2);
  int64_t batch_size = check_count(L, 3);
  if (shim_check_options(L, 4, OPTIONS)) {
    lua_settop(L, 4);
    batch_bytes = shim_opt_integer(L, 4, "batch_bytes", 1, 0);
    hold = shim_opt_boolean(L, 4, "hold");
  }
  bool known = shim_push_memory(L, 1, 2);
  int memory = lua_gettop(L);
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  size_t read = shim_push_batch(
      L, self,
      self->engine->get_claimed_entries(self->store, processor_id, batch_size, batch_bytes),
      memory);
  lua_pushvalue(L, memory);
  shim_remember(L, self, 1, 2, known);
  shim_check_store(L, 1); /* remembering allocates, and a finalizer may close the store */
  /* Last, because it writes: nothing may fail after it. With nothing in hand, the claim says so. */
  if (hold && read > 0) shim_check(L, self, self->engine->hold_batch(self->store, processor_id));
  return 1;
}

/* --- Keeping the claim ----------------------------------------------------------------------- */

/***
Moves the deadline of a processor's claim by hand, even of one that has lapsed, and notes that the
processor has nothing in hand any more.
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
  shim_check(L, self, self->engine->renew_claim(self->store, processor_id, deadline, &renewed));
  if (!renewed) shim_forget_claim(L, 1, 2, true);
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
take over. They will not charge what was in hand then, because it may only be slow
@raise `error` when no thread can be started
*/
static int store_start_heartbeat(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes processor_id = shim_check_bytes(L, 2);
  int64_t interval = shim_check_microseconds(L, 3), max_duration = shim_check_microseconds(L, 4);
  shim_check(L, self,
             self->engine->start_heartbeat(self->store, processor_id, interval, max_duration));
  return 0;
}

/***
Stops the heartbeat, if it beats. After this call the deadline moves no more.
@function store:stop_heartbeat
*/
static int store_stop_heartbeat(lua_State *L) {
  shim_store *self = luaL_checkudata(L, 1, STORE);
  if (self->store != NULL) self->engine->stop_heartbeat(self->store);
  return 0;
}

/***
Gives a processor's claim by hand back, so that others need not wait for its deadline. Nothing is
charged.
@function store:release_claim
@tparam string processor_id
@raise `busy`, `full`
*/
static int store_release_claim(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes processor_id = shim_check_bytes(L, 2);
  shim_check(L, self, self->engine->release_claim(self->store, processor_id));
  shim_forget_claim(L, 1, 2, false);
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
  shim_check(L, self, self->engine->wait(self->store, timeout, &rung, &look_again));
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
  shim_store *self = shim_check_store(L, 1);
  int fd = self->engine->pollfd(self->store);
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
