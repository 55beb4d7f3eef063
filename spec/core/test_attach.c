/*
** Stores on a connection that the application has opened. They take part in the application's
** transactions, leave no statement running and no transaction open, and keep no connection open.
*/
#include "support.h"

/* Attaches a store to a connection. The caller closes the store. */
static outbox_store *attach(fixture *f, sqlite3 *db) {
  outbox_options options = test_options(f);
  outbox_store *store;
  assert_int_equal(outbox_attach(&store, db, &options), OUTBOX_OK);
  return store;
}

/* Asserts that the store has left no statement running and no transaction open. */
static void assert_untouched(sqlite3 *db) {
  for (sqlite3_stmt *s = NULL; (s = sqlite3_next_stmt(db, s)) != NULL;)
    assert_false(sqlite3_stmt_busy(s));
  assert_true(sqlite3_get_autocommit(db));
}

static void a_connection_that_counts_its_changes_publishes(void **state) {
  fixture *f = *state;
  sqlite3 *db = connect_plainly(f);
  outbox_store *store = attach(f, db);
  outbox_message messages[20] = {{.id = {0}}};
  outbox_counts counts;
  bool added;
  execute(db, "PRAGMA count_changes = ON");
  assert_ok(store, outbox_migrate(store));
  assert_ok(store, outbox_publish(store, messages, 20));
  assert_ok(store, outbox_subscribe(store, text(""), text("copy"), &added));
  memset(messages, 0, sizeof messages);
  assert_ok(store, outbox_publish(store, messages, 20));
  assert_ok(store, outbox_count_entries(store, &counts));
  assert_int_equal(counts.ready, 40);
  assert_untouched(db);
  outbox_close(store);
}

/* Keeps the first statement that is no SAVEPOINT. */
static int keep_first(unsigned type, void *context, void *statement, void *sql) {
  char *first = context;
  (void)type, (void)statement;
  if (first[0] == '\0' && strncmp(sql, "SAVEPOINT", 9) != 0) snprintf(first, 20, "%s", (char *)sql);
  return 0;
}

static void a_transaction_that_has_only_begun_is_not_made_a_reader(void **state) {
  fixture *f = *state;
  sqlite3 *db = connect_plainly(f);
  outbox_store *store = attach(f, db);
  assert_ok(store, outbox_migrate(store));
  for (size_t count = 1; count <= 20; count++) {
    outbox_message messages[20] = {{.id = {0}}};
    char first[20] = "";
    execute(db, "BEGIN");
    sqlite3_trace_v2(db, SQLITE_TRACE_STMT, keep_first, first);
    assert_ok(store, outbox_publish(store, messages, count));
    sqlite3_trace_v2(db, 0, NULL, NULL);
    execute(db, "COMMIT");
    first[6] = '\0';
    if (count > 1) assert_string_equal(first, "INSERT"); /* the first call checks the schema */
  }
  outbox_close(store);
}

/* The store sees neither the end of the application's transaction nor what others do after it. */
static void a_seq_that_others_have_had_is_not_given_again(void **state) {
  fixture *f = *state;
  static const char *const BEGIN[] = {"BEGIN", "BEGIN IMMEDIATE"};
  sqlite3 *db = connect_plainly(f);
  int64_t seq = 0;
  for (int i = 0; i < 2; i++) {
    outbox_store *store = attach(f, db); /* a store that was once wrong looks more often */
    assert_ok(store, outbox_migrate(store));
    execute(db, BEGIN[i]);
    for (int j = 0; j < 2; j++) {
      outbox_message own = {.id = {0}};
      assert_ok(store, outbox_publish(store, &own, 1));
    }
    execute(db, "ROLLBACK");
    for (int j = 0; j < 4; j++)
      execute(f->db, "INSERT INTO outbox_entries (namespace) VALUES ('')");
    execute(f->db, "DELETE FROM outbox_entries");
    execute(db, BEGIN[i]);
    outbox_message own = {.id = {0}};
    assert_ok(store, outbox_publish(store, &own, 1));
    execute(db, "COMMIT");
    assert_int_equal(number(f->db, "SELECT seq FROM outbox_entries"), seq += 5);
    outbox_close(store);
  }
}

