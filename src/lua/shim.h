/*
** The Lua 5.4 face of the core. Each function checks its arguments, calls back into Lua where that
** is needed (clock, ID generator, headers), enters the core, and raises only after the core has
** returned: no Lua error ever crosses it, and no statement of the core is open while Lua runs.
*/
#ifndef OUTBOX_SHIM_H
#define OUTBOX_SHIM_H

#include <lauxlib.h>
#include <lua.h>
#include <sys/types.h>

#include "../outbox.h"

/* Names of the metatables, and so of the types in messages. */
#define STORE "outbox.store"
#define TRANSACTION "outbox.transaction"
#define ROWS "outbox.rows"
#define BLOB "outbox.blob"
#define ERROR "outbox.error"

#pragma GCC visibility push(hidden)

typedef struct transaction transaction;

/*
** A store. Its user values: the clock, a table with a function `now`; the ID generator, a table
** with a function `generate_id`, or nil; what keeps count of the open stores; and, of an attached
** one, a function that runs a SELECT by way of the application's binding.
*/
enum {
  CLOCK_VALUE = 1,
  ID_GENERATOR_VALUE,
  OPENED_VALUE,
  SELECT_VALUE,
  STORE_VALUES = SELECT_VALUE
};

/*
** The stores that a process has open. SQLite's own bookkeeping of locks survives a fork, but the
** locks do not: a child of a process with an open store would write without any.
*/
typedef struct shim_opened {
  pid_t pid;
  int count;
} shim_opened;

typedef struct shim_store {
  outbox_store *store;    /* NULL once closed */
  bool lua_clock;         /* there is a clock in the user value, to be read into `now` */
  bool lua_id_generator;  /* there is an ID generator in the user value */
  bool attached;          /* the connection is the application's */
  bool lazy;              /* its binding begins a transaction with the first statement in it */
  bool reading;           /* what the core reads becomes an array */
  bool closing;           /* and the store is to be closed after it */
  bool preparing;         /* SQL of the user's is being prepared: no COMMIT in there */
  int64_t now;            /* what the core's clock callback answers */
  lua_State *owner;       /* the coroutine that opened the transaction */
  shim_opened *opened;    /* where it is counted, NULL unless it is */
  transaction *innermost; /* of the open transactions, NULL without one */
} shim_store;

/* Raises a table with a code and a message. */
int shim_raise(lua_State *L, const char *code, const char *message);

/* Raises the store's last error if `code` is one. */
void shim_check(lua_State *L, shim_store *self, int code);

/* Raises in the middle of a reading, where a finalizer may try to use the store. */
void shim_check_idle(lua_State *L, shim_store *self);

/* The store at the index; raises if it is closed, or in a transaction of another coroutine. */
shim_store *shim_check_store(lua_State *L, int index);

/*
** Publishes the messages that are the arguments from the second to the `last` and pushes the ids.
** The store's userdata, with the user values, is at `store_index`. `check` raises unless the first
** argument can still be used: Lua that was called may have closed it.
*/
int shim_publish(lua_State *L, shim_store *self, int last, int store_index,
                 void check(lua_State *L));

/*
** Reads the clock, where it is Lua's, ahead of the core. To be followed by another check of the
** store, whose userdata is at the index: the clock may have closed it.
*/
void shim_read_clock(lua_State *L, shim_store *self, int index);

/* The core's clock where the user's is a Lua one: it was read before the core was entered. */
int shim_stored_clock(void *context, int64_t *now);

/* Whether there are options at the index; refuses those that are not among the names. */
bool shim_check_options(lua_State *L, int index, const char *const *names);

/* The index of the option's value among the names, of which there are four at most. */
int shim_opt_name(lua_State *L, int index, const char *option, const char *const *names,
                  int standard);

/* Closes the store, and what is open on it. Returns what outbox_close does. */
int shim_close(shim_store *self);

/*
** Pushes the array of what the core has begun to read, unless `code` is an error: entries, with
** their place and their time if they are `listed` and not claimed ...
*/
int shim_push_entries(lua_State *L, shim_store *self, int code, bool listed);

/* ... or leases. */
void shim_push_leases(lua_State *L, shim_store *self, int code);

/* Replaces the value on the top by what a function of outbox.headers makes of it. */
void shim_convert_headers(lua_State *L, const char *function);

/* Sets a field of the table on the top to a time or a span of time. */
void shim_set_seconds(lua_State *L, const char *field, int64_t microseconds);

/* Seconds as microseconds; false where they are out of all range. */
bool shim_microseconds(double seconds, int64_t *microseconds);
int64_t shim_check_microseconds(lua_State *L, int index);
void shim_push_seconds(lua_State *L, int64_t microseconds);

/* The string at the index, which must be one: numbers are not converted. */
outbox_bytes shim_check_bytes(lua_State *L, int index);

/* Rolls all open transactions back; their objects and iterators are closed. */
void shim_close_transactions(shim_store *self);

/* Each adds its types' metatables to the registry and its functions to the module on the top. */
void shim_make_store_type(lua_State *L);
void shim_open_store(lua_State *L);
void shim_open_process(lua_State *L);
void shim_open_transaction(lua_State *L);

#pragma GCC visibility pop

#endif
