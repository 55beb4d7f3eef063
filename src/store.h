/*
** What the files of the core share: the store itself, its prepared statements, its errors.
** Not for users; they include outbox.h.
*/
#ifndef OUTBOX_STORE_H
#define OUTBOX_STORE_H

#include <sys/types.h>

/* A loadable extension uses the SQLite of whoever loads it, by pointers that it is given. */
#ifdef OUTBOX_EXTENSION
#include <sqlite3ext.h>
#pragma GCC visibility push(hidden)
SQLITE_EXTENSION_INIT3
#pragma GCC visibility pop
#else
#include <sqlite3.h>
#endif

#include "outbox.h"

#pragma GCC visibility push(hidden)

/* Each statement is prepared when first used and kept for the connection's life. */
enum statement {
  BEGIN,
  COMMIT,
  ROLLBACK,
  SAVEPOINT,
  RELEASE,
  ROLLBACK_TO,
  DATA_VERSION,
  LAST_CONTROL = DATA_VERSION, /* the ones above need no tables */
  INSERT_READY,
  INSERT_READY_ROWS,
  INSERT_DELAYED,
  FIND_ID,
  FIND_WORK,
  FIND_DUE,
  SELECT_DUE,
  FIND_RETURNING,
  RESTORE_DUE,
  DELETE_DUE,
  SELECT_LEASES,
  DELETE_LEASE,
  INSERT_LEASE,
  RENEW_LEASES,
  HOLD_BATCH,
  RELEASE_LEASES,
  CHARGE_RANGE,
  FIRST_READY,
  LAST_READY,
  COUNT_READY,
  SELECT_CLAIMED,
  SELECT_UNHELD,
  FIRST_POSITION,
  DELETE_READY,
  CHECK_RANGE,
  DELETE_RANGE,
  DELETE_DELAYED,
  DELAY_READY,
  MOVE_DUE,
  BURY_READY,
  SELECT_READY,
  SELECT_READY_BACK,
  SELECT_DELAYED,
  SELECT_DELAYED_BACK,
  SELECT_DEAD,
  SELECT_DEAD_BACK,
  FIND_ENTRIES,
  REQUEUE_DEAD,
  DELETE_DEAD,
  COUNT_ENTRIES,
  STATEMENTS
};

/* Values of seq from `first` to `last`. */
typedef struct range {
  int64_t first, last;
} range;

/*
** The entries that outbox_get_claimed_entries gave last. If these very ids are deleted, their
** ranges of seq can be, which is a quarter faster than one after the other. That is safe because a
** seq never comes twice, except where a transaction that gave it is rolled back; then the batch is
** forgotten.
*/
typedef struct batch {
  bool open;    /* may still grow: the rows are being read */
  size_t count; /* of the entries */
  char *ids;    /* of each its size, a size_t, and its bytes */
  size_t size, capacity;
  range *ranges;
  size_t range_count, range_capacity;
} batch;

/* What outbox_next leaves out of a reading, and how far that one has come. */
typedef struct filter {
  bool active;
  int64_t wanted; /* so many more */
  const outbox_bytes *except;
  size_t except_count;
  int64_t read_to;
} filter;

/* What tells of commits; see doorbell.c. */
typedef struct doorbell {
  int fd, file;       /* what to poll, and the file it watches where it must be open; or -1 */
  bool watching;      /* there is a watch on the write-ahead log */
  int64_t version;    /* of the database, when the last claim began */
  int64_t changes;    /* of this connection, at that time, but for those of processing */
  int64_t processing; /* changes that claims and settlements made: they ring no bell */
  int64_t rung_at;    /* when it rang last: what it rang for may not be seen yet */
} doorbell;

/* How long a connection waits for a lock of another's, and since when it does; microseconds. */
typedef struct lock_wait {
  int64_t timeout, since;
} lock_wait;

/* The thread that keeps a claim; see keep.c. */
typedef struct keeper keeper;

/* What tells an attached store that its connection is closed; see attach.c. */
typedef struct notice notice;

struct outbox_store {
  sqlite3 *db;
  pid_t pid; /* the process that opened it */
  char *prefix;
  outbox_clock *clock;
  void *clock_context;
  outbox_id_generator *id_generator;
  void *id_generator_context;
  outbox_uuid_state uuid_state; /* context of the default ID generator */
  bool migrated;                /* the schema's version was found to be ours */
  int depth;                    /* how many begins are open */
  bool doomed;                  /* a rollback failed and is still to be done */
  bool outermost; /* the first of them is a BEGIN, not a savepoint in somebody else's */
  bool attached;  /* the connection is somebody else's: no statement must outlive a call */
  bool working;   /* SQLite is at work for us, and may call functions that call us again */
  notice *notice;
  batch batch;
  filter filter;
  doorbell doorbell;
  keeper *keeper; /* NULL until it is needed */
  lock_wait lock_wait;
  sqlite3_stmt *reading; /* what outbox_next and outbox_next_lease step, else NULL */
  sqlite3_stmt *statements[STATEMENTS];
  char message[512];
};

/* Makes a store without a connection, as outbox_open and outbox_attach begin. */
int outbox_make_store(outbox_store **store, const outbox_options *options);

