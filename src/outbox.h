/*
** outbox: a transactional outbox on SQLite.
**
** An application changes its database and must tell the world about it: both or neither. It
** publishes a message in the transaction that makes the change; the message becomes an entry of the
** outbox if, and only if, that transaction commits. A processor claims the waiting entries until a
** deadline, delivers them, and deletes what was delivered. When it dies, its claim lapses and
** another processor takes over. Delivery is therefore at least once.
**
**     outbox_open > outbox_migrate
**       application:  outbox_begin > its own SQL > outbox_publish > outbox_commit
**       processor:    outbox_claim_entries > outbox_get_claimed_entries > outbox_next ...
**                     > outbox_hold_batch
**                     delivered: outbox_delete_entries
**                     failed:    outbox_retry_entry, in the end outbox_bury_entry
**                     in between outbox_renew_claim, at the end outbox_release_claim
**                     nothing there: outbox_wait
**       operator:     outbox_count_entries, outbox_dead_entries > outbox_requeue_entries
**     outbox_close
**
** Where an entry lies is its state. <prefix>entries holds what is ready, in the order of commits
** (`seq`); <prefix>delayed what waits for its time, a retry among it; <prefix>dead the dead
** letters. A claim is no mark on these rows but an interval of seq in <prefix>leases: it costs the
** same whether it covers ten entries or a million. Any SQL may publish:
**
**     INSERT INTO outbox_entries (namespace, key, payload) VALUES (...)
**
** Conventions. Every function that returns int returns OUTBOX_OK or one of the codes below; after a
** failure outbox_error_message() says more, and the database is as it was before the call. Times
** are microseconds since the Unix epoch. Strings are outbox_bytes and may hold any bytes; the
** database copies them before the call returns. A store is one SQLite connection: use it from one
** thread at a time. An operation takes part in the transaction that is open on the connection;
** where there is none, it runs in one of its own, begun with BEGIN IMMEDIATE, so that two writers
** queue for `busy_timeout` instead of failing at once.
**
** Never fork() with a store open unless the child calls exec: it can use no store of its parent,
** and must not open one on the same file either, for SQLite would believe it to hold its parent's
** locks.
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

/* Result codes. outbox_code_name() gives the stable name that stands in quotes. */
enum {
  OUTBOX_OK = 0,
  OUTBOX_ROW,        /* outbox_next: there is one; not an error */
  OUTBOX_DONE,       /* outbox_next: there are no more; not an error */
  OUTBOX_ERROR,      /* "error": SQLite reports an error that has no code of its own here */
  OUTBOX_BUSY,       /* "busy": another connection held the lock for all of busy_timeout */
  OUTBOX_CALLBACK,   /* "callback": the clock or the ID generator failed */
  OUTBOX_CANTOPEN,   /* "cantopen": the file, or its write-ahead log, cannot be opened */
  OUTBOX_CLOSED,     /* "closed": the connection of an attached store is closed */
  OUTBOX_CONSTRAINT, /* "constraint": a constraint of the database forbids it */
  OUTBOX_CORRUPT,    /* "corrupt": the database file is damaged */
  OUTBOX_DUPLICATE,  /* "duplicate": an entry with this id is already in the outbox */
  OUTBOX_ENCODING,   /* "encoding": the database keeps its text in UTF-16, which loses bytes */
  OUTBOX_FORKED,     /* "forked": the store belongs to the parent process */
  OUTBOX_FULL,       /* "full": the disk, or the database's size limit, is full */
  OUTBOX_IO,         /* "io": the operating system failed to read or write */
  OUTBOX_MISUSE,     /* "misuse": the call does not fit the state of the store */
  OUTBOX_NOMEM,      /* "nomem": out of memory */
  OUTBOX_NOTADB,     /* "notadb": the file is no SQLite database */
  OUTBOX_READONLY,   /* "readonly": the database cannot be written */
  OUTBOX_SCHEMA,     /* "schema": the outbox's tables are missing or older; migrate first */
  OUTBOX_TOOBIG,     /* "toobig": a value exceeds SQLite's limit, by default 1,000,000,000 bytes */
  OUTBOX_NEWER       /* "newer": the outbox's tables are from a newer version of this library */
};

/* Bytes, NULs included. `data` NULL means no value at all: SQL's NULL, unlike an empty string. */
typedef struct outbox_bytes {
  const void *data;
  size_t size;
} outbox_bytes;

#define OUTBOX_ID_SIZE 37 /* room for a UUID's text and its final NUL */

