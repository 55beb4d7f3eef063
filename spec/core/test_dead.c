/*
** Dead letters, and the counts that an operator watches.
*/
#include "support.h"

static const outbox_bytes ANY = {NULL, 0};

static const char *dead_ids(outbox_store *store, outbox_bytes namespace, int64_t after,
                            int64_t limit) {
  assert_ok(store, outbox_dead_entries(store, namespace, after, limit));
  return read_ids(store);
}

static void bury_all(outbox_store *store, const char *ids) {
  char id[64];
  for (int n; sscanf(ids, "%63s%n", id, &n) == 1; ids += n)
    assert_true(bury(store, id));
}

static int64_t requeue(outbox_store *store, const char *ids) {
  outbox_bytes words[8];
  int64_t requeued;
  size_t count = split(ids, words, 8);
  assert_ok(store, outbox_requeue_entries(store, words, count, &requeued));
  return requeued;
}

static int64_t purge(outbox_store *store, const char *ids) {
  outbox_bytes words[8];
  int64_t purged;
  size_t count = split(ids, words, 8);
  assert_ok(store, outbox_purge_entries(store, words, count, &purged));
  return purged;
}

static void dead_letters_are_read_page_by_page(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d e");
  bury_all(f->store, "e c b a");
  assert_string_equal(dead_ids(f->store, ANY, 0, 2), "a b");
  assert_string_equal(dead_ids(f->store, ANY, 2, 2), "c e");
  assert_string_equal(dead_ids(f->store, ANY, 5, 2), "");
  assert_string_equal(dead_ids(f->store, ANY, 0, 100), "a b c e");
}

static void pages_are_read_backwards_too(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d e f");
  bury_all(f->store, "b d e");
  assert_string_equal(dead_ids(f->store, ANY, INT64_MAX, -2), "e d");
  assert_string_equal(dead_ids(f->store, ANY, 4, -2), "b");
  assert_string_equal(dead_ids(f->store, text("n"), INT64_MAX, -2), "");
  assert_ok(f->store, outbox_ready_entries(f->store, text(""), 6, -2));
  assert_string_equal(read_ids(f->store), "c a");
  publish_at(f->store, "later", NOW + 2);
  publish_at(f->store, "sooner", NOW + 1);
  assert_ok(f->store, outbox_delayed_entries(f->store, ANY, INT64_MAX, -9));
  assert_string_equal(read_ids(f->store), "sooner later");
}

static void dead_letters_are_read_by_namespace(void **state) {
  fixture *f = *state;
  outbox_message messages[] = {message("a"), message("b"), message("c"), message("d")};
  messages[0].namespace = messages[2].namespace = messages[3].namespace = text("n");
  assert_ok(f->store, outbox_publish(f->store, messages, 4));
  bury_all(f->store, "a b c d");
  assert_string_equal(dead_ids(f->store, text("n"), 0, 2), "a c");
  assert_string_equal(dead_ids(f->store, text("n"), 3, 2), "d");
  assert_string_equal(dead_ids(f->store, text(""), 0, 2), "b"); /* "" is a namespace too */
  assert_string_equal(dead_ids(f->store, text("unknown"), 0, 2), "");
  assert_string_equal(dead_ids(f->store, ANY, 0, 10), "a b c d");
}

static void a_dead_letter_is_not_claimed(void **state) {
  fixture *f = *state;
  publish(f->store, "a b");
  assert_true(bury(f->store, "a"));
  assert_true(claim(f->store, "p", NOW));
  assert_string_equal(claimed_ids(f->store, "p"), "b");
}

static void what_is_requeued_comes_to_the_end_as_it_was_with_no_attempts(void **state) {
  fixture *f = *state;
  outbox_message one = {.id = text("a"),
                        .namespace = text("n"),
                        .key = text("k"),
                        .payload = text("p"),
                        .headers = text("{\"h\":\"1\"}")};
  assert_ok(f->store, outbox_publish(f->store, &one, 1));
  publish(f->store, "b c");
  bury_all(f->store, "a c");
  assert_int_equal(requeue(f->store, "a unknown b a"), 1);
  assert_string_equal(ids_in(f->db, "dead"), "c");
  assert_true(claim(f->store, "p", NOW));
  assert_string_equal(claimed_ids(f->store, "p"), "b a");
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_entries WHERE id = 'a' AND"
                                 " namespace = 'n' AND key = 'k' AND payload = x'70' AND"
                                 " headers = '{\"h\":\"1\"}' AND attempts = 0 AND seq > 3"),
                   1);
}

