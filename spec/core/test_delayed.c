/*
** Delayed entries: scheduled messages, retries, and the places to which they return.
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

static void a_retry_comes_back_to_its_old_place(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d");
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_true(retry(f->store, "c", NOW + 1));
  assert_true(retry(f->store, "a", NOW + 2));
  assert_string_equal(claimed_ids(f->store, "p"), "b d");
  publish(f->store, "e");
  f->now = NOW + 2;
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), "a b c d e");
}

static void a_retry_comes_back_to_a_place_that_was_last_and_is_not_given_twice(void **state) {
  fixture *f = *state;
  publish(f->store, "a");
  assert_true(retry(f->store, "a", NOW + 1)); /* the outbox is empty now */
  publish(f->store, "b");
  f->now = NOW + 1;
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_string_equal(claimed_ids(f->store, "p"), "a b");
}

static void a_retry_that_comes_back_belongs_to_the_holder_of_its_place(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c");
  assert_true(claim(f->store, "p", NOW + SECOND));
  assert_true(retry(f->store, "b", NOW + 1));
  f->now = NOW + 1;
  assert_false(claim(f->store, "q", NOW + SECOND)); /* this call brings b back */
  assert_string_equal(ids_in(f->db, "entries"), "a b c");
  assert_string_equal(claimed_ids(f->store, "p"), "a b c");
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
    assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 1, NULL));
    assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
    assert_true(same_bytes(entry.id, one.id));
    assert_true(same_bytes(entry.namespace, one.namespace));
    assert_true(same_bytes(entry.key, one.key));
    assert_true(same_bytes(entry.payload, one.payload));
    assert_true(same_bytes(entry.headers, one.headers));
    assert_int_equal(entry.created_at, NOW);
    assert_int_equal(entry.attempts, attempts);
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
      TEST(a_retry_comes_back_to_its_old_place),
      TEST(a_retry_comes_back_to_a_place_that_was_last_and_is_not_given_twice),
      TEST(a_retry_that_comes_back_belongs_to_the_holder_of_its_place),
      TEST(a_claim_brings_back_a_thousand_at_most),
      TEST(what_comes_back_is_what_was_delayed),
      TEST(a_delayed_entry_whose_id_was_used_again_comes_back_with_another),
      TEST(a_delayed_entry_whose_other_id_is_taken_too_waits),
  };
  return cmocka_run_group_tests_name("delayed", tests, NULL, NULL);
}
