/*
** Deleting, retrying and burying. A delete must remove exactly the given entries. The core has a
** fast path for a batch that was read and is then deleted as a whole. Most tests here try to make
** this path delete the wrong entries.
*/
#include "support.h"

/* Claims all entries for "p" and reads the first `size` of them. Asserts that they are
** `expected`. */
static void read_batch(fixture *f, int64_t size, const char *expected) {
  assert_true(claim(f->store, "p", NOW));
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), size, 0));
  assert_string_equal(read_ids(f->store), expected);
}

/* --- Deleting -------------------------------------------------------------------------------- */

static void deleting_counts_what_was_there_and_ignores_the_rest(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c");
  publish_at(f->store, "d", NOW + 1);
  assert_true(bury(f->store, "c"));
  assert_int_equal(delete_ids(f->store, ""), 0);
  assert_int_equal(delete_ids(f->store, "unknown"), 0);
  assert_int_equal(delete_ids(f->store, "a unknown d a c"), 2);
  assert_string_equal(ids_in(f->db, "entries"), "b");
  assert_string_equal(ids_in(f->db, "delayed"), "");
  assert_string_equal(ids_in(f->db, "dead"), "c");
}

static void a_batch_is_deleted_and_nothing_around_it(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d e");
  read_batch(f, 2, "a b");
  assert_int_equal(delete_ids(f->store, "a b"), 2);
  read_batch(f, 2, "c d");
  assert_int_equal(delete_ids(f->store, "c d"), 2);
  assert_string_equal(ids_in(f->db, "entries"), "e");
}

static void a_batch_deleted_again_is_no_longer_there(void **state) {
  fixture *f = *state;
  publish(f->store, "a b");
  read_batch(f, 2, "a b");
  assert_int_equal(delete_ids(f->store, "a b"), 2);
  publish(f->store, "c d");
  assert_int_equal(delete_ids(f->store, "a b"), 0);
  assert_string_equal(ids_in(f->db, "entries"), "c d");
}

static void a_part_of_a_batch_is_deleted_alone(void **state) {
  static const char *const PARTS[][2] = {
      {"a b", "c d e"}, {"b c d", "a e"}, {"d e", "a b c"}, {"a c e", "b d"}, {"c", "a b d e"}};
  fixture *f = *state;
  for (size_t i = 0; i < sizeof PARTS / sizeof *PARTS; i++) {
    publish(f->store, "a b c d e");
    read_batch(f, 5, "a b c d e");
    assert_int_equal(delete_ids(f->store, PARTS[i][0]), (int)(strlen(PARTS[i][0]) + 1) / 2);
    assert_string_equal(ids_in(f->db, "entries"), PARTS[i][1]);
    execute(f->db, "DELETE FROM outbox_entries");
  }
}

static void a_batch_may_be_deleted_in_any_order(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d");
  read_batch(f, 3, "a b c");
  assert_int_equal(delete_ids(f->store, "c a b"), 3);
  assert_string_equal(ids_in(f->db, "entries"), "d");
}

static void as_many_ids_as_the_batch_had_are_not_the_batch(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d");
  read_batch(f, 2, "a b");
  assert_int_equal(delete_ids(f->store, "c d"), 2);
  assert_string_equal(ids_in(f->db, "entries"), "a b");
  read_batch(f, 2, "a b");
  assert_int_equal(delete_ids(f->store, "a a"), 1);
  assert_string_equal(ids_in(f->db, "entries"), "b");
}

static void ids_are_distinguished_by_where_they_end(void **state) {
  fixture *f = *state;
  publish(f->store, "ab c");
  read_batch(f, 2, "ab c");
  assert_int_equal(delete_ids(f->store, "a bc"), 0);
  assert_int_equal(delete_ids(f->store, "abc cd"), 0);
  assert_string_equal(ids_in(f->db, "entries"), "ab c");
}

static void a_batch_with_a_gap_is_deleted_without_what_fills_the_gap(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d");
  assert_true(retry(f->store, "b", NOW + 1));
  read_batch(f, 3, "a c d");
  execute(f->db, "INSERT INTO outbox_entries (seq, id) VALUES (2, 'new')");
  assert_int_equal(delete_ids(f->store, "a c d"), 3);
  assert_string_equal(ids_in(f->db, "entries"), "new");
  assert_string_equal(ids_in(f->db, "delayed"), "b");
}

