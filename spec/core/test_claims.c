/*
** Claims: who holds which entries, and until when.
*/
#include "support.h"

static void an_idle_claim_finds_nothing_and_writes_nothing(void **state) {
  fixture *f = *state;
  sqlite3 *watcher = connect_plainly(f);
  publish_at(f->store, "later", NOW + SECOND);
  int64_t before = number(watcher, "PRAGMA data_version");
  assert_false(claim(f->store, "p", NOW + SECOND));
  assert_false(claim_some(f->store, "p", NOW + SECOND, 5));
  assert_false(claim_all(f->store, "p", NOW + SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), "");
  assert_int_equal(number(watcher, "PRAGMA data_version"), before);
  publish(f->store, "a"); /* the watcher would have seen a write */
  assert_int_not_equal(number(watcher, "PRAGMA data_version"), before);
}

static void a_claim_that_others_leave_nothing_to_writes_nothing(void **state) {
  fixture *f = *state;
  sqlite3 *watcher = connect_plainly(f);
  publish(f->store, "a b");
  assert_true(claim(f->store, "p", NOW + SECOND));
  int64_t before = number(watcher, "PRAGMA data_version");
  assert_false(claim(f->store, "q", NOW + SECOND));
  assert_false(claim_some(f->store, "q", NOW + SECOND, 5));
  assert_false(claim_all(f->store, "q", NOW + SECOND));
  assert_int_equal(number(watcher, "PRAGMA data_version"), before);
}

static void reading_takes_nothing(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c");
  assert_true(claim(f->store, "p", NOW));
  assert_string_equal(claimed_ids(f->store, "p"), "a b c");
  assert_string_equal(claimed_ids(f->store, "p"), "a b c");
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 2));
  assert_string_equal(read_ids(f->store), "a b");
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 2));
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
  assert_false(claim_all(f->store, "q", NOW + 2 * SECOND));
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

static void what_is_published_behind_another_claim_goes_to_whoever_asks(void **state) {
  fixture *f = *state;
  publish(f->store, "a b");
  assert_true(claim(f->store, "p", NOW));
  publish(f->store, "c d");
  assert_true(claim(f->store, "q", NOW));
  assert_string_equal(claimed_ids(f->store, "p"), "a b");
  assert_string_equal(claimed_ids(f->store, "q"), "c d");
}

static void a_lease_with_no_entry_left_is_swept(void **state) {
  fixture *f = *state;
  publish(f->store, "a b");
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_int_equal(delete_ids(f->store, "a b"), 2);
  assert_string_equal(leases(f->store), "p:1-2");
  publish(f->store, "c");
  assert_true(claim(f->store, "q", NOW + SECOND));
  assert_string_equal(leases(f->store), "q:3-3");
  assert_int_equal(delete_ids(f->store, "c"), 1);
  assert_false(claim(f->store, "p", NOW + SECOND));
  assert_string_equal(leases(f->store), "");
}

static void a_lease_tells_its_processor_and_deadline(void **state) {
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
  assert_code(f->store, outbox_next_lease(f->store, &lease), OUTBOX_DONE);
}

/* --- Reading --------------------------------------------------------------------------------- */

static void start_reading(fixture *f) {
  outbox_entry entry;
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 3));
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
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

static void finishing_a_reading_lets_the_log_be_cut(void **state) {
  fixture *f = *state;
  sqlite3 *plain = connect_plainly(f);
  publish(f->store, "a b c");
  assert_true(claim(f->store, "p", NOW));
  start_reading(f);
  publish(open_store(f, NULL), "d"); /* which the reading must not see */
  assert_int_equal(number(plain, "PRAGMA wal_checkpoint(TRUNCATE)"), 1);
  outbox_finish(f->store);
  assert_int_equal(number(plain, "PRAGMA wal_checkpoint(TRUNCATE)"), 0);
}

/* --- Never two at once ----------------------------------------------------------------------- */

