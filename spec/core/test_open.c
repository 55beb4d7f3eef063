/*
** Opening and closing: which files are refused, the reasons in the error messages, and the settings
** of the connection that a store opens.
*/
#define _POSIX_C_SOURCE 200809L

#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "support.h"

static void a_missing_directory_is_cantopen(void **state) {
  fixture *f = *state;
  outbox_store *store;
  char path[100];
  snprintf(path, sizeof path, "%s/missing/outbox.db", f->directory);
  int code = try_open(f, &store, path, NULL);
  assert_code(store, code, OUTBOX_CANTOPEN);
}

static void write_garbage(const char *path) {
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  for (int i = 0; i < 100; i++)
    assert_true(fputs("This is not a database, and never was one.\n", file) >= 0);
  assert_int_equal(fclose(file), 0);
}

static void a_file_of_garbage_is_notadb(void **state) {
  fixture *f = *state;
  outbox_store *store;
  write_garbage(f->path);
  int code = try_open(f, &store, f->path, NULL);
  assert_code(store, code, OUTBOX_NOTADB);
}

static int open_as_nobody(fixture *f) {
  outbox_store *store;
  /* Root ignores permissions, therefore this becomes the user nobody. */
  if (geteuid() == 0 && setuid(65534) != 0) return 100;
  int code = outbox_open(&store, f->path, NULL);
  outbox_close(store);
  return code;
}

static void a_file_without_write_permission_is_readonly(void **state) {
  static const char *const MODES[] = {"PRAGMA journal_mode = DELETE", "PRAGMA journal_mode = WAL"};
  fixture *f = *state;
  /* The user nobody can create the log, but cannot write it back into the database. */
  assert_int_equal(chmod(f->directory, 0777), 0);
  for (size_t i = 0; i < 2; i++) {
    sqlite3 *plain = connect_plainly(f);
    execute(plain, MODES[i]);
    execute(plain, "CREATE TABLE IF NOT EXISTS application (x)");
    disconnect(f, plain);
    assert_int_equal(chmod(f->path, 0444), 0);
    assert_int_equal(wait_for(start_child(open_as_nobody, f)), OUTBOX_READONLY);
    assert_int_equal(chmod(f->path, 0644), 0);
  }
}

static void a_database_in_utf16_is_refused_and_left_alone(void **state) {
  fixture *f = *state;
  outbox_store *store;
  sqlite3 *plain = connect_plainly(f);
  execute(plain, "PRAGMA encoding = 'UTF-16'; CREATE TABLE application (x)");
  int code = try_open(f, &store, f->path, NULL);
  assert_code(store, code, OUTBOX_ENCODING);
  assert_string_equal(string(plain, "PRAGMA journal_mode"), "delete");
}

/* WAL mode needs shared memory. The VFS "unix-dotfile", which locks by lock files, does not have
** it. */
static void a_file_system_without_wal_mode_is_cantopen(void **state) {
  fixture *f = *state;
  outbox_store *store;
  sqlite3_vfs *standard = sqlite3_vfs_find(NULL);
  sqlite3_vfs_register(sqlite3_vfs_find("unix-dotfile"), 1);
  int code = try_open(f, &store, f->path, NULL);
  sqlite3_vfs_register(standard, 1);
  assert_code(store, code, OUTBOX_CANTOPEN);
  assert_non_null(strstr(outbox_error_message(store), "WAL mode is not possible"));
}

/* The change to WAL mode needs exclusive access to the file. */
static void a_file_that_another_reads_without_a_log_is_busy(void **state) {
  fixture *f = *state;
  outbox_store *store;
  outbox_options options = test_options(f);
  sqlite3 *reader = connect_plainly(f);
  execute(reader, "CREATE TABLE application (x); BEGIN; SELECT * FROM application");
  int code = try_open(f, &store, f->path, &options);
  assert_code(store, code, OUTBOX_BUSY);
  execute(reader, "COMMIT");
  assert_ok(NULL, outbox_migrate(open_store(f, &options)));
}