static void a_batch_is_deleted_wherever_its_entries_have_gone(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d");
  read_batch(f, 4, "a b c d");
  assert_true(retry(f->store, "b", NOW + 1));
  assert_true(bury(f->store, "c"));
  assert_int_equal(delete_ids(f->store, "a b c d"), 3);
  assert_string_equal(ids_in(f->db, "delayed"), "");
  assert_string_equal(ids_in(f->db, "dead"), "c");
}

static void what_another_connection_deleted_of_a_batch_is_not_counted(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d");
  read_batch(f, 3, "a b c");
  execute(connect_plainly(f), "DELETE FROM outbox_entries WHERE id = 'b'");
  assert_int_equal(delete_ids(f->store, "a b c"), 2);
  assert_string_equal(ids_in(f->db, "entries"), "d");
}

static void an_id_deleted_and_inserted_again_is_deleted_where_it_is_now(void **state) {
  fixture *f = *state;
  publish(f->store, "a b");
  read_batch(f, 2, "a b");
  sqlite3 *plain = connect_plainly(f);
  execute(plain, "DELETE FROM outbox_entries WHERE id = 'a'");
  execute(plain, "INSERT INTO outbox_entries (id) VALUES ('a'), ('c')");
  assert_int_equal(delete_ids(f->store, "a b"), 2);
  assert_string_equal(ids_in(f->db, "entries"), "c");
}

static void a_batch_read_in_part_is_the_part_that_was_read(void **state) {
  fixture *f = *state;
  outbox_entry entry;
  publish(f->store, "a b c d");
  assert_true(claim(f->store, "p", NOW));
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 4, 0));
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
  assert_int_equal(delete_ids(f->store, "a b"), 2);
  assert_string_equal(ids_in(f->db, "entries"), "c d");
}

static void dead_letters_that_were_read_are_no_batch(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c d");
  read_batch(f, 2, "a b");
  assert_true(bury(f->store, "a"));
  assert_true(bury(f->store, "b"));
  assert_ok(f->store, outbox_dead_entries(f->store, (outbox_bytes){0}, 0, 10));
  assert_string_equal(read_ids(f->store), "a b");
  assert_int_equal(delete_ids(f->store, "a b"), 0);
  assert_string_equal(ids_in(f->db, "entries"), "c d");
  assert_string_equal(ids_in(f->db, "dead"), "a b");
}

static void a_delete_that_was_rolled_back_can_be_repeated(void **state) {
  fixture *f = *state;
  publish(f->store, "a b c");
  read_batch(f, 2, "a b");
  assert_ok(f->store, outbox_begin(f->store));
  assert_int_equal(delete_ids(f->store, "a b"), 2);
  assert_ok(f->store, outbox_rollback(f->store));
  assert_string_equal(ids_in(f->db, "entries"), "a b c");
  assert_int_equal(delete_ids(f->store, "a b"), 2);
  assert_string_equal(ids_in(f->db, "entries"), "c");
}

/* SQLite gives the seqs of rolled-back entries to later entries, which have not been delivered. */
static void a_batch_that_was_rolled_back_takes_nothing_with_it(void **state) {
  fixture *f = *state;
  sqlite3 *plain = connect_plainly(f);
  assert_ok(f->store, outbox_begin(f->store));
  publish(f->store, "a b");
  read_batch(f, 2, "a b");
  assert_ok(f->store, outbox_rollback(f->store));
  execute(plain, "INSERT INTO outbox_entries (id) VALUES ('c'), ('d')");
  assert_int_equal(delete_ids(f->store, "a b"), 0);

  execute(f->db, "BEGIN IMMEDIATE; DELETE FROM outbox_entries");
  publish(f->store, "e f");
  read_batch(f, 2, "e f");
  execute(f->db, "ROLLBACK");
  execute(plain, "INSERT INTO outbox_entries (id) VALUES ('g'), ('h')");
  assert_int_equal(delete_ids(f->store, "e f"), 0);
  assert_string_equal(ids_in(f->db, "entries"), "c d g h");
}

/* In SQLite, an open SELECT sees the changes that its own connection makes. */
static void a_batch_read_partly_in_a_transaction_rolled_back_takes_nothing_with_it(void **state) {
  fixture *f = *state;
  outbox_entry entry;
  publish(f->store, "a");
  execute(f->db,
          "INSERT INTO outbox_claims (processor_id, namespaces, classes, first_seq, last_seq,"
          " deadline, claimed_at) VALUES ('p', '', -1, 1, 9, 9e18, 0)");
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 10, 0));
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
  execute(f->db, "BEGIN IMMEDIATE; INSERT INTO outbox_entries (id) VALUES ('undone')");
  while (outbox_next(f->store, &entry) == OUTBOX_ROW)
    ;
  execute(f->db, "ROLLBACK");
  execute(connect_plainly(f), "INSERT INTO outbox_entries (id) VALUES ('b')");
  assert_int_equal(delete_ids(f->store, "a undone"), 1);
  assert_string_equal(ids_in(f->db, "entries"), "b");
}

