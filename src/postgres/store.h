/*
** The ground floor: the store itself, its clock, and its errors.
**
** The floors of this folder, from the ground up: store, connection, statement, transaction; then
** the operations side by side; then open and engine. A file calls the floors below it, or the
** public face of its neighbours in ../outbox.h and operations.h, and never up.
*/
#ifndef OUTBOX_PG_STORE_H
#define OUTBOX_PG_STORE_H

#include <libpq-fe.h>
#include <sys/types.h>

#include "../bytes.h"
#include "../clock.h"
#include "../outbox.h"

#pragma GCC visibility push(hidden)

#define MAX_STATEMENTS 96 /* all operations together use some 70 */
#define MAX_CALLS 16      /* statements in one round trip */

/* A statement that the server keeps prepared, known by the address of its SQL. */
typedef struct statement {
  const char *sql;
  bool prepared;
} statement;

/* One statement of a round trip. */
typedef struct call {
  statement *statement;
  bool prepares; /* its preparation is sent along */
  PGresult *result;
} call;

typedef struct heartbeat heartbeat; /* see heartbeat.c */
typedef struct bell bell;           /* see wait.c */
typedef struct lane lane;           /* see lane.h */

struct outbox_store {
  PGconn *db;
  pid_t pid; /* the process that opened it */
  char *url, *prefix;
  char *schema; /* where the tables are, or would be: an identifier in quotes */
  enum outbox_mode mode;
  enum outbox_synchronous synchronous;
  int busy_timeout;    /* milliseconds */
  outbox_clock *clock; /* NULL: the server's */
  void *clock_context;
  int64_t skew;                      /* the server's clock, less ours */
  outbox_id_generator *id_generator; /* NULL: UUIDv7 */
  void *id_generator_context;
  outbox_uuid_state uuid_state;
  bool migrated;          /* the schema's version was found to be ours */
  bool ordered;           /* publishers queue for the class of a key; */
  bool strict;            /* or all for one lock */
  int space;              /* the first number of the outbox's advisory locks */
  int depth;              /* how many begins are open */
  int64_t xid;            /* of the transaction that is open, where it has published; else 0 */
  unsigned sessions;      /* how many connections there have been */
  int64_t connected_at;   /* by the server's clock: when the last one was made, */
  int64_t server_started; /* and when its server was started */
  bool working;           /* a callback is running: every call on the store fails */
  bool pooled;            /* a pooler may give the session to others between transactions */
  char settings[900];     /* the SQL that sets the session up */
  PGresult *reading;      /* what outbox_next and its kin read, else NULL */
  int row;                /* the next one of it */
  int64_t *hand_places, *hand_partitions; /* that a claim by hand has read last */
  size_t hand_count, hand_room;
  char *held;         /* a text that outbox_next_lease has given */
  int64_t bytes_left; /* of a reading; below 0: it has no bound */
  bell *bell;         /* NULL until it is first waited for */
  heartbeat *heartbeat;
  unsigned heartbeat_session; /* the connection beside which it was made */
  lane *lane;                 /* NULL before outbox_serve */
  void (*free_lane)(lane *lane);
  call calls[MAX_CALLS];
  int call_count;
  bool sets; /* the settings are sent before the calls */
  statement statements[MAX_STATEMENTS];
  int statement_count;
  char message[512];
};

/* Makes a store without a connection. Sets *store as outbox_open does. */
int store_make(outbox_store **store, const char *url, const outbox_options *options);
void store_free(outbox_store *store);

/* Whether this process has opened the store, not its parent. */
bool store_is_ours(const outbox_store *store);

/* Asks the store's clock. Fails with CALLBACK. */
int store_now(outbox_store *store, int64_t *now);

/* The same while a lock is held. Any call on the store fails meanwhile. */
int store_now_inside(outbox_store *store, int64_t *now);

/* Records an error: the message, made as printf does, and the code. Returns the code. */
int store_fail(outbox_store *store, int code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
int store_fail_nomem(outbox_store *store);

#pragma GCC visibility pop

#endif
