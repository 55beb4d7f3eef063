/*
** outbox: a transactional outbox on SQLite or PostgreSQL.
**
** An application changes its database and must tell the world about it: both or neither. It
** publishes a message in the transaction that makes the change. The message becomes an entry of the
** outbox if, and only if, that transaction commits. A processor claims the waiting entries until a
** deadline, delivers them, and deletes what was delivered. When it dies, its claim lapses and
** another processor takes over. Delivery is therefore at least once.
**
**     outbox_open > outbox_migrate
**       application:  outbox_begin > outbox_execute > outbox_publish > outbox_commit
**       processor:    outbox_claim_entries > outbox_get_claimed_entries > outbox_next ...
**                     > outbox_hold_batch
**                     delivered: outbox_delete_entries
**                     failed:    outbox_retry_entry, in the end outbox_bury_entry
**                     in between outbox_renew_claim, at the end outbox_release_claim
**                     nothing there: outbox_wait
**       operator:     outbox_count_entries, outbox_dead_entries > outbox_requeue_entries
**     outbox_close
**
** An engine implements these operations on one database system, SQLite or PostgreSQL. Each engine
** is linked into a shared object of its own, so all use these names; see engine.h. What says
** "SQLite alone" is in no other engine. BEGIN IMMEDIATE, WAL and files are SQLite's means;
** PostgreSQL has its own to the same end.
**
** The table that an entry lies in is its state. <prefix>entries holds the ready entries in the
** order of commits (`seq`), <prefix>delayed the entries that wait for their time, and <prefix>dead
** the dead letters. A claim does not mark these rows. It is an interval of seq in <prefix>claims,
** and costs the same whether it covers ten entries or a million. Any SQL may publish:
**
**     INSERT INTO outbox_entries (namespace, key, payload) VALUES (...)
**
** Conventions. Every function that returns int returns OUTBOX_OK or one of the codes below. After a
** failure outbox_error_message() says more, and the database is as it was before the call. Times
** are microseconds since the Unix epoch, and durations are microseconds. Strings are outbox_bytes
** and may hold any bytes; the database copies them before the call returns. A store is one
** connection: use it from one thread at a time. An operation takes part in the transaction that is
** open on the connection. If none is open, it runs in a transaction of its own, begun with BEGIN
** IMMEDIATE, so that two writers queue for `busy_timeout` instead of failing at once.
**
** Do not fork() with a store open unless the child calls exec. The child can use no store of its
** parent, and must not open one on the same file: SQLite would believe that the child holds its
** parent's locks.
*/
#ifndef OUTBOX_H
#define OUTBOX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OUTBOX_VERSION "0.1.0"

struct sqlite3;

#pragma GCC visibility push(hidden) /* several parts of a process may bring their own copy */

/* --- Types ----------------------------------------------------------------------------------- */

typedef struct outbox_store outbox_store;

/* The codes of failures, each with the stable name that outbox_code_name() gives. */
#define OUTBOX_CODES(X)                                                                            \
  X(ERROR, "error")           /* the database reports an error without a code of its own here */   \
  X(BUSY, "busy")             /* another connection held the lock for all of busy_timeout */       \
  X(CALLBACK, "callback")     /* the clock or the ID generator failed */                           \
  X(CANTOPEN, "cantopen")     /* the file, or its write-ahead log, cannot be opened */             \
  X(CLOSED, "closed")         /* the connection of an attached store is closed */                  \
  X(CONSTRAINT, "constraint") /* a constraint of the database forbids it */                        \
  X(CORRUPT, "corrupt")       /* the database file is damaged */                                   \
  X(DISCONNECTED, "disconnected") /* the connection to the server was lost */                      \
  X(DUPLICATE, "duplicate")       /* an entry with this id is already in the outbox */             \
  X(ENCODING, "encoding")         /* the database does not keep its text in UTF-8 */               \
  X(FORKED, "forked")             /* the store belongs to the parent process */                    \
  X(FULL, "full")                 /* the disk is full, or the database reached its size limit */   \
  X(IO, "io")                     /* the operating system failed to read or write */               \
  X(MISUSE, "misuse")             /* the call does not fit the state of the store */               \
  X(MOVED, "moved")               /* the file was deleted, moved or replaced while it was open */  \
  X(NOMEM, "nomem")               /* out of memory */                                              \
  X(NOTADB, "notadb")             /* the file is not an SQLite database */                         \
  X(READONLY, "readonly")         /* the database cannot be written */                             \
  X(SCHEMA, "schema")             /* the outbox's tables are missing or older; migrate first */    \
  X(TOOBIG, "toobig")             /* a value exceeds the limit, of SQLite 1,000,000,000 bytes */   \
  X(NEWER, "newer")               /* the outbox's tables are from a newer version of this library */

enum {
  OUTBOX_OK = 0,
  OUTBOX_ROW,  /* not an error: there is a row, or an entry, or a lease */
  OUTBOX_DONE, /* not an error: there are no more */
#define OUTBOX_CODE(code, name) OUTBOX_##code,
  OUTBOX_CODES(OUTBOX_CODE)
#undef OUTBOX_CODE
};