/* --- Retrying and burying -------------------------------------------------------------------- */

static void a_retry_counts_an_attempt_and_keeps_the_error(void **state) {
  fixture *f = *state;
  publish(f->store, "a");
  assert_true(retry(f->store, "a", NOW + SECOND));
  assert_string_equal(ids_in(f->db, "entries"), "");
  assert_string_equal(string(f->db, "SELECT attempts || ' ' || last_error || ' ' || created_at"
                                    " || ' ' || (due_at - created_at) FROM outbox_delayed"),
                      "1 refused 1700000000123456 1000000");
}

static void a_burial_counts_an_attempt_and_keeps_place_and_error(void **state) {
  fixture *f = *state;
  outbox_entry entry;
  publish(f->store, "a b");
  assert_true(retry(f->store, "b", NOW));
  assert_true(claim(f->store, "p", NOW));
  f->now = NOW + SECOND;
  assert_true(bury(f->store, "b"));
  assert_ok(f->store, outbox_dead_entries(f->store, (outbox_bytes){0}, 0, 1));
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
  assert_true(same_bytes(entry.id, text("b")));
  assert_true(same_bytes(entry.payload, text("b")));
  assert_true(same_bytes(entry.last_error, text("hopeless")));
  assert_int_equal(entry.seq, 2);
  assert_int_equal(entry.attempts, 2);
  assert_int_equal(entry.created_at, NOW);
  assert_int_equal(entry.died_at, NOW + SECOND);
}

static void what_is_not_there_cannot_be_retried_or_buried(void **state) {
  fixture *f = *state;
  publish(f->store, "dead");
  assert_true(bury(f->store, "dead"));
  assert_false(retry(f->store, "unknown", NOW + 5));
  assert_false(bury(f->store, "unknown"));
  assert_false(retry(f->store, "dead", NOW + 5));
  assert_false(bury(f->store, "dead"));
  assert_int_equal(number(f->db, "SELECT attempts FROM outbox_dead"), 1);
}

/* It keeps its place. So it is known by this place, too. */
static void a_retry_is_retried_and_buried_where_it_lies(void **state) {
  fixture *f = *state;
  outbox_entry entry;
  bool found;
  publish(f->store, "a b");
  assert_true(retry(f->store, "b", NOW + 1));
  assert_true(retry(f->store, "b", NOW + 2));
  assert_string_equal(string(f->db, "SELECT attempts || ' ' || (due_at - created_at) || ' ' ||"
                                    " position FROM outbox_delayed"),
                      "2 2 2");
  outbox_identity other = {text("b"), 1}, known = {text("b"), 2};
  assert_ok(f->store, outbox_retry_entry(f->store, other, NOW + 3, text("no"), &found));
  assert_false(found);
  assert_ok(f->store, outbox_retry_entry(f->store, known, NOW + 3, text("no"), &found));
  assert_true(found);
  assert_ok(f->store, outbox_bury_entry(f->store, known, text("enough"), &found));
  assert_true(found);
  assert_string_equal(ids_in(f->db, "delayed"), "");
  assert_ok(f->store, outbox_dead_entries(f->store, (outbox_bytes){0}, 0, 1));
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
  assert_true(same_bytes(entry.id, text("b")));
  assert_true(same_bytes(entry.last_error, text("enough")));
  assert_int_equal(entry.seq, 2);
  assert_int_equal(entry.attempts, 4);
}

static void a_scheduled_message_is_put_off_by_its_id_and_gets_no_place(void **state) {
  fixture *f = *state;
  bool found;
  publish_at(f->store, "a", NOW + 1);
  assert_ok(f->store,
            outbox_retry_entry(f->store, any(text("a")), NOW + 5, (outbox_bytes){0}, &found));
  assert_true(found);
  assert_string_equal(string(f->db, "SELECT attempts || ' ' || (due_at - created_at) || ' ' ||"
                                    " ifnull(position, 'none') || ' ' || ifnull(delayed_at, 'none')"
                                    " FROM outbox_delayed"),
                      "0 5 none none");
}