static void an_open_waits_for_another_no_longer_than_its_timeout(void **state) {
  fixture *f = *state;
  outbox_store *store;
  outbox_options options = test_options(f);
  struct timespec before, after;
  options.busy_timeout = 300;
  execute(connect_plainly(f), "CREATE TABLE application (x); BEGIN; SELECT * FROM application");
  clock_gettime(CLOCK_MONOTONIC, &before);
  int code = try_open(f, &store, f->path, &options);
  clock_gettime(CLOCK_MONOTONIC, &after);
  assert_code(store, code, OUTBOX_BUSY);
  assert_in_range(after.tv_sec - before.tv_sec, 0, 4);
}

static void a_prefix_that_is_no_plain_identifier_is_misuse(void **state) {
  static const char *const BAD[] = {"",    "out box", "out\"box", "out'box", "1outbox", "out;box",
                                    "a-b", "a.b",     "a@b",      "a[",      "\xc3\xa4"};
  fixture *f = *state;
  for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
    outbox_store *store;
    outbox_options options = test_options(f);
    options.prefix = BAD[i];
    int code = try_open(f, &store, f->path, &options);
    assert_code(store, code, OUTBOX_MISUSE);
    close_store(f, store);
  }
}

static void a_prefix_may_be_64_bytes_long_and_no_longer(void **state) {
  fixture *f = *state;
  outbox_store *store;
  outbox_options options = test_options(f);
  char prefix[66];
  memset(prefix, 'p', 65);
  prefix[65] = '\0';
  options.prefix = prefix;
  int code = try_open(f, &store, f->path, &options);
  assert_code(store, code, OUTBOX_MISUSE);
  prefix[64] = '\0';
  store = open_store(f, &options);
  assert_ok(store, outbox_migrate(store));
  publish(store, "a");
  assert_true(claim(store, "p", NOW));
  assert_string_equal(claimed_ids(store, "p"), "a");
}

static void a_failed_open_says_why_and_leaves_a_store_that_refuses_to_work(void **state) {
  fixture *f = *state;
  outbox_store *store;
  outbox_message one = message("a");
  write_garbage(f->path);
  assert_int_not_equal(try_open(f, &store, f->path, NULL), OUTBOX_OK);
  assert_non_null(store);
  assert_non_null(strstr(outbox_error_message(store), f->path));
  assert_null(outbox_connection(store));
  assert_code(store, outbox_migrate(store), OUTBOX_MISUSE);
  assert_code(store, outbox_publish(store, &one, 1), OUTBOX_MISUSE);
  /* The message still gives the reason of the failed open, not of the refused calls. */
  assert_non_null(strstr(outbox_error_message(store), f->path));
  close_store(f, store);
}

static void two_prefixes_keep_two_outboxes_apart_in_one_file(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  options.prefix = "Other_2";
  outbox_store *other = open_store(f, &options);
  assert_ok(other, outbox_migrate(other));
  publish(f->store, "a same");
  publish(other, "same z");
  assert_true(claim(f->store, "p", NOW));
  assert_string_equal(claimed_ids(f->store, "p"), "a same");
  assert_string_equal(claimed_ids(other, "p"), "");
  assert_true(claim(other, "p", NOW));
  assert_int_equal(delete_ids(other, "same z a"), 2);
  assert_string_equal(claimed_ids(f->store, "p"), "a same");
}

static void the_database_is_in_wal_mode(void **state) {
  fixture *f = *state;
  assert_string_equal(string(connect_plainly(f), "PRAGMA journal_mode"), "wal");
}

static void the_synchronous_option_sets_the_pragma(void **state) {
  static const int VALUES[] = {[OUTBOX_SYNCHRONOUS_OFF] = 0,
                               [OUTBOX_SYNCHRONOUS_NORMAL] = 1,
                               [OUTBOX_SYNCHRONOUS_FULL] = 2,
                               [OUTBOX_SYNCHRONOUS_EXTRA] = 3};
  fixture *f = *state;
  for (size_t i = 0; i < sizeof VALUES / sizeof *VALUES; i++) {
    outbox_options options = test_options(f);
    options.synchronous = (enum outbox_synchronous)i;
    outbox_store *store = open_store(f, &options);
    assert_int_equal(number(outbox_connection(store), "PRAGMA synchronous"), VALUES[i]);
    close_store(f, store);
  }
}

