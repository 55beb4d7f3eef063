/*
** Delayed entries: scheduled messages, retries and their places, and what waits for a retry.
*/
#include "support.h"

static void a_delayed_entry_comes_back_when_it_is_due(void **state) {
  fixture *f = *state;
  publish_at(f->store, "a", NOW + SECOND);
  assert_false(claim(f->store, "p", NOW + 2 * SECOND));
  f->now = NOW + SECOND - 1;
  assert_false(claim(f->store, "p", NOW + 2 * SECOND));
  f->now = NOW + SECOND;
  assert_true(claim(f->store, "p", NOW + 2 * SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), "a");
  assert_string_equal(ids_in(f->db, "delayed"), "");
}

static void scheduled_messages_come_to_the_end_in_the_order_of_their_time(void **state) {
  fixture *f = *state;
  publish_at(f->store, "third", NOW + 3);
  publish_at(f->store, "first", NOW + 1);
  publish_at(f->store, "second", NOW + 2);
  publish_at(f->store, "second_too", NOW + 2);
  publish(f->store, "ready");
  f->now = NOW + 3;
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), "ready first second second_too third");
}

static void a_retry_that_is_due_is_read_at_its_place_and_stays_where_it_is(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d");
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_true(retry(f->store, "c", NOW + 1));
  assert_true(retry(f->store, "a", NOW + 2));
  assert_string_equal(claimed_ids(f->store, "p"), "b d");
  publish(f->store, "e");
  f->now = NOW + 1;
  assert_string_equal(claimed_ids(f->store, "p"), "b c d");
  f->now = NOW + 2;
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), "a b c d e");
  assert_string_equal(ids_in(f->db, "delayed"), "c a");
  assert_int_equal(delete_ids(f->store, "a b c d e"), 5);
}

static void a_retry_has_a_place_that_is_not_given_twice(void **state) {
  fixture *f = *state;
  publish(f->store, "a");
  assert_true(retry(f->store, "a", NOW + 1)); /* the outbox is empty now */
  publish(f->store, "b");
  f->now = NOW + 1;
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), "a b");
}

static void a_retry_belongs_to_the_holder_of_its_place(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c");
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_true(retry(f->store, "b", NOW + 1));
  f->now = NOW + 1;
  assert_false(claim(f->store, "q", NOW + SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), "a b c");
}

static void a_gap_is_claimed_for_a_retry_only_once_that_is_due(void **state) {
  fixture *f = *state;
  publish(f->store, "a b");
  assert_true(retry(f->store, "a", NOW + 1));
  assert_true(retry(f->store, "b", NOW + 2));
  assert_false(claim(f->store, "p", NOW + SECOND));
  f->now = NOW + 1;
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_string_equal(leases(f->store), "p:1-2"); /* what is not due yet comes with it */
  assert_string_equal(claimed_ids(f->store, "p"), "a");
}

static void a_limit_counts_retries_that_are_due_by_their_places(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d e f");
  assert_true(retry(f->store, "b", NOW + 1));
  assert_true(retry(f->store, "d", NOW + SECOND));
  assert_true(retry(f->store, "e", NOW + 2));
  f->now = NOW + 2;
  assert_true(claim_some(f->store, "p", NOW + SECOND, 2));
  assert_string_equal(claimed_ids(f->store, "p"), "a b");
  assert_true(claim_some(f->store, "q", NOW + SECOND, 2));
  assert_string_equal(claimed_ids(f->store, "q"), "c e");
  assert_true(claim(f->store, "r", NOW + SECOND));
  assert_string_equal(leases(f->store), "p:1-2 q:3-5 r:6-6");
}

/* --- Entries that wait for a retry of their key ---------------------------------------------- */

static void publish_keyed(fixture *f, const char *id, const char *key) {
  outbox_message one = {.id = text(id), .key = text(key)};
  assert_ok(f->store, outbox_publish(f->store, &one, 1));
}

