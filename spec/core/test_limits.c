/*
** Claims with a limit, by which several processors share the backlog.
*/
#include "support.h"

static void a_limit_claims_the_oldest_and_leaves_the_rest(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d e");
  assert_true(claim_some(f->store, "p", NOW, 2));
  assert_true(claim_some(f->store, "q", NOW, 2));
  assert_true(claim_some(f->store, "r", NOW, 2));
  assert_false(claim_some(f->store, "s", NOW, 2));
  assert_string_equal(claimed_ids(f->store, "p"), "a b");
  assert_string_equal(claimed_ids(f->store, "q"), "c d");
  assert_string_equal(claimed_ids(f->store, "r"), "e");
}

static void a_limit_is_what_the_processor_holds_not_what_it_adds(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d");
  for (int i = 0; i < 3; i++) {
    assert_true(claim_some(f->store, "p", NOW, 2));
    assert_string_equal(claimed_ids(f->store, "p"), "a b");
  }
  assert_int_equal(delete_ids(f->store, "a"), 1);
  assert_true(claim_some(f->store, "p", NOW, 2));
  assert_string_equal(claimed_ids(f->store, "p"), "b c");
}

static void a_limit_renews_the_processors_own_before_it_takes_older_ones(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d e");
  assert_true(claim_some(f->store, "short", NOW, 2));
  assert_true(claim_some(f->store, "p", NOW + 2 * SECOND, 2));
  f->now = NOW + SECOND; /* a and b are free again */
  assert_true(claim_some(f->store, "p", NOW + 2 * SECOND, 3));
  assert_string_equal(claimed_ids(f->store, "p"), "a c d");
  assert_true(claim(f->store, "q", NOW + 2 * SECOND));
  assert_string_equal(claimed_ids(f->store, "q"), "b e");
}

static void a_smaller_limit_gives_back_what_is_beyond_it(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d e");
  assert_true(claim(f->store, "p", NOW));
  assert_false(claim(f->store, "q", NOW));
  assert_true(claim_some(f->store, "p", NOW, 3));
  assert_string_equal(claimed_ids(f->store, "p"), "a b c");
  assert_true(claim(f->store, "q", NOW));
  assert_string_equal(claimed_ids(f->store, "q"), "d e");
}

static void a_smaller_limit_gives_back_whole_leases(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d e f");
  assert_true(claim_some(f->store, "p", NOW, 2));
  assert_true(claim_some(f->store, "q", NOW, 2));
  assert_true(claim_some(f->store, "p", NOW, 4));
  assert_string_equal(claimed_ids(f->store, "p"), "a b e f");
  assert_true(claim_some(f->store, "p", NOW, 1));
  assert_string_equal(claimed_ids(f->store, "p"), "a");
  assert_string_equal(leases(f->store), "p:1-1 q:3-4");
}

static void a_claim_that_grows_is_still_one_lease(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d e");
  assert_true(claim_some(f->store, "p", NOW, 2));
  assert_true(claim_some(f->store, "p", NOW, 4));
  assert_string_equal(leases(f->store), "p:1-4");
  assert_true(claim(f->store, "p", NOW));
  assert_string_equal(leases(f->store), "p:1-5");
}

static void a_limit_of_nothing_or_less_is_none(void **state) {
  fixture *f = *state;
  publish(f->store, "a b");
  assert_true(claim_some(f->store, "p", NOW, 0));
  assert_string_equal(claimed_ids(f->store, "p"), "a b");
  assert_true(claim_some(f->store, "p", NOW, -1));
  assert_string_equal(claimed_ids(f->store, "p"), "a b");
}

static void a_limit_counts_entries_not_the_room_between_them(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d e f");
  assert_int_equal(delete_ids(f->store, "b c e"), 3);
  assert_true(claim_some(f->store, "p", NOW, 2));
  assert_string_equal(claimed_ids(f->store, "p"), "a d");
  assert_true(claim(f->store, "q", NOW));
  assert_string_equal(claimed_ids(f->store, "q"), "f");
}

/* Each processor finishes its batch. In every fourth round, it retries one entry, which returns
** between the entries of the others. */
static void leases_stay_few_however_often_processors_take_turns(void **state) {
  fixture *f = *state;
  static const char *const NAMES[] = {"p", "q", "r"};
  enum { LIMIT = 5, PROCESSORS = 3 };
  outbox_message backlog[100] = {{.id = {0}}};
  assert_ok(f->store, outbox_publish(f->store, backlog, 100));
  for (int round = 0; round < 300; round++) {
    outbox_message messages[LIMIT] = {{.id = {0}}};
    char ids[LIMIT * OUTBOX_ID_SIZE], *rest = ids;
    const char *name = NAMES[round % PROCESSORS];
    f->now++;
    assert_ok(f->store, outbox_publish(f->store, messages, LIMIT));
    assert_true(claim_some(f->store, name, f->now + SECOND, LIMIT));
    snprintf(ids, sizeof ids, "%s", claimed_ids(f->store, name));
    if (round % 4 == 0) {
      rest = strchr(ids, ' ') + 1;
      rest[-1] = '\0';
      assert_true(retry(f->store, ids, f->now + 20));
    }
    assert_in_range(delete_ids(f->store, rest), LIMIT - 1, LIMIT);
    assert_in_range(number(f->db, "SELECT count(*) FROM outbox_claims"), 1, 2 * PROCESSORS);
  }
}

int test_limits(void) {
  const struct CMUnitTest tests[] = {
      TEST(a_limit_claims_the_oldest_and_leaves_the_rest),
      TEST(a_limit_is_what_the_processor_holds_not_what_it_adds),
      TEST(a_limit_renews_the_processors_own_before_it_takes_older_ones),
      TEST(a_smaller_limit_gives_back_what_is_beyond_it),
      TEST(a_smaller_limit_gives_back_whole_leases),
      TEST(a_claim_that_grows_is_still_one_lease),
      TEST(a_limit_of_nothing_or_less_is_none),
      TEST(a_limit_counts_entries_not_the_room_between_them),
      TEST(leases_stay_few_however_often_processors_take_turns),
  };
  return cmocka_run_group_tests_name("limits", tests, NULL, NULL);
}
