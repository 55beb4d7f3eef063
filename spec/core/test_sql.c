/*
** The application's SQL: one statement with bound values, in the transaction of the messages.
*/
#include <math.h>
#include <unistd.h>

#include "support.h"

static outbox_value integer(int64_t value) {
  return (outbox_value){.type = OUTBOX_INTEGER, .integer = value};
}

static outbox_value string_of(enum outbox_type type, const void *data, size_t size) {
  return (outbox_value){.type = type, .bytes = {data, size}};
}

static int64_t change(outbox_store *store, const char *sql) {
  int64_t changed = -1;
  assert_ok(store, outbox_execute(store, sql, NULL, 0, &changed));
  return changed;
}

static void sql_runs_in_the_transaction_of_the_messages(void **state) {
  fixture *f = *state;
  outbox_value values[] = {integer(7), string_of(OUTBOX_TEXT, "seven", 5)};
  int64_t changed;
  change(f->store, "CREATE TABLE orders (number INTEGER, name TEXT)");
  for (int kept = 0; kept < 2; kept++) {
    assert_ok(f->store, outbox_begin(f->store));
    assert_ok(f->store,
              outbox_execute(f->store, "INSERT INTO orders VALUES (?, ?)", values, 2, &changed));
    assert_int_equal(changed, 1);
    publish(f->store, "a");
    assert_ok(f->store, kept ? outbox_commit(f->store) : outbox_rollback(f->store));
    sqlite3 *plain = connect_plainly(f);
    assert_int_equal(number(plain, "SELECT count(*) FROM orders"), kept);
    assert_string_equal(ids_in(plain, "entries"), kept ? "a" : "");
  }
}

static void a_value_of_each_type_comes_back_as_it_was(void **state) {
  fixture *f = *state;
  static const char BYTES[] = "a\0\377b";
  const outbox_value values[] = {{.type = OUTBOX_NULL},
                                 {.type = OUTBOX_BOOLEAN, .boolean = true},
                                 integer(INT64_MIN),
                                 {.type = OUTBOX_REAL, .real = -0.5},
                                 {.type = OUTBOX_REAL, .real = INFINITY},
                                 string_of(OUTBOX_TEXT, BYTES, 4),
                                 string_of(OUTBOX_TEXT, NULL, 0),
                                 string_of(OUTBOX_BLOB, BYTES, 4),
                                 string_of(OUTBOX_BLOB, NULL, 0)};
  enum { COUNT = sizeof values / sizeof *values };
  outbox_rows *rows;
  assert_ok(f->store,
            outbox_query(f->store, &rows, "SELECT ? AS a, ?, ?, ?, ?, ?, ?, ?, ?", values, COUNT));
  assert_int_equal(outbox_column_count(rows), COUNT);
  assert_string_equal(outbox_column_name(rows, 0), "a");
  assert_code(f->store, outbox_next_row(rows), OUTBOX_ROW);
  for (int i = 0; i < COUNT; i++) {
    outbox_value value = outbox_column(rows, i);
    if (values[i].type == OUTBOX_BOOLEAN) { /* SQLite has no type of its own for it */
      assert_int_equal(value.type, OUTBOX_INTEGER);
      assert_int_equal(value.integer, values[i].boolean);
      continue;
    }
    assert_int_equal(value.type, values[i].type);
    if (value.type == OUTBOX_INTEGER) assert_int_equal(value.integer, values[i].integer);
    if (value.type == OUTBOX_REAL) assert_true(value.real == values[i].real);
    if (value.type < OUTBOX_TEXT) continue;
    assert_int_equal(value.bytes.size, values[i].bytes.size);
    assert_non_null(value.bytes.data);
    assert_memory_equal(value.bytes.data, BYTES, value.bytes.size);
  }
  assert_code(f->store, outbox_next_row(rows), OUTBOX_DONE);
  assert_code(f->store, outbox_next_row(rows), OUTBOX_DONE);
  assert_int_equal(outbox_column_count(rows), 0);
  assert_null(outbox_column_name(rows, 0));
  assert_int_equal(outbox_column(rows, 0).type, OUTBOX_NULL);
  outbox_close_rows(rows);
  outbox_close_rows(NULL);
}

