/*
** Several processes: after a fork, after a process is killed, and two processes at the same time.
*/
#define _POSIX_C_SOURCE 200809L

#include <signal.h>
#include <unistd.h>

#include "support.h"

/* --- After fork() ---------------------------------------------------------------------------- */

static bool touched;

static int touch(unsigned type, void *context, void *a, void *b) {
  (void)type, (void)context, (void)a, (void)b;
  touched = true;
  return 0;
}

/* From now on, any activity on the connection sets `touched`, in a child process too. */
static void watch(sqlite3 *db) {
  const unsigned all =
      SQLITE_TRACE_STMT | SQLITE_TRACE_PROFILE | SQLITE_TRACE_ROW | SQLITE_TRACE_CLOSE;
  sqlite3_trace_v2(db, all, touch, NULL);
}

/* Runs every operation on the parent's store. Returns 0 if all are refused, or the number of the
** first one that is not. A number above 100 stands for another failure. */
static int try_everything(fixture *f) {
  outbox_store *s = f->store;
  outbox_message one = {.payload = text("child")};
  outbox_counts counts;
  outbox_bytes a = text("a");
  int64_t n;
  bool flag;
  const int codes[] = {
      outbox_migrate(s),
      outbox_begin(s),
      outbox_commit(s),
      outbox_rollback(s),
      outbox_check_transaction(s),
      outbox_publish(s, &one, 1),
      outbox_claim_entries(s, a, NOW, 0, &(outbox_claimed){.any = false}),
      outbox_get_claimed_entries(s, a, 1, 0),
      outbox_hold_batch(s, a),
      outbox_renew_claim(s, a, NOW, &flag),
      outbox_start_heartbeat(s, a, SECOND, SECOND),
      outbox_release_claim(s, a),
      delete_any(s, &a, 1, &n),
      outbox_retry_entry(s, any(a), NOW, a, &flag),
      outbox_bury_entry(s, any(a), a, &flag),
      outbox_wait(s, 0, &flag, &n),
      outbox_ready_entries(s, a, 0, 1),
      outbox_delayed_entries(s, a, 0, 1),
      outbox_dead_entries(s, a, 0, 1),
      outbox_find_entries(s, a),
      outbox_requeue_entries(s, &a, 1, &n),
      outbox_purge_entries(s, &a, 1, &n),
      outbox_count_entries(s, &counts),
      outbox_leases(s),
  };
  for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
    if (codes[i] != OUTBOX_FORKED) return (int)i + 1;
  if (outbox_connection(s) != NULL) return 101;
  if (strstr(outbox_error_message(s), "fork") == NULL) return 102;
  outbox_finish(s);
  outbox_close(s);
  return touched ? 103 : 0;
}

static void a_child_is_refused_and_the_parent_goes_on(void **state) {
  fixture *f = *state;
  outbox_entry entry;
  publish(f->store, "a b c");
  assert_true(claim(f->store, "p", NOW));
  watch(f->db);
  assert_ok(f->store, outbox_get_claimed_entries(f->store, text("p"), 3, 0));
  assert_code(f->store, outbox_next(f->store, &entry), OUTBOX_ROW);
  assert_true(touched); /* proves that watch works */
  touched = false;
  assert_int_equal(wait_for(start_child(try_everything, f)), 0);
  assert_string_equal(read_ids(f->store), "b c");
  publish(f->store, "d");
  assert_int_equal(delete_ids(f->store, "a"), 1);
  assert_string_equal(ids_in(f->db, "entries"), "b c d");
  assert_string_equal(string(f->db, "PRAGMA integrity_check"), "ok");
}

static int try_to_end_the_transaction(fixture *f) {
  if (outbox_rollback(f->store) != OUTBOX_FORKED) return 1;
  if (outbox_commit(f->store) != OUTBOX_FORKED) return 2;
  outbox_close(f->store);
  return touched ? 3 : 0;
}

static void a_child_cannot_end_the_parents_transaction(void **state) {
  fixture *f = *state;
  assert_ok(f->store, outbox_begin(f->store));
  publish(f->store, "a");
  watch(f->db);
  touched = false;
  assert_int_equal(wait_for(start_child(try_to_end_the_transaction, f)), 0);
  publish(f->store, "b");
  assert_ok(f->store, outbox_commit(f->store));
  assert_string_equal(ids_in(connect_plainly(f), "entries"), "a b");
  assert_string_equal(string(f->db, "PRAGMA integrity_check"), "ok");
}