static void what_is_requeued_may_die_and_be_requeued_again(void **state) {
  fixture *f = *state;
  publish(f->store, "a b");
  for (int i = 0; i < 3; i++) {
    assert_true(bury(f->store, "a"));
    assert_int_equal(number(f->db, "SELECT attempts FROM outbox_dead"), 1);
    assert_int_equal(requeue(f->store, "a"), 1);
    assert_string_equal(ids_in(f->db, "entries"), "b a");
  }
}

static void a_requeue_that_fails_for_one_puts_none_back(void **state) {
  fixture *f = *state;
  outbox_bytes ids[] = {text("a"), text("b")};
  int64_t requeued;
  publish(f->store, "a b");
  bury_all(f->store, "a b");
  execute(f->db, "INSERT INTO outbox_entries (id) VALUES ('b')"); /* checks one table */
  assert_code(f->store, outbox_requeue_entries(f->store, ids, 2, &requeued), OUTBOX_DUPLICATE);
  assert_string_equal(ids_in(f->db, "dead"), "a b");
  assert_string_equal(ids_in(f->db, "entries"), "b");
}

static void a_requeue_that_another_constraint_stops_is_no_duplicate(void **state) {
  fixture *f = *state;
  outbox_bytes id = text("a");
  int64_t requeued;
  publish(f->store, "a");
  bury_all(f->store, "a");
  execute(f->db, "CREATE TABLE audit (id UNIQUE); INSERT INTO audit VALUES ('a');"
                 "CREATE TRIGGER t AFTER INSERT ON outbox_ready"
                 " BEGIN INSERT INTO audit VALUES (new.id); END");
  assert_code(f->store, outbox_requeue_entries(f->store, &id, 1, &requeued), OUTBOX_CONSTRAINT);
  assert_string_equal(outbox_error_message(f->store), "UNIQUE constraint failed: audit.id");
  assert_string_equal(ids_in(f->db, "dead"), "a");
}

static void a_purge_deletes_dead_letters_and_nothing_else(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d");
  publish_at(f->store, "delayed", NOW + 1);
  bury_all(f->store, "a b c");
  assert_int_equal(purge(f->store, "d a delayed unknown c a"), 2);
  assert_string_equal(ids_in(f->db, "dead"), "b");
  assert_string_equal(ids_in(f->db, "entries"), "d");
  assert_string_equal(ids_in(f->db, "delayed"), "delayed");
}

static void an_id_is_found_wherever_it_lies(void **state) {
  fixture *f = *state;
  static const char *const IDS[] = {"ready", "delayed", "dead", "twice"};
  static const char *const FOUND[] = {"ready", "delayed", "dead", "twice twice"};
  outbox_entry entry;
  publish(f->store, "ready dead twice");
  publish_at(f->store, "delayed", NOW + 1);
  bury_all(f->store, "dead twice");
  execute(f->db, "INSERT INTO outbox_entries (id) VALUES ('twice')"); /* checks one table */
  for (int i = 0; i < 4; i++) {
    assert_ok(f->store, outbox_find_entries(f->store, text(IDS[i])));
    assert_string_equal(read_ids(f->store), FOUND[i]);
  }
  assert_ok(f->store, outbox_find_entries(f->store, text("delayed")));
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
  assert_int_equal(entry.state, OUTBOX_DELAYED);
  assert_int_equal(entry.due_at, NOW + 1);
  assert_ok(f->store, outbox_find_entries(f->store, text("twice")));
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
  assert_int_equal(entry.state, OUTBOX_READY); /* ready entries come first */
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
  assert_int_equal(entry.state, OUTBOX_DEAD);
  assert_int_equal(entry.died_at, NOW);
  assert_ok(f->store, outbox_find_entries(f->store, text("unknown")));
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_DONE);
}

/* --- Counts ---------------------------------------------------------------------------------- */

static outbox_counts counts_of(fixture *f) {
  outbox_counts counts;
  assert_ok(f->store, outbox_count_entries(f->store, &counts));
  return counts;
}