/* Bytes, NULs included. `data` NULL means no value at all: SQL's NULL, unlike an empty string. */
typedef struct outbox_bytes {
  const void *data;
  size_t size;
} outbox_bytes;

#define OUTBOX_ID_SIZE 37 /* room for a UUID's text and its final NUL */

/* What is published. */
typedef struct outbox_message {
  outbox_bytes id;        /* no value: ask the ID generator. The call sets it to the entry's id */
  outbox_bytes namespace; /* no value: "" */
  outbox_bytes key;       /* optional: messages of one namespace and key keep their order */
  outbox_bytes payload;   /* optional */
  outbox_bytes headers;   /* optional: a JSON object */
  bool unique;            /* set with a UUID: the id need not be looked for in the outbox */
  int64_t deliver_at;     /* deliver no earlier; 0 or the past: as soon as possible */
  char generated_id[OUTBOX_ID_SIZE]; /* room for the ID generator; `id` may point here */
} outbox_message;

/* The table that an entry lies in. */
enum outbox_state { OUTBOX_READY, OUTBOX_DELAYED, OUTBOX_DEAD };

/* What is read back. The bytes live until the next call on the store. */
typedef struct outbox_entry {
  enum outbox_state state;
  int64_t seq; /* place in the order of commits; a dead letter keeps the one it had */
  outbox_bytes id, namespace, key, payload, headers;
  int64_t created_at;
  int64_t attempts;        /* failed deliveries so far */
  outbox_bytes last_error; /* why the last one failed */
  outbox_bytes source_id;  /* of a copy, the id of the message; see outbox_subscribe */
  int64_t died_at;         /* of dead letters, else 0 */
  int64_t due_at;          /* of delayed entries, else 0 */
} outbox_entry;

/*
** Which entry a settlement means: the one that was read with this id and seq. The id alone may by
** now be that of another entry, which was published since and never tried.
*/
typedef struct outbox_identity {
  outbox_bytes id;
  int64_t seq; /* OUTBOX_ANY_SEQ: whichever entry waits under the id, ready or delayed */
} outbox_identity;

#define OUTBOX_ANY_SEQ INT64_MIN

/*
** A row of the table of claims: until the deadline, entries of these namespaces and classes, from
** first_seq to last_seq, belong to processor_id. A processor has one row, for any seq (INT64_MIN to
** INT64_MAX). A claim by hand has a row for each interval, of all namespaces and classes.
*/
typedef struct outbox_lease {
  int64_t lease; /* its number; none comes twice */
  outbox_bytes processor_id;
  bool except;                 /* of all namespaces but those named */
  outbox_bytes namespaces;     /* outbox_next_namespace gives their names */
  uint64_t classes;            /* of the keys, one bit each; none: it stands by */
  int64_t first_seq, last_seq; /* both included */
  int64_t deadline;            /* the last moment at which the claim is alive */
  int64_t claimed_at;          /* when it was made or renewed; far in the future: it has lapsed */
  outbox_bytes held; /* the places in hand, each relative to the last one before: "17+3,2" is 17 to
                     ** 20, and 22; after "!", their call took too long; no value: none */
} outbox_lease;

/* What outbox_claim_entries has done. */
typedef struct outbox_claimed {
  bool any;         /* the processor has claimed entries, new ones or its own */
  int64_t again_at; /* when the next entry falls due or another's claim lapses; 0: never */
} outbox_claimed;

/* Which entries are held back while an earlier one waits for its retry. */
enum outbox_ordering {
  OUTBOX_ORDERING_NONE,  /* none */
  OUTBOX_ORDERING_KEY,   /* later entries of the same namespace and key */
  OUTBOX_ORDERING_STRICT /* all later entries */
};

/* --- What a processor says and asks for, see outbox_advance ---------------------------------- */

/* What a processor serves. */
typedef struct outbox_service {
  outbox_bytes processor_id;      /* no other live processor has it */
  const outbox_bytes *namespaces; /* serves these; none, with `except`: all */
  size_t namespace_count;
  bool except; /* serves all but these */
  enum outbox_ordering ordering;
  int64_t duration; /* of its claim, which is renewed by each outbox_advance */
} outbox_service;

/* What became of an entry that was handed out. */
enum outbox_outcome {
  OUTBOX_AGAIN,     /* it stays where it is, and is handed out again */
  OUTBOX_DELIVERED, /* it is deleted */
  OUTBOX_RETRY,     /* it failed, is charged an attempt, and waits until `at` */
  OUTBOX_PUT_OFF,   /* it waits until `at`, uncharged; an `error` becomes its last_error */
  OUTBOX_BURY       /* it becomes a dead letter; charged if there is an `error` */
};