static void execute_counts_the_rows_that_its_statement_changed(void **state) {
  fixture *f = *state;
  assert_int_equal(change(f->store, "CREATE TABLE t (x)"), 0);
  assert_int_equal(change(f->store, "INSERT INTO t VALUES (1), (2), (3)"), 3);
  assert_int_equal(change(f->store, "UPDATE t SET x = 4 WHERE x > 1; -- two"), 2);
  assert_int_equal(change(f->store, "SELECT * FROM t"), 0);
  assert_int_equal(change(f->store, "DELETE FROM t RETURNING x"), 3);
}

static void sql_that_cannot_be_run_is_refused_and_changes_nothing(void **state) {
  fixture *f = *state;
  static const char *const WRONG[] = {
      "",
      " -- nothing",
      "INSERT INTO t VALUES (1); INSERT INTO t VALUES (2)",
      "INSERT INTO t VALUES (1); no SQL",
      "INSERT INTO t VALUES (?)",
      "COMMIT",
      "ROLLBACK",
      "BEGIN",
      "END",
      "RELEASE outbox",
      "ROLLBACK TO Outbox",
  };
  const outbox_value nan_value = {.type = OUTBOX_REAL, .real = NAN};
  outbox_rows *rows;
  int64_t changed = -1;
  change(f->store, "CREATE TABLE t (x UNIQUE)");
  assert_ok(f->store, outbox_begin(f->store));
  for (size_t i = 0; i < sizeof WRONG / sizeof *WRONG; i++) {
    assert_code(f->store, outbox_execute(f->store, WRONG[i], NULL, 0, &changed), OUTBOX_MISUSE);
    rows = (void *)f;
    assert_code(f->store, outbox_query(f->store, &rows, WRONG[i], NULL, 0), OUTBOX_MISUSE);
    assert_null(rows);
  }
  assert_code(f->store,
              outbox_execute(f->store, "INSERT INTO t VALUES (?)", &nan_value, 1, &changed),
              OUTBOX_MISUSE);
  assert_code(f->store, outbox_execute(f->store, "no SQL", NULL, 0, &changed), OUTBOX_ERROR);
  change(f->store, "INSERT INTO t VALUES (1)");
  /* A violated constraint of the application is not reported as a duplicate id. */
  assert_code(f->store, outbox_execute(f->store, "INSERT INTO t VALUES (1)", NULL, 0, &changed),
              OUTBOX_CONSTRAINT);
  assert_int_equal(changed, -1);
  assert_ok(f->store, outbox_commit(f->store));
  assert_int_equal(number(f->db, "SELECT count(*) FROM t"), 1);
}

static void a_query_that_writes_needs_a_transaction(void **state) {
  fixture *f = *state;
  static const char INSERT[] = "INSERT INTO t VALUES (1), (2) RETURNING x";
  outbox_message taken = message("a");
  outbox_rows *rows;
  int64_t changed;
  publish(f->store, "a");
  change(f->store, "CREATE TABLE t (x)");
  assert_code(f->store, outbox_query(f->store, &rows, INSERT, NULL, 0), OUTBOX_MISUSE);
  assert_null(rows);
  assert_int_equal(number(f->db, "SELECT count(*) FROM t"), 0);
  assert_ok(f->store, outbox_execute(f->store, INSERT, NULL, 0, &changed));
  assert_int_equal(changed, 2);
  assert_ok(f->store, outbox_begin(f->store));
  assert_ok(f->store, outbox_query(f->store, &rows, INSERT, NULL, 0));
  assert_code(f->store, outbox_next_row(rows), OUTBOX_ROW);
  assert_int_not_equal(outbox_publish(f->store, &taken, 1), OUTBOX_OK);
  assert_code(f->store, outbox_next_row(rows), OUTBOX_ROW);
  assert_code(f->store, outbox_next_row(rows), OUTBOX_DONE);
  outbox_close_rows(rows);
  assert_ok(f->store, outbox_commit(f->store));
  assert_int_equal(number(f->db, "SELECT count(*) FROM t"), 4);
}

