/*
** Transactions: a message is published if, and only if, its transaction is committed.
*/
#include "support.h"

/* --- Begin, commit, rollback ----------------------------------------------------------------- */

static void a_commit_keeps_what_was_published(void **state) {
  fixture *f = *state;
  sqlite3 *plain = connect_plainly(f);
  assert_ok(f->store, outbox_begin(f->store));
  publish(f->store, "a");
  assert_string_equal(ids_in(plain, "entries"), "");
  assert_ok(f->store, outbox_commit(f->store));
  assert_string_equal(ids_in(plain, "entries"), "a");
}

static void a_rollback_leaves_nothing_of_it(void **state) {
  fixture *f = *state;
  assert_ok(f->store, outbox_begin(f->store));
  execute(f->db, "CREATE TABLE application (x)");
  publish(f->store, "a");
  assert_ok(f->store, outbox_rollback(f->store));
  assert_string_equal(ids_in(f->db, "entries"), "");
  assert_int_equal(number(f->db, "SELECT count(*) FROM sqlite_schema WHERE name = 'application'"),
                   0);
}

static void an_inner_rollback_keeps_what_is_around_it(void **state) {
  fixture *f = *state;
  assert_ok(f->store, outbox_begin(f->store));
  publish(f->store, "a");
  assert_ok(f->store, outbox_begin(f->store));
  publish(f->store, "b");
  assert_ok(f->store, outbox_begin(f->store));
  publish(f->store, "c");
  assert_ok(f->store, outbox_commit(f->store));
  assert_ok(f->store, outbox_rollback(f->store));
  publish(f->store, "d");
  assert_ok(f->store, outbox_commit(f->store));
  assert_string_equal(ids_in(connect_plainly(f), "entries"), "a d");
}

static void an_outer_rollback_takes_an_inner_commit_with_it(void **state) {
  fixture *f = *state;
  assert_ok(f->store, outbox_begin(f->store));
  assert_ok(f->store, outbox_begin(f->store));
  publish(f->store, "a");
  assert_ok(f->store, outbox_commit(f->store));
  assert_ok(f->store, outbox_rollback(f->store));
  assert_string_equal(ids_in(f->db, "entries"), "");
}

static void a_commit_without_a_begin_is_misuse(void **state) {
  fixture *f = *state;
  assert_code(f->store, outbox_commit(f->store), OUTBOX_MISUSE);
  /* A rollback without a begin does not end a transaction that the caller began by SQL. */
  execute(f->db, "BEGIN IMMEDIATE");
  publish(f->store, "a");
  assert_code(f->store, outbox_commit(f->store), OUTBOX_MISUSE);
  execute(f->db, "ROLLBACK");
  assert_string_equal(ids_in(f->db, "entries"), "");
}

static void a_rollback_without_a_begin_does_nothing(void **state) {
  fixture *f = *state;
  assert_ok(f->store, outbox_rollback(f->store));
  execute(f->db, "BEGIN IMMEDIATE");
  publish(f->store, "a");
  assert_ok(f->store, outbox_rollback(f->store));
  execute(f->db, "COMMIT");
  assert_string_equal(ids_in(f->db, "entries"), "a");
}

static void a_commit_that_fails_has_rolled_back(void **state) {
  fixture *f = *state;
  execute(f->db, "PRAGMA foreign_keys = ON;"
                 "CREATE TABLE parent (x PRIMARY KEY);"
                 "CREATE TABLE child (x REFERENCES parent (x) DEFERRABLE INITIALLY DEFERRED)");
  assert_ok(f->store, outbox_begin(f->store));
  publish(f->store, "a");
  execute(f->db, "INSERT INTO child VALUES (1)");
  assert_code(f->store, outbox_commit(f->store), OUTBOX_CONSTRAINT);
  execute(connect_plainly(f), "BEGIN IMMEDIATE");
  assert_string_equal(ids_in(f->db, "entries"), "");
  assert_code(f->store, outbox_commit(f->store), OUTBOX_MISUSE);
}

/* --- A transaction that is no longer there --------------------------------------------------- */