typedef struct outbox_verdict {
  outbox_identity entry; /* its seq is its place; not needed for an entry in hand */
  enum outbox_outcome outcome;
  int64_t at;
  outbox_bytes error;
  bool found; /* set by the call: false if it was gone, or the claim is lost; beside one that was
              ** gone, others that were delivered may count as gone, too */
} outbox_verdict;

/* Where to look for the next batch. */
enum outbox_where {
  OUTBOX_ANYWHERE, /* the oldest of all namespaces that are not parked */
  OUTBOX_OLDEST,   /* the oldest of one namespace, which is parked, and its retries that are due */
  OUTBOX_NEWEST,   /* of the known heads of that namespace, which are the first of their keys, */
  OUTBOX_RANDOM,   /* the last, or any */
  OUTBOX_PLACE     /* this entry alone, if it may be handed out; it may be delayed still */
};

typedef struct outbox_want {
  int64_t batch_size;  /* 0: nothing */
  int64_t batch_bytes; /* at most so many, but at least one entry; 0: no bound */
  enum outbox_where where;
  outbox_bytes namespace; /* OLDEST, NEWEST, RANDOM */
  int64_t place;          /* PLACE */
  const int64_t *avoid;   /* NEWEST, RANDOM: not these places */
  size_t avoid_count;
  bool join;  /* claim a share even if there is nothing to be had yet */
  bool leave; /* give everything back */
} outbox_want;

/* What outbox_advance has done. */
typedef struct outbox_progress {
  size_t count;     /* entries in hand now */
  bool lost;        /* another processor has taken over: failures were ignored */
  bool refused;     /* others hold all that there is */
  bool overlapped;  /* because they serve another set of namespaces that has some of these */
  bool more;        /* call again at once */
  bool uniform;     /* the batch is of one namespace, and none of it was tried before */
  bool repeats;     /* two of the batch may have to be handed out one after the other */
  int64_t deadline; /* of the claim; 0: there is none */
  int64_t again_at; /* when an entry falls due, or a lap may begin; 0: never */
} outbox_progress;

/*
** A suspect: a delayed entry with a last_error and no attempts. It failed alone and was not
** charged, because its destination may have been down. When it is due it is named here, and is
** handed out only where its place is asked for.
*/
typedef struct outbox_suspect {
  outbox_bytes id, namespace;
  int64_t place;
} outbox_suspect;

/* The last_error of an entry that was in hand when its processor died. */
#define OUTBOX_LAPSED "its processor died, or lost its claim, while delivering it"

/*
** The same where its call took so long that the heartbeat gave up: nobody knows whether the entry
** or its destination is to blame, so it is a suspect, not charged.
*/
#define OUTBOX_OVERTIME "its delivery took too long"

/* What is published to `namespace` becomes a copy in the namespace `copy`. */
typedef struct outbox_subscription {
  outbox_bytes namespace, copy;
} outbox_subscription;

/* A namespace of which nothing is handed out, and since when. */
typedef struct outbox_paused {
  outbox_bytes namespace;
  int64_t paused_at;
} outbox_paused;

/* A namespace whose destination is down: since when, and why. */
typedef struct outbox_outage {
  outbox_bytes namespace;
  int64_t down_since;
  outbox_bytes error;
} outbox_outage;

/* What there is of one namespace. */
typedef struct outbox_summary {
  outbox_bytes namespace;
  int64_t ready, delayed, dead; /* entries */
  int64_t oldest_age; /* of the first ready entry; -1 without one, and while it is paused */
  int64_t due_at;     /* when the next delayed entry falls due; 0 without one */
  int64_t paused_at;  /* 0: it is not paused */
  int64_t down_since; /* 0: no live processor has found it down, or it is paused */
  outbox_bytes error; /* why it is down */
} outbox_summary;

typedef struct outbox_counts {
  int64_t ready, delayed, dead; /* entries */
  int64_t retries;              /* delayed entries that were ready before */
  int64_t oldest_age;           /* since the first ready entry was published; -1: there is none */
  int64_t due_at;               /* when the next delayed entry falls due; 0 without one */
  int64_t last_seq;             /* the highest seq ever given to a ready entry; 0 without one */
} outbox_counts;

/* When a commit waits for the disk: PRAGMA synchronous, or synchronous_commit. */
enum outbox_synchronous {
  OUTBOX_SYNCHRONOUS_OFF,
  OUTBOX_SYNCHRONOUS_NORMAL, /* a power cut may undo the last commits: enough for a processor */
  OUTBOX_SYNCHRONOUS_FULL,   /* a commit that returned is on the disk: right for publishing */
  OUTBOX_SYNCHRONOUS_EXTRA
};

/* What a store may do to its database. */
enum outbox_mode {
  OUTBOX_CREATE, /* anything; creates the file where there is none */
  OUTBOX_WRITE,  /* anything, but the database must be there */
  OUTBOX_READ    /* look: no setting of the file is changed, so it need not be writable */
};

/*
** Writes the time to *now. Returns 0, or anything else to fail the operation that asked. It is
** called before the database is entered; outbox_claim_entries calls it once more inside the write
** lock. There every call on the store fails with MISUSE.
*/
typedef int outbox_clock(void *context, int64_t *now);