/* Makes a store of a connection as outbox_attach does, but nobody will tell it of the close. */
int outbox_borrow(outbox_store **store, sqlite3 *db, const outbox_options *options);

/* Microseconds, since some moment in the past, that no change of the clock disturbs. */
int64_t outbox_monotonic(void);

/* The time after a span that may be for ever, as INT64_MAX is. */
int64_t outbox_later(int64_t time, int64_t span);

/* Has a connection wait for the locks of others, with what must live as long as it does. */
void outbox_wait_for_locks(sqlite3 *db, lock_wait *wait);

/* Keeps the shared object that this code is in loaded for as long as the process lasts. */
void outbox_pin(void);

/* Lets go of the connection of an attached store. */
void outbox_detach(outbox_store *store);

/* Refuses a database whose text is in UTF-16. */
int outbox_check_encoding(outbox_store *store);

/* Starts every operation: refuses a forked child, ends a reading. */
int outbox_enter(outbox_store *store);

/* Asks the store's clock. */
int outbox_now(outbox_store *store, int64_t *now);

/* Records an error: the message, as printf makes it, and the code, which it returns. */
int outbox_fail(outbox_store *store, int code, const char *format, ...);

/* Records that an id is taken. */
int outbox_fail_duplicate(outbox_store *store);

/* Records the error that SQLite has just returned on the store's connection. */
int outbox_fail_sqlite(outbox_store *store);

/* The SQL with the store's prefix for each `@`; to be freed with sqlite3_free. NULL: no memory. */
char *outbox_expand(outbox_store *store, const char *sql);

/* sqlite3_prepare_v3 and sqlite3_step, in which the store can neither be used again nor closed. */
int outbox_compile(outbox_store *store, const char *sql, unsigned flags, sqlite3_stmt **statement);
int outbox_work(outbox_store *store, sqlite3_stmt *statement);

/* Prepares SQL for the connection's life. */
int outbox_prepare(outbox_store *store, const char *sql, sqlite3_stmt **statement);

/*
** Prepares `sql` on first use, with the store's prefix for each `@` in it, and binds the parameters
** that `types` lists: i an int64_t, t an outbox_bytes as TEXT, b as BLOB, neither of them copied,
** so that they must live until outbox_reset; T as TEXT and copied. Fails with SCHEMA before the
** migration.
*/
int outbox_query(outbox_store *store, enum statement which, const char *sql, sqlite3_stmt **out,
                 const char *types, ...);

/* Binds more parameters, the one at `first` first. */
int outbox_bind(outbox_store *store, sqlite3_stmt *statement, int first, const char *types, ...);

/* OUTBOX_ROW, or OUTBOX_DONE or an error and the statement is reset. */
int outbox_step(outbox_store *store, sqlite3_stmt *statement);

/* Resets a statement and lets go of the bytes that are bound to it. */
void outbox_reset(outbox_store *store, sqlite3_stmt *statement);

/* Finalizes all statements. */
void outbox_finalize(outbox_store *store);

/* Runs a statement that gives no row: outbox_query, outbox_step, outbox_reset. */
int outbox_run(outbox_store *store, enum statement which, const char *sql, const char *types, ...);

/*
** The statements that need no tables, up to LAST_CONTROL. They are prepared when the store is
** opened, or else before a begin: to roll back must not need memory that may not be there.
*/
int outbox_prepare_control(outbox_store *store, enum statement first, enum statement last);
int outbox_control(outbox_store *store, enum statement which);

/* Ends an outbox_begin: commits when code is OUTBOX_OK, else rolls back. Returns the result. */
int outbox_end(outbox_store *store, int code);

/* As outbox_run, for what processors write: it rings no bell of their own. */
int outbox_process(outbox_store *store, enum statement which, const char *sql, const char *types,
                   ...);

/* Remembers what has been seen, for outbox_wait to know what has not. */
int outbox_see(outbox_store *store);

void outbox_close_doorbell(outbox_store *store);

/* Ends the thread, if there is one. */
void outbox_close_keeper(outbox_store *store);

/* Reads a column byte for byte, whatever its type; a NULL has no value. */
outbox_bytes outbox_column(sqlite3_stmt *statement, int index);

/* Whether the bytes are the same. No value is the same as an empty string. */
bool outbox_equal(outbox_bytes a, outbox_bytes b);

/* Steps what is being read; the error path of outbox_next and outbox_next_lease. */
int outbox_next_row(outbox_store *store);

/* Begins the store's batch, which outbox_next fills. */
void outbox_start_batch(outbox_store *store);

/* Adds an entry that was read to the store's batch. */
int outbox_remember(outbox_store *store, const outbox_entry *entry);

/* Whether the ids are those of the batch, all and in order. */
bool outbox_is_batch(const outbox_store *store, const outbox_bytes *ids, size_t count);

/* Whether the row that was read is left out of the reading; counts it. */
bool outbox_leaves_out(outbox_store *store, const outbox_entry *entry, bool held);

/* The columns that outbox_next reads, in its order. */
#define ENTRY_COLUMNS "seq, id, namespace, key, payload, headers, created_at, attempts, last_error"

/* The schema's version: outbox_schema_version finds the database's, 0 where there is none. */
#define SCHEMA_VERSION 1
int outbox_schema_version(outbox_store *store, int *version);

#pragma GCC visibility pop

#endif
