/*
** What the files of the core share: the store itself, its prepared statements, its errors.
** Not for users; they include outbox.h.
*/
#ifndef OUTBOX_STORE_H
#define OUTBOX_STORE_H

#include <sqlite3.h>
#include <sys/types.h>

#include "outbox.h"

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
  SELECT_DUE,
  RESTORE_DUE,
  DELETE_DUE,
  SELECT_LEASES,
  DELETE_LEASE,
  INSERT_LEASE,
  FIRST_READY,
  LAST_READY,
  COUNT_READY,
  SELECT_CLAIMED,
  DELETE_READY,
  DELETE_RANGE,
  DELETE_DELAYED,
  DELAY_READY,
  BURY_READY,
  SELECT_DEAD,
  SELECT_DEAD_OF_NAMESPACE,
  REQUEUE_DEAD,
  DELETE_DEAD,
  COUNT_ENTRIES,
  STATEMENTS
};

/*
** The entries that outbox_get_claimed_entries gave last, if their seq follow each other. If these
** very ids are deleted, and nobody has written to the database since, the range can be deleted,
** which is a quarter faster than one after the other.
*/
typedef struct batch {
  bool open;            /* may still grow: the rows are being read, and so far without a gap */
  int64_t data_version; /* of the database, changed by other connections, when reading began */
  int64_t changes;      /* of this connection, at that time */
  int64_t first_seq;
  size_t count;
  char *ids; /* of each its size, a size_t, and its bytes */
  size_t size, capacity;
} batch;

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
  batch batch;
  sqlite3_stmt *reading; /* what outbox_next and outbox_next_lease step, else NULL */
  sqlite3_stmt *statements[STATEMENTS];
  char message[512];
};

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
void outbox_reset(sqlite3_stmt *statement);

/* Runs a statement that gives no row: outbox_query, outbox_step, outbox_reset. */
int outbox_run(outbox_store *store, enum statement which, const char *sql, const char *types, ...);

/*
** The statements that need no tables, up to LAST_CONTROL. They are prepared when the store is
** opened: to roll back must not need memory that may not be there.
*/
int outbox_prepare_control(outbox_store *store);
int outbox_control(outbox_store *store, enum statement which);

/* Ends an outbox_begin: commits when code is OUTBOX_OK, else rolls back. Returns the result. */
int outbox_end(outbox_store *store, int code);

/* Reads a column byte for byte, whatever its type; a NULL has no value. */
outbox_bytes outbox_column(sqlite3_stmt *statement, int index);

/* Steps what is being read; the error path of outbox_next and outbox_next_lease. */
int outbox_next_row(outbox_store *store);

/* Begins the store's batch, which outbox_next fills. */
int outbox_start_batch(outbox_store *store);

/* Adds an entry that was read to the store's batch. */
void outbox_remember(outbox_store *store, const outbox_entry *entry);

/* The columns that outbox_next reads, in its order. */
#define ENTRY_COLUMNS "seq, id, namespace, key, payload, headers, created_at, attempts, last_error"

/* The schema's version: outbox_schema_version finds the database's, 0 where there is none. */
#define SCHEMA_VERSION 1
int outbox_schema_version(outbox_store *store, int *version);

#endif