/* What is published. */
typedef struct outbox_message {
  outbox_bytes id;        /* no value: ask the ID generator; the call puts the id here */
  outbox_bytes namespace; /* no value: "" */
  outbox_bytes key;       /* optional: messages of one namespace and key keep their order */
  outbox_bytes payload;   /* optional */
  outbox_bytes headers;   /* optional: a JSON object */
  bool unique;            /* set with a UUID: the id need not be looked for in the outbox */
  int64_t deliver_at;     /* not to be delivered before; 0 or the past: as soon as possible */
  char generated_id[OUTBOX_ID_SIZE]; /* room for the ID generator; `id` may point here */
} outbox_message;

/* Where an entry lies. */
enum outbox_state { OUTBOX_READY, OUTBOX_DELAYED, OUTBOX_DEAD };

/* What is read back. The bytes live until the next call on the store. */
typedef struct outbox_entry {
  enum outbox_state state;
  int64_t seq; /* place in the order of commits; a dead letter keeps the one it had */
  outbox_bytes id, namespace, key, payload, headers;
  int64_t created_at;
  int64_t attempts;        /* failed deliveries so far */
  outbox_bytes last_error; /* why the last one failed */
  int64_t died_at;         /* dead letters only, else 0 */
  int64_t due_at;          /* delayed ones only, else 0 */
} outbox_entry;

/* A claim: the entries from first_seq to last_seq are processor_id's until the deadline. */
typedef struct outbox_lease {
  int64_t first_seq, last_seq; /* both included; last_seq INT64_MAX: and all still to come */
  outbox_bytes processor_id;
  int64_t deadline;   /* the last moment at which the lease is alive */
  int64_t claimed_at; /* when it was made or renewed: one from the future is not believed */
  outbox_bytes batch; /* what is in hand, as ranges of seq: "1-20,25-25"; no value: nothing */
} outbox_lease;

/* What a claim came to. */
typedef struct outbox_claimed {
  bool any;              /* the processor has claimed entries, new or its own */
  bool refused;          /* it was to be exclusive, and another processor has a live lease */
  int64_t restored_from; /* the first place to which a retry came back; INT64_MAX: none did */
  int64_t again_at;      /* when the next entry falls due, or another's lease lapses; 0: never */
} outbox_claimed;

/* Whom an entry that waits for its retry keeps waiting, as long as it does. */
enum outbox_ordering {
  OUTBOX_ORDERING_NONE,  /* nobody */
  OUTBOX_ORDERING_KEY,   /* later entries of the same namespace and key */
  OUTBOX_ORDERING_STRICT /* all later entries */
};

/* Which of the claimed entries to read. */
typedef struct outbox_selection {
  enum outbox_ordering ordering;
  int64_t after;              /* only those whose seq is above */
  const outbox_bytes *except; /* not those of these namespaces; to live as long as the reading */
  size_t except_count;
} outbox_selection;

/* The last_error of an entry that was in hand when its processor died. */
#define OUTBOX_LAPSED "its processor died, or lost its claim, while delivering it"

typedef struct outbox_counts {
  int64_t ready, delayed, dead; /* entries */
  int64_t retries;              /* of the delayed, those that were ready before */
  int64_t oldest_age;           /* since the first ready entry was published; 0 without one */
  int64_t due_at;               /* when the next delayed entry falls due; 0 without one */
  int64_t last_seq;             /* the highest seq ever given to a ready entry; 0 without one */
} outbox_counts;

/* When a commit waits for the disk: SQLite's PRAGMA synchronous. */
enum outbox_synchronous {
  OUTBOX_SYNCHRONOUS_OFF,
  OUTBOX_SYNCHRONOUS_NORMAL, /* a power cut may undo the last commits: enough for a processor */
  OUTBOX_SYNCHRONOUS_FULL,   /* a commit that returned is on the disk: right for publishing */
  OUTBOX_SYNCHRONOUS_EXTRA
};

/* Writes the time to *now. Returns 0, or anything else to fail the operation that asked. */
typedef int outbox_clock(void *context, int64_t *now);

/*
** Sets message->id, perhaps to point into message->generated_id; the bytes must live until
** outbox_publish returns. Ids that rise with time keep the index on them small and fast. Returns 0,
** or anything else to fail the publish that asked.
*/
typedef int outbox_id_generator(void *context, int64_t now, outbox_message *message);

typedef struct outbox_options {
  const char *prefix; /* of the tables' names: a plain identifier; NULL: "outbox_" */
  enum outbox_synchronous synchronous;
  int busy_timeout;    /* milliseconds; 0: do not wait */
  outbox_clock *clock; /* NULL: the system's clock */
  void *clock_context;
  outbox_id_generator *id_generator; /* NULL: UUIDv7 */
  void *id_generator_context;
} outbox_options;