static void an_entry_waits_for_an_earlier_retry_of_its_key(void **state) {
  fixture *f = *state;
  publish_keyed(f, "a1", "a");
  publish_keyed(f, "b1", "b");
  publish_keyed(f, "a2", "a");
  publish(f->store, "none");
  publish_keyed(f, "a3", "a");
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_true(retry(f->store, "a2", NOW + 1));
  assert_string_equal(claimed_ids(f->store, "p"), "a1 b1 none");
  assert_true(retry(f->store, "a1", NOW + 2));
  f->now = NOW + 1; /* a2 is due, but a1 comes before it */
  assert_string_equal(claimed_ids(f->store, "p"), "b1 none");
  f->now = NOW + 2;
  assert_string_equal(claimed_ids(f->store, "p"), "a1 b1 a2 none a3");
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 3, 0));
  assert_string_equal(read_ids(f->store), "a1 b1 a2");
}

static void an_entry_waits_for_a_retry_that_lies_in_another_interval(void **state) {
  fixture *f = *state;
  publish_keyed(f, "a1", "a");
  publish_keyed(f, "a2", "a");
  assert_true(claim_some(f->store, "p", NOW + SECOND, 1));
  assert_true(claim_some(f->store, "q", NOW + SECOND, 1));
  assert_string_equal(claimed_ids(f->store, "q"), "a2");
  assert_true(retry(f->store, "a1", NOW + 1));
  f->now = NOW + 1;
  assert_string_equal(claimed_ids(f->store, "p"), "a1");
  assert_string_equal(claimed_ids(f->store, "q"), "");
  assert_int_equal(delete_ids(f->store, "a1"), 1);
  assert_string_equal(claimed_ids(f->store, "q"), "a2");
}

/* Otherwise it would hold what it cannot read, and never claim the retry. */
static void a_limit_gives_back_what_waits_for_retries_elsewhere(void **state) {
  fixture *f = *state;
  publish_keyed(f, "a1", "a");
  publish_keyed(f, "a2", "a");
  assert_true(claim_some(f->store, "p", NOW + 5, 1));
  assert_true(claim_some(f->store, "q", NOW + SECOND, 1));
  assert_true(retry(f->store, "a1", NOW + 1));
  f->now = NOW + 6; /* p has died */
  assert_true(claim_some(f->store, "q", NOW + SECOND, 1));
  assert_string_equal(claimed_ids(f->store, "q"), "a1");
  assert_int_equal(delete_ids(f->store, "a1"), 1);
  assert_true(claim_some(f->store, "q", NOW + SECOND, 1));
  assert_string_equal(claimed_ids(f->store, "q"), "a2");
}

/* --- Many, and what comes back ---------------------------------------------------------------- */

/* The work under the write lock does not grow with them. */
static void a_claim_looks_at_ten_thousand_retries_at_most(void **state) {
  fixture *f = *state;
  execute(f->db, "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000)"
                 " INSERT INTO outbox_delayed (id, due_at, position, delayed_at)"
                 " SELECT i, 1700000000123456, i, 1 FROM n");
  assert_true(claim_some(f->store, "p", NOW + SECOND, 15000));
  assert_string_equal(leases(f->store), "p:1-10000");
  assert_true(claim_some(f->store, "p", NOW + SECOND, 3));
  assert_string_equal(claimed_ids(f->store, "p"), "1 2 3");
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_string_equal(leases(f->store), "p:1-20000");
}

static void a_claim_brings_back_a_thousand_at_most(void **state) {
  fixture *f = *state;
  static outbox_message messages[1001];
  for (int i = 0; i < 1001; i++)
    messages[i] = (outbox_message){.deliver_at = NOW + 1};
  assert_ok(f->store, outbox_publish(f->store, messages, 1001));
  f->now = NOW + 1;
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_entries"), 1000);
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_delayed"), 1);
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_entries"), 1001);
  assert_int_equal(number(f->db, "SELECT count(DISTINCT id) FROM outbox_entries"), 1001);
}

