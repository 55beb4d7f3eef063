/*
** Claims: which processor holds which entries, and until when.
*/
#define _GNU_SOURCE

#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>

#include "support.h"

static void an_idle_claim_finds_nothing_and_writes_nothing(void **state) {
  fixture *f = *state;
  sqlite3 *watcher = connect_plainly(f);
  publish_at(f->store, "later", NOW + SECOND);
  int64_t before = number(watcher, "PRAGMA data_version");
  assert_false(claim(f->store, "p", NOW + SECOND));
  assert_false(claim_some(f->store, "p", NOW + SECOND, 5));
  assert_string_equal(claimed_ids(f->store, "p"), "");
  assert_int_equal(number(watcher, "PRAGMA data_version"), before);
  publish(f->store, "a"); /* proves that the watcher sees writes */
  assert_int_not_equal(number(watcher, "PRAGMA data_version"), before);
}

static void a_claim_writes_nothing_if_others_hold_all_entries(void **state) {
  fixture *f = *state;
  sqlite3 *watcher = connect_plainly(f);
  publish(f->store, "a b");
  assert_true(claim(f->store, "p", NOW + SECOND));
  int64_t before = number(watcher, "PRAGMA data_version");
  assert_false(claim(f->store, "q", NOW + SECOND));
  assert_false(claim_some(f->store, "q", NOW + SECOND, 5));
  assert_int_equal(number(watcher, "PRAGMA data_version"), before);
}

static void reading_takes_nothing(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c");
  assert_true(claim(f->store, "p", NOW));
  assert_string_equal(claimed_ids(f->store, "p"), "a b c");
  assert_string_equal(claimed_ids(f->store, "p"), "a b c");
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 2, 0));
  assert_string_equal(read_ids(f->store), "a b");
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 2, 0));
  assert_string_equal(read_ids(f->store), "a b");
}

static void what_nobody_claimed_is_not_read(void **state) {
  fixture *f = *state;
  publish(f->store, "a");
  assert_string_equal(claimed_ids(f->store, "p"), "");
  assert_true(claim(f->store, "p", NOW));
  publish(f->store, "b");
  assert_string_equal(claimed_ids(f->store, "p"), "a");
  assert_string_equal(claimed_ids(f->store, "q"), "");
}

static void another_processor_waits_until_the_deadline_has_passed(void **state) {
  fixture *f = *state;
  publish(f->store, "a b");
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_false(claim(f->store, "q", NOW + 2 * SECOND));
  assert_string_equal(claimed_ids(f->store, "q"), "");
  f->now = NOW + SECOND + 1;
  assert_true(claim(f->store, "q", NOW + 2 * SECOND));
  assert_string_equal(claimed_ids(f->store, "q"), "a b");
  assert_string_equal(claimed_ids(f->store, "p"), "");
  assert_false(claim(f->store, "p", NOW + 2 * SECOND));
}

static void a_deadline_equal_to_now_is_not_expired(void **state) {
  fixture *f = *state;
  publish(f->store, "a");
  assert_true(claim(f->store, "p", NOW + SECOND));
  f->now = NOW + SECOND;
  assert_false(claim(f->store, "q", NOW + 2 * SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), "a");
}

static void an_expired_claim_is_not_read_even_if_nobody_took_it_over(void **state) {
  fixture *f = *state;
  publish(f->store, "a");
  assert_true(claim(f->store, "p", NOW));
  f->now = NOW + 1;
  assert_string_equal(claimed_ids(f->store, "p"), "");
}

static void claiming_again_renews_the_claim_and_takes_what_is_new(void **state) {
  fixture *f = *state;
  publish(f->store, "a");
  assert_true(claim(f->store, "p", NOW + SECOND));
  publish(f->store, "b");
  assert_true(claim(f->store, "p", NOW + 3 * SECOND));
  f->now = NOW + 2 * SECOND;
  assert_false(claim(f->store, "q", NOW + 4 * SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), "a b");
  assert_string_equal(leases(f->store), "p:1-2");
}

static void an_expired_claim_that_nobody_took_over_is_renewed_too(void **state) {
  fixture *f = *state;
  publish(f->store, "a");
  assert_true(claim(f->store, "p", NOW));
  f->now = NOW + SECOND;
  assert_true(claim(f->store, "p", NOW + 2 * SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), "a");
}

static void an_entry_published_after_a_claim_goes_to_the_next_claim(void **state) {
  fixture *f = *state;
  publish(f->store, "a b");
  assert_true(claim(f->store, "p", NOW));
  publish(f->store, "c d");
  assert_true(claim(f->store, "q", NOW));
  assert_string_equal(claimed_ids(f->store, "p"), "a b");
  assert_string_equal(claimed_ids(f->store, "q"), "c d");
}

