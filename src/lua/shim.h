/*
** The Lua 5.4 interface of the core. Each function checks its arguments, calls back into Lua where
** that is needed (clock, ID generator, headers), enters the core, and raises only after the core
** has returned. So no Lua error ever crosses the core, and the core runs no statement while Lua
** runs. One callback runs inside the core, protected: the clock, for a claim (shim_answer_clock).
**
** The floors of this folder, from the ground up:
**
**     check                         errors, checks of arguments, conversions
**     handle                        the store as a userdata, and what is open on it
**     reading  publish              rows of the core as Lua tables; Lua tables as messages
**     claiming settling listing sql the methods, by what they do
**     store    transaction open     the types, and how they are made
**     module                        luaopen_outbox_core
**
** values and files need `check` alone; process and worker need `files`, too. A file calls the
** floors below it, never up.
*/
#ifndef OUTBOX_SHIM_H
#define OUTBOX_SHIM_H

#include <lauxlib.h>
#include <lua.h>
#include <sys/types.h>

#include "../engine.h"

/* Names of the metatables. They are also the names of the types in error messages. */
#define STORE "outbox.store"
#define TRANSACTION "outbox.transaction"
#define ROWS "outbox.rows"
#define BLOB "outbox.blob"
#define ERROR "outbox.error"

#pragma GCC visibility push(hidden)

typedef struct shim_store shim_store;

/* --- check.c: errors, checks of arguments, conversions --------------------------------------- */

/* Raises an outbox.error with a code and a message. */
int shim_raise(lua_State *L, const char *code, const char *message);

/* Raises the store's last error, unless `code` is OUTBOX_OK. */
void shim_check(lua_State *L, const shim_store *self, int code);

/* Raises the store's last error as one of the argument at the index. */
int shim_refuse(lua_State *L, const shim_store *self, int index);

/* The string at the index. Raises for any other type: numbers are not converted. */
outbox_bytes shim_check_bytes(lua_State *L, int index);

/* The same where the argument is optional: no value for none and nil. */
outbox_bytes shim_opt_bytes(lua_State *L, int index);

/* Whether there are options at the index. Raises for a name that is not among `names`. */
bool shim_check_options(lua_State *L, int index, const char *const *names);

/*
** The value of an option in the table at the index; `standard` where it is nil. Raises for a value
** of the wrong type, or below `minimum`. All three leave the value on the stack.
*/
int64_t shim_opt_integer(lua_State *L, int index, const char *option, int64_t minimum,
                         int64_t standard);
bool shim_opt_boolean(lua_State *L, int index, const char *option);

/* The value is one of the names; the result is its index among them. */
int shim_opt_name(lua_State *L, int index, const char *option, const char *const *names,
                  int standard);

/* Converts seconds into microseconds. False where the time is out of range, or a NaN. */
bool shim_microseconds(double seconds, int64_t *microseconds);

/* The number of seconds at the index, in microseconds. */
int64_t shim_check_microseconds(lua_State *L, int index);

/* Pushes a time or a span of time in seconds, or sets a field of the table on the top to it. */
void shim_push_seconds(lua_State *L, int64_t microseconds);
void shim_set_seconds(lua_State *L, const char *field, int64_t microseconds);

/* Replaces the value on the top with the result of a function of the module outbox.headers. */
void shim_convert_headers(lua_State *L, const char *function);

/* --- handle.c: the store as a userdata, and what is open on it ------------------------------- */

typedef struct shim_transaction shim_transaction;
typedef struct shim_rows shim_rows;

/*
** The user values of a store: the clock, a table with a function `now`; the ID generator, a table
** with a function `generate_id`, or nil; the counter of the open stores; and, for an attached
** store, a function that runs a SELECT with the application's binding.
*/
enum {
  CLOCK_VALUE = 1,
  ID_GENERATOR_VALUE,
  OPENED_VALUE,
  SELECT_VALUE,
  CLAIMS_VALUE, /* this and the next two: see identity.c */
  READ_VALUE,
  OLD_VALUE,
  STORE_VALUES = OLD_VALUE
};

/*
** Counts the stores on SQLite that a process has open. SQLite's own bookkeeping of locks survives a
** fork, but the locks do not: a child of a process with such a store would write without any. Other
** engines have no such bookkeeping, and are not counted.
*/
typedef struct shim_opened {
  pid_t pid;
  int count;
} shim_opened;