/*
** Sets message->id, which may point into message->generated_id. The bytes must live until
** outbox_publish returns. Ids that rise with time keep the index on them small and fast. Returns 0,
** or anything else to fail the publish that asked.
*/
typedef int outbox_id_generator(void *context, int64_t now, outbox_message *message);

typedef struct outbox_options {
  const char *prefix; /* of the tables' names, see outbox_is_prefix; NULL: "outbox_" */
  enum outbox_mode mode;
  enum outbox_synchronous synchronous;
  int busy_timeout;    /* milliseconds to wait for a lock; 0: do not wait */
  outbox_clock *clock; /* NULL: the system's clock */
  void *clock_context;
  outbox_id_generator *id_generator; /* NULL: UUIDv7, made of the entry's place; the smallest */
  void *id_generator_context;
} outbox_options;

#define OUTBOX_DEFAULTS                                                                            \
  { .prefix = "outbox_", .synchronous = OUTBOX_SYNCHRONOUS_FULL, .busy_timeout = 5000 }

/* A value of the application's SQL. */
enum outbox_type {
  OUTBOX_NULL,
  OUTBOX_BOOLEAN, /* SQLite binds 1 or 0, and gives none */
  OUTBOX_INTEGER,
  OUTBOX_REAL,
  OUTBOX_TEXT,
  OUTBOX_BLOB
};

typedef struct outbox_value {
  enum outbox_type type;
  union {
    bool boolean;
    int64_t integer;
    double real;
    outbox_bytes bytes; /* of TEXT and BLOB */
  };
} outbox_value;

/* The rows that a statement of the application's gives. */
typedef struct outbox_rows outbox_rows;

/* --- Opening --------------------------------------------------------------------------------- */

/*
** Opens the database at `path`, for PostgreSQL a URL, and makes a store of it. Creates the file
** where there is none. Puts the database into WAL mode, which is kept in the file. `options` NULL
** means OUTBOX_DEFAULTS. A path that begins with "file:" is a URI, as SQLite defines them, whatever
** the build of SQLite.
**
** In the mode OUTBOX_READ, everything that writes fails with READONLY. SQLite may have to write
** files beside the database all the same; where it cannot, this fails with CANTOPEN. In this mode
** and in OUTBOX_WRITE, a file that is missing or empty is CANTOPEN.
**
** *store is set also after a failure, for outbox_error_message(), and must be closed. It is NULL
** when there is no memory for it. Fails with CANTOPEN, NOTADB, READONLY, BUSY, ENCODING; with
** MISUSE for a bad prefix.
*/
int outbox_open(outbox_store **store, const char *path, const outbox_options *options);

/*
** Creates the outbox's tables or brings those of an older version up to date, in one transaction.
** It is harmless to run it again, or in two processes at once. Fails with NEWER when the tables are
** from a newer version of this library.
*/
int outbox_migrate(outbox_store *store);

/*
** SQLite alone: the store's connection, for what outbox_execute and outbox_query cannot do. Begin
** transactions there with BEGIN IMMEDIATE. Never close it. NULL in a forked child. The store waits
** for locks in its own way, up to `busy_timeout`; PRAGMA busy_timeout would replace that. The store
** has set the connection's authorizer.
*/
struct sqlite3 *outbox_connection(outbox_store *store);

/* Whether a transaction is open on the store's connection. False without a connection. */
bool outbox_in_transaction(outbox_store *store);

/*
** The time by the store's clock, which by default is the system's; on PostgreSQL, the server's.
** Fails with CALLBACK.
*/
int outbox_now(outbox_store *store, int64_t *now);

/* The prefix of the tables' names, for tables beside them. Lives as long as the store. */
const char *outbox_prefix(const outbox_store *store);

/*
** Whether a name may be a prefix. It becomes part of SQL text, so it must be an identifier that
** needs no quotes: 1 to OUTBOX_MAX_PREFIX of the letters A to Z and a to z, digits and underscores,
** no digit first.
*/
bool outbox_is_prefix(outbox_bytes name);

#define OUTBOX_MAX_PREFIX 64 /* bytes */

/*
** SQLite alone. Makes a store of a connection that the application has opened, for messages in its
** own transactions. Every operation takes part in the transaction that is open there. The store
** never commits or rolls back what it has not begun, and changes no setting of the connection. Its
** statements are finalized when the connection is closed, which is possible at any time; from then
** on every operation fails with CLOSED. The options `synchronous` and `busy_timeout` are ignored.
**
** *store is set as by outbox_open. Fails with ENCODING, BUSY; with MISUSE for a bad prefix.
*/
int outbox_attach(outbox_store **store, struct sqlite3 *db, const outbox_options *options);

/*
** SQLite alone. Prepares the handshake with bindings of other languages, which hide the connection.
** From now on every connection that is opened in this process, by any user of the same SQLite
** library, has the SQL function of OUTBOX_HANDSHAKE. It is harmless to call this again, in any
** thread. The shared object that holds this code is never unloaded again. Fails with NOMEM.
*/
int outbox_install(void);