/* SQLite's locks do not survive a fork. Before a test forks a child that opens its own store, it
** must close the parent's. */
static void close_parents_store(fixture *f) {
  close_store(f, f->store);
}

static void reopen_parents_store(fixture *f) {
  outbox_options options = test_options(f);
  f->store = open_store(f, &options);
  f->db = outbox_connection(f->store);
}

static int publish_by_a_store_of_its_own(fixture *f) {
  outbox_store *store;
  outbox_message one = message("child");
  int code = outbox_open(&store, f->path, NULL);
  if (code == OUTBOX_OK) code = outbox_publish(store, &one, 1);
  outbox_close(store);
  return code;
}

static void a_child_of_a_process_without_a_store_may_open_one(void **state) {
  fixture *f = *state;
  publish(f->store, "a");
  close_parents_store(f);
  assert_int_equal(wait_for(start_child(publish_by_a_store_of_its_own, f)), 0);
  reopen_parents_store(f);
  publish(f->store, "b");
  assert_string_equal(ids_in(f->db, "entries"), "a child b");
}

/* --- A killed process ------------------------------------------------------------------------ */

static int ready_pipe[2];

static int publish_and_hang(fixture *f) {
  outbox_store *store;
  outbox_message messages[20] = {{.id = {0}}};
  if (outbox_open(&store, f->path, NULL) != OUTBOX_OK) return 1;
  if (outbox_begin(store) != OUTBOX_OK) return 2;
  if (outbox_publish(store, messages, 20) != OUTBOX_OK) return 3;
  if (write(ready_pipe[1], "!", 1) != 1) return 4;
  for (;;)
    pause();
}

static void a_process_killed_in_its_transaction_leaves_nothing(void **state) {
  fixture *f = *state;
  char byte;
  publish(f->store, "a");
  close_parents_store(f);
  assert_int_equal(pipe(ready_pipe), 0);
  pid_t child = start_child(publish_and_hang, f);
  close(ready_pipe[1]);
  ssize_t ready = read(ready_pipe[0], &byte, 1);
  close(ready_pipe[0]);
  reopen_parents_store(f);
  int busy = outbox_begin(f->store);
  kill(child, SIGKILL); /* before any assertion, which would leave the child waiting for ever */
  assert_int_equal(wait_for(child), -SIGKILL);
  assert_int_equal(ready, 1);
  assert_code(f->store, busy, OUTBOX_BUSY);
  publish(f->store, "b");
  assert_string_equal(ids_in(f->db, "entries"), "a b");
  assert_string_equal(string(f->db, "PRAGMA integrity_check"), "ok");
}

/* --- Two processes at the same time ---------------------------------------------------------- */

static int start_pipe[2];

/* Returns when the parent closes its end of the pipe, so that all children start at the same
** time. */
static void wait_for_start(void) {
  char byte;
  close(start_pipe[1]);
  while (read(start_pipe[0], &byte, 1) > 0)
    ;
}

/* Runs two children at the same time. Asserts that both succeed. */
static void race(int (*body)(fixture *), fixture *f) {
  close_parents_store(f);
  assert_int_equal(pipe(start_pipe), 0);
  pid_t one = start_child(body, f), two = start_child(body, f);
  close(start_pipe[0]);
  close(start_pipe[1]);
  int first = wait_for(one), second = wait_for(two);
  reopen_parents_store(f);
  assert_string_equal(outbox_code_name(first), "ok");
  assert_string_equal(outbox_code_name(second), "ok");
}

static int open_and_migrate(fixture *f) {
  outbox_store *store;
  outbox_options options = OUTBOX_DEFAULTS;
  options.synchronous = OUTBOX_SYNCHRONOUS_OFF;
  options.busy_timeout = 60000;
  outbox_message one = {.payload = text("x")};
  wait_for_start();
  int code = outbox_open(&store, f->path, &options);
  if (code == OUTBOX_OK) code = outbox_migrate(store);
  if (code == OUTBOX_OK) code = outbox_publish(store, &one, 1);
  outbox_close(store);
  return code;
}

static void two_processes_may_migrate_a_new_file_at_once(void **state) {
  fixture *f = *state;
  for (int round = 0; round < 20; round++) {
    snprintf(f->path, sizeof f->path, "%s/%d.db", f->directory, round);
    race(open_and_migrate, f);
    sqlite3 *plain = connect_plainly(f);
    assert_int_equal(number(plain, "SELECT count(*) FROM outbox_schema"), 1);
    assert_int_equal(number(plain, "SELECT count(*) FROM outbox_entries"), 2);
    disconnect(f, plain);
  }
}