struct shim_store {
  const outbox_engine *engine; /* never NULL */
  outbox_store *store;         /* NULL once closed */
  bool lua_clock;              /* a user value is the clock; it is read into `now` */
  bool lua_id_generator;       /* a user value is the ID generator */
  bool attached;               /* the connection is the application's */
  bool lazy;                   /* its binding begins a transaction only with its first statement */
  bool reading;                /* rows of the core are being made into an array */
  bool closing;                /* close the store after that */
  int64_t now;                 /* the answer of the core's clock callback */
  lua_State *claiming;         /* who claims, with a Lua clock; NULL: nobody */
  bool answered;               /* the claim has got `now`: the core asks again, inside the lock */
  int status;                  /* of the Lua clock when it was called there */
  bool asking;                 /* the Lua clock is running there: every call on the store raises */
  lua_State *owner;            /* the coroutine that opened the transaction */
  shim_opened *opened;         /* the counter that counts it; NULL: it is not counted */
  shim_transaction *innermost; /* of the open transactions; NULL without one */
  outbox_verdict *verdicts;    /* room for those of one call, kept for the next */
  size_t verdict_room;
};

/* User values: the store, and the coroutine that began it, so that no other gets its address. */
enum { STORE_VALUE = 1, OWNER_VALUE, TRANSACTION_VALUES = OWNER_VALUE };

struct shim_transaction {
  shim_store *store;
  shim_transaction *outer; /* the transaction that it is nested in */
  shim_rows *first;        /* its open iterators */
  bool open;
};

/* The iterator over the rows of the application's SQL. User value: the transaction. */
struct shim_rows {
  const outbox_engine *engine;   /* of the rows, which may outlive the store */
  shim_transaction *transaction; /* NULL once closed */
  bool done;                     /* closed because there are no more rows */
  bool busy; /* a row is being made into a table: the query is closed after it */
  outbox_rows *rows;
  shim_rows *previous, *next;
};

/* The store at the index. Raises if it is closed, or in a transaction of another coroutine. */
shim_store *shim_check_store(lua_State *L, int index);

/* The same for a store that is known to be one. */
void shim_check_usable(lua_State *L, shim_store *self, int index);

/* Raises while the core asks the Lua clock. */
void shim_check_clock(lua_State *L, shim_store *self);

/* The same; raises also in the middle of a reading, when a finalizer tries to use the store. */
void shim_check_idle(lua_State *L, shim_store *self);

/* The transaction at index 1. Raises if it has ended. */
shim_transaction *shim_check_transaction(lua_State *L);

/* The same for a transaction that is known to be one. */
void shim_check_open(lua_State *L, shim_transaction *self);

/*
** Reads the clock into the store at the index, where the clock is a Lua one, before the core is
** entered. Check the store once more after this, because the clock may have closed it.
*/
void shim_read_clock(lua_State *L, shim_store *self, int index);

/*
** The core's clock callback where the clock is a Lua one: gives the time that was read before. A
** claim asks a second time, inside the write lock. Then this calls the Lua clock, protected. If
** that raises or yields, the error is left on the stack of `claiming`.
*/
int shim_answer_clock(void *context, int64_t *now);

/*
** Call these around an operation of the core that asks the clock again inside the write lock. The
** second one raises what the clock raised there.
*/
void shim_begin_asking(lua_State *L, shim_store *self);
void shim_end_asking(lua_State *L, shim_store *self);

/* Closes an iterator: at once, or after the row that it is in the middle of. */
void shim_close_rows(shim_rows *self);

/* Takes the innermost transaction off the store's list. The core must still end it. */
void shim_pop_transaction(shim_store *store);

/* Rolls a transaction back, with those that are nested in it, if it is open. */
void shim_roll_back(shim_transaction *self);

/*
** Closes the store, and everything that is open on it; in the middle of a reading, after that.
** Returns what the engine's close returns.
*/
int shim_close(shim_store *self);

/* --- places.c: a map from ids to the places of entries --------------------------------------- */

typedef struct shim_places shim_places; /* the address of a userdata */

/* Pushes an empty map. */
void shim_push_places(lua_State *L);

/* Notes a place in the map, which is at the index; that is not relative to the top. */
void shim_note_place(lua_State *L, int index, shim_places *self, outbox_bytes id, int64_t seq);

/* Returns false if the id is not in the map. */
bool shim_find_place(const shim_places *self, outbox_bytes id, int64_t *seq);

size_t shim_count_places(const shim_places *self);

/* Forgets the place of an id, if it is there; or of all. */
void shim_forget_place(shim_places *self, outbox_bytes id);
void shim_forget_places(shim_places *self);