/*
** SQLite alone. When this SQL runs on a connection, *db becomes that connection, as long as this
** thread awaits it: call outbox_await_handshake(&db), run the SQL through the binding, and in the
** end call outbox_await_handshake(NULL). The SQL does nothing else, however often it runs.
*/
#define OUTBOX_HANDSHAKE "SELECT outbox_handshake()"
void outbox_await_handshake(struct sqlite3 **db);

/*
** SQLite alone. Whether the shared object that holds the code at this address, for instance a
** binding, uses the same SQLite library as this one. Two libraries in one process, on one file,
** drop each other's locks, and the connection of one means nothing to the other.
*/
bool outbox_shares_sqlite(const void *code);

/* --- Transactions ---------------------------------------------------------------------------- */

/*
** Begins a transaction (BEGIN IMMEDIATE) or, where one is open, a savepoint in it. Each begin is
** ended by one commit or rollback, the innermost first. Fails with BUSY, and as
** outbox_check_transaction does.
*/
int outbox_begin(outbox_store *store);

/* Commits the innermost begin. On failure it has been rolled back. */
int outbox_commit(outbox_store *store);

/* Rolls the innermost begin back. Does nothing if nothing was begun. */
int outbox_rollback(outbox_store *store);

/*
** Fails with MISUSE when the transaction that outbox_begin began is no longer open: SQL ended it,
** or the database had to, after a full disk for instance. SQL that ran then would be committed
** alone. outbox_execute and outbox_query check this themselves.
*/
int outbox_check_transaction(outbox_store *store);

/* --- The application's SQL ------------------------------------------------------------------- */

/*
** Runs one SQL statement with a value for each parameter. *changed becomes the number of rows that
** it inserted, updated or deleted. Fails with MISUSE where `sql` is not one statement, begins or
** ends a transaction, or, on SQLite, has another number of parameters or a value is a NaN; with
** CONSTRAINT and any other code that the database gives. Not for attached stores (MISUSE), which
** leave SQL to the application.
*/
int outbox_execute(outbox_store *store, const char *sql, const outbox_value *values, size_t count,
                   int64_t *changed);

/*
** Starts a query, with a value for each parameter; outbox_next_row gives its rows. Fails as
** outbox_execute does, and with MISUSE where SQL that writes gives rows outside a transaction:
** another call might roll it back. Other calls on the store may come in between. *rows is NULL
** after a failure, else outbox_close_rows must close it. It may be closed after the store; when
** the store is closed, only the current row can be read.
*/
int outbox_query(outbox_store *store, outbox_rows **rows, const char *sql,
                 const outbox_value *values, size_t count);

/* Goes to the next row: OUTBOX_ROW, OUTBOX_DONE at the end, or an error as of outbox_execute. */
int outbox_next_row(outbox_rows *rows);

/*
** The columns of the row, counted from 0. Bytes live until the next call on the rows. After the
** last row there are none: the count is 0, the name NULL, the value OUTBOX_NULL.
*/
int outbox_column_count(const outbox_rows *rows);
const char *outbox_column_name(const outbox_rows *rows, int column);
outbox_value outbox_column(const outbox_rows *rows, int column);

/* Ends the query. NULL is ignored. */
void outbox_close_rows(outbox_rows *rows);

/* --- Publishing ------------------------------------------------------------------------------ */

/*
** Makes ids for the messages that have none, as outbox_publish does by itself. Call it to know the
** ids before; best right before, because an id of the default generator takes more room where other
** entries come first. Fails with CALLBACK, and as any reading of the database.
*/
int outbox_generate_ids(outbox_store *store, outbox_message *messages, size_t count);

/*
** Adds `count` messages to the outbox, in this order, all or none. Sets each message's `id` to the
** id of its entry. Asks the clock once, and the ID generator for each message without an id, both
** outside any lock of its own. Fails with DUPLICATE, TOOBIG, CALLBACK; with CONSTRAINT, and the
** database's message, for any other constraint, for instance of a trigger of the application's on
** the outbox's tables. A publish that fails inside the caller's transaction leaves that transaction
** open and usable, except where the database itself had to end it.
*/
int outbox_publish(outbox_store *store, outbox_message *messages, size_t count);

/*
** From now on, each message that is published to `namespace` becomes a copy in the namespace `copy`
** instead, and in those of its other subscriptions: each is an entry with a fate of its own. Its id
** is the id of the message, ":" and `copy`; its source_id is the id of the message. So it is for
** everyone who publishes, also with plain SQL. Copies are not copied again. `copy` may be
** `namespace` itself. Whatever was published before stays as it is, also what is scheduled.
** *added: it was not subscribed yet. The transaction that is open takes part.
*/
int outbox_subscribe(outbox_store *store, outbox_bytes namespace, outbox_bytes copy, bool *added);