#define OUTBOX_DEFAULTS                                                                            \
  { .prefix = "outbox_", .synchronous = OUTBOX_SYNCHRONOUS_FULL, .busy_timeout = 5000 }

/* --- Opening --------------------------------------------------------------------------------- */

/*
** Opens the database at `path`, creating it when it is not there, puts it in WAL mode (which is
** kept in the file), and makes a store of it. `options` NULL means OUTBOX_DEFAULTS.
**
** *store is set even on failure, for outbox_error_message(), and must be closed; it is NULL when
** there is no memory for it. Fails with CANTOPEN, NOTADB, READONLY, BUSY, ENCODING; MISUSE for a
** bad prefix.
*/
int outbox_open(outbox_store **store, const char *path, const outbox_options *options);

/*
** Creates the outbox's tables or brings those of an older version up to date, in one transaction.
** Running it again, or in two processes at once, is harmless. Fails with NEWER when the tables
** are from a newer version of this library.
*/
int outbox_migrate(outbox_store *store);

/*
** The store's SQLite connection, for the application's own SQL. Whoever begins a transaction there
** by hand should use BEGIN IMMEDIATE. Never close it. NULL in a forked child. For a lock it waits
** in a way of the store's, until `busy_timeout`, which PRAGMA busy_timeout would replace.
*/
struct sqlite3 *outbox_connection(outbox_store *store);

/* The prefix of the tables' names, for tables beside them. Lasts as long as the store. */
const char *outbox_prefix(const outbox_store *store);

/*
** Makes a store of a connection that somebody else has opened, for messages in the transactions of
** an application that has its own way to SQLite. Every operation takes part in the transaction that
** is open there. The store never commits nor rolls back what it has not begun, changes no setting
** of the connection, and leaves no statement behind, so that the connection can be closed at any
** time; from then on every operation fails with CLOSED. Of the options, `synchronous` and
** `busy_timeout` are the connection's own affair.
**
** *store is set as outbox_open does. Fails with ENCODING, BUSY; MISUSE for a bad prefix.
*/
int outbox_attach(outbox_store **store, struct sqlite3 *db, const outbox_options *options);

/*
** For bindings of other languages, which hide the connection: has every connection that is opened
** from now on in this process, by whoever uses the same SQLite library, know the SQL function of
** OUTBOX_HANDSHAKE. Calling it again is harmless, in any thread. The code that this belongs to is
** never unloaded again. Fails with NOMEM.
*/
int outbox_install(void);

/*
** When this SQL runs on a connection, *db becomes that connection, as long as this thread awaits
** it: outbox_await_handshake(&db), then the SQL by way of the binding, in the end
** outbox_await_handshake(NULL). Does nothing else, however often it runs.
*/
#define OUTBOX_HANDSHAKE "SELECT outbox_handshake()"
void outbox_await_handshake(struct sqlite3 **db);

/*
** Whether the shared object that has some code at this address, that of a binding for instance,
** uses the same SQLite library as this one. Two in one process, on one file, drop each other's
** locks; and the connection of one means nothing to the other.
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

/* Rolls the innermost begin back. Does nothing where nothing was begun. */
int outbox_rollback(outbox_store *store);

/*
** For callers that run SQL of their own inside a begin: fails with MISUSE when that transaction is
** no longer open, whether SQL ended it or SQLite itself had to, after a full disk for instance.
** What runs then would be committed alone.
*/
int outbox_check_transaction(outbox_store *store);

/* --- Publishing ------------------------------------------------------------------------------ */

/*
** Has the ID generator make ids for the messages that have none, for callers who want to know them
** before they publish: outbox_publish does it itself. Fails with CALLBACK.
*/
int outbox_generate_ids(outbox_store *store, outbox_message *messages, size_t count);

/*
** Adds `count` messages to the outbox, in this order, all or none. Each message's `id` is set to
** the id of its entry. The clock is asked once, the ID generator for each message without an id,
** both before the database is entered. Fails with DUPLICATE, TOOBIG, CALLBACK; a publish that
** failed inside the caller's transaction leaves that transaction open and usable, except where
** SQLite itself had to end it.
*/
int outbox_publish(outbox_store *store, outbox_message *messages, size_t count);

/* --- Processing ------------------------------------------------------------------------------ */

