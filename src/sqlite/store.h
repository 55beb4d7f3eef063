/*
** The ground floor: the store itself, how it waits for locks, and its errors.
**
** The floors of this folder, from the ground up: store, statement, batch, transaction; then the
** operations side by side; then open, attach and the extension. A file calls the floors below it,
** or the public face of its neighbours in ../outbox.h and operations.h, and never up.
*/
#ifndef OUTBOX_STORE_H
#define OUTBOX_STORE_H

#include <sys/types.h>

/* A loadable extension uses the SQLite of the program that loads it, by pointers it is given. */
#ifdef OUTBOX_EXTENSION
#include <sqlite3ext.h>
#pragma GCC visibility push(hidden)
SQLITE_EXTENSION_INIT3
#pragma GCC visibility pop
#else
#include <sqlite3.h>
#endif

#include "../bytes.h"
#include "../clock.h"
#include "../outbox.h"

#pragma GCC visibility push(hidden)

/* The statements that begin and end transactions, and one more that needs no table. */
enum control {
  BEGIN,
  COMMIT,
  ROLLBACK,
  SAVEPOINT,
  RELEASE,
  ROLLBACK_TO,
  DATA_VERSION,
  BEGIN_READ,
  CONTROLS
};

/* A prepared statement, known by the address of its SQL. */
typedef struct statement {
  const char *sql;
  sqlite3_stmt *prepared; /* NULL: not prepared */
} statement;

#define MAX_STATEMENTS 80 /* all operations together use some 70; test_plans.c bounds them */

/* Places in the order of commits: values of seq, both ends included. */
typedef struct range {
  int64_t first, last;
} range;

/* The entries that outbox_get_claimed_entries gave last; see batch.c. */
typedef struct batch {
  bool open; /* may still grow: the rows are being read */
  range *ranges;
  size_t range_count, range_capacity;
} batch;

/* How many bytes a reading may still give. */
typedef struct filter {
  bool active;
  bool none; /* has been given yet */
  int64_t left;
} filter;

/* Which commits of others a store has seen; see doorbell.c. */
typedef struct doorbell {
  int fd, file;       /* the descriptor to poll; the watched file where it must be open; or -1 */
  bool watching;      /* there is a watch on the write-ahead log */
  int64_t version;    /* of the database, when the last claim began */
  int64_t changes;    /* rows that this connection had changed by then, less `processing` */
  int64_t processing; /* rows that claims and settlements changed: no reason to wake itself */
  int64_t rung_at;    /* when the bell rang last: its commit may not be visible yet */
  int64_t checked_at; /* when the files were last seen in their places */
  ino_t log;          /* the write-ahead log that was there then; 0: none yet */
} doorbell;

/* How long a connection waits for a lock, and since when it has been waiting; microseconds. */
typedef struct lock_wait {
  int64_t timeout, since;
} lock_wait;

typedef struct heartbeat heartbeat; /* see heartbeat.c */
typedef struct lane lane;           /* see lane.h */
typedef struct notice notice;       /* see attach.c */

struct outbox_store {
  sqlite3 *db;
  pid_t pid;        /* the process that opened it */
  const char *page; /* what it reads as 0 where that was a parent; NULL: only `pid` tells */
  char *prefix;
  outbox_clock *clock;
  void *clock_context;
  outbox_id_generator *id_generator;
  void *id_generator_context;
  outbox_uuid_state uuid_state; /* context of the default ID generator */
  int64_t next_seq;             /* what the next entry gets, perhaps; 0: unknown; see publish.c */
  int64_t copies;               /* of the last message; 0: it had no subscribers */
  int changes;                  /* of the connection, after the last insert; -1: whatever else */
  unsigned version;             /* of the database, by then */
  bool certain;                 /* next_seq is what the next entry gets */
  bool crowded;                 /* a trigger takes places among copies */
  int doubts;                   /* how many times it is to be asked for, because it was wrong */
  bool migrated;                /* the schema's version was found to be ours */
  int depth;                    /* how many begins are open */
  bool doomed;                  /* a rollback failed and is still to be done */
  bool outermost;               /* the first begin is a BEGIN, not a savepoint in another's */
  bool attached;                /* the connection is the application's */
  bool keeps;                   /* statements may outlive a call; see attach.c */
  bool working;    /* SQLite is running for us, and may call functions that call us again */
  bool restricted; /* SQL of the application's is being compiled: no COMMIT in it; see sql.c */
  notice *notice;
  batch batch;
  filter filter;
  doorbell doorbell;
  heartbeat *heartbeat;          /* NULL until it is first started */
  lane *lane;                    /* NULL before outbox_serve */
  void (*free_lane)(lane *lane); /* a pointer, because the extension has no lanes */
  lock_wait lock_wait;
  sqlite3_stmt *reading;   /* what outbox_next and outbox_next_lease step, else NULL */
  bool stepped;            /* it stands at a row already */
  char id[OUTBOX_ID_SIZE]; /* of that row, where it is derived */
  sqlite3_stmt *controls[CONTROLS];
  statement statements[MAX_STATEMENTS];
  int statement_count;
  char message[512];
};

/* Makes a store without a connection. Sets *store as outbox_open does. */
int store_make(outbox_store **store, const outbox_options *options);

/* Frees its memory. */
void store_free(outbox_store *store);

/* Whether this process has opened the store, not its parent. */
bool store_is_ours(const outbox_store *store);

/* Asks the store's clock. Fails with CALLBACK. */
int store_now(outbox_store *store, int64_t *now);

/* The same inside the write lock. Any call on the store fails meanwhile. */
int store_now_inside(outbox_store *store, int64_t *now);

/* Has a connection wait for locks. *wait must live as long as the connection. */
void store_wait_for_locks(sqlite3 *db, lock_wait *wait);

/* Records an error: the message, made as printf does, and the code. Returns the code. */
int store_fail(outbox_store *store, int code, const char *format, ...);

/* The same, for errors that are reported in several places. */
int store_fail_nomem(outbox_store *store);
int store_fail_duplicate(outbox_store *store);
int store_fail_reentered(outbox_store *store);

/* Records the error that SQLite has just returned on the store's connection. */
int store_fail_sqlite(outbox_store *store);

/* Whether that was a constraint of one kind, "UNIQUE" or "NOT NULL", of a column: "ready.seq". */
bool store_is_refusal(const outbox_store *store, int code, const char *kind, const char *column);

#pragma GCC visibility pop

#endif
