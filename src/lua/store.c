/***
A store: one connection to the database that holds the outbox. Made by `outbox.open`.

All its methods raise on failure: a table with `code` and `message` for what went wrong with the
database, an ordinary argument error for a wrong call. Whatever raised, the database is as it was
before the call. Codes: `busy`, `cantopen`, `closed`, `constraint`, `corrupt`, `duplicate`,
`encoding`, `error`, `forked`, `full`, `io`, `misuse`, `newer`, `nomem`, `notadb`, `readonly`,
`schema`, `toobig`.
@classmod outbox.store
*/
#include <sqlite3.h>
#include <string.h>
#include <unistd.h>

#include "shim.h"

/* --- Checks and conversions ------------------------------------------------------------------ */

void shim_check(lua_State *L, shim_store *self, int code) {
  if (code != OUTBOX_OK) shim_raise(L, outbox_code_name(code), outbox_error_message(self->store));
}

/*
** Some bindings begin the application's transaction only with its next statement. What the store
** does before that must not be committed alone, so such a statement is run.
*/
static void begin_theirs(lua_State *L, shim_store *self, int index) {
  sqlite3 *db = outbox_connection(self->store);
  if (db == NULL || !sqlite3_get_autocommit(db)) return;
  lua_getiuservalue(L, index, SELECT_VALUE);
  lua_call(L, 0, 0);
}

void shim_check_idle(lua_State *L, shim_store *self) {
  if (self->reading) shim_raise(L, "busy", "the store is in the middle of a reading");
}

shim_store *shim_check_store(lua_State *L, int index) {
  shim_store *self = luaL_checkudata(L, index, STORE);
  if (self->store == NULL) shim_raise(L, "closed", "the store is closed");
  shim_check_idle(L, self);
  if (self->innermost != NULL && self->owner != L)
    shim_raise(L, "busy", "another coroutine has a transaction open on this store; use its txn");
  if (self->lazy) begin_theirs(L, self, index);
  if (self->store == NULL) shim_raise(L, "closed", "the store is closed");
  return self;
}

outbox_bytes shim_check_bytes(lua_State *L, int index) {
  luaL_checktype(L, index, LUA_TSTRING);
  outbox_bytes bytes;
  bytes.data = lua_tolstring(L, index, &bytes.size);
  return bytes;
}

static outbox_bytes opt_bytes(lua_State *L, int index) {
  return lua_isnoneornil(L, index) ? (outbox_bytes){NULL, 0} : shim_check_bytes(L, index);
}