/* Ends a subscription, but not the copies that are there. *removed: there was one. */
int outbox_unsubscribe(outbox_store *store, outbox_bytes namespace, outbox_bytes copy,
                       bool *removed);

/* Starts reading the subscriptions, in the order of their names. */
int outbox_subscriptions(outbox_store *store);

/* The next one: OUTBOX_ROW and *subscription, OUTBOX_DONE, or an error; as outbox_next. */
int outbox_next_subscription(outbox_store *store, outbox_subscription *subscription);

/* --- Processing ------------------------------------------------------------------------------ */

/*
** Claims by hand, until `deadline`, everything that can be claimed: entries that nobody has
** claimed, the processor's own, whose claim is renewed, and those of a claim whose deadline is
** before now. First moves scheduled entries that are due to the end of the ready ones, at most
** 1,000 a call. Retries that are due are claimed where they lie. While a processor of outbox_serve
** holds a share, nothing new is claimed; while a claim by hand is alive, such processors stand by.
**
** With a `limit` above 0, claims at most that many entries, its own first, then the oldest. Entries
** that wait for a retry of their key count, too. Where all of its own wait for retries that it has
** not claimed, it gives them back first.
**
** Where a lapsed claim, or one of the processor's own, names entries in hand, their delivery was
** cut off. Each is charged an attempt, with OUTBOX_LAPSED as last_error; after overtime it becomes
** a suspect, with OUTBOX_OVERTIME. A claim that was made in the future, by more than busy_timeout
** and a few seconds, counts as lapsed: the clock was set back.
**
** A call that finds nothing to claim and nothing to tidy writes nothing.
**
** Fails with MOVED when the path no longer leads to the file that is open, or its write-ahead log
** was deleted: nobody else sees what is written here. This is looked at once a second at most, also
** by outbox_wait and outbox_count_entries.
*/
int outbox_claim_entries(outbox_store *store, outbox_bytes processor_id, int64_t deadline,
                         int64_t limit, outbox_claimed *claimed);

/*
** Starts reading at most `batch_size` entries that the processor has claimed by hand and whose
** claim has not expired, in the order of their places: ready ones, and retries that are due. Leaves
** out those that wait for a retry of their namespace and key with an earlier place, unless that one
** is due and in the same interval. Reading takes nothing: the same call again gives the same.
**
** With a `batch_bytes` above 0, ends before the entry that would exceed it, but gives at least one.
** The bytes of an entry are those of its id, namespace, key, payload and headers.
*/
int outbox_get_claimed_entries(outbox_store *store, outbox_bytes processor_id, int64_t batch_size,
                               int64_t batch_bytes);

/*
** Writes into the processor's claim that the entries that were read last are in hand, so that they
** are charged if it dies. Best done in one transaction with their reading.
*/
int outbox_hold_batch(outbox_store *store, outbox_bytes processor_id);

/*
** Moves the deadline of the processor's claim by hand, even of one that has expired, and notes that
** nothing is in hand any more. *renewed is false when the claim is lost: another processor has
** taken over.
*/
int outbox_renew_claim(outbox_store *store, outbox_bytes processor_id, int64_t deadline,
                       bool *renewed);

/*
** Starts the heartbeat: from now on it moves the deadline of the processor's claim every
** `interval` microseconds by the time that has passed, until outbox_stop_heartbeat, or for
** `max_duration` microseconds. Then it marks what is in hand as overtime: whoever takes over makes
** suspects of these entries. Use it while a call of the publisher blocks, because nothing else can
** renew the claim then. A thread with a connection of its own does this. The first call starts the
** thread; after that, starting and stopping cost next to nothing. Other operations may go on
** meanwhile. Does nothing for a database in memory. Fails with ERROR when no thread can be started.
*/
int outbox_start_heartbeat(outbox_store *store, outbox_bytes processor_id, int64_t interval,
                           int64_t max_duration);

/* Stops the heartbeat, if it beats. When this returns, the deadline moves no more. */
void outbox_stop_heartbeat(outbox_store *store);

/* Gives the processor's claim by hand back, with nothing in hand, so that others need not wait. */
int outbox_release_claim(outbox_store *store, outbox_bytes processor_id);

/*
** Begins the work of a processor. From now on outbox_advance does it; the operations above are for
** processing by hand, on another store. A later call replaces the processor. Fails with MISUSE on
** an attached store, and where the one before still has a claim.
*/
int outbox_serve(outbox_store *store, const outbox_service *service);

/*
** The one operation of a processor, between two calls of its publisher: settles the batch in hand,
** renews the claim or finds it lost, reads the next batch, and writes that it is in hand, so that
** it is charged if this process dies. `verdicts` are what became of each entry of the batch, in
** its order, and after these of entries that were put off before. All this is one small
** transaction; reading happens before the lock. A call that has nothing to write takes no lock.
**
** Processors of equal sets of namespaces share the keys: each holds as many of 64 classes as the
** others. Of sets that overlap otherwise, who came later gets nothing while the other is alive.
**
** After a failure, the batch is still in hand: call it again with the same verdicts. Fails with
** BUSY, FULL, CALLBACK; with MOVED as outbox_claim_entries does; with MISUSE in a transaction, and
** where there are fewer verdicts than entries in hand.
*/
int outbox_advance(outbox_store *store, outbox_verdict *verdicts, size_t count,
                   const outbox_want *want, outbox_progress *progress);