static void options_that_are_null_are_the_defaults(void **state) {
  fixture *f = *state;
  outbox_store *store = open_store(f, NULL);
  assert_int_equal(number(outbox_connection(store), "PRAGMA synchronous"), 2);
  publish(store, "a");
  assert_string_equal(ids_in(f->db, "entries"), "a");
  int64_t now;
  assert_int_equal(outbox_system_clock(NULL, &now), 0);
  int64_t created_at = number(f->db, "SELECT created_at FROM outbox_entries");
  assert_in_range(created_at, now - 60 * SECOND, now);
}

static void a_prefix_that_is_null_is_the_default(void **state) {
  fixture *f = *state;
  outbox_options options = test_options(f);
  options.prefix = NULL;
  publish(open_store(f, &options), "a");
  assert_string_equal(ids_in(f->db, "entries"), "a");
}

static void foreign_keys_are_left_as_sqlite_sets_them(void **state) {
  fixture *f = *state;
  int64_t by_default = number(connect_plainly(f), "PRAGMA foreign_keys");
  assert_int_equal(number(f->db, "PRAGMA foreign_keys"), by_default);
}

static void the_tables_of_an_application_are_kept(void **state) {
  fixture *f = *state;
  execute(connect_plainly(f), "CREATE TABLE application (x); INSERT INTO application VALUES (42)");
  outbox_store *store = open_store(f, NULL);
  assert_ok(store, outbox_migrate(store));
  assert_int_equal(number(outbox_connection(store), "SELECT x FROM application"), 42);
}

static void closing_null_does_nothing(void **state) {
  (void)state;
  outbox_close(NULL);
}

static void closing_rolls_back_what_is_open(void **state) {
  fixture *f = *state;
  sqlite3 *plain = connect_plainly(f);
  assert_ok(f->store, outbox_begin(f->store));
  publish(f->store, "a");
  close_store(f, f->store);
  execute(plain, "BEGIN IMMEDIATE");
  assert_string_equal(ids_in(plain, "entries"), "");
}

static void closing_ends_a_reading(void **state) {
  fixture *f = *state;
  outbox_entry entry;
  publish(f->store, "a b");
  claim(f->store, "p", NOW);
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 2, 0));
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
  close_store(f, f->store);
  /* The whole log can be checkpointed only when no reader is left. */
  assert_int_equal(number(connect_plainly(f), "PRAGMA wal_checkpoint(TRUNCATE)"), 0);
}

static void closing_rolls_back_though_a_statement_of_the_caller_is_left(void **state) {
  fixture *f = *state;
  sqlite3 *plain = connect_plainly(f);
  sqlite3_stmt *left;
  assert_int_equal(sqlite3_prepare_v2(f->db, "SELECT 1", -1, &left, NULL), SQLITE_OK);
  assert_ok(f->store, outbox_begin(f->store));
  publish(f->store, "a");
  close_store(f, f->store);
  int locked = sqlite3_exec(plain, "BEGIN IMMEDIATE", NULL, NULL, NULL);
  sqlite3_finalize(left);
  assert_int_equal(locked, SQLITE_OK);
}

static void
a_statement_of_the_caller_that_is_left_waits_for_a_lock_without_the_store(void **state) {
  fixture *f = *state;
  sqlite3_stmt *left;
  assert_int_equal(sqlite3_prepare_v2(f->db, "BEGIN IMMEDIATE", -1, &left, NULL), SQLITE_OK);
  execute(connect_plainly(f), "BEGIN IMMEDIATE");
  close_store(f, f->store);
  int locked = sqlite3_step(left);
  sqlite3_finalize(left);
  assert_true(locked == SQLITE_BUSY || locked == SQLITE_MISUSE); /* newer versions refuse it */
}