/* Forgets the places where nothing waits any more. */
void shim_sweep_places(lua_State *L, shim_places *self, const shim_store *store);

/* --- identity.c: which entry an id means ----------------------------------------------------- */

/*
** All are for the store at one index, and the processor whose ID is at another. Pushes the places
** in which a reading notes the entries that a processor reads under its claim. Returns whether they
** are known, because it has read before.
*/
bool shim_push_memory(lua_State *L, int index, int processor);

/*
** Pops them and keeps them, if any entries were read. Raises when they are more than 100,000. May
** run a finalizer that closes the store.
*/
void shim_remember(lua_State *L, shim_store *self, int index, int processor, bool known);

/* The processor is about to claim. If many entries are remembered, forgets the older ones. */
void shim_renew_memory(lua_State *L, int index, int processor);

/*
** The processor has no claim any more. Forgets what it has read, unless the claim was lost: then an
** id that it has read goes on meaning that entry, which is another's now.
*/
void shim_forget_claim(lua_State *L, int index, int processor, bool lost);

/*
** The entry that an argument means: an id, or a table with the `id` and the `seq` of an entry that
** was read. No entry has the place of an id that was not read under the claim that the store has.
** Replaces a table by its id, whose bytes stay valid with it.
*/
outbox_identity shim_identify(lua_State *L, int index, int argument);

/*
** The same for the arguments from `first` to `last`. Returns whether they were all read by the
** processor that has read last.
*/
bool shim_identify_all(lua_State *L, int index, int first, int last, outbox_identity *entries);

/*
** Forgets entries that are gone for good; allocates nothing. `read_last`: all were read by the
** processor that has read last, and each is another.
*/
void shim_forget(lua_State *L, int index, const outbox_identity *entries, size_t count,
                 bool read_last);

/* --- reading.c: rows of the core as Lua tables ----------------------------------------------- */

/*
** Pushes the array of the entries that the core has begun to read. Raises instead if `code` is an
** error. Entries that are `listed`, not claimed, come with their `seq` and their time.
*/
int shim_push_entries(lua_State *L, shim_store *self, int code, bool listed);

/* The same for claimed entries, whose places it notes in the map at `memory`; their number. */
size_t shim_push_batch(lua_State *L, shim_store *self, int code, int memory);

/* Pushes the array of the entries in hand. */
void shim_push_names(lua_State *L, shim_store *self);
void shim_push_hand(lua_State *L, shim_store *self);

/* The same for leases. */
void shim_push_leases(lua_State *L, shim_store *self, int code);
void shim_push_subscriptions(lua_State *L, shim_store *self, int code);
void shim_push_paused(lua_State *L, shim_store *self, int code);
void shim_push_summaries(lua_State *L, shim_store *self, int code);

/* --- publish.c: Lua tables as messages ------------------------------------------------------- */

/*
** Publishes the messages that are the arguments from the second to the `last` and pushes the ids.
** The store's userdata, with the user values, is at `store_index`. `check` raises unless the first
** argument can still be used, because Lua code that was called may have closed it.
*/
int shim_publish(lua_State *L, shim_store *self, int last, int store_index,
                 void check(lua_State *L));

/* --- The methods ----------------------------------------------------------------------------- */

/* Each adds methods to the table on the top: of a store ... */
void shim_add_claiming(lua_State *L);
void shim_add_lane(lua_State *L);
void shim_add_settling(lua_State *L);
void shim_add_listing(lua_State *L);
void shim_add_steering(lua_State *L);

/* ... and of a transaction. */
void shim_add_sql(lua_State *L);

/* --- files.c --------------------------------------------------------------------------------- */

/*
** Makes a pipe that no program inherits, of descriptors that no standard stream has: what is
** written to a stream that was closed must not get in. Returns 0; or -1 with errno, and both
** ends are -1.
*/
int shim_pipe(int ends[2]);

/* --- The module ------------------------------------------------------------------------------ */

/* Each makes the metatables of its types and adds its functions to the module on the top. */
void shim_open_check(lua_State *L);
void shim_open_values(lua_State *L);
void shim_open_files(lua_State *L);
void shim_open_poll(lua_State *L);
void shim_open_process(lua_State *L);
void shim_open_worker(lua_State *L);
void shim_open_publish(lua_State *L);
void shim_open_sql(lua_State *L);
void shim_open_store(lua_State *L);
void shim_open_transaction(lua_State *L);
void shim_open_opening(lua_State *L); /* after the clock is in the module */

#pragma GCC visibility pop

#endif