static void no_operation_leaves_a_statement_running_or_a_transaction_open(void **state) {
  fixture *f = *state;
  sqlite3 *db = connect_plainly(f);
  outbox_store *store = attach(f, db);
  outbox_message messages[20] = {{.id = {0}}}, taken = message("taken");
  outbox_counts counts;
  outbox_bytes ids[] = {text("taken"), text("missing")};
  outbox_bytes any = {NULL, 0};
  int64_t count;
  bool done;
  assert_untouched(db);
  assert_ok(store, outbox_migrate(store));
  assert_untouched(db);
  assert_ok(store, outbox_publish(store, messages, 20));
  assert_untouched(db);
  assert_ok(store, outbox_publish(store, &taken, 1));
  assert_untouched(db);
  taken = message("taken");
  assert_code(store, outbox_publish(store, &taken, 1), OUTBOX_DUPLICATE);
  assert_untouched(db);
  assert_ok(store, outbox_count_entries(store, &counts));
  assert_int_equal(counts.ready, 21);
  assert_untouched(db);
  assert_ok(store, outbox_ready_entries(store, any, 0, 3));
  outbox_entry entry;
  assert_int_equal(outbox_next(store, &entry), OUTBOX_ROW);
  outbox_finish(store);
  assert_untouched(db);
  assert_true(claim(store, "p", f->now));
  assert_untouched(db);
  claimed_ids(store, "p");
  assert_untouched(db);
  assert_ok(store, outbox_hold_batch(store, text("p")));
  assert_true(retry(store, "taken", f->now + SECOND));
  assert_ok(store, outbox_renew_claim(store, text("p"), f->now, &done));
  assert_ok(store, delete_any(store, ids, 2, &count));
  assert_int_equal(count, 1);
  assert_ok(store, outbox_release_claim(store, text("p")));
  assert_string_equal(leases(store), "");
  assert_untouched(db);
  int64_t again;
  assert_ok(store, outbox_wait(store, 0, &done, &again));
  assert_untouched(db);
  outbox_close(store);
  assert_null(sqlite3_next_stmt(db, NULL));
}

static bool is_there(sqlite3 *db, const sqlite3_stmt *wanted) {
  sqlite3_stmt *s = NULL;
  while ((s = sqlite3_next_stmt(db, s)) != NULL && s != wanted)
    ;
  return s != NULL;
}

static void a_store_compiles_its_statements_once(void **state) {
  fixture *f = *state;
  sqlite3 *db = connect_plainly(f);
  outbox_store *store = attach(f, db);
  publish(store, "one");
  sqlite3_stmt *first = sqlite3_next_stmt(db, NULL);
  assert_non_null(first);
  publish(store, "two");
  assert_true(is_there(db, first));
  execute(db, "CREATE TABLE other (x); DROP TABLE other; VACUUM");
  publish(store, "three");
  assert_true(is_there(db, first));
  assert_string_equal(ids_in(db, "entries"), "one two three");
  outbox_close(store);
}

static void a_connection_can_be_closed_whatever_its_stores_are_doing(void **state) {
  static const char *const IDS[] = {"1", "2", "3", "4"};
  fixture *f = *state;
  for (int way = 0; way < 4; way++) {
    sqlite3 *db;
    outbox_entry entry;
    assert_int_equal(sqlite3_open(f->path, &db), SQLITE_OK);
    outbox_store *reader = attach(f, db), *writer = attach(f, db);
    publish(writer, IDS[way]);
    if (way & 1) assert_ok(writer, outbox_begin(writer));
    if (way & 1) publish(writer, "undone");
    assert_ok(reader, outbox_ready_entries(reader, (outbox_bytes){NULL, 0}, 0, 3));
    assert_int_equal(outbox_next(reader, &entry), OUTBOX_ROW);
    assert_int_equal(way & 2 ? sqlite3_close_v2(db) : sqlite3_close(db), SQLITE_OK);
    assert_code(reader, outbox_next(reader, &entry), OUTBOX_MISUSE);
    assert_code(writer, outbox_commit(writer), OUTBOX_CLOSED);
    outbox_close(reader);
    outbox_close(writer);
  }
  assert_string_equal(ids_in(f->db, "entries"), "1 2 3 4");
}