static void an_interval_with_no_entry_left_goes_with_the_next_claim(void **state) {
  fixture *f = *state;
  publish(f->store, "a b");
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_int_equal(delete_ids(f->store, "a b"), 2);
  assert_string_equal(leases(f->store), "p:1-2");
  publish(f->store, "c");
  assert_true(claim(f->store, "q", NOW + SECOND));
  assert_string_equal(leases(f->store), "p:1-2 q:3-3");
  assert_false(claim(f->store, "p", NOW + SECOND));
  assert_string_equal(leases(f->store), "q:3-3");
  assert_int_equal(delete_ids(f->store, "c"), 1);
  assert_false(claim(f->store, "q", NOW + SECOND));
  assert_string_equal(leases(f->store), "");
}

static void a_lease_names_its_processor_and_deadline(void **state) {
  fixture *f = *state;
  outbox_lease lease;
  publish(f->store, "a b c");
  assert_true(claim_some(f->store, "p", NOW + SECOND, 2));
  assert_ok(f->store, outbox_leases(f->store));
  assert_code(f->store, outbox_next_lease(f->store, &lease), OUTBOX_ROW);
  assert_true(same_bytes(lease.processor_id, text("p")));
  assert_int_equal(lease.first_seq, 1);
  assert_int_equal(lease.last_seq, 2);
  assert_int_equal(lease.deadline, NOW + SECOND);
  assert_int_equal(lease.claimed_at, NOW);
  assert_true(lease.except);
  assert_int_equal(lease.namespaces.size, 0);
  assert_true(lease.classes == UINT64_MAX);
  assert_null(lease.held.data);
  assert_code(f->store, outbox_next_lease(f->store, &lease), OUTBOX_DONE);
}

/* --- Reading --------------------------------------------------------------------------------- */

static void start_reading(fixture *f) {
  outbox_entry entry;
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 3, 0));
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
}

/* Simulates a system with too many threads: each new thread asks for a stack larger than all
** memory. */
static void a_heartbeat_that_cannot_start_its_thread_is_an_error(void **state) {
  fixture *f = *state;
  pthread_attr_t standard, huge;
  publish(f->store, "a");
  assert_true(claim(f->store, "p", NOW));
  assert_int_equal(pthread_getattr_default_np(&standard), 0);
  assert_int_equal(pthread_attr_init(&huge), 0);
  assert_int_equal(pthread_attr_setstacksize(&huge, (size_t)1 << 60), 0);
  assert_int_equal(pthread_setattr_default_np(&huge), 0);
  int code = outbox_start_heartbeat(f->store, text("p"), SECOND, SECOND);
  assert_int_equal(pthread_setattr_default_np(&standard), 0);
  assert_code(f->store, code, OUTBOX_ERROR);
  assert_non_null(strstr(outbox_error_message(f->store), "no thread"));
  assert_ok(f->store, outbox_start_heartbeat(f->store, text("p"), SECOND, SECOND));
  outbox_stop_heartbeat(f->store);
  assert_string_equal(claimed_ids(f->store, "p"), "a");
}

static void a_heartbeat_may_have_no_end(void **state) {
  fixture *f = *state;
  time_t end = time(NULL) + 60;
  publish(f->store, "a");
  assert_true(claim(f->store, "p", NOW));
  assert_ok(f->store, outbox_start_heartbeat(f->store, text("p"), INT64_MAX, INT64_MAX));
  assert_ok(f->store, outbox_start_heartbeat(f->store, text("p"), 1000, INT64_MAX));
  while (number(f->db, "SELECT deadline FROM outbox_claims") == NOW) {
    assert_true(time(NULL) < end);
    sqlite3_sleep(1); /* because valgrind runs one thread at a time, unfairly */
  }
  outbox_stop_heartbeat(f->store);
}

static void ignore(int signal) {
  (void)signal;
}

/* A signal just before the wait would not end it, therefore the test sends many. */
static void a_wait_for_ever_lasts_until_something_ends_it(void **state) {
  fixture *f = *state;
  struct sigaction ending = {.sa_handler = ignore}, before;
  struct itimerval often = {{.tv_usec = 10000}, {.tv_usec = 10000}}, never = {{0}, {0}};
  bool rung;
  int64_t again;
  assert_false(claim(f->store, "p", NOW)); /* the store has seen all earlier commits */
  assert_int_equal(sigaction(SIGALRM, &ending, &before), 0);
  assert_int_equal(setitimer(ITIMER_REAL, &often, NULL), 0);
  int code = outbox_wait(f->store, INT64_MAX, &rung, &again);
  setitimer(ITIMER_REAL, &never, NULL);
  sigaction(SIGALRM, &before, NULL);
  assert_ok(f->store, code);
  assert_true(rung);
}