static void what_follows_a_transaction_ended_by_sql_is_not_committed_alone(void **state) {
  fixture *f = *state;
  outbox_message one = message("b"), two[] = {message("c"), message("d")};
  outbox_bytes id = text("kept");
  int64_t count;
  bool flag;
  publish(f->store, "kept");
  assert_ok(f->store, outbox_begin(f->store));
  assert_ok(f->store, outbox_check_transaction(f->store));
  publish(f->store, "a");
  execute(f->db, "ROLLBACK");
  assert_code(f->store, outbox_check_transaction(f->store), OUTBOX_MISUSE);
  assert_code(f->store, outbox_publish(f->store, &one, 1), OUTBOX_MISUSE);
  assert_code(f->store, outbox_publish(f->store, two, 2), OUTBOX_MISUSE);
  assert_code(f->store, outbox_begin(f->store), OUTBOX_MISUSE);
  assert_code(f->store, outbox_claim_entries(f->store, id, NOW, 0, &(outbox_claimed){.any = false}),
              OUTBOX_MISUSE);
  assert_code(f->store, delete_any(f->store, &id, 1, &count), OUTBOX_MISUSE);
  assert_code(f->store, outbox_retry_entry(f->store, any(id), NOW, id, &flag), OUTBOX_MISUSE);
  assert_code(f->store, outbox_bury_entry(f->store, any(id), id, &flag), OUTBOX_MISUSE);
  assert_code(f->store, outbox_commit(f->store), OUTBOX_MISUSE);
  assert_string_equal(ids_in(f->db, "entries"), "kept");
  /* The failed commit has ended the transaction of the store. */
  assert_ok(f->store, outbox_check_transaction(f->store));
  publish(f->store, "e");
  assert_string_equal(ids_in(f->db, "entries"), "kept e");
}

static void a_rollback_after_a_transaction_ended_by_sql_is_the_end_of_it(void **state) {
  fixture *f = *state;
  assert_ok(f->store, outbox_begin(f->store));
  assert_ok(f->store, outbox_begin(f->store));
  execute(f->db, "ROLLBACK");
  assert_ok(f->store, outbox_rollback(f->store));
  assert_code(f->store, outbox_check_transaction(f->store), OUTBOX_MISUSE);
  assert_ok(f->store, outbox_rollback(f->store));
  publish(f->store, "a");
  assert_string_equal(ids_in(f->db, "entries"), "a");
}

/* --- A transaction that the caller began by SQL ---------------------------------------------- */

static void a_publish_joins_the_transaction_that_the_caller_began(void **state) {
  fixture *f = *state;
  outbox_message many[] = {message("b"), message("c")};
  sqlite3 *plain = connect_plainly(f);
  execute(f->db, "BEGIN IMMEDIATE");
  publish(f->store, "a");
  assert_ok(f->store, outbox_publish(f->store, many, 2));
  assert_string_equal(ids_in(plain, "entries"), "");
  execute(f->db, "COMMIT");
  assert_string_equal(ids_in(plain, "entries"), "a b c");
  execute(f->db, "BEGIN IMMEDIATE");
  publish(f->store, "d");
  execute(f->db, "ROLLBACK");
  assert_string_equal(ids_in(plain, "entries"), "a b c");
}

static void a_begin_in_the_callers_transaction_ends_only_itself(void **state) {
  fixture *f = *state;
  execute(f->db, "BEGIN IMMEDIATE");
  publish(f->store, "a");
  assert_ok(f->store, outbox_begin(f->store));
  publish(f->store, "b");
  assert_ok(f->store, outbox_rollback(f->store));
  assert_ok(f->store, outbox_begin(f->store));
  publish(f->store, "c");
  assert_ok(f->store, outbox_commit(f->store));
  assert_false(sqlite3_get_autocommit(f->db));
  assert_string_equal(ids_in(connect_plainly(f), "entries"), "");
  execute(f->db, "COMMIT");
  assert_string_equal(ids_in(f->db, "entries"), "a c");
}

static void every_operation_is_undone_with_the_callers_transaction(void **state) {
  fixture *f = *state;
  outbox_bytes id = text("dead");
  int64_t count;
  publish(f->store, "a b dead");
  assert_true(bury(f->store, "dead"));
  execute(f->db, "BEGIN IMMEDIATE");
  assert_true(claim(f->store, "p", NOW));
  assert_int_equal(delete_ids(f->store, "a"), 1);
  assert_true(retry(f->store, "b", NOW));
  assert_ok(f->store, outbox_requeue_entries(f->store, &id, 1, &count));
  assert_int_equal(count, 1);
  execute(f->db, "ROLLBACK");
  assert_string_equal(ids_in(f->db, "entries"), "a b");
  assert_string_equal(ids_in(f->db, "delayed"), "");
  assert_string_equal(ids_in(f->db, "dead"), "dead");
  assert_string_equal(leases(f->store), "");
}

/* --- Locks ----------------------------------------------------------------------------------- */

