/*
** Whatever call to the operating system fails, and whenever: an operation succeeds, or fails with a
** reason and has changed nothing; either way the database is whole and the store goes on.
**
** Each operation runs on a fresh copy of the same database once for every call that it makes, of
** every kind, with that one failing; and once more with that and all that follow.
*/
#include <stdlib.h>

#include "faults.h"
#include "support.h"

/* --- Operations ------------------------------------------------------------------------------ */

typedef int operation(outbox_store *store, fixture *f);

static int migrate(outbox_store *store, fixture *f) {
  (void)f;
  return outbox_migrate(store);
}

static int publish_many(outbox_store *store, fixture *f) {
  enum { MANY = 20 };
  static char names[MANY][8];
  outbox_message messages[MANY];
  char payload[3000];
  memset(payload, 'x', sizeof payload);
  for (int i = 0; i < MANY; i++) {
    snprintf(names[i], sizeof names[i], "new-%d", i);
    messages[i] = message(names[i]);
    messages[i].payload = (outbox_bytes){payload, sizeof payload};
    if (i == 7) messages[i].deliver_at = f->now + SECOND;
  }
  return outbox_publish(store, messages, MANY);
}

static int publish_one(outbox_store *store, fixture *f) {
  (void)f;
  outbox_message one = {.id = text("new"), .unique = true};
  return outbox_publish(store, &one, 1);
}

static int claim_everything(outbox_store *store, fixture *f) {
  outbox_claimed claimed;
  return outbox_claim_entries(store, text("q"), f->now + SECOND, 0, false, &claimed);
}

static int claim_exclusively(outbox_store *store, fixture *f) {
  outbox_claimed claimed;
  return outbox_claim_entries(store, text("p"), f->now + SECOND, 0, true, &claimed);
}

static int read_all(outbox_store *store) {
  outbox_entry entry;
  int code;
  while ((code = outbox_next(store, &entry)) == OUTBOX_ROW)
    continue;
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

static int get(outbox_store *store, fixture *f) {
  (void)f;
  int code = outbox_get_claimed_entries(store, text("p"), 100, NULL);
  return code == OUTBOX_OK ? read_all(store) : code;
}

static int delete (outbox_store *store, fixture *f) {
  (void)f;
  int64_t deleted;
  outbox_bytes ids[] = {text("one"), text("late"), text("four"), text("nobody")};
  return outbox_delete_entries(store, ids, 4, &deleted);
}

static int retry_one(outbox_store *store, fixture *f) {
  bool found;
  return outbox_retry_entry(store, text("two"), f->now + SECOND, text("no"), &found);
}

static int bury_one(outbox_store *store, fixture *f) {
  bool found;
  (void)f;
  return outbox_bury_entry(store, text("two"), text("no"), &found);
}

static int requeue(outbox_store *store, fixture *f) {
  int64_t requeued;
  outbox_bytes ids[] = {text("dead"), text("nobody")};
  (void)f;
  return outbox_requeue_entries(store, ids, 2, &requeued);
}

/* What a processor does between two calls of its publisher. */
static int settle(outbox_store *store, fixture *f) {
  const outbox_selection key = {.ordering = OUTBOX_ORDERING_KEY, .after = INT64_MIN};
  outbox_bytes ids[] = {text("one"), text("two")};
  int64_t deleted;
  bool done;
  int code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = outbox_renew_claim(store, text("p"), f->now + SECOND, &done);
  if (code == OUTBOX_OK) code = outbox_delete_entries(store, ids, 2, &deleted);
  if (code == OUTBOX_OK)
    code = outbox_retry_entry(store, text("three"), f->now + SECOND, text("no"), &done);
  if (code == OUTBOX_OK) code = outbox_bury_entry(store, text("four"), text("never"), &done);
  if (code == OUTBOX_OK) code = outbox_get_claimed_entries(store, text("p"), 2, &key);
  if (code == OUTBOX_OK) code = read_all(store);
  if (code == OUTBOX_OK) code = outbox_hold_batch(store, text("p"));
  if (code == OUTBOX_OK) return outbox_commit(store);
  char reason[256];
  snprintf(reason, sizeof reason, "%s", outbox_error_message(store));
  assert_int_equal(outbox_rollback(store), OUTBOX_OK);
  assert_int_not_equal(strlen(reason), 0);
  return code;
}

/* --- The database ---------------------------------------------------------------------------- */

static void copy_file(const char *from, const char *to) {
  char command[200];
  snprintf(command, sizeof command, "cp %s %s && rm -f %s-wal %s-shm", from, to, to, to);
  assert_int_equal(system(command), 0);
}

/* Something of everything, in a file that all copies are made of. */
static void make_template(fixture *f, const char *path, bool tables) {
  outbox_options options = test_options(f);
  outbox_store *store;
  assert_int_equal(outbox_open(&store, path, &options), OUTBOX_OK);
  if (tables) {
    assert_ok(store, outbox_migrate(store));
    publish(store, "one two three four five six seven eight dead retried");
    publish_at(store, "late", f->now + 100 * SECOND);
    publish_at(store, "due", f->now + 1);
    assert_true(claim_some(store, "p", f->now + 50 * SECOND, 4));
    assert_true(bury(store, "dead"));
    assert_true(retry(store, "retried", f->now + 1));
    f->now += 2;
  }
  outbox_close(store);
}

/* All that the tables hold; to be freed. */
static char *dump(const char *path) {
  static const char *const QUERIES[] = {
      "SELECT group_concat(name) FROM (SELECT name FROM sqlite_master ORDER BY name)",
      "SELECT group_concat(seq || id || namespace || ifnull(length(payload), 'no') || attempts ||"
      " ifnull(last_error, '-')) FROM (SELECT * FROM outbox_entries ORDER BY seq)",
      "SELECT group_concat(seq || id || due_at || ifnull(position, '-') || attempts)"
      " FROM (SELECT * FROM outbox_delayed ORDER BY seq)",
      "SELECT group_concat(seq || id || died_at || attempts)"
      " FROM (SELECT * FROM outbox_dead ORDER BY seq)",
      "SELECT group_concat(first_seq || '-' || last_seq || processor_id || deadline ||"
      " ifnull(batch, '-')) FROM (SELECT * FROM outbox_leases ORDER BY first_seq)"};
  sqlite3 *db;
  sqlite3_str *text = sqlite3_str_new(NULL);
  assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
  assert_string_equal(string(db, "PRAGMA integrity_check"), "ok");
  for (int i = 0; i < 5; i++) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(db, QUERIES[i], -1, &statement, NULL) != SQLITE_OK) break;
    assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
    sqlite3_str_appendf(text, "%s\n", sqlite3_column_text(statement, 0));
    sqlite3_finalize(statement);
  }
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  return sqlite3_str_finish(text);
}

