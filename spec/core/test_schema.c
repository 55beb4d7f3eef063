/*
** The migration: it runs only on request, it can be repeated, and it does not change the tables of
** a newer version.
*/
#include "support.h"

static void every_operation_before_the_migration_is_refused(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  outbox_store *store = open_store(f, &options);
  outbox_message one = message("a");
  outbox_bytes id = text("a");
  outbox_counts counts;
  int64_t count;
  bool flag;
  assert_code(store, outbox_publish(store, &one, 1), OUTBOX_SCHEMA);
  assert_non_null(strstr(outbox_error_message(store), "migrate"));
  assert_code(store, outbox_claim_entries(store, id, NOW, 0, &(outbox_claimed){.any = false}),
              OUTBOX_SCHEMA);
  assert_code(store, outbox_get_claimed_entries(store, id, 1, 0), OUTBOX_SCHEMA);
  assert_code(store, delete_any(store, &id, 1, &count), OUTBOX_SCHEMA);
  assert_code(store, outbox_retry_entry(store, any(id), NOW, id, &flag), OUTBOX_SCHEMA);
  assert_code(store, outbox_bury_entry(store, any(id), id, &flag), OUTBOX_SCHEMA);
  assert_code(store, outbox_dead_entries(store, id, 0, 1), OUTBOX_SCHEMA);
  assert_code(store, outbox_requeue_entries(store, &id, 1, &count), OUTBOX_SCHEMA);
  assert_code(store, outbox_purge_entries(store, &id, 1, &count), OUTBOX_SCHEMA);
  assert_code(store, outbox_count_entries(store, &counts), OUTBOX_SCHEMA);
  assert_code(store, outbox_leases(store), OUTBOX_SCHEMA);
  /* The refused calls have left no transaction open. */
  execute(connect_plainly(f), "BEGIN IMMEDIATE");
}

static void migrating_again_changes_nothing(void **state) {
  fixture *f = *state;
  sqlite3 *plain = connect_plainly(f);
  publish(f->store, "a");
  int64_t before = number(plain, "PRAGMA data_version");
  assert_ok(f->store, outbox_migrate(f->store));
  outbox_options options = test_options(f);
  outbox_store *second = open_store(f, &options);
  assert_ok(second, outbox_migrate(second));
  assert_int_equal(number(plain, "PRAGMA data_version"), before);
  assert_string_equal(ids_in(plain, "entries"), "a");
}

static void a_migration_takes_part_in_the_open_transaction(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  outbox_store *store = open_store(f, &options);
  assert_ok(store, outbox_begin(store));
  assert_ok(store, outbox_migrate(store));
  publish(store, "a");
  assert_ok(store, outbox_rollback(store));
  assert_int_equal(number(connect_plainly(f), "SELECT count(*) FROM sqlite_schema"), 0);
  assert_ok(store, outbox_migrate(store));
  publish(store, "b");
  assert_string_equal(ids_in(outbox_connection(store), "entries"), "b");
}

/* The store has already read a schema without the outbox's tables. */
static void a_store_that_was_refused_sees_the_tables_that_another_makes(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  outbox_store *early = open_store(f, &options), *maker = open_store(f, &options);
  outbox_message one = message("a");
  assert_code(early, outbox_publish(early, &one, 1), OUTBOX_SCHEMA);
  assert_ok(maker, outbox_migrate(maker));
  assert_ok(early, outbox_publish(early, &one, 1));
  assert_string_equal(ids_in(outbox_connection(maker), "entries"), "a");
}

static void a_store_that_was_refused_can_migrate_after_another_did(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  outbox_store *early = open_store(f, &options), *maker = open_store(f, &options);
  outbox_message one = message("a");
  assert_code(early, outbox_publish(early, &one, 1), OUTBOX_SCHEMA);
  assert_ok(maker, outbox_migrate(maker));
  assert_ok(early, outbox_migrate(early));
  assert_ok(early, outbox_publish(early, &one, 1));
}

static void tables_from_a_newer_version_are_refused_and_left_alone(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  outbox_message one = message("a");
  execute(f->db, "UPDATE outbox_schema SET version = 99");
  outbox_store *fresh = open_store(f, &options);
  assert_code(fresh, outbox_publish(fresh, &one, 1), OUTBOX_NEWER);
  assert_non_null(strstr(outbox_error_message(fresh), "99"));
  assert_code(fresh, outbox_migrate(fresh), OUTBOX_NEWER);
  assert_int_equal(number(f->db, "SELECT version FROM outbox_schema"), 99);
  assert_string_equal(ids_in(f->db, "entries"), "");
}

static void tables_of_no_version_are_refused_and_left_alone(void **state) {
  fixture *f = *state;
  static const struct {
    const char *version;
    int code;
  } WRONG[] = {{"-1", OUTBOX_CORRUPT},
               {"-9223372036854775808", OUTBOX_CORRUPT},
               {"4294967295", OUTBOX_NEWER},
               {"4294967297", OUTBOX_NEWER},
               {"9223372036854775807", OUTBOX_NEWER}};
  outbox_options options = test_options(f);
  for (size_t i = 0; i < sizeof WRONG / sizeof *WRONG; i++) {
    char sql[80];
    outbox_message one = message("a");
    snprintf(sql, sizeof sql, "UPDATE outbox_schema SET version = %s", WRONG[i].version);
    execute(f->db, sql);
    outbox_store *store = open_store(f, &options);
    assert_code(store, outbox_migrate(store), WRONG[i].code);
    assert_code(store, outbox_publish(store, &one, 1), WRONG[i].code);
    close_store(f, store);
  }
}

static void a_migration_that_cannot_lock_the_database_is_busy_and_can_be_repeated(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  outbox_store *store = open_store(f, &options);
  sqlite3 *writer = connect_plainly(f);
  execute(writer, "BEGIN IMMEDIATE");
  assert_code(store, outbox_migrate(store), OUTBOX_BUSY);
  execute(writer, "ROLLBACK");
  assert_ok(store, outbox_migrate(store));
  publish(store, "a");
}

int test_schema(void) {
  const struct CMUnitTest tests[] = {
      TEST_WITHOUT_STORE(every_operation_before_the_migration_is_refused),
      TEST(migrating_again_changes_nothing),
      TEST_WITHOUT_STORE(a_migration_takes_part_in_the_open_transaction),
      TEST_WITHOUT_STORE(a_store_that_was_refused_sees_the_tables_that_another_makes),
      TEST_WITHOUT_STORE(a_store_that_was_refused_can_migrate_after_another_did),
      TEST(tables_from_a_newer_version_are_refused_and_left_alone),
      TEST(tables_of_no_version_are_refused_and_left_alone),
      TEST_WITHOUT_STORE(a_migration_that_cannot_lock_the_database_is_busy_and_can_be_repeated),
  };
  return cmocka_run_group_tests_name("schema", tests, NULL, NULL);
}
