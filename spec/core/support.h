/*
** Support for the tests of the core. Each test has its own directory with a database file in it.
** tear_down closes all stores and connections that the test opened, and removes the directory.
*/
#ifndef SUPPORT_H
#define SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>

#include <cmocka.h>
#include <sqlite3.h>

#include "../support/identity.h"
#include "outbox.h"

/* --- Groups: one per file, each returns how many of its tests failed -------------------------- */

int test_open(void);
int test_schema(void);
int test_transactions(void);
int test_sql(void);
int test_publish(void);
int test_ids(void);
int test_values(void);
int test_claims(void);
int test_clock(void);
int test_limits(void);
int test_delayed(void);
int test_settle(void);
int test_dead(void);
int test_plans(void);
int test_process(void);
int test_attach(void);
int test_memory(void);
int test_faults(void);
int test_power(void);
int test_boxes(void);
int test_advance(void);
int test_lanes(void);

/* --- Fixture --------------------------------------------------------------------------------- */

#define SECOND INT64_C(1000000)
#define NOW INT64_C(1700000000123456) /* the initial time of each test's clock */

typedef struct fixture {
  char directory[40];
  char path[64]; /* the database */
  int64_t now;   /* the time that the stores' clock returns */
  bool clock_fails;
  int clock_calls;
  outbox_store *store; /* opened and migrated by set_up */
  sqlite3 *db;         /* its connection */
  outbox_store *stores[8];
  sqlite3 *connections[4];
} fixture;

int set_up(void **state);
int set_up_without_store(void **state);
int tear_down(void **state);

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
#define TEST_WITHOUT_STORE(name)                                                                   \
  cmocka_unit_test_setup_teardown(name, set_up_without_store, tear_down)

/* The options of the tests' stores: they use the fixture's clock, and wait neither for a lock nor
** for the disk. */
outbox_options test_options(fixture *f);

/* Calls outbox_open and returns its code. tear_down closes the store. */
int try_open(fixture *f, outbox_store **store, const char *path, const outbox_options *options);

/* Opens another store on the fixture's database, without a migration. */
outbox_store *open_store(fixture *f, const outbox_options *options);
void close_store(fixture *f, outbox_store *store);

/* Opens a connection of SQLite alone to the fixture's database. It does not wait for locks. */
sqlite3 *connect_plainly(fixture *f);
void disconnect(fixture *f, sqlite3 *connection);

/* --- Assertions ------------------------------------------------------------------------------ */

/* Asserts that a call returns the expected code; if it does not, prints the store's message too. */
#define assert_code(store, call, code) check_code((store), (call), (code), __FILE__, __LINE__)
#define assert_ok(store, call) assert_code((store), (call), OUTBOX_OK)
void check_code(const outbox_store *store, int actual, int expected, const char *file, int line);

/* Whether this is a long run, which tries more cases: the environment variable OUTBOX_LONG is
** set. */
bool is_long(void);

/* Returns the environment variable OUTBOX_SEED, or a random number if it is not set. */
unsigned random_seed(void);

/* Prints how many cases of a kind were tried. tools/torture adds these numbers up. */
void tally(const char *kind, int cases);

/* --- SQL ------------------------------------------------------------------------------------- */

void execute(sqlite3 *db, const char *sql);
int64_t number(sqlite3 *db, const char *sql);     /* the first column of the first row */
const char *string(sqlite3 *db, const char *sql); /* likewise, until the next call */

/* The ids in a table ("entries", "delayed" or "dead") in the order of seq. The result is valid
** until the next call. */
const char *ids_in(sqlite3 *db, const char *table);

/* --- Messages and entries -------------------------------------------------------------------- */

outbox_bytes text(const char *string);
outbox_message message(const char *id);
bool same_bytes(outbox_bytes a, outbox_bytes b); /* NULL equals only NULL */

/* Splits `ids` at its spaces into at most `room` words, which point into the string. Returns how
** many there are. */
size_t split(const char *ids, outbox_bytes *words, size_t room);

/* Publishes a message for each id in a list such as "a b c", with one call for each. */
void publish(outbox_store *store, const char *ids);
void publish_at(outbox_store *store, const char *id, int64_t deliver_at);

/* Each claims entries and returns whether the processor holds any now. */
bool claim(outbox_store *store, const char *processor, int64_t deadline);
bool claim_some(outbox_store *store, const char *processor, int64_t deadline, int64_t limit);

/* Reads all remaining rows of the store's reading and returns their ids as "a b c". The result is
** valid until the next call. */
const char *read_ids(outbox_store *store);

/* Reads what the processor has claimed and returns the ids in the same way. */
const char *claimed_ids(outbox_store *store, const char *processor);

/* Gives the same verdict on all in hand, and takes the next batch. */
outbox_progress advance_all(outbox_store *store, outbox_verdict verdict, const outbox_want *want);

/* The ids of the batch in hand of a lane, in the same way. */
const char *in_hand(outbox_store *store);

/* The claims as "processor:first-last", or "processor:lane", separated by spaces. The result is
** valid until the next call. */
const char *leases(outbox_store *store);

/* Reads as read_ids does. Returns the number of entries; the ids are valid until the next call. */
size_t read_identities(outbox_store *store, outbox_identity *entries, size_t size);

int64_t delete_ids(outbox_store *store, const char *ids); /* returns how many were deleted */

/* Each returns whether the entry was found. */
bool retry(outbox_store *store, const char *id, int64_t due_at);
bool bury(outbox_store *store, const char *id);

/* --- Processes ------------------------------------------------------------------------------- */

/*
** Runs `body` in a child process, which exits with the result as its status and does not run the
** parent's exit handlers. A child must make no assertions: it reports failures by its exit status
** alone.
*/
pid_t start_child(int (*body)(fixture *), fixture *f);
int wait_for(pid_t child); /* returns its exit status, or minus the signal that killed it */

#endif
