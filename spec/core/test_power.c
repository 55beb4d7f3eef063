/*
** Power cuts at any moment. With `synchronous` full, every operation that has returned is on the
** disk. With normal, the last operations may be lost, but each only as a whole.
**
** A store works on a disk that records every change. Then the test cuts the power at many moments
** and opens the database that the disk would hold. It must equal the database after one of the
** operations.
*/
#include "disk.h"
#include "trials.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))

enum { STEPS = 60 };

/* One operation. */
typedef struct step {
  int started, returned; /* number of changes of the disk before and after it */
  char *dump;            /* contents of the database after it */
} step;

typedef struct work {
  fixture *f;
  outbox_store *store;
  outbox_options options;
  step steps[STEPS];
  int made; /* number of messages so far */
  unsigned seed, random;
} work;

static int chance(work *w, int limit) {
  w->random = w->random * 1103515245u + 12345u;
  return (int)((w->random >> 16) % (unsigned)limit);
}

/* --- Operations ------------------------------------------------------------------------------ */

static void open_it(work *w) {
  assert_int_equal(outbox_open(&w->store, w->f->path, &w->options), OUTBOX_OK);
  execute(outbox_connection(w->store), "PRAGMA wal_autocheckpoint = 8"); /* otherwise none runs */
}

static void close_and_open(work *w) {
  outbox_close(w->store);
  open_it(w);
}

static void migrate(work *w) {
  assert_ok(w->store, outbox_migrate(w->store));
}

static void create_orders(work *w) {
  execute(outbox_connection(w->store), "CREATE TABLE orders (number INTEGER PRIMARY KEY)");
}

static void publish_some(work *w) {
  enum { MAX_MESSAGES = 5 };
  static char names[MAX_MESSAGES][16], payload[6000];
  outbox_message messages[MAX_MESSAGES];
  int count = 1 + chance(w, MAX_MESSAGES);
  for (int i = 0; i < count; i++) {
    snprintf(names[i], sizeof names[i], "%d", ++w->made);
    messages[i] = message(names[i]);
    messages[i].payload = (outbox_bytes){payload, (size_t)chance(w, sizeof payload)};
    if (chance(w, 4) == 0) messages[i].deliver_at = w->f->now + SECOND;
  }
  assert_ok(w->store, outbox_publish(w->store, messages, (size_t)count));
}

static void publish_with_an_order(work *w) {
  assert_ok(w->store, outbox_begin(w->store));
  execute(outbox_connection(w->store), "INSERT INTO orders DEFAULT VALUES");
  publish_some(w);
  assert_ok(w->store, outbox_commit(w->store));
}

static void roll_back(work *w) {
  assert_ok(w->store, outbox_begin(w->store));
  execute(outbox_connection(w->store), "INSERT INTO orders DEFAULT VALUES");
  publish_some(w);
  assert_ok(w->store, outbox_rollback(w->store));
}

/* Claims and reads entries, and deletes, retries or buries the first one, in one transaction. */
static void process(work *w) {
  char ids[400], *first;
  w->f->now += SECOND / 2;
  assert_ok(w->store, outbox_begin(w->store));
  if (claim(w->store, "p", w->f->now + SECOND)) {
    assert_ok(w->store, outbox_get_claimed_entries(w->store, text("p"), 3, 0));
    snprintf(ids, sizeof ids, "%s", read_ids(w->store));
    assert_ok(w->store, outbox_hold_batch(w->store, text("p")));
    if ((first = strtok(ids, " ")) != NULL) {
      int outcome = chance(w, 4);
      if (outcome == 0)
        assert_true(retry(w->store, first, w->f->now + SECOND));
      else if (outcome == 1)
        assert_true(bury(w->store, first));
      else
        assert_int_equal(delete_ids(w->store, first), 1);
    }
  }
  assert_ok(w->store, outbox_commit(w->store));
}