/* SQLite refuses, because a statement of the application's is left, and the store goes on. */
static void a_store_outlives_a_close_that_was_refused(void **state) {
  fixture *f = *state;
  sqlite3 *db;
  sqlite3_stmt *statement;
  assert_int_equal(sqlite3_open(f->path, &db), SQLITE_OK);
  outbox_store *store = attach(f, db);
  sqlite3_prepare_v2(db, "SELECT 1", -1, &statement, NULL);
  publish(store, "1");
  assert_int_equal(sqlite3_close(db), SQLITE_BUSY);
  publish(store, "2");
  assert_int_equal(sqlite3_close(db), SQLITE_BUSY);
  publish(store, "3");
  sqlite3_finalize(statement);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  outbox_close(store);
  assert_string_equal(ids_in(f->db, "entries"), "1 2 3");
}

/* Some bindings finalize whatever is left before they close a connection. */
static void a_connection_can_be_closed_by_one_who_finalizes_all_statements(void **state) {
  fixture *f = *state;
  sqlite3 *db;
  sqlite3_stmt *statement;
  outbox_entry entry;
  assert_int_equal(sqlite3_open(f->path, &db), SQLITE_OK);
  outbox_store *store = attach(f, db);
  publish(store, "one");
  assert_ok(store, outbox_ready_entries(store, (outbox_bytes){NULL, 0}, 0, 3));
  assert_int_equal(outbox_next(store, &entry), OUTBOX_ROW);
  while ((statement = sqlite3_next_stmt(db, NULL)) != NULL)
    sqlite3_finalize(statement);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  assert_code(store, outbox_next(store, &entry), OUTBOX_MISUSE);
  outbox_close(store);
}

static void only_the_caller_ends_a_transaction_that_it_began(void **state) {
  fixture *f = *state;
  sqlite3 *db = connect_plainly(f);
  outbox_store *store = attach(f, db);
  outbox_message twins[2] = {message("twin"), message("twin")};
  execute(db, "BEGIN");
  publish(store, "one");
  assert_code(store, outbox_publish(store, twins, 2), OUTBOX_DUPLICATE);
  assert_false(sqlite3_get_autocommit(db));
  outbox_close(store);
  assert_null(sqlite3_next_stmt(db, NULL));
  assert_false(sqlite3_get_autocommit(db));
  execute(db, "COMMIT");
  assert_string_equal(ids_in(f->db, "entries"), "one");
}

static void closing_undoes_what_the_store_began_and_no_more(void **state) {
  fixture *f = *state;
  sqlite3 *db = connect_plainly(f);
  outbox_store *store = attach(f, db);
  execute(db, "BEGIN");
  publish(store, "kept");
  assert_ok(store, outbox_begin(store));
  assert_ok(store, outbox_begin(store));
  publish(store, "undone");
  outbox_close(store);
  assert_null(sqlite3_next_stmt(db, NULL));
  execute(db, "COMMIT");
  assert_string_equal(ids_in(f->db, "entries"), "kept");
  store = attach(f, db);
  assert_ok(store, outbox_begin(store));
  publish(store, "undone");
  outbox_close(store);
  assert_untouched(db);
  assert_string_equal(ids_in(f->db, "entries"), "kept");
}

static void a_store_knows_when_its_connection_is_closed(void **state) {
  fixture *f = *state;
  sqlite3 *db;
  outbox_message one = message("one");
  assert_int_equal(sqlite3_open(f->path, &db), SQLITE_OK);
  outbox_store *first = attach(f, db), *second = attach(f, db), *gone = attach(f, db);
  publish(first, "before");
  outbox_close(gone);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  assert_code(first, outbox_publish(first, &one, 1), OUTBOX_CLOSED);
  assert_code(second, outbox_migrate(second), OUTBOX_CLOSED);
  assert_null(outbox_connection(first));
  outbox_close(first);
  outbox_close(second);
}

