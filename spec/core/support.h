/*
** What the core's tests share. Each test has a directory of its own and in it a database file;
** tear_down closes whatever the test has opened and removes the directory.
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

#include "outbox.h"

/* --- Groups: one per file, each returns the number of its tests that failed ------------------- */

int test_open(void);
int test_schema(void);
int test_transactions(void);
int test_sql(void);
int test_publish(void);
int test_ids(void);
int test_values(void);
int test_claims(void);
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

/* --- Fixture --------------------------------------------------------------------------------- */

#define SECOND INT64_C(1000000)
#define NOW INT64_C(1700000000123456) /* where the clock of each test stands at first */

typedef struct fixture {
  char directory[40];
  char path[64]; /* the database */
  int64_t now;   /* what the stores' clock tells */
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

/* The options of the tests' stores: the fixture's clock, no wait for a lock nor for the disk. */
outbox_options test_options(fixture *f);

/* outbox_open; the store is closed with the fixture. */
int try_open(fixture *f, outbox_store **store, const char *path, const outbox_options *options);

/* One more store on the fixture's database, not migrated. */
outbox_store *open_store(fixture *f, const outbox_options *options);
void close_store(fixture *f, outbox_store *store);

/* A connection to the fixture's database that knows nothing of outboxes; it waits for no lock. */
sqlite3 *connect_plainly(fixture *f);
void disconnect(fixture *f, sqlite3 *connection);

/* --- Assertions ------------------------------------------------------------------------------ */

/* A call's code is the expected one; if not, the store's message is printed with it. */
#define assert_code(store, call, code) check_code((store), (call), (code), __FILE__, __LINE__)
#define assert_ok(store, call) assert_code((store), (call), OUTBOX_OK)
void check_code(const outbox_store *store, int actual, int expected, const char *file, int line);

/* Whether to try more than a short run has time for: the environment variable OUTBOX_LONG. */
bool is_long(void);

/* The environment variable OUTBOX_SEED, or what chance gives. */
unsigned random_seed(void);

/* Tells how many cases of a kind were tried, for whoever adds them up. */
void tally(const char *kind, int cases);

/* --- SQL ------------------------------------------------------------------------------------- */

void execute(sqlite3 *db, const char *sql);
int64_t number(sqlite3 *db, const char *sql);     /* the first column of the first row */
const char *string(sqlite3 *db, const char *sql); /* likewise, until the next call */

/* The ids in a table, "entries", "delayed" or "dead", in the order of seq; until the next call. */
const char *ids_in(sqlite3 *db, const char *table);

/* --- Messages and entries -------------------------------------------------------------------- */

outbox_bytes text(const char *string);
outbox_message message(const char *id);
bool same_bytes(outbox_bytes a, outbox_bytes b); /* a NULL is only the same as another */

/* The words of `ids` as ids, at most `room` of them; they point into the string. */
size_t split(const char *ids, outbox_bytes *words, size_t room);

/* Publishes a message for each id in "a b c", each by a call of its own. */
void publish(outbox_store *store, const char *ids);
void publish_at(outbox_store *store, const char *id, int64_t deliver_at);

/* Claims; whether the processor holds anything now. */
bool claim(outbox_store *store, const char *processor, int64_t deadline);
bool claim_some(outbox_store *store, const char *processor, int64_t deadline, int64_t limit);
bool claim_all(outbox_store *store, const char *processor, int64_t deadline); /* exclusively */

/* The ids, as "a b c", of what is being read to its end; until the next call. */
const char *read_ids(outbox_store *store);
const char *claimed_ids(outbox_store *store, const char *processor);

/* The leases as "processor:first-last", separated by spaces; until the next call. */
const char *leases(outbox_store *store);

int64_t delete_ids(outbox_store *store, const char *ids); /* how many there were */
bool retry(outbox_store *store, const char *id, int64_t due_at);
bool bury(outbox_store *store, const char *id);

/* --- Processes ------------------------------------------------------------------------------- */

/*
** Runs `body` in a child, which ends with its result and without the parent's exit handlers.
** Assertions are the parent's: a child tells what went wrong by its exit status alone.
*/
pid_t start_child(int (*body)(fixture *), fixture *f);
int wait_for(pid_t child); /* its exit status, or minus the signal that killed it */

#endif