/* The share of the keys that the processor has, at most 1. */
double outbox_share(const outbox_store *store);

/* An entry of the batch in hand, from 0, or NULL. Its bytes live until the next outbox_advance. */
const outbox_entry *outbox_batch(const outbox_store *store, size_t index);

/* The same for the suspects that the last outbox_advance has met. */
const outbox_suspect *outbox_suspects(const outbox_store *store, size_t index);

/*
** Parks a namespace whose destination is down: its entries are left behind, and are handed out only
** where outbox_want names it, or a place. In memory alone: another process tries for itself. Fails
** with NOMEM. outbox_recover ends that.
*/
int outbox_park(outbox_store *store, outbox_bytes namespace);
void outbox_recover(outbox_store *store, outbox_bytes namespace);

/*
** Writes which namespaces the processor has found down, for outbox_summaries: these, and no other.
** What it has written counts as long as its claim lives. *noted: whether it has a claim. Takes the
** lock, and wakes others; so call it rarely, and not when a destination has just failed once.
*/
int outbox_note_outages(outbox_store *store, const outbox_outage *outages, size_t count,
                        bool *noted);

/*
** Reads the next entry of the reading that was started last, by outbox_get_claimed_entries or
** outbox_dead_entries for instance. Returns OUTBOX_ROW and *entry, OUTBOX_DONE at the end, or an
** error. Any other call on the store ends the reading. This function does not check for a fork,
** because it is called too often: a child must not go on with its parent's reading.
*/
int outbox_next(outbox_store *store, outbox_entry *entry);

/*
** Deletes entries, ready or delayed, because they were delivered. Ignores those that are not there.
** *deleted becomes the number of entries deleted.
*/
int outbox_delete_entries(outbox_store *store, const outbox_identity *entries, size_t count,
                          int64_t *deleted);

/*
** Counts a failed attempt and delays an entry until `due_at`, ready or delayed. It keeps its place.
** If the clock is set back meanwhile, by more than busy_timeout and a few seconds, it falls due at
** once. *found: whether it was there. If not, nothing is changed, because another processor may
** have it. Without an `error` nothing is counted. If plain SQL has published an id twice and the
** other entry is delayed already, "~" and its place are added to this entry's id. The same happens
** when an entry is buried.
*/
int outbox_retry_entry(outbox_store *store, outbox_identity entry, int64_t due_at,
                       outbox_bytes error, bool *found);

/*
** Counts a failed attempt and makes a dead letter of an entry, ready or delayed. *found as above.
** Without an `error` nothing is counted: the attempts before were enough. A scheduled message,
** which is meant by its id alone, gets a place first.
*/
int outbox_bury_entry(outbox_store *store, outbox_identity entry, outbox_bytes error, bool *found);

/* Whether an entry with this seq still waits, ready or delayed. */
int outbox_is_waiting(outbox_store *store, int64_t seq, bool *waits);

/* --- Waiting --------------------------------------------------------------------------------- */

/*
** Waits until there may be something new since the last outbox_claim_entries began: a commit of
** any process, or a write of this connection other than claiming and settling. Returns at once if
** there is, else after `timeout` microseconds. A signal ends the wait too. *rung: whether there
** may be something. A timeout of 0 never blocks. Then *look_again is the number of microseconds
** after which to ask again, because a commit may become visible soon, or because nothing makes
** outbox_pollfd readable here; 0 if that descriptor becomes readable. Fails with MISUSE in a
** transaction; with MOVED as outbox_claim_entries does.
*/
int outbox_wait(outbox_store *store, int64_t timeout, bool *rung, int64_t *look_again);

/*
** A descriptor for event loops, which becomes readable when there may be something new.
** outbox_wait makes it unreadable again. It is the same for the store's life; never close it. -1:
** there is none.
*/
int outbox_pollfd(outbox_store *store);

/* --- Operating ------------------------------------------------------------------------------- */

/*
** Each starts reading, in the order of seq, at most `limit` entries whose seq is above `after`:
** ready entries, delayed ones (whose seq is their order among themselves), or dead letters. Of one
** namespace, or of all where it has no value. A `limit` below 0 reads backwards: at most -limit
** entries whose seq is below `after`, the last first. outbox_next gives the entries.
*/
int outbox_ready_entries(outbox_store *store, outbox_bytes namespace, int64_t after, int64_t limit);
int outbox_delayed_entries(outbox_store *store, outbox_bytes namespace, int64_t after,
                           int64_t limit);
int outbox_dead_entries(outbox_store *store, outbox_bytes namespace, int64_t after, int64_t limit);