static void do_something(work *w, int number) {
  static void (*const FIRST[])(work *) = {open_it, migrate, create_orders};
  static void (*const DECK[])(work *) = {
      publish_some, publish_some, publish_with_an_order, publish_with_an_order, roll_back, process,
      process,      process,      close_and_open};
  if (number < (int)LENGTH(FIRST))
    FIRST[number](w);
  else
    DECK[chance(w, LENGTH(DECK))](w);
}

/* --- Cuts ------------------------------------------------------------------------------------ */

static void do_all(work *w) {
  begin_disk();
  for (int i = 0; i < STEPS; i++) {
    w->steps[i].started = disk_changes();
    do_something(w, i);
    w->steps[i].returned = disk_changes();
    w->steps[i].dump = dump(outbox_connection(w->store));
  }
  outbox_close(w->store);
  w->f->now += 10 * SECOND; /* all claims have lapsed when the power is back */
  end_disk();
}

static void check_database(work *w, int changes, unsigned seed) {
  bool safe = w->options.synchronous == OUTBOX_SYNCHRONOUS_FULL, found = false;
  char *now = dump_file(w->f->path);
  for (int i = 0; i < STEPS && !found; i++) {
    bool could_be = i == 0 || w->steps[i].started < changes || w->steps[i].returned <= changes;
    bool overtaken = safe && i + 1 < STEPS && w->steps[i + 1].returned <= changes;
    found = could_be && !overtaken && strcmp(now, w->steps[i].dump) == 0;
  }
  if (!found)
    fail_msg("seed %u, cut after %d changes, seed %u of the cut: there is\n%s", w->seed, changes,
             seed, now);
  sqlite3_free(now);
}

/* Asserts that the application can go on with the database. */
static void check_store(work *w) {
  outbox_options options = test_options(w->f);
  outbox_store *store;
  assert_int_equal(outbox_open(&store, w->f->path, &options), OUTBOX_OK);
  assert_ok(store, outbox_migrate(store));
  publish(store, "afterwards");
  assert_true(claim(store, "q", w->f->now + 100 * SECOND));
  outbox_close(store);
}

static bool is_near_a_sync(int changes) {
  return (changes > 0 && is_sync(changes)) || (changes < disk_changes() && is_sync(changes + 1));
}

static void cut_everywhere(fixture *f, enum outbox_synchronous synchronous) {
  unsigned seed = random_seed();
  work w = {.f = f, .options = test_options(f), .seed = seed, .random = seed};
  int tried = 0;
  w.options.synchronous = synchronous;
  do_all(&w);
  for (int changes = 0; changes <= disk_changes(); changes++)
    for (unsigned cut = 0; cut < 3 && (is_long() || is_near_a_sync(changes)); cut++) {
      cut_power(changes, cut == 0 ? 0 : seed + cut, f->directory);
      check_database(&w, changes, cut);
      if (cut == 1) check_store(&w);
      tried++;
    }
  for (int i = 0; i < STEPS; i++)
    sqlite3_free(w.steps[i].dump);
  tally(synchronous == OUTBOX_SYNCHRONOUS_FULL ? "power cut, full" : "power cut, normal", tried);
  assert_in_range(tried, 100, 1000000);
}

static void whatever_returned_outlives_the_power(void **state) {
  cut_everywhere(*state, OUTBOX_SYNCHRONOUS_FULL);
}

static void whatever_was_begun_is_whole_or_gone_after_a_power_cut(void **state) {
  cut_everywhere(*state, OUTBOX_SYNCHRONOUS_NORMAL);
}

int test_power(void) {
  const struct CMUnitTest tests[] = {
      TEST_WITHOUT_STORE(whatever_returned_outlives_the_power),
      TEST_WITHOUT_STORE(whatever_was_begun_is_whole_or_gone_after_a_power_cut),
  };
  return cmocka_run_group_tests_name("power", tests, NULL, NULL);
}