/* --- One case -------------------------------------------------------------------------------- */

typedef struct trial {
  fixture *f;
  const char *name, *template;
  operation *run;
  const char *before, *after; /* dumps */
} trial;

/*
** Opens, where that is tried too with the fault armed, and runs the operation. Returns whether any
** call failed; when none has, all there were have been tried.
*/
static bool try_fault(const trial *t, enum fault fault, int n, bool for_ever, bool opening) {
  outbox_options options = test_options(t->f);
  options.synchronous = OUTBOX_SYNCHRONOUS_FULL;
  outbox_store *store;
  copy_file(t->template, t->f->path);
  if (opening) arm_fault(fault, n, for_ever);
  int code = outbox_open(&store, t->f->path, &options);
  if (!opening) {
    assert_int_equal(code, OUTBOX_OK);
    arm_fault(fault, n, for_ever);
  }
  if (code == OUTBOX_OK) code = t->run(store, t->f);
  bool failed = disarm_fault();
  if (code != OUTBOX_OK && (code == OUTBOX_MISUSE || outbox_error_message(store)[0] == '\0'))
    fail_msg("%s, %s %d: %s", t->name, FAULT_NAMES[fault], n, outbox_code_name(code));
  if (code == OUTBOX_OK || !opening) {
    char *now = dump(t->f->path);
    if (strcmp(now, code == OUTBOX_OK ? t->after : t->before) != 0)
      fail_msg("%s, %s %d%s: after %s\n%s", t->name, FAULT_NAMES[fault], n,
               for_ever ? " and on" : "", outbox_code_name(code), now);
    sqlite3_free(now);
  }
  if (code != OUTBOX_OK) { /* and now that nothing fails any more */
    if (opening) {
      outbox_close(store);
      assert_int_equal(outbox_open(&store, t->f->path, &options), OUTBOX_OK);
    }
    assert_ok(store, t->run(store, t->f));
    char *now = dump(t->f->path);
    assert_string_equal(now, t->after);
    sqlite3_free(now);
  }
  outbox_close(store);
  return failed;
}

static int tried;

static void try_all_faults(fixture *f, const char *name, operation *run, bool tables,
                           bool opening) {
  char template[80];
  int64_t start = f->now;
  snprintf(template, sizeof template, "%s/template.db", f->directory);
  remove(template);
  make_template(f, template, tables);
  trial t = {.f = f, .name = name, .template = template, .run = run};
  outbox_options options = test_options(f);
  outbox_store *store;
  copy_file(template, f->path);
  char *before = dump(f->path);
  assert_int_equal(outbox_open(&store, f->path, &options), OUTBOX_OK);
  assert_ok(store, run(store, f));
  outbox_close(store);
  char *after = dump(f->path);
  t.before = before;
  t.after = after;
  for (enum fault fault = 0; fault < FAULTS; fault++)
    /* For a lock that is never free, SQLite itself waits ten seconds each time. */
    for (int for_ever = 0; for_ever < (fault == FAULT_SHM_LOCK ? 1 : 2); for_ever++)
      for (int n = 1; try_fault(&t, fault, n, for_ever, opening); n++)
        tried++;
  sqlite3_free(before);
  sqlite3_free(after);
  f->now = start;
}

static void whatever_call_fails_an_operation_is_done_or_not_done(void **state) {
  fixture *f = *state;
  tried = 0;
  begin_faults();
  try_all_faults(f, "open and migrate", migrate, false, true);
  try_all_faults(f, "migrate", migrate, false, false);
  try_all_faults(f, "open and publish", publish_one, true, true);
  try_all_faults(f, "publish one", publish_one, true, false);
  try_all_faults(f, "publish many", publish_many, true, false);
  try_all_faults(f, "claim", claim_everything, true, false);
  try_all_faults(f, "claim exclusively", claim_exclusively, true, false);
  try_all_faults(f, "get", get, true, false);
  try_all_faults(f, "delete", delete, true, false);
  try_all_faults(f, "retry", retry_one, true, false);
  try_all_faults(f, "bury", bury_one, true, false);
  try_all_faults(f, "requeue", requeue, true, false);
  try_all_faults(f, "settle a batch", settle, true, false);
  end_faults();
  print_message("%d faults tried\n", tried);
  assert_true(tried > 300);
}

int test_faults(void) {
  const struct CMUnitTest tests[] = {
      TEST_WITHOUT_STORE(whatever_call_fails_an_operation_is_done_or_not_done),
  };
  return cmocka_run_group_tests_name("faults", tests, NULL, NULL);
}