static void any_other_call_ends_a_reading(void **state) {
  fixture *f = *state;
  outbox_entry entry;
  outbox_lease lease;
  outbox_counts counts;
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_MISUSE);
  assert_code(f->store, outbox_next_lease(f->store, &lease), OUTBOX_MISUSE);
  publish(f->store, "a b c");
  assert_true(claim(f->store, "p", NOW));
  for (int call = 0; call < 9; call++) {
    start_reading(f);
    switch (call) {
    case 0: publish(f->store, "d"); break;
    case 1: claim(f->store, "p", NOW); break;
    case 2: delete_ids(f->store, "unknown"); break;
    case 3: retry(f->store, "unknown", NOW); break;
    case 4: bury(f->store, "unknown"); break;
    case 5: assert_ok(f->store, outbox_count_entries(f->store, &counts)); break;
    case 6: assert_ok(f->store, outbox_check_transaction(f->store)); break;
    case 7: assert_ok(f->store, outbox_migrate(f->store)); break;
    case 8: outbox_finish(f->store); break;
    }
    assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_MISUSE);
  }
  start_reading(f);
  assert_string_equal(read_ids(f->store), "b c");
}

static void finishing_a_reading_lets_the_log_be_truncated(void **state) {
  fixture *f = *state;
  sqlite3 *plain = connect_plainly(f);
  publish(f->store, "a b c");
  assert_true(claim(f->store, "p", NOW));
  start_reading(f);
  publish(open_store(f, NULL), "d"); /* the open reading does not see this */
  assert_int_equal(number(plain, "PRAGMA wal_checkpoint(TRUNCATE)"), 1);
  outbox_finish(f->store);
  assert_int_equal(number(plain, "PRAGMA wal_checkpoint(TRUNCATE)"), 0);
}

/* --- No entry is held by two processors ------------------------------------------------------ */

enum { PROCESSORS = 4, ROUNDS = 500, MAX_ENTRIES = ROUNDS * 4 + 1, NOBODY = -1 };

static const char *const NAMES[PROCESSORS] = {"p", "q", "r", "s"};

/* A random number below `bound`. This generator gives the same sequence on every machine. */
static unsigned below(unsigned bound) {
  static uint32_t state = 20240229;
  state = state * 1664525u + 1013904223u;
  return (state >> 16) % bound;
}

/* Sets for each seq which processor can read it, that is, holds it by a live claim. Asserts that no
** two processors can read the same entry. */
static void read_owners(fixture *f, int owner[MAX_ENTRIES]) {
  for (int seq = 0; seq < MAX_ENTRIES; seq++)
    owner[seq] = NOBODY;
  for (int p = 0; p < PROCESSORS; p++) {
    outbox_entry entry;
    int64_t last = 0;
    assert_ok(f->store, outbox_get_claimed_entries(f->store, text(NAMES[p]), MAX_ENTRIES, 0));
    while (outbox_next(f->store, &entry) == OUTBOX_ROW) {
      assert_true(entry.seq > last && entry.seq < MAX_ENTRIES);
      assert_int_equal(owner[entry.seq], NOBODY);
      owner[entry.seq] = p;
      last = entry.seq;
    }
  }
}

/* Deletes some of the processor's entries, as after a delivery, or retries one. */
static void settle_some(fixture *f, const char *processor) {
  char ids[5 * OUTBOX_ID_SIZE];
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text(processor), 1 + below(4), 0));
  snprintf(ids, sizeof ids, "%s", read_ids(f->store));
  if (below(2) == 0)
    delete_ids(f->store, ids);
  else if (strlen(ids) == OUTBOX_ID_SIZE - 1)
    retry(f->store, ids, f->now + below(5) * SECOND);
}

/* Performs a random action of a processor or of an application that publishes. */
static void do_something(fixture *f, const char *processor) {
  outbox_message messages[4] = {{.id = {0}}};
  int64_t deadline = f->now + (int64_t)below(5) * SECOND;
  switch (below(8)) {
  case 0:
  case 1: assert_ok(f->store, outbox_publish(f->store, messages, 1 + below(4))); break;
  case 2:
  case 3: settle_some(f, processor); break;
  case 4:
  case 5: claim(f->store, processor, deadline); break;
  default: claim_some(f->store, processor, deadline, 1 + below(6));
  }
}