/* The strings from argument `first` up. They stay on the stack, and so the bytes in their place. */
static outbox_bytes *check_ids(lua_State *L, int first, size_t *count) {
  int top = lua_gettop(L);
  *count = top < first ? 0 : (size_t)(top - first + 1);
  outbox_bytes *ids = lua_newuserdatauv(L, *count * sizeof *ids, 0);
  for (size_t i = 0; i < *count; i++)
    ids[i] = shim_check_bytes(L, first + (int)i);
  return ids;
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

bool shim_check_options(lua_State *L, int index, const char *const *names) {
  if (lua_isnoneornil(L, index)) return false;
  luaL_checktype(L, index, LUA_TTABLE);
  for (lua_pushnil(L); lua_next(L, index); lua_pop(L, 1)) {
    int i = 0;
    const char *name = lua_type(L, -2) == LUA_TSTRING ? lua_tostring(L, -2) : "";
    while (names[i] != NULL && strcmp(name, names[i]) != 0)
      i++;
    if (names[i] == NULL) {
      name = luaL_tolstring(L, -2, NULL);
      luaL_argerror(L, index, lua_pushfstring(L, "unknown option '%s'", name));
    }
  }
  return true;
}

static int64_t opt_integer(lua_State *L, int index, const char *option, int64_t minimum,
                           int64_t standard) {
  if (lua_getfield(L, index, option) == LUA_TNIL) return standard;
  int is_integer;
  int64_t value = lua_tointegerx(L, -1, &is_integer);
  if (!is_integer || lua_type(L, -1) != LUA_TNUMBER || value < minimum)
    luaL_argerror(
        L, index,
        lua_pushfstring(L, "%s must be an integer, at least %I", option, (LUAI_UACINT)minimum));
  return value;
}

static bool opt_boolean(lua_State *L, int index, const char *option) {
  int type = lua_getfield(L, index, option);
  if (type != LUA_TNIL && type != LUA_TBOOLEAN)
    luaL_argerror(L, index, lua_pushfstring(L, "%s must be a boolean", option));
  return lua_toboolean(L, -1);
}

int shim_opt_name(lua_State *L, int index, const char *option, const char *const *names,
                  int standard) {
  if (lua_getfield(L, index, option) == LUA_TNIL) return standard;
  const char *name = lua_type(L, -1) == LUA_TSTRING ? lua_tostring(L, -1) : "";
  luaL_Buffer known;
  for (int i = 0; names[i] != NULL; i++)
    if (strcmp(name, names[i]) == 0) return i;
  luaL_buffinit(L, &known);
  for (int i = 0; names[i] != NULL; i++) {
    lua_pushfstring(L, "%s\"%s\"", i > 0 ? ", " : "", names[i]);
    luaL_addvalue(&known);
  }
  luaL_pushresult(&known);
  const char *list = lua_tostring(L, -1);
  return luaL_argerror(L, index, lua_pushfstring(L, "%s must be one of %s", option, list));
}

/* --- The clock ------------------------------------------------------------------------------- */

int shim_stored_clock(void *context, int64_t *now) {
  *now = ((shim_store *)context)->now;
  return 0;
}

void shim_read_clock(lua_State *L, shim_store *self, int index) {
  if (!self->lua_clock) return;
  lua_getiuservalue(L, index, CLOCK_VALUE);
  lua_getfield(L, -1, "now");
  lua_call(L, 0, 1);
  if (lua_type(L, -1) != LUA_TNUMBER || !shim_microseconds(lua_tonumber(L, -1), &self->now))
    luaL_error(L, "the clock's now() must return a time in seconds, not %s",
               luaL_tolstring(L, -1, NULL));
  lua_pop(L, 2);
}

/***
The clock that the store was opened with, as a table; else `outbox.clock`.
@function store:clock
@treturn outbox.clock
*/
static int store_clock(lua_State *L) {
  shim_check_store(L, 1);
  lua_getiuservalue(L, 1, CLOCK_VALUE);
  return 1;
}

/***
The prefix of the tables' names.
@function store:prefix
@treturn string
*/
static int store_prefix(lua_State *L) {
  lua_pushstring(L, outbox_prefix(shim_check_store(L, 1)->store));
  return 1;
}

/* --- Publishing ------------------------------------------------------------------------------ */

static void check_first(lua_State *L) {
  shim_check_store(L, 1);
}

/***
Adds messages to the outbox, in this order, all or none: in the transaction that is open on the
store, else in one of its own.
@function store:publish
@tparam outbox.message ... each a table, every field optional: `id`, `namespace`, `key`, `payload`
(strings), `headers` (a table of strings) and `deliver_at` (seconds since the epoch); fields are
read raw, without metamethods
@treturn string... the id of each entry
@raise `duplicate`, `toobig`, `busy`, `full`; what the clock or the ID generator raises
*/
static int store_publish(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  return shim_publish(L, self, lua_gettop(L), 1, check_first);
}

/* --- Processing ------------------------------------------------------------------------------ */

/***
Claims entries for a processor: what nobody has claimed, what it has claimed itself (renewed with
the new deadline), and what was claimed with a deadline before now. Delayed entries that are due
come back first, at most 1,000 a call. Costs the same whatever the backlog (with a limit, in
proportion to that), and writes nothing when there is nothing to claim. What a lapsed claim, or an
own one, still names as in hand is charged a failed attempt, with `outbox.LAPSED` as `last_error`.
@function store:claim_entries
@tparam string processor_id
@tparam number deadline seconds since the epoch; the claim still holds at that very moment
@tparam[opt] table options `limit`: claim at most that many, the oldest first, its own before all;
`exclusive`: claim nothing while another processor holds a live claim, else everything, and what is
published until the deadline too
@treturn boolean whether the call has claimed any entry, new or its own
@treturn[opt] number when to claim again even if nobody commits: an entry falls due, or another's
claim lapses (seconds since the epoch)
@treturn[opt] integer the first place (`seq`) to which an entry came back from a retry
@treturn boolean whether it was to be exclusive and another processor has a live claim
@raise `busy`, `full`
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
    limit = opt_integer(L, 4, "limit", 1, 0);
    exclusive = opt_boolean(L, 4, "exclusive");
    luaL_argcheck(L, limit == 0 || !exclusive, 4, "a claim cannot be exclusive and have a limit");
  }
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  shim_check(L, self,
             outbox_claim_entries(self->store, processor_id, deadline, limit, exclusive, &claimed));
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

static int64_t check_count(lua_State *L, int index) {
  luaL_checktype(L, index, LUA_TNUMBER);
  lua_Integer count = luaL_checkinteger(L, index);
  luaL_argcheck(L, count > 0, index, "must be above 0");
  return count;
}

/***
Reads entries that a processor has claimed and whose claim has not expired, in the order of their
commits. Reading takes nothing: the same call again gives the same entries.
@function store:get_claimed_entries
@tparam string processor_id
@tparam integer batch_size at most that many
@tparam[opt] table options `ordering`: whom an entry that waits for its retry keeps waiting, "none"
(the default), "key" (later entries of its namespace and key) or "strict" (all later ones); `after`:
an integer, where an earlier reading ended; `except`: an array of namespaces to leave out; `hold`:
write into the claim that these entries are in hand, best in one transaction with what was done
before, so that they are charged if the processor dies
@treturn {outbox.entry,...} each with `id`, `namespace`, `key`, `payload`, `headers`, `created_at`
(seconds since the epoch), `attempts` (failed deliveries) and `last_error`
@treturn[opt] integer with options, where the reading ended, to read on `after`; it ends early when
it has looked at 10,000 entries, and is at the end when this does not change
*/
static int store_get_claimed_entries(lua_State *L) {
  static const char *const OPTIONS[] = {"ordering", "after", "except", "hold", NULL};
  static const char *const ORDERINGS[] = {[OUTBOX_ORDERING_NONE] = "none",
                                          [OUTBOX_ORDERING_KEY] = "key",
                                          [OUTBOX_ORDERING_STRICT] = "strict",
                                          [OUTBOX_ORDERING_STRICT + 1] = NULL};
  outbox_selection selection = {.after = INT64_MIN};
  bool hold = false;
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes processor_id = shim_check_bytes(L, 2);
  int64_t batch_size = check_count(L, 3);
  bool selected = shim_check_options(L, 4, OPTIONS);
  if (selected) {
    lua_settop(L, 4);
    selection.ordering = (enum outbox_ordering)shim_opt_name(L, 4, "ordering", ORDERINGS, 0);
    selection.after = opt_integer(L, 4, "after", INT64_MIN, INT64_MIN);
    hold = opt_boolean(L, 4, "hold");
    if (lua_getfield(L, 4, "except") != LUA_TNIL) {
      luaL_argcheck(L, lua_type(L, -1) == LUA_TTABLE, 4, "except must be an array of strings");
      selection.except = check_array(L, 4, &selection.except_count);
    }
  }
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  shim_push_entries(L, self,
                    outbox_get_claimed_entries(self->store, processor_id, batch_size,
                                               selected ? &selection : NULL),
                    false);
  if (!selected) return 1;
  int64_t read_to = outbox_read_to(self->store);
  /* When it has nothing in hand, the claim already says so. */
  if (hold && lua_rawlen(L, -1) > 0)
    shim_check(L, self, outbox_hold_batch(self->store, processor_id));
  lua_pushinteger(L, read_to);
  return 2;
}

/***
Moves the deadline of a processor's claim on, even one that has expired, and notes that it has
nothing in hand any more.
@function store:renew_claim
@tparam string processor_id
@tparam number deadline seconds since the epoch
@treturn boolean false when the claim is lost: somebody else has taken over
@raise `busy`, `full`
*/
static int store_renew_claim(lua_State *L) {
  bool renewed;
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes processor_id = shim_check_bytes(L, 2);
  int64_t deadline = shim_check_microseconds(L, 3);
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  shim_check(L, self, outbox_renew_claim(self->store, processor_id, deadline, &renewed));
  lua_pushboolean(L, renewed);
  return 1;
}

/***
Moves the deadline of a processor's claim on as time passes, until `stop_keeping`: for while a
publisher's call blocks. Done by a thread that never touches Lua; cheap enough for every batch.
@function store:keep_claim
@tparam string processor_id
@tparam number interval seconds between two renewals; half of what the claim lasts is good
@tparam number at_most seconds after which to give up, and let others take over
@raise `error` when no thread can be had
*/
static int store_keep_claim(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes processor_id = shim_check_bytes(L, 2);
  int64_t interval = shim_check_microseconds(L, 3), at_most = shim_check_microseconds(L, 4);
  shim_check(L, self, outbox_start_heartbeat(self->store, processor_id, interval, at_most));
  return 0;
}

/***
Ends what `keep_claim` began, if it did.
@function store:stop_keeping
*/
static int store_stop_keeping(lua_State *L) {
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
  shim_check(L, self, outbox_release_claim(self->store, processor_id));
  return 0;
}

typedef int by_ids(outbox_store *store, const outbox_bytes *ids, size_t count, int64_t *found);

static int call_by_ids(lua_State *L, by_ids *function) {
  size_t count;
  int64_t found = 0;
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes *ids = check_ids(L, 2, &count);
  shim_check_store(L, 1);
  shim_check(L, self, function(self->store, ids, count, &found));
  lua_pushinteger(L, found);
  return 1;
}

/***
Deletes entries, ready or delayed: they were delivered. Ids that are not there are ignored.
@function store:delete_entries
@tparam string ... any number of ids
@treturn integer how many there were
@raise `busy`, `full`
*/
static int store_delete_entries(lua_State *L) {
  return call_by_ids(L, outbox_delete_entries);
}

/***
Counts a failed attempt and delays a ready entry; it will come back to the place it had. Without an
error nothing is counted, and an entry that is delayed already gets the new time.
@function store:retry_entry
@tparam string id
@tparam number due_at seconds since the epoch
@tparam[opt] string error why it failed; the entry's `last_error`
@treturn boolean whether it was there
@raise `busy`, `full`
*/
static int store_retry_entry(lua_State *L) {
  bool found;
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes id = shim_check_bytes(L, 2);
  int64_t due_at = shim_check_microseconds(L, 3);
  outbox_bytes error = opt_bytes(L, 4);
  shim_check(L, self, outbox_retry_entry(self->store, id, due_at, error, &found));
  lua_pushboolean(L, found);
  return 1;
}

/***
Counts a failed attempt and makes a dead letter of a ready entry. Without an error nothing is
counted: the attempts before were enough.
@function store:bury_entry
@tparam string id
@tparam[opt] string error why it failed; the entry's `last_error`
@treturn boolean whether it was there
@raise `busy`, `full`
*/
static int store_bury_entry(lua_State *L) {
  bool found;
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes id = shim_check_bytes(L, 2);
  outbox_bytes error = opt_bytes(L, 3);
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  shim_check(L, self, outbox_bury_entry(self->store, id, error, &found));
  lua_pushboolean(L, found);
  return 1;
}

/***
Waits until something may have come since the last `claim_entries` began: a commit of any process,
or what was published on this store. Returns at once where something has. A signal ends it too.
@function store:wait
@tparam number timeout seconds, at most that long; 0 does not block
@treturn boolean whether something may have come
@treturn ?number with a timeout of 0: seconds after which to ask again, though the descriptor that
`pollfd` gives stays silent
@raise `misuse` in a transaction
*/
static int store_wait(lua_State *L) {
  bool rung;
  int64_t look_again;
  shim_store *self = shim_check_store(L, 1);
  int64_t timeout = shim_check_microseconds(L, 2);
  luaL_argcheck(L, timeout >= 0, 2, "must not be negative");
  shim_check(L, self, outbox_wait(self->store, timeout, &rung, &look_again));
  lua_pushboolean(L, rung);
  if (look_again == 0) return 1;
  shim_push_seconds(L, look_again);
  return 2;
}

/***
A descriptor for event loops: it becomes readable when somebody commits. `wait(0)` then tells
whether there is something, and makes it unreadable again.
@function store:pollfd
@treturn ?integer nil where there is none
*/
static int store_pollfd(lua_State *L) {
  int fd = outbox_pollfd(shim_check_store(L, 1)->store);
  if (fd < 0) return 0;
  lua_pushinteger(L, fd);
  return 1;
}

/* --- Operating ------------------------------------------------------------------------------- */

typedef int lister(outbox_store *store, outbox_bytes namespace, int64_t after, int64_t limit);

static int list(lua_State *L, lister *function) {
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes namespace = {NULL, 0};
  int64_t after = INT64_MIN, limit = 100;
  static const char *const OPTIONS[] = {"namespace", "limit", "after", "reverse", NULL};
  if (shim_check_options(L, 2, OPTIONS)) {
    bool reverse = opt_boolean(L, 2, "reverse");
    limit = opt_integer(L, 2, "limit", 1, limit) * (reverse ? -1 : 1);
    after = opt_integer(L, 2, "after", INT64_MIN, reverse ? INT64_MAX : INT64_MIN);
    int type = lua_getfield(L, 2, "namespace");
    luaL_argcheck(L, type == LUA_TNIL || type == LUA_TSTRING, 2, "namespace must be a string");
    namespace = opt_bytes(L, -1);
  }
  shim_check_store(L, 1);
  return shim_push_entries(L, self, function(self->store, namespace, after, limit), true);
}

/***
Lists entries that are ready, a page at a time, claimed or not.
@function store:ready_entries
@tparam[opt] table options `namespace`: only those of one; `limit`: at most that many, default 100;
`after`: the `seq` of the last one of the page before; `reverse`: from the last to the first
@treturn {outbox.entry,...} with their `seq` besides
*/
static int store_ready_entries(lua_State *L) {
  return list(L, outbox_ready_entries);
}

/***
Lists entries that wait for their time: scheduled ones, and those to be retried.
@function store:delayed_entries
@tparam[opt] table options as for `ready_entries`
@treturn {outbox.entry,...} with `due_at` (seconds since the epoch) and `seq` besides
*/
static int store_delayed_entries(lua_State *L) {
  return list(L, outbox_delayed_entries);
}

/***
Lists dead letters.
@function store:dead_entries
@tparam[opt] table options as for `ready_entries`
@treturn {outbox.entry,...} with `died_at` (seconds since the epoch) and `seq` besides
*/
static int store_dead_entries(lua_State *L) {
  return list(L, outbox_dead_entries);
}

/***
Finds what has an id, wherever it lies: among the ready, the delayed or the dead.
@function store:find_entries
@tparam string id
@treturn {outbox.entry,...} with `seq` besides, and `due_at` if it is delayed or `died_at` if it is
dead; empty without one, and more than one only where plain SQL has published an id twice
*/
static int store_find_entries(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  outbox_bytes id = shim_check_bytes(L, 2);
  return shim_push_entries(L, self, outbox_find_entries(self->store, id), true);
}

/***
Puts dead letters back at the end of the outbox, with the same id and no attempts counted. Ids that
are not there are ignored.
@function store:requeue_entries
@tparam string ... any number of ids
@treturn integer how many there were
@raise `busy`, `full`
*/
static int store_requeue_entries(lua_State *L) {
  return call_by_ids(L, outbox_requeue_entries);
}

/***
Deletes dead letters for good. Ids that are not there are ignored.
@function store:purge_entries
@tparam string ... any number of ids
@treturn integer how many there were
@raise `busy`, `full`
*/
static int store_purge_entries(lua_State *L) {
  return call_by_ids(L, outbox_purge_entries);
}

/***
Counts what there is. The time that this takes grows with the number of entries.
@function store:stats
@treturn table `ready`, `delayed`, `dead`: numbers of entries; `retries`: of the delayed, those that
were ready before; `oldest_age`: seconds since the first ready entry was published, nil without one;
`due_at`: when the next delayed one falls due, seconds since the epoch, nil without one; `last_seq`:
the highest `seq` that a ready entry ever had: how many have come, and all but `ready` and `retries`
of them have gone; `leases`: an array of `processor_id`, `deadline` and
`claimed_at` (seconds since the epoch), `first_seq`, `last_seq` and `batch`, the ranges of seq that
are in hand ("1-20,25-25"), nil for none
*/
static int store_stats(lua_State *L) {
  outbox_counts counts;
  shim_store *self = shim_check_store(L, 1);
  shim_read_clock(L, self, 1);
  shim_check_store(L, 1);
  shim_check(L, self, outbox_count_entries(self->store, &counts));
  lua_createtable(L, 0, 8);
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
  if (counts.ready > 0) shim_set_seconds(L, "oldest_age", counts.oldest_age);
  if (counts.delayed > 0) shim_set_seconds(L, "due_at", counts.due_at);
  shim_check_store(L, 1); /* a finalizer may have closed it */
  shim_push_leases(L, self, outbox_leases(self->store));
  lua_setfield(L, -2, "leases");
  return 1;
}

/* --- Migrating and closing ------------------------------------------------------------------- */

/***
Creates the outbox's tables, or brings those of an older version up to date, in one transaction.
Running it again, or in two processes at once, is harmless.
@function store:migrate
@raise `newer` when the tables are from a newer version of this library; `busy`, `full`
*/
static int store_migrate(lua_State *L) {
  shim_store *self = shim_check_store(L, 1);
  shim_check(L, self, outbox_migrate(self->store));
  return 0;
}

/***
Closes the store; what is open on it is rolled back. Closing it again does nothing. Also done by a
to-be-closed variable and by the garbage collector.
@function store:close
@raise `misuse` in the middle of another call: in a hook of the application's connection
*/
static int store_close(lua_State *L) {
  shim_store *self = luaL_checkudata(L, 1, STORE);
  shim_check(L, self, shim_close(self));
  return 0;
}

int shim_close(shim_store *self) {
  self->closing = self->reading;
  if (self->closing) return OUTBOX_OK;
  shim_close_transactions(self);
  int code = outbox_close(self->store);
  if (code != OUTBOX_OK) return code;
  if (self->opened != NULL && self->opened->pid == getpid()) self->opened->count--;
  self->opened = NULL;
  self->store = NULL;
  return OUTBOX_OK;
}

static int store_tostring(lua_State *L) {
  shim_store *self = luaL_checkudata(L, 1, STORE);
  lua_pushfstring(L, STORE " (%s): %p", self->store != NULL ? "open" : "closed", (void *)self);
  return 1;
}

/* --- The type -------------------------------------------------------------------------------- */

static const luaL_Reg METHODS[] = {{"publish", store_publish},
                                   {"claim_entries", store_claim_entries},
                                   {"get_claimed_entries", store_get_claimed_entries},
                                   {"renew_claim", store_renew_claim},
                                   {"keep_claim", store_keep_claim},
                                   {"stop_keeping", store_stop_keeping},
                                   {"release_claim", store_release_claim},
                                   {"wait", store_wait},
                                   {"pollfd", store_pollfd},
                                   {"delete_entries", store_delete_entries},
                                   {"retry_entry", store_retry_entry},
                                   {"bury_entry", store_bury_entry},
                                   {"ready_entries", store_ready_entries},
                                   {"delayed_entries", store_delayed_entries},
                                   {"dead_entries", store_dead_entries},
                                   {"find_entries", store_find_entries},
                                   {"requeue_entries", store_requeue_entries},
                                   {"purge_entries", store_purge_entries},
                                   {"stats", store_stats},
                                   {"clock", store_clock},
                                   {"prefix", store_prefix},
                                   {"migrate", store_migrate},
                                   {"close", store_close},
                                   {NULL, NULL}};

static const luaL_Reg METAMETHODS[] = {
    {"__gc", store_close}, {"__close", store_close}, {"__tostring", store_tostring}, {NULL, NULL}};

void shim_make_store_type(lua_State *L) {
  luaL_newmetatable(L, STORE);
  luaL_setfuncs(L, METAMETHODS, 0);
  luaL_newlib(L, METHODS);
  lua_pushvalue(L, -1);
  lua_setfield(L, -3, "__index");
  lua_setfield(L, -3, "store"); /* where the module `outbox` adds the methods that are in Lua */
  lua_pop(L, 1);
}