enum { PROCESSORS = 4, ROUNDS = 400, MOST_ENTRIES = ROUNDS * 5 };

static const char *const NAMES[PROCESSORS] = {"p", "q", "r", "s"};

/* A small generator of our own: the same sequence on every machine. */
static unsigned next_random(uint32_t *state, unsigned below) {
  *state = *state * 1664525u + 1013904223u;
  return (*state >> 16) % below;
}

/* Reads what each processor holds; returns how many entries in all. No entry may come twice. */
static int read_everything(fixture *f, int owner[MOST_ENTRIES]) {
  int total = 0;
  memset(owner, -1, MOST_ENTRIES * sizeof *owner);
  for (int p = 0; p < PROCESSORS; p++) {
    outbox_entry entry;
    int64_t last = 0;
    assert_ok(f->store, outbox_get_claimed_entries(f->store, text(NAMES[p]), MOST_ENTRIES));
    while (outbox_next(f->store, &entry) == OUTBOX_ROW) {
      assert_true(entry.seq > last && entry.seq < MOST_ENTRIES);
      assert_int_equal(owner[entry.seq], -1);
      owner[entry.seq] = p;
      last = entry.seq;
      total++;
    }
  }
  return total;
}

static void no_entry_is_ever_claimed_by_two_live_processors(void **state) {
  fixture *f = *state;
  static int before[MOST_ENTRIES], after[MOST_ENTRIES];
  uint32_t random = 20240229;
  int64_t most_leases = 0;
  read_everything(f, before);
  for (int round = 0; round < ROUNDS; round++) {
    int p = (int)next_random(&random, PROCESSORS);
    switch (next_random(&random, 8)) {
    case 0:
    case 1: {
      outbox_message messages[4] = {{.id = {0}}};
      assert_ok(f->store, outbox_publish(f->store, messages, 1 + next_random(&random, 4)));
      break;
    }
    case 2: { /* some of what it holds is delivered, or will be retried */
      outbox_entry entry;
      assert_ok(f->store, outbox_get_claimed_entries(f->store, text(NAMES[p]), 1 + (round & 3)));
      char id[OUTBOX_ID_SIZE] = "";
      while (outbox_next(f->store, &entry) == OUTBOX_ROW)
        memcpy(id, entry.id.data, entry.id.size);
      if (next_random(&random, 2) == 0)
        delete_ids(f->store, id);
      else
        retry(f->store, id, f->now + next_random(&random, 5) * SECOND);
      break;
    }
    case 3: f->now += next_random(&random, 2) * SECOND; break;
    case 4: claim_all(f->store, NAMES[p], f->now + next_random(&random, 3) * SECOND); break;
    case 5: claim(f->store, NAMES[p], f->now + next_random(&random, 5) * SECOND); break;
    default:
      claim_some(f->store, NAMES[p], f->now + next_random(&random, 5) * SECOND,
                 1 + next_random(&random, 6));
    }
    int64_t now = f->now, count = number(f->db, "SELECT count(*) FROM outbox_leases");
    read_everything(f, after);
    if (count > most_leases) most_leases = count;
    assert_int_equal(now, f->now);
    assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_leases AS a, outbox_leases AS b"
                                   " WHERE a.first_seq < b.first_seq"
                                   " AND a.last_seq >= b.first_seq"),
                     0);
    memcpy(before, after, sizeof before);
  }
  assert_in_range(most_leases, 1, 3 * PROCESSORS);
  /* Once all have lapsed, one processor gets whatever is left. */
  f->now += 100 * SECOND;
  assert_true(claim(f->store, "heir", f->now));
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("heir"), MOST_ENTRIES));
  int64_t left = 0;
  outbox_entry entry;
  while (outbox_next(f->store, &entry) == OUTBOX_ROW)
    left++;
  assert_int_equal(left, number(f->db, "SELECT count(*) FROM outbox_entries"));
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_delayed"), 0);
}

int test_claims(void) {
  return 0;
}