static void each_code_has_a_name_of_its_own(void **state) {
  (void)state;
  for (int a = OUTBOX_OK; a <= OUTBOX_NEWER; a++)
    for (int b = OUTBOX_OK; b < a; b++)
      assert_string_not_equal(outbox_code_name(a), outbox_code_name(b));
}

static void sqlite_codes_are_translated_the_extended_ones_too(void **state) {
  (void)state;
  assert_int_equal(outbox_code(SQLITE_OK), OUTBOX_OK);
  assert_int_equal(outbox_code(SQLITE_BUSY_SNAPSHOT), OUTBOX_BUSY);
  assert_int_equal(outbox_code(SQLITE_LOCKED), OUTBOX_BUSY);
  assert_int_equal(outbox_code(SQLITE_CANTOPEN_ISDIR), OUTBOX_CANTOPEN);
  assert_int_equal(outbox_code(SQLITE_CONSTRAINT_CHECK), OUTBOX_CONSTRAINT);
  assert_int_equal(outbox_code(SQLITE_CORRUPT_INDEX), OUTBOX_CORRUPT);
  assert_int_equal(outbox_code(SQLITE_FULL), OUTBOX_FULL);
  assert_int_equal(outbox_code(SQLITE_IOERR_FSYNC), OUTBOX_IO);
  assert_int_equal(outbox_code(SQLITE_MISUSE), OUTBOX_MISUSE);
  assert_int_equal(outbox_code(SQLITE_NOMEM), OUTBOX_NOMEM);
  assert_int_equal(outbox_code(SQLITE_NOTADB), OUTBOX_NOTADB);
  assert_int_equal(outbox_code(SQLITE_READONLY_DBMOVED), OUTBOX_READONLY);
  assert_int_equal(outbox_code(SQLITE_TOOBIG), OUTBOX_TOOBIG);
  assert_int_equal(outbox_code(SQLITE_ERROR), OUTBOX_ERROR);
}

int test_open(void) {
  const struct CMUnitTest tests[] = {
      TEST_WITHOUT_STORE(a_missing_directory_is_cantopen),
      TEST_WITHOUT_STORE(a_file_of_garbage_is_notadb),
      TEST_WITHOUT_STORE(a_file_without_write_permission_is_readonly),
      TEST_WITHOUT_STORE(a_database_in_utf16_is_refused_and_left_alone),
      TEST_WITHOUT_STORE(a_file_system_without_wal_mode_is_cantopen),
      TEST_WITHOUT_STORE(a_file_that_another_reads_without_a_log_is_busy),
      TEST_WITHOUT_STORE(an_open_waits_for_another_no_longer_than_its_timeout),
      TEST_WITHOUT_STORE(a_prefix_that_is_no_plain_identifier_is_misuse),
      TEST_WITHOUT_STORE(a_prefix_may_be_64_bytes_long_and_no_longer),
      TEST_WITHOUT_STORE(a_failed_open_says_why_and_leaves_a_store_that_refuses_to_work),
      TEST(two_prefixes_keep_two_outboxes_apart_in_one_file),
      TEST(the_database_is_in_wal_mode),
      TEST(the_synchronous_option_sets_the_pragma),
      TEST(options_that_are_null_are_the_defaults),
      TEST(a_prefix_that_is_null_is_the_default),
      TEST(foreign_keys_are_left_as_sqlite_sets_them),
      TEST_WITHOUT_STORE(the_tables_of_an_application_are_kept),
      TEST(closing_null_does_nothing),
      TEST(closing_rolls_back_what_is_open),
      TEST(closing_ends_a_reading),
      TEST(closing_rolls_back_though_a_statement_of_the_caller_is_left),
      TEST(a_statement_of_the_caller_that_is_left_waits_for_a_lock_without_the_store),
      TEST(each_code_has_a_name_of_its_own),
      TEST(sqlite_codes_are_translated_the_extended_ones_too),
  };
  return cmocka_run_group_tests_name("open", tests, NULL, NULL);
}
