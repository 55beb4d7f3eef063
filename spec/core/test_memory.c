/*
** Out of memory. An operation that fails must be undone. A transaction that stays open would
** contain later messages and lose them. A transaction that is not rolled back would publish
** messages that must not be published.
*/
#include "allocations.h"
#include "faults.h"
#include "trials.h"

static outbox_store *open_another(fixture *f) {
  outbox_options options = test_options(f);
  return open_store(f, &options);
}

/* Allows SQLite to allocate so many bytes more than it has now. */
static void limit_memory(int64_t more) {
  assert_true(sqlite3_memory_used() > 0); /* otherwise the limit has no effect */
  sqlite3_hard_heap_limit64(sqlite3_memory_used() + more);
}

static void unlimit_memory(void) {
  sqlite3_hard_heap_limit64(0);
}

/* Rolls back without free memory. If the rollback reports a failure, it is repeated with memory. */
static void roll_back_without_memory(outbox_store *store) {
  limit_memory(0);
  int code = outbox_rollback(store);
  unlimit_memory();
  if (code != OUTBOX_OK) assert_ok(store, outbox_rollback(store));
}

static void what_was_rolled_back_without_memory_is_not_published(void **state) {
  fixture *f = *state;
  sqlite3 *plain = connect_plainly(f);
  outbox_store *store = open_another(f);
  assert_ok(store, outbox_begin(store));
  publish(store, "a");
  roll_back_without_memory(store);
  publish(store, "b");
  assert_string_equal(ids_in(plain, "entries"), "b");
}

/* SQLite may have to end the outer transaction as well. The commit of that one is refused then. */
static void an_inner_rollback_without_memory_publishes_nothing(void **state) {
  fixture *f = *state;
  sqlite3 *plain = connect_plainly(f);
  outbox_store *store = open_another(f);
  assert_ok(store, outbox_begin(store));
  assert_ok(store, outbox_begin(store));
  publish(store, "a");
  roll_back_without_memory(store);
  outbox_commit(store);
  assert_string_equal(ids_in(plain, "entries"), "");
  publish(store, "b");
  assert_string_equal(ids_in(plain, "entries"), "b");
}

static void a_publish_that_runs_out_of_memory_leaves_no_transaction_open(void **state) {
  fixture *f = *state;
  sqlite3 *plain = connect_plainly(f);
  int failures = 0, code = OUTBOX_NOMEM;
  for (int64_t more = 0; code != OUTBOX_OK; more += 1024) {
    outbox_store *store = open_another(f);
    outbox_message many[] = {message("a"), message("b"), message("c")};
    limit_memory(more);
    code = outbox_publish(store, many, 3);
    unlimit_memory();
    if (code != OUTBOX_OK) {
      failures++;
      assert_code(store, code, OUTBOX_NOMEM);
      publish(store, "d");
      assert_string_equal(ids_in(plain, "entries"), "d");
      assert_int_equal(delete_ids(store, "d"), 1);
    }
    close_store(f, store);
  }
  assert_string_equal(ids_in(plain, "entries"), "a b c");
  assert_in_range(failures, 5, 1000); /* failures at several places */
}

static bool lasts(int kind) {
  (void)kind;
  return true;
}

static void arm(int kind, int n, bool for_ever) {
  (void)kind;
  arm_allocation(n, for_ever);
}

static void whatever_allocation_fails_an_operation_is_done_or_not_done(void **state) {
  static const char *const NAMES[] = {"allocation"};
  const trouble trouble = {.step = is_long() ? 7 : 13,
                           .migrate_step = is_long() ? 7 : 97,
                           .kinds = 1,
                           .names = NAMES,
                           .code = OUTBOX_NOMEM,
                           .lasts = lasts,
                           .arm = arm,
                           .disarm = disarm_allocation};
  begin_faults(); /* here only because its syncs take no time */
  int tried = try_all(*state, &trouble);
  end_faults();
  tally("allocation in the core", tried);
  assert_in_range(tried, 1000, 100000);
}

int test_memory(void) {
  const struct CMUnitTest tests[] = {
      TEST(what_was_rolled_back_without_memory_is_not_published),
      TEST(an_inner_rollback_without_memory_publishes_nothing),
      TEST(a_publish_that_runs_out_of_memory_leaves_no_transaction_open),
      TEST_WITHOUT_STORE(whatever_allocation_fails_an_operation_is_done_or_not_done),
  };
  return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}