/* The store registers a virtual table whose disconnection reports the close. SQL can name it. */
static void naming_the_table_that_awaits_the_close_does_not_close_the_store(void **state) {
  static const struct {
    const char *sql, *id;
  } USES[] = {{"SELECT * FROM ", "1"},
              {"DELETE FROM ", "2"},
              {"DROP TABLE ", "3"},
              {"CREATE VIRTUAL TABLE more USING ", "4"}};
  static const char NAME_SQL[] =
      "SELECT coalesce(max(name), '') FROM pragma_module_list WHERE name LIKE 'outbox_attached_%'";
  fixture *f = *state;
  sqlite3 *db = connect_plainly(f);
  outbox_store *store = attach(f, db);
  char name[50], sql[100];
  snprintf(name, sizeof name, "%s", string(db, NAME_SQL));
  assert_int_not_equal(name[0], '\0');
  for (size_t i = 0; i < sizeof USES / sizeof *USES; i++) {
    snprintf(sql, sizeof sql, "%s%s", USES[i].sql, name);
    assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_ERROR);
    publish(store, USES[i].id);
  }
  assert_string_equal(ids_in(db, "entries"), "1 2 3 4");
  outbox_close(store);
  assert_string_equal(string(db, NAME_SQL), "");
}

static void a_store_may_be_closed_while_the_caller_reads(void **state) {
  fixture *f = *state;
  sqlite3 *db;
  sqlite3_stmt *statement;
  assert_int_equal(sqlite3_open(f->path, &db), SQLITE_OK);
  outbox_store *store = attach(f, db);
  sqlite3_prepare_v2(db, "SELECT 1 UNION SELECT 2", -1, &statement, NULL);
  assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
  publish(store, "one");
  outbox_close(store);
  assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
  sqlite3_finalize(statement);
  store = attach(f, db);
  publish(store, "two");
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  outbox_close(store);
  assert_string_equal(ids_in(f->db, "entries"), "one two");
}

static outbox_store *store_in_call;

/* SQLite's hooks call this during a call of the store. Tries to close the store and returns whether
** that is refused. */
static bool is_close_refused(void) {
  return outbox_close(store_in_call) == OUTBOX_MISUSE;
}

static void close_in_update(void *context, int operation, const char *database, const char *table,
                            sqlite3_int64 rowid) {
  (void)operation, (void)database, (void)table, (void)rowid;
  *(int *)context += is_close_refused();
}

static int close_in_preparation(void *context, int action, const char *a, const char *b,
                                const char *database, const char *trigger) {
  (void)action, (void)a, (void)b, (void)database, (void)trigger;
  *(int *)context += is_close_refused();
  return SQLITE_OK;
}

static void a_store_cannot_be_closed_in_the_middle_of_a_call(void **state) {
  fixture *f = *state;
  sqlite3 *db = connect_plainly(f);
  outbox_store *store = store_in_call = attach(f, db);
  outbox_message two[2] = {message("b"), message("c")};
  int updates = 0, preparations = 0;
  sqlite3_update_hook(db, close_in_update, &updates);
  sqlite3_set_authorizer(db, close_in_preparation, &preparations);
  assert_ok(store, outbox_migrate(store));
  int before = updates;
  assert_true(before > 0); /* the row with the schema's version */
  publish(store, "a");
  assert_ok(store, outbox_publish(store, two, 2));
  assert_int_equal(updates, before + 3);
  assert_true(preparations > 0);
  assert_int_equal(outbox_close(store), OUTBOX_OK);
  sqlite3_update_hook(db, NULL, NULL);
  sqlite3_set_authorizer(db, NULL, NULL);
  assert_untouched(db);
  assert_string_equal(ids_in(db, "entries"), "a b c");
}

static void a_snapshot_that_is_old_is_busy_and_says_why(void **state) {
  fixture *f = *state;
  sqlite3 *db = connect_plainly(f);
  outbox_store *store = attach(f, db);
  outbox_message one = message("one");
  execute(db, "BEGIN");
  number(db, "SELECT count(*) FROM outbox_entries");
  publish(f->store, "meanwhile");
  assert_code(store, outbox_publish(store, &one, 1), OUTBOX_BUSY);
  assert_non_null(strstr(outbox_error_message(store), "BEGIN IMMEDIATE"));
  execute(db, "ROLLBACK");
  outbox_close(store);
}