static void an_empty_outbox_counts_nothing(void **state) {
  outbox_counts counts = counts_of(*state);
  assert_int_equal(counts.ready, 0);
  assert_int_equal(counts.delayed, 0);
  assert_int_equal(counts.dead, 0);
  assert_int_equal(counts.oldest_age, -1);
  assert_int_equal(counts.due_at, 0);
  assert_int_equal(counts.retries, 0);
  assert_int_equal(counts.last_seq, 0);
}

static void counts_show_what_waits_where_and_how_long(void **state) {
  fixture *f = *state;
  publish(f->store, "dead");
  f->now = NOW + SECOND;
  publish(f->store, "a");
  f->now = NOW + 2 * SECOND;
  publish(f->store, "b c");
  publish_at(f->store, "later", NOW + 9 * SECOND);
  publish_at(f->store, "sooner", NOW + 8 * SECOND);
  assert_true(bury(f->store, "dead"));
  f->now = NOW + 3 * SECOND;
  outbox_counts counts = counts_of(f);
  assert_int_equal(counts.ready, 3);
  assert_int_equal(counts.delayed, 2);
  assert_int_equal(counts.dead, 1);
  assert_int_equal(counts.oldest_age, 2 * SECOND);
  assert_int_equal(counts.due_at, NOW + 8 * SECOND);
}

static void what_is_delayed_or_dead_has_no_age(void **state) {
  fixture *f = *state;
  publish(f->store, "dead");
  publish_at(f->store, "delayed", NOW + 9 * SECOND);
  assert_true(bury(f->store, "dead"));
  f->now = NOW + 3 * SECOND;
  assert_int_equal(counts_of(f).oldest_age, -1);
}

/* Asserts how many entries have ever become ready, and how many of them have been deleted or buried
** since. */
static void assert_flow(fixture *f, int64_t arrived, int64_t departed) {
  outbox_counts counts = counts_of(f);
  assert_int_equal(counts.last_seq, arrived);
  assert_int_equal(counts.last_seq - counts.ready - counts.retries, departed);
}

static void counts_show_how_many_arrived_and_departed(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d");
  assert_flow(f, 4, 0);
  publish_at(f->store, "later", NOW + 5 * SECOND);
  assert_flow(f, 4, 0);
  assert_true(retry(f->store, "a", NOW + SECOND));
  assert_int_equal(counts_of(f).retries, 1);
  assert_flow(f, 4, 0);
  assert_true(bury(f->store, "b"));
  assert_int_equal(delete_ids(f->store, "c"), 1);
  assert_flow(f, 4, 2);
  f->now = NOW + SECOND;
  assert_true(claim(f->store, "p", f->now)); /* "a" is due, and stays where it is */
  assert_int_equal(counts_of(f).retries, 1);
  assert_flow(f, 4, 2);
  f->now = NOW + 5 * SECOND;
  assert_true(claim(f->store, "p", f->now)); /* "later" becomes ready for the first time */
  assert_flow(f, 5, 2);
  assert_int_equal(requeue(f->store, "b"), 1);
  assert_flow(f, 6, 2);
  assert_int_equal(delete_ids(f->store, "a b d later"), 4);
  assert_flow(f, 6, 6);
}

int test_dead(void) {
  const struct CMUnitTest tests[] = {
      TEST(dead_letters_are_read_page_by_page),
      TEST(pages_are_read_backwards_too),
      TEST(dead_letters_are_read_by_namespace),
      TEST(a_dead_letter_is_not_claimed),
      TEST(what_is_requeued_comes_to_the_end_as_it_was_with_no_attempts),
      TEST(what_is_requeued_may_die_and_be_requeued_again),
      TEST(a_requeue_that_fails_for_one_puts_none_back),
      TEST(a_requeue_that_another_constraint_stops_is_no_duplicate),
      TEST(a_purge_deletes_dead_letters_and_nothing_else),
      TEST(an_id_is_found_wherever_it_lies),
      TEST(an_empty_outbox_counts_nothing),
      TEST(counts_show_what_waits_where_and_how_long),
      TEST(what_is_delayed_or_dead_has_no_age),
      TEST(counts_show_how_many_arrived_and_departed),
  };
  return cmocka_run_group_tests_name("dead letters", tests, NULL, NULL);
}