/*
** Starts reading the entries that have an id, in any state; outbox_next gives the ready entry, the
** delayed one, the dead letter. There is more than one only where plain SQL has published it twice.
*/
int outbox_find_entries(outbox_store *store, outbox_bytes id);

/*
** Moves dead letters back to the end of the outbox, with the same id, a new seq and no attempts
** counted. So an old entry comes after newer ones of its key that were delivered meanwhile, and a
** receiver that has forgotten its id takes it for a new one. Ignores ids that are not there.
** *requeued becomes the number of entries moved. Fails with
** DUPLICATE where plain SQL has published such an id again and it is ready.
*/
int outbox_requeue_entries(outbox_store *store, const outbox_bytes *ids, size_t count,
                           int64_t *requeued);

/* Deletes dead letters for good. Ignores ids that are not there. *purged counts the others. */
int outbox_purge_entries(outbox_store *store, const outbox_bytes *ids, size_t count,
                         int64_t *purged);

/*
** From now on nothing of a namespace is handed out, by any processor or claim by hand: its entries
** wait, uncharged, until it is resumed. What is in hand is finished. *paused: it was not yet.
*/
int outbox_pause(outbox_store *store, outbox_bytes namespace, bool *paused);

/* What waited is handed out again, in order. *resumed: it was paused. */
int outbox_resume(outbox_store *store, outbox_bytes namespace, bool *resumed);

/* Starts reading which namespaces are paused, in the order of their names. */
int outbox_paused_namespaces(outbox_store *store);

/* The next one: OUTBOX_ROW and *paused, OUTBOX_DONE, or an error. Ends as outbox_next does. */
int outbox_next_paused(outbox_store *store, outbox_paused *paused);

/*
** Counts what waits. Unlike the operations above, this takes longer the more entries there are,
** because it counts rows. Entries that are delayed, dead or paused do not count for oldest_age, and
** paused ones not for due_at.
** From one count to the next, last_seq rises by the number of entries that became ready: published,
** fallen due or requeued. That number minus the growth of ready + retries is the number of entries
** that were delivered, or died.
*/
int outbox_count_entries(outbox_store *store, outbox_counts *counts);

/*
** Starts counting by namespace, in the order of their names. Reads every entry, outside any lock.
** Namespaces that are paused or down are there even if nothing waits in them.
*/
int outbox_summaries(outbox_store *store);

/* The next one: OUTBOX_ROW and *summary, OUTBOX_DONE, or an error. Ends as outbox_next does. */
int outbox_next_summary(outbox_store *store, outbox_summary *summary);

/* Starts reading all claims, live and lapsed, in the order of seq; outbox_next_lease gives them. */
int outbox_leases(outbox_store *store);

/* The next claim: OUTBOX_ROW and *lease, OUTBOX_DONE, or an error. Ends as outbox_next does. */
int outbox_next_lease(outbox_store *store, outbox_lease *lease);

/* Takes the next name off the namespaces of a claim. False at the end. */
bool outbox_next_namespace(outbox_bytes *namespaces, outbox_bytes *name);

/* Ends the reading under way, if there is one; the database need no longer keep its snapshot. */
void outbox_finish(outbox_store *store);

/* --- Errors ---------------------------------------------------------------------------------- */

/* The message of the last call on this store that failed. Never NULL; holds no payload. */
const char *outbox_error_message(const outbox_store *store);

/* SQLite alone: the code for one of its result codes, for callers that use the connection. */
int outbox_code(int sqlite_code);

/* The stable name of a code. */
const char *outbox_code_name(int code);

/* --- Clock and IDs --------------------------------------------------------------------------- */

/* The system's clock, which is the default. Ignores the context. Never fails. */
int outbox_system_clock(void *context, int64_t *now);

/*
** ID generators. UUIDv7 (RFC 9562, with the time's fraction in rand_a, method 3 of section 6.2) has
** an outbox_uuid_state as its context, at first all zero. It keeps the ids of one generator rising
** even when the clock does not; it must not be shared with a forked child. UUIDv4 is random and
** ignores the context; publishing and draining become slower as the outbox grows. The default, no
** generator, makes UUIDs of version 7 that need no room in the database.
*/
typedef struct outbox_uuid_state {
  uint64_t last; /* the time in the last id */
  unsigned left; /* how much of `random` is unused; to ask the kernel for each id is slow */
  unsigned char random[256];
} outbox_uuid_state;

int outbox_uuid_v7(void *context, int64_t now, outbox_message *message);
int outbox_uuid_v4(void *context, int64_t now, outbox_message *message);

/* --- Closing --------------------------------------------------------------------------------- */

/*
** Rolls back what is open and closes the connection. NULL is ignored. In a forked child it only
** frees the child's memory, because SQLite forbids a child to touch its parent's handle. Fails with
** MISUSE, and closes nothing, in the middle of another call on the store: in a hook of its
** connection, or in a function that SQL calls.
*/
int outbox_close(outbox_store *store);

#pragma GCC visibility pop

#endif