static void tables_that_a_rollback_removed_are_reported_as_missing(void **state) {
  fixture *f = *state;
  sqlite3 *db = connect_plainly(f);
  outbox_store *store = attach(f, db);
  outbox_message one = message("one");
  execute(db, "BEGIN");
  assert_ok(store, outbox_migrate(store));
  publish(store, "never");
  execute(db, "ROLLBACK");
  assert_code(store, outbox_publish(store, &one, 1), OUTBOX_SCHEMA);
  outbox_close(store);
}

static void a_failed_attach_says_why(void **state) {
  fixture *f = *state;
  sqlite3 *db = connect_plainly(f);
  outbox_options options = test_options(f);
  outbox_store *store;
  options.prefix = "no identifier";
  assert_code(store, outbox_attach(&store, db, &options), OUTBOX_MISUSE);
  outbox_close(store);
  execute(db, "PRAGMA encoding = 'UTF-16'; CREATE TABLE t (x)");
  assert_code(store, outbox_attach(&store, db, NULL), OUTBOX_ENCODING);
  assert_code(store, outbox_migrate(store), OUTBOX_CLOSED);
  outbox_close(store);
  assert_untouched(db);
}

static void the_handshake_finds_the_connection_that_is_opened_after_the_install(void **state) {
  fixture *f = *state;
  sqlite3 *early = connect_plainly(f), *found = NULL;
  assert_int_equal(outbox_install(), OUTBOX_OK);
  assert_int_equal(outbox_install(), OUTBOX_OK);
  sqlite3 *late = connect_plainly(f);
  outbox_await_handshake(&found);
  assert_int_not_equal(sqlite3_exec(early, OUTBOX_HANDSHAKE, NULL, NULL, NULL), SQLITE_OK);
  assert_null(found);
  execute(late, OUTBOX_HANDSHAKE);
  execute(late, OUTBOX_HANDSHAKE);
  assert_ptr_equal(found, late);
  outbox_await_handshake(NULL);
  found = NULL;
  assert_int_equal(number(late, OUTBOX_HANDSHAKE), 0); /* it finds nothing now */
  assert_null(found);
  sqlite3_reset_auto_extension();
}

int test_attach(void) {
  const struct CMUnitTest tests[] = {
      TEST_WITHOUT_STORE(no_operation_leaves_a_statement_running_or_a_transaction_open),
      TEST_WITHOUT_STORE(a_connection_that_counts_its_changes_publishes),
      TEST_WITHOUT_STORE(a_transaction_that_has_only_begun_is_not_made_a_reader),
      TEST(a_seq_that_others_have_had_is_not_given_again),
      TEST(only_the_caller_ends_a_transaction_that_it_began),
      TEST(closing_undoes_what_the_store_began_and_no_more),
      TEST(a_store_knows_when_its_connection_is_closed),
      TEST(a_store_compiles_its_statements_once),
      TEST(a_connection_can_be_closed_whatever_its_stores_are_doing),
      TEST(a_store_outlives_a_close_that_was_refused),
      TEST(a_connection_can_be_closed_by_one_who_finalizes_all_statements),
      TEST(naming_the_table_that_awaits_the_close_does_not_close_the_store),
      TEST(a_store_may_be_closed_while_the_caller_reads),
      TEST_WITHOUT_STORE(a_store_cannot_be_closed_in_the_middle_of_a_call),
      TEST(a_snapshot_that_is_old_is_busy_and_says_why),
      TEST_WITHOUT_STORE(tables_that_a_rollback_removed_are_reported_as_missing),
      TEST_WITHOUT_STORE(a_failed_attach_says_why),
      TEST_WITHOUT_STORE(the_handshake_finds_the_connection_that_is_opened_after_the_install),
  };
  return cmocka_run_group_tests_name("attach", tests, NULL, NULL);
}