static void
a_transaction_that_read_first_and_is_overtaken_is_told_to_begin_immediate(void **state) {
  fixture *f = *state;
  sqlite3 *plain = connect_plainly(f);
  for (size_t count = 1; count <= 2; count++) { /* without and with a savepoint */
    outbox_message messages[] = {message("a"), message("b")};
    execute(f->db, "BEGIN");
    number(f->db, "SELECT count(*) FROM outbox_entries");
    execute(plain, "INSERT INTO outbox_entries (payload) VALUES (1); DELETE FROM outbox_entries");
    assert_code(f->store, outbox_publish(f->store, messages, count), OUTBOX_BUSY);
    assert_non_null(strstr(outbox_error_message(f->store), "BEGIN IMMEDIATE"));
    assert_false(sqlite3_get_autocommit(f->db));
    execute(f->db, "ROLLBACK");
  }
  publish(f->store, "a");
  assert_string_equal(ids_in(plain, "entries"), "a");
}

static void every_write_is_busy_while_another_connection_writes(void **state) {
  fixture *f = *state;
  outbox_message one = message("b"), two[] = {message("b"), message("c")};
  outbox_bytes id = text("a");
  int64_t count;
  bool flag;
  publish(f->store, "a");
  sqlite3 *writer = connect_plainly(f);
  execute(writer, "BEGIN IMMEDIATE");
  assert_code(f->store, outbox_begin(f->store), OUTBOX_BUSY);
  assert_code(f->store, outbox_publish(f->store, &one, 1), OUTBOX_BUSY);
  assert_code(f->store, outbox_publish(f->store, two, 2), OUTBOX_BUSY);
  assert_code(f->store, outbox_claim_entries(f->store, id, NOW, 0, &(outbox_claimed){.any = false}),
              OUTBOX_BUSY);
  assert_code(f->store, delete_any(f->store, &id, 1, &count), OUTBOX_BUSY);
  assert_code(f->store, outbox_retry_entry(f->store, any(id), NOW, id, &flag), OUTBOX_BUSY);
  assert_code(f->store, outbox_bury_entry(f->store, any(id), id, &flag), OUTBOX_BUSY);
  assert_code(f->store, outbox_requeue_entries(f->store, &id, 1, &count), OUTBOX_BUSY);
  assert_code(f->store, outbox_purge_entries(f->store, &id, 1, &count), OUTBOX_BUSY);
  execute(writer, "ROLLBACK");
  publish(f->store, "b c");
  assert_string_equal(ids_in(f->db, "entries"), "a b c");
  assert_code(f->store, outbox_commit(f->store), OUTBOX_MISUSE); /* no transaction is open */
}

static void nothing_that_only_reads_waits_for_a_writer(void **state) {
  fixture *f = *state;
  outbox_counts counts;
  publish(f->store, "a");
  assert_true(claim(f->store, "p", NOW));
  sqlite3 *writer = connect_plainly(f);
  execute(writer, "BEGIN IMMEDIATE; DELETE FROM outbox_entries");
  assert_string_equal(claimed_ids(f->store, "p"), "a");
  assert_ok(f->store, outbox_count_entries(f->store, &counts));
  assert_int_equal(counts.ready, 1);
  assert_string_equal(leases(f->store), "p:1-1");
}

static void a_claim_of_an_empty_outbox_does_not_wait_for_a_writer(void **state) {
  fixture *f = *state;
  execute(connect_plainly(f), "BEGIN IMMEDIATE");
  assert_false(claim(f->store, "p", NOW));
}

int test_transactions(void) {
  const struct CMUnitTest tests[] = {
      TEST(a_commit_keeps_what_was_published),
      TEST(a_rollback_leaves_nothing_of_it),
      TEST(an_inner_rollback_keeps_what_is_around_it),
      TEST(an_outer_rollback_takes_an_inner_commit_with_it),
      TEST(a_commit_without_a_begin_is_misuse),
      TEST(a_rollback_without_a_begin_does_nothing),
      TEST(a_commit_that_fails_has_rolled_back),
      TEST(what_follows_a_transaction_ended_by_sql_is_not_committed_alone),
      TEST(a_rollback_after_a_transaction_ended_by_sql_is_the_end_of_it),
      TEST(a_publish_joins_the_transaction_that_the_caller_began),
      TEST(a_begin_in_the_callers_transaction_ends_only_itself),
      TEST(every_operation_is_undone_with_the_callers_transaction),
      TEST(a_transaction_that_read_first_and_is_overtaken_is_told_to_begin_immediate),
      TEST(every_write_is_busy_while_another_connection_writes),
      TEST(nothing_that_only_reads_waits_for_a_writer),
      TEST(a_claim_of_an_empty_outbox_does_not_wait_for_a_writer),
  };
  return cmocka_run_group_tests_name("transactions", tests, NULL, NULL);
}