static void no_claim_takes_an_entry_from_a_live_one(void **state) {
  fixture *f = *state;
  static int before[MAX_ENTRIES], after[MAX_ENTRIES];
  int64_t max_leases = 0, held = 0;
  for (int round = 0; round < ROUNDS; round++) {
    f->now += below(8) == 0 ? SECOND : 0;
    int p = (int)below(PROCESSORS);
    read_owners(f, before);
    do_something(f, NAMES[p]);
    read_owners(f, after);
    for (int seq = 0; seq < MAX_ENTRIES; seq++) {
      if (before[seq] != NOBODY && before[seq] != p) assert_int_equal(after[seq], before[seq]);
      held += after[seq] != NOBODY;
    }
    assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_claims AS a, outbox_claims AS b"
                                   " WHERE a.first_seq < b.first_seq"
                                   " AND a.last_seq >= b.first_seq"),
                     0);
    int64_t count = number(f->db, "SELECT count(*) FROM outbox_claims");
    if (count > max_leases) max_leases = count;
  }
  assert_in_range(max_leases, 1, 5 * PROCESSORS);
  assert_in_range(held, ROUNDS, INT64_MAX); /* otherwise the checks above prove nothing */
  /* When all claims have lapsed, one processor gets all remaining entries. */
  f->now += 3600 * SECOND;
  int64_t left = number(f->db, "SELECT (SELECT count(*) FROM outbox_entries) +"
                               " (SELECT count(*) FROM outbox_delayed)");
  assert_true(claim(f->store, "p", f->now));
  read_owners(f, after);
  for (int seq = 0; seq < MAX_ENTRIES; seq++)
    left -= after[seq] == 0;
  assert_int_equal(left, 0);
}

/* An application that inserts rows by plain SQL can choose the seq and the times. */
static void the_smallest_and_largest_integers_are_valid_seqs_and_times(void **state) {
  fixture *f = *state;
  outbox_counts counts;
  execute(f->db, "INSERT INTO outbox_entries (seq, id, created_at) VALUES"
                 " (-9223372036854775807 - 1, 'a', -9223372036854775807 - 1),"
                 " (-9223372036854775807, 'b', 0), (-9223372036854775806, 'c', 0)");
  assert_ok(f->store, outbox_count_entries(f->store, &counts));
  assert_int_equal(counts.oldest_age, INT64_MAX);
  assert_true(claim_some(f->store, "p", NOW + SECOND, 1));
  assert_true(claim(f->store, "q", NOW + SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), "a");
  assert_string_equal(claimed_ids(f->store, "q"), "b c");
  assert_int_equal(delete_ids(f->store, "b c"), 2);
  assert_true(retry(f->store, "a", NOW + SECOND));
  f->now += SECOND;
  execute(f->db, "INSERT INTO outbox_entries (seq, id) VALUES (9223372036854775806, 'z')");
  assert_true(claim(f->store, "p", f->now + SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), "a z");
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_claims WHERE"
                                 " first_seq = -9223372036854775807 - 1"
                                 " AND last_seq = 9223372036854775807"),
                   0); /* that would be a lane */
}

int test_claims(void) {
  const struct CMUnitTest tests[] = {
      TEST(an_idle_claim_finds_nothing_and_writes_nothing),
      TEST(a_claim_writes_nothing_if_others_hold_all_entries),
      TEST(reading_takes_nothing),
      TEST(what_nobody_claimed_is_not_read),
      TEST(another_processor_waits_until_the_deadline_has_passed),
      TEST(a_deadline_equal_to_now_is_not_expired),
      TEST(an_expired_claim_is_not_read_even_if_nobody_took_it_over),
      TEST(claiming_again_renews_the_claim_and_takes_what_is_new),
      TEST(an_expired_claim_that_nobody_took_over_is_renewed_too),
      TEST(an_entry_published_after_a_claim_goes_to_the_next_claim),
      TEST(an_interval_with_no_entry_left_goes_with_the_next_claim),
      TEST(a_lease_names_its_processor_and_deadline),
      TEST(a_heartbeat_that_cannot_start_its_thread_is_an_error),
      TEST(a_heartbeat_may_have_no_end),
      TEST(a_wait_for_ever_lasts_until_something_ends_it),
      TEST(any_other_call_ends_a_reading),
      TEST(finishing_a_reading_lets_the_log_be_truncated),
      TEST(the_smallest_and_largest_integers_are_valid_seqs_and_times),
      TEST(no_claim_takes_an_entry_from_a_live_one),
  };
  return cmocka_run_group_tests_name("claims", tests, NULL, NULL);
}