static int publish_fifty(fixture *f) {
  outbox_store *store;
  outbox_options options = OUTBOX_DEFAULTS;
  char key[20];
  options.synchronous = OUTBOX_SYNCHRONOUS_OFF;
  options.busy_timeout = 60000;
  snprintf(key, sizeof key, "%ld", (long)getpid());
  wait_for_start();
  int code = outbox_open(&store, f->path, &options);
  for (char i = 0; i < 50 && code == OUTBOX_OK; i++) {
    outbox_message one = {.key = text(key), .payload = {&i, 1}};
    code = outbox_publish(store, &one, 1);
  }
  outbox_close(store);
  return code;
}

static void two_processes_that_publish_at_once_lose_nothing_and_keep_their_order(void **state) {
  fixture *f = *state;
  race(publish_fifty, f);
  assert_int_equal(number(f->db, "SELECT count(DISTINCT id) FROM outbox_entries"), 100);
  assert_int_equal(number(f->db, "SELECT count(DISTINCT key) FROM outbox_entries"), 2);
  assert_int_equal(number(f->db, "SELECT count(*) FROM outbox_entries AS a, outbox_entries AS b"
                                 " WHERE a.key = b.key AND a.seq < b.seq"
                                 " AND a.payload >= b.payload"),
                   0);
}

/* Delivers all entries that it can claim, three at a time. A delivery inserts a row into the table
** `delivered`. */
static int deliver_all(fixture *f) {
  outbox_store *store;
  outbox_options options = OUTBOX_DEFAULTS;
  char processor[20], sql[100];
  outbox_claimed claimed = {.any = true};
  options.synchronous = OUTBOX_SYNCHRONOUS_OFF;
  options.busy_timeout = 60000;
  snprintf(processor, sizeof processor, "%ld", (long)getpid());
  wait_for_start();
  int code = outbox_open(&store, f->path, &options);
  while (code == OUTBOX_OK && claimed.any) {
    outbox_entry entry;
    char ids[3][OUTBOX_ID_SIZE];
    size_t count = 0;
    code = outbox_claim_entries(store, text(processor), INT64_MAX, 3, &claimed);
    if (code == OUTBOX_OK) code = outbox_get_claimed_entries(store, text(processor), 3, 0);
    while (code == OUTBOX_OK && outbox_next(store, &entry) == OUTBOX_ROW)
      snprintf(ids[count++], sizeof *ids, "%.*s", (int)entry.id.size, (const char *)entry.id.data);
    for (size_t i = 0; i < count && code == OUTBOX_OK; i++) {
      outbox_bytes id = text(ids[i]);
      int64_t deleted;
      snprintf(sql, sizeof sql, "INSERT INTO delivered VALUES ('%s')", ids[i]);
      code = outbox_code(sqlite3_exec(outbox_connection(store), sql, NULL, NULL, NULL));
      if (code == OUTBOX_OK) code = delete_any(store, &id, 1, &deleted);
    }
  }
  outbox_close(store);
  return code;
}

static void two_processes_share_a_backlog_and_deliver_each_entry_once(void **state) {
  fixture *f = *state;
  outbox_message messages[200] = {{.id = {0}}};
  execute(f->db, "CREATE TABLE delivered (id TEXT)");
  assert_ok(f->store, outbox_publish(f->store, messages, 200));
  race(deliver_all, f);
  assert_string_equal(ids_in(f->db, "entries"), "");
  assert_int_equal(number(f->db, "SELECT count(*) FROM delivered"), 200);
  assert_int_equal(number(f->db, "SELECT count(DISTINCT id) FROM delivered"), 200);
}

int test_process(void) {
  const struct CMUnitTest tests[] = {
      TEST(a_child_is_refused_and_the_parent_goes_on),
      TEST(a_child_cannot_end_the_parents_transaction),
      TEST(a_child_of_a_process_without_a_store_may_open_one),
      TEST(a_process_killed_in_its_transaction_leaves_nothing),
      TEST_WITHOUT_STORE(two_processes_may_migrate_a_new_file_at_once),
      TEST(two_processes_that_publish_at_once_lose_nothing_and_keep_their_order),
      TEST(two_processes_share_a_backlog_and_deliver_each_entry_once),
  };
  return cmocka_run_group_tests_name("processes", tests, NULL, NULL);
}