/*
** Claims for a processor, until `deadline`, everything that can be claimed: entries that nobody
** has claimed, its own, whose claim is renewed, and those of a claim whose deadline is before now.
** First puts delayed entries that are due back among the ready ones, at most 1,000 a call: a retry
** to its old place, a scheduled message to the end.
**
** With a `limit` above 0, claims at most that many entries, the oldest first, its own before all.
** With `exclusive`, claims all or nothing: nothing while another processor holds a live lease, else
** everything and whatever is published until the deadline. The two exclude each other (MISUSE).
**
** Where a lease that has lapsed, or one of the processor's own, names entries in hand, their
** delivery was cut off: each is charged an attempt, with OUTBOX_LAPSED as last_error. A lease that
** was made more than a few seconds, and the busy_timeout, in the future has lapsed too: the clock
** was put back since.
**
** A call that finds nothing to claim and nothing to tidy writes nothing.
*/
int outbox_claim_entries(outbox_store *store, outbox_bytes processor_id, int64_t deadline,
                         int64_t limit, bool exclusive, outbox_claimed *claimed);

/*
** Starts reading, in the order of seq, at most `batch_size` entries that the processor has claimed
** and whose claim has not expired. Reading takes nothing: the same again gives the same.
** `selection` NULL means all. With a selection a reading may end early, after looking at 10,000
** entries: outbox_read_to() tells how far it came, to be read on `after`.
*/
int outbox_get_claimed_entries(outbox_store *store, outbox_bytes processor_id, int64_t batch_size,
                               const outbox_selection *selection);

/* The seq of the last entry that was looked at, given or not; `after` where there was none. */
int64_t outbox_read_to(const outbox_store *store);

/*
** Writes into the processor's leases that the entries that were read last are in hand, so that they
** are charged if it dies. Best in one transaction with their reading.
*/
int outbox_hold_batch(outbox_store *store, outbox_bytes processor_id);

/*
** Moves the deadline of the processor's claim, even one that has expired, and says that nothing is
** in hand any more. *renewed is false when the claim is lost: somebody else has taken over.
*/
int outbox_renew_claim(outbox_store *store, outbox_bytes processor_id, int64_t deadline,
                       bool *renewed);

/*
** From now on until outbox_stop_keeping, but for `at_most` microseconds, moves the deadline of the
** processor's claim on every `interval` microseconds as time passes: for while a publisher's call
** blocks, and nobody could renew. Done by a thread with a connection of its own, begun by the first
** such call; to keep and to stop cost next to nothing. Other operations may go on meanwhile. Does
** nothing for a database in memory. Fails with ERROR when no thread can be had.
*/
int outbox_keep_claim(outbox_store *store, outbox_bytes processor_id, int64_t interval,
                      int64_t at_most);

/* Ends the keeping, if there is any; when it returns, the deadline moves no more. */
void outbox_stop_keeping(outbox_store *store);

/* Gives the processor's claim back, with nothing in hand: others need not wait for its deadline. */
int outbox_release_claim(outbox_store *store, outbox_bytes processor_id);

/*
** The next entry of what outbox_get_claimed_entries or outbox_dead_entries started: OUTBOX_ROW and
** *entry, OUTBOX_DONE at the end, or an error. Any other call on the store ends the reading. Is
** called too often to look for a fork: a child must not go on with what its parent is reading.
*/
int outbox_next(outbox_store *store, outbox_entry *entry);

/*
** Deletes entries, ready or delayed: they were delivered. Ids that are not there are ignored.
** *deleted tells how many there were.
*/
int outbox_delete_entries(outbox_store *store, const outbox_bytes *ids, size_t count,
                          int64_t *deleted);

/*
** Counts a failed attempt and delays a ready entry until `due_at`. It will come back to the place
** it had. *found tells whether it was there; one that is not is left to whoever has it. Without an
** `error` nothing is counted, and an entry that is delayed already gets the new time. Where the id
** is in the way, because plain SQL has published one twice, the entry gets "~" and its seq added
** to it; so it does when it is buried, and when a claim brings it back.
*/
int outbox_retry_entry(outbox_store *store, outbox_bytes id, int64_t due_at, outbox_bytes error,
                       bool *found);

/*
** Counts a failed attempt and makes a dead letter of a ready entry. *found as above. Without an
** `error` nothing is counted: the attempts before were enough.
*/
int outbox_bury_entry(outbox_store *store, outbox_bytes id, outbox_bytes error, bool *found);

/* --- Waiting --------------------------------------------------------------------------------- */

/*
** Waits until something may have come since the last outbox_claim_entries began: a commit of any
** process, or what this connection wrote but for claiming and settling. Returns at once where there
** was, and after `timeout` microseconds where there is not; a signal ends it too. *rung tells
** whether there may be something. A timeout of 0 never blocks; *look_again is then after how many
** microseconds to ask again, because a commit is about to be seen, or because there is no bell here
** that makes outbox_pollfd readable; 0 where that will tell. Fails with MISUSE in a transaction.
*/
int outbox_wait(outbox_store *store, int64_t timeout, bool *rung, int64_t *look_again);