static void a_savepoint_of_the_applications_own_name_is_not_refused(void **state) {
  fixture *f = *state;
  assert_ok(f->store, outbox_begin(f->store));
  change(f->store, "SAVEPOINT mine");
  publish(f->store, "a");
  change(f->store, "ROLLBACK TO mine");
  change(f->store, "RELEASE mine");
  assert_ok(f->store, outbox_commit(f->store));
  assert_string_equal(ids_in(f->db, "entries"), "");
}

static void rows_are_read_while_the_store_does_other_things(void **state) {
  fixture *f = *state;
  outbox_rows *rows;
  publish(f->store, "a b c");
  assert_ok(f->store, outbox_begin(f->store));
  assert_ok(f->store, outbox_query(f->store, &rows, "SELECT id FROM outbox_entries", NULL, 0));
  assert_code(f->store, outbox_next_row(rows), OUTBOX_ROW);
  publish(f->store, "d");
  outbox_bytes id = outbox_column(rows, 0).bytes;
  assert_memory_equal(id.data, "a", id.size);
  outbox_close_rows(rows);
  assert_ok(f->store, outbox_commit(f->store));
  assert_string_equal(ids_in(f->db, "entries"), "a b c d");
}

static void rows_say_when_the_transaction_was_ended_behind_them(void **state) {
  fixture *f = *state;
  outbox_rows *rows;
  publish(f->store, "a b");
  assert_ok(f->store, outbox_begin(f->store));
  assert_ok(f->store, outbox_query(f->store, &rows, "SELECT id FROM outbox_entries", NULL, 0));
  execute(f->db, "ROLLBACK");
  assert_code(f->store, outbox_next_row(rows), OUTBOX_MISUSE);
  outbox_close_rows(rows);
  assert_ok(f->store, outbox_rollback(f->store));
}

static void an_attached_store_leaves_sql_to_the_application(void **state) {
  fixture *f = *state;
  outbox_store *store;
  int64_t changed;
  assert_ok(f->store, outbox_attach(&store, connect_plainly(f), NULL));
  assert_code(store, outbox_execute(store, "SELECT 1", NULL, 0, &changed), OUTBOX_MISUSE);
  outbox_close(store);
}

static int read_in_child(fixture *f) {
  outbox_rows *rows;
  return outbox_query(f->store, &rows, "SELECT 1", NULL, 0);
}

static void a_child_runs_no_sql_of_its_parent(void **state) {
  fixture *f = *state;
  assert_int_equal(wait_for(start_child(read_in_child, f)), OUTBOX_FORKED);
}

int test_sql(void) {
  const struct CMUnitTest tests[] = {
      TEST(sql_runs_in_the_transaction_of_the_messages),
      TEST(a_value_of_each_type_comes_back_as_it_was),
      TEST(execute_counts_the_rows_that_its_statement_changed),
      TEST(sql_that_cannot_be_run_is_refused_and_changes_nothing),
      TEST(a_query_that_writes_needs_a_transaction),
      TEST(a_savepoint_of_the_applications_own_name_is_not_refused),
      TEST(rows_are_read_while_the_store_does_other_things),
      TEST(rows_say_when_the_transaction_was_ended_behind_them),
      TEST(an_attached_store_leaves_sql_to_the_application),
      TEST(a_child_runs_no_sql_of_its_parent),
  };
  return cmocka_run_group_tests_name("sql", tests, NULL, NULL);
}