static void a_scheduled_message_that_is_buried_gets_a_place_first(void **state) {
  fixture *f = *state;
  publish(f->store, "before");
  publish_at(f->store, "a", NOW + SECOND);
  assert_true(bury(f->store, "a"));
  assert_string_equal(ids_in(f->db, "delayed"), "");
  assert_string_equal(ids_in(f->db, "entries"), "before");
  assert_string_equal(string(f->db, "SELECT id || seq || attempts FROM outbox_dead"), "a21");
}

static void an_error_may_be_missing(void **state) {
  fixture *f = *state;
  const outbox_bytes none = {0};
  bool found;
  publish(f->store, "a b");
  assert_ok(f->store, outbox_retry_entry(f->store, any(text("a")), NOW + 1, none, &found));
  assert_true(found);
  assert_ok(f->store, outbox_bury_entry(f->store, any(text("b")), none, &found));
  assert_true(found);
  assert_int_equal(number(f->db, "SELECT last_error IS NULL FROM outbox_delayed"), 1);
  assert_int_equal(number(f->db, "SELECT last_error IS NULL FROM outbox_dead"), 1);
}

static void what_was_never_there_leaves_no_gap_in_the_order(void **state) {
  fixture *f = *state;
  static const int64_t PLACES[] = {2, 3, 1000, INT64_MAX, INT64_MIN, INT64_MIN + 1, -1, 0};
  outbox_counts counts;
  publish(f->store, "a");
  for (size_t i = 0; i < sizeof PLACES / sizeof *PLACES; i++) {
    outbox_identity wrong[2] = {{text("a"), PLACES[i]}, {text("b"), PLACES[i]}};
    if (PLACES[i] == OUTBOX_ANY_SEQ) wrong[0].id = text("c");
    int64_t deleted;
    bool found;
    assert_ok(f->store, outbox_delete_entries(f->store, wrong, 2, &deleted));
    assert_int_equal(deleted, 0);
    assert_ok(f->store, outbox_retry_entry(f->store, wrong[0], 1, text("no"), &found));
    assert_false(found);
    assert_ok(f->store, outbox_bury_entry(f->store, wrong[0], text("no"), &found));
    assert_false(found);
    assert_ok(f->store, outbox_count_entries(f->store, &counts));
    assert_int_equal(counts.last_seq, 1);
  }
  outbox_identity both[2] = {{text("a"), 1}, {text("b"), 1000}};
  int64_t deleted;
  assert_ok(f->store, outbox_delete_entries(f->store, both, 2, &deleted));
  assert_int_equal(deleted, 1);
  publish(f->store, "next");
  assert_int_equal(number(f->db, "SELECT seq FROM outbox_entries"), 2);
}

int test_settle(void) {
  const struct CMUnitTest tests[] = {
      TEST(deleting_counts_what_was_there_and_ignores_the_rest),
      TEST(a_batch_is_deleted_and_nothing_around_it),
      TEST(a_batch_deleted_again_is_no_longer_there),
      TEST(a_part_of_a_batch_is_deleted_alone),
      TEST(a_batch_may_be_deleted_in_any_order),
      TEST(as_many_ids_as_the_batch_had_are_not_the_batch),
      TEST(ids_are_distinguished_by_where_they_end),
      TEST(a_batch_with_a_gap_is_deleted_without_what_fills_the_gap),
      TEST(a_batch_is_deleted_wherever_its_entries_have_gone),
      TEST(what_another_connection_deleted_of_a_batch_is_not_counted),
      TEST(an_id_deleted_and_inserted_again_is_deleted_where_it_is_now),
      TEST(a_batch_read_in_part_is_the_part_that_was_read),
      TEST(dead_letters_that_were_read_are_no_batch),
      TEST(a_delete_that_was_rolled_back_can_be_repeated),
      TEST(a_batch_that_was_rolled_back_takes_nothing_with_it),
      TEST(a_batch_read_partly_in_a_transaction_rolled_back_takes_nothing_with_it),
      TEST(a_retry_counts_an_attempt_and_keeps_the_error),
      TEST(a_burial_counts_an_attempt_and_keeps_place_and_error),
      TEST(what_is_not_there_cannot_be_retried_or_buried),
      TEST(a_retry_is_retried_and_buried_where_it_lies),
      TEST(a_scheduled_message_is_put_off_by_its_id_and_gets_no_place),
      TEST(a_scheduled_message_that_is_buried_gets_a_place_first),
      TEST(an_error_may_be_missing),
      TEST(what_was_never_there_leaves_no_gap_in_the_order),
  };
  return cmocka_run_group_tests_name("settle", tests, NULL, NULL);
}