/*
** A descriptor that becomes readable when there may be something, for event loops; outbox_wait
** makes it unreadable again. The same for the store's life; never close it. -1 if there is none.
*/
int outbox_pollfd(outbox_store *store);

/* --- Operating ------------------------------------------------------------------------------- */

/*
** Each starts reading, in the order of seq, at most `limit` entries whose seq is above `after`, of
** one namespace or, where it has no value, of all: ready ones, delayed ones (whose seq is their
** order among themselves) or dead letters. With a `limit` below 0, backwards: at most -limit
** entries whose seq is below `after`, the last first. outbox_next gives them.
*/
int outbox_ready_entries(outbox_store *store, outbox_bytes namespace, int64_t after, int64_t limit);
int outbox_delayed_entries(outbox_store *store, outbox_bytes namespace, int64_t after,
                           int64_t limit);
int outbox_dead_entries(outbox_store *store, outbox_bytes namespace, int64_t after, int64_t limit);

/*
** Starts reading what has an id, wherever it lies: outbox_next gives the ready entry, the delayed
** one, the dead letter. More than one only where plain SQL has published an id twice.
*/
int outbox_find_entries(outbox_store *store, outbox_bytes id);

/*
** Puts dead letters back at the end of the outbox, with the same id and no attempts counted. Ids
** that are not there are ignored. *requeued tells how many there were.
*/
int outbox_requeue_entries(outbox_store *store, const outbox_bytes *ids, size_t count,
                           int64_t *requeued);

/* Deletes dead letters for good. Ids that are not there are ignored. *purged counts them. */
int outbox_purge_entries(outbox_store *store, const outbox_bytes *ids, size_t count,
                         int64_t *purged);

/*
** Counts what waits. Unlike all the above, takes longer the more there is: it counts rows. An entry
** that is delayed, or dead, has no part in the age. What last_seq rises by from one count to the
** next became ready meanwhile (published, fallen due or requeued); as far as ready + retries did
** not rise with it, as much was delivered, or died.
*/
int outbox_count_entries(outbox_store *store, outbox_counts *counts);

/* Starts reading the leases, live and lapsed, in the order of seq; outbox_next_lease gives them. */
int outbox_leases(outbox_store *store);

/* The next lease: OUTBOX_ROW and *lease, OUTBOX_DONE, or an error. Ends as outbox_next does. */
int outbox_next_lease(outbox_store *store, outbox_lease *lease);

/* Ends the reading under way, if there is one; the database need no longer keep its snapshot. */
void outbox_finish(outbox_store *store);

/* --- Errors ---------------------------------------------------------------------------------- */

/* What went wrong in the last call on this store that failed. Never NULL, never a payload. */
const char *outbox_error_message(const outbox_store *store);

/* The code for one of SQLite's result codes, for those who run SQL of their own. */
int outbox_code(int sqlite_code);

/* The stable name of a code. */
const char *outbox_code_name(int code);

/* --- Clock and IDs --------------------------------------------------------------------------- */

/* The system's clock; the default. Ignores the context. Never fails. */
int outbox_system_clock(void *context, int64_t *now);

/*
** ID generators. UUIDv7 (RFC 9562, with the time's fraction in rand_a, method 3 of section 6.2) is
** the default; its context is an outbox_uuid_state, at first all zero, which keeps the ids of one
** generator rising even when the clock does not; it must not be shared with a forked child. UUIDv4
** is all random and ignores the context: slower to publish and to drain the larger the outbox is.
*/
typedef struct outbox_uuid_state {
  uint64_t last; /* the time in the last id */
  unsigned left; /* how much of `random` is unused: asking the kernel for each id is slow */
  unsigned char random[256];
} outbox_uuid_state;

int outbox_uuid_v7(void *context, int64_t now, outbox_message *message);
int outbox_uuid_v4(void *context, int64_t now, outbox_message *message);

/* --- Closing --------------------------------------------------------------------------------- */

/*
** Rolls back what is open and closes the connection. NULL is ignored. In a forked child it only
** frees what is the child's: SQLite's own rule is that a child must not touch its parent's handle.
** Fails with MISUSE, and closes nothing, in the middle of another call on the store: in a hook of
** its connection, or in a function that SQL calls.
*/
int outbox_close(outbox_store *store);

#pragma GCC visibility pop

#endif