static void what_comes_back_is_what_was_delayed(void **state) {
  fixture *f = *state;
  outbox_message one = {.id = text("a"),
                        .namespace = text("n"),
                        .key = text("k"),
                        .payload = text("p"),
                        .headers = text("{\"h\":\"1\"}"),
                        .deliver_at = NOW + 1};
  outbox_entry entry;
  assert_ok(f->store, outbox_publish(f->store, &one, 1));
  for (int attempts = 0; attempts < 3; attempts++) {
    f->now += 1;
    assert_true(claim(f->store, "p", f->now));
    assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 1, 0));
    assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
    assert_true(same_bytes(entry.id, one.id));
    assert_true(same_bytes(entry.namespace, one.namespace));
    assert_true(same_bytes(entry.key, one.key));
    assert_true(same_bytes(entry.payload, one.payload));
    assert_true(same_bytes(entry.headers, one.headers));
    assert_int_equal(entry.created_at, NOW);
    assert_int_equal(entry.attempts, attempts);
    assert_int_equal(entry.seq, 1);
    if (attempts > 0) assert_true(same_bytes(entry.last_error, text("refused")));
    assert_true(retry(f->store, "a", f->now + 1));
  }
}

/* An INSERT by plain SQL does not check whether a delayed entry has the same id. */
static void a_delayed_entry_whose_id_was_used_again_comes_back_with_another(void **state) {
  fixture *f = *state;
  publish_at(f->store, "a", NOW + 1);
  execute(f->db, "INSERT INTO outbox_entries (id, payload) VALUES ('a', 'intruder')");
  f->now = NOW + 1;
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_string_equal(ids_in(f->db, "entries"), "a a~1");
  assert_string_equal(ids_in(f->db, "delayed"), "");
  assert_string_equal(string(f->db, "SELECT payload FROM outbox_entries WHERE id = 'a~1'"), "a");
}

/* It waits until its own id or the other one is free. */
static void a_delayed_entry_whose_other_id_is_taken_too_waits(void **state) {
  fixture *f = *state;
  publish_at(f->store, "a", NOW + 1);
  execute(f->db, "INSERT INTO outbox_entries (id) VALUES ('a'), ('a~1')");
  f->now = NOW + 1;
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_string_equal(ids_in(f->db, "delayed"), "a");
  execute(f->db, "DELETE FROM outbox_entries");
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_string_equal(string(f->db, "SELECT payload FROM outbox_entries"), "a");
  assert_string_equal(ids_in(f->db, "delayed"), "");
}

int test_delayed(void) {
  const struct CMUnitTest tests[] = {
      TEST(a_delayed_entry_comes_back_when_it_is_due),
      TEST(scheduled_messages_come_to_the_end_in_the_order_of_their_time),
      TEST(a_retry_that_is_due_is_read_at_its_place_and_stays_where_it_is),
      TEST(a_retry_has_a_place_that_is_not_given_twice),
      TEST(a_retry_belongs_to_the_holder_of_its_place),
      TEST(a_gap_is_claimed_for_a_retry_only_once_that_is_due),
      TEST(a_limit_counts_retries_that_are_due_by_their_places),
      TEST(an_entry_waits_for_an_earlier_retry_of_its_key),
      TEST(an_entry_waits_for_a_retry_that_lies_in_another_interval),
      TEST(a_limit_gives_back_what_waits_for_retries_elsewhere),
      TEST(a_claim_looks_at_ten_thousand_retries_at_most),
      TEST(a_claim_brings_back_a_thousand_at_most),
      TEST(what_comes_back_is_what_was_delayed),
      TEST(a_delayed_entry_whose_id_was_used_again_comes_back_with_another),
      TEST(a_delayed_entry_whose_other_id_is_taken_too_waits),
  };
  return cmocka_run_group_tests_name("delayed", tests, NULL, NULL);
}
