#define _POSIX_C_SOURCE 200809L

#include <dirent.h>

#include "trials.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))

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

static int publish_on_an_attached_store(outbox_store *store, fixture *f) {
  outbox_options options = test_options(f);
  outbox_store *attached;
  int code = outbox_attach(&attached, outbox_connection(store), &options);
  if (code == OUTBOX_OK) code = publish_one(attached, f);
  if (code != OUTBOX_OK && attached != NULL)
    assert_int_not_equal(outbox_error_message(attached)[0], '\0');
  outbox_close(attached);
  return code;
}

/* Inserts a row of the application and publishes a message in one transaction. */
static int publish_with_an_order(outbox_store *store, fixture *f) {
  static const char WIDE[2000] = "";
  const outbox_value number = {.type = OUTBOX_INTEGER, .integer = 2},
                     bytes = {.type = OUTBOX_BLOB, .bytes = {WIDE, sizeof WIDE}};
  outbox_rows *rows;
  int64_t changed;
  int code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = outbox_execute(store, "INSERT INTO orders VALUES (?)", &number, 1, &changed);
  if (code == OUTBOX_OK) code = outbox_query(store, &rows, "SELECT ?, * FROM orders", &bytes, 1);
  if (code == OUTBOX_OK) {
    code = outbox_next_row(rows);
    if (code == OUTBOX_ROW) assert_int_equal(outbox_column(rows, 1).integer, 2);
    if (code == OUTBOX_ROW) code = OUTBOX_OK;
    outbox_close_rows(rows);
  }
  if (code == OUTBOX_OK) code = publish_one(store, f);
  if (code == OUTBOX_OK) return outbox_commit(store);
  outbox_rollback(store);
  return code;
}

static int claim_everything(outbox_store *store, fixture *f) {
  outbox_claimed claimed;
  return outbox_claim_entries(store, text("q"), f->now + SECOND, 0, &claimed);
}

static int claim_a_few(outbox_store *store, fixture *f) {
  outbox_claimed claimed;
  return outbox_claim_entries(store, text("q"), f->now + SECOND, 2, &claimed);
}

static int claim_more(outbox_store *store, fixture *f) {
  outbox_claimed claimed;
  return outbox_claim_entries(store, text("p"), f->now + SECOND, 6, &claimed);
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
  int code = outbox_get_claimed_entries(store, text("p"), 100, 0);
  return code == OUTBOX_OK ? read_all(store) : code;
}

static int renew(outbox_store *store, fixture *f) {
  bool renewed;
  return outbox_renew_claim(store, text("p"), f->now + 60 * SECOND, &renewed);
}

static int release(outbox_store *store, fixture *f) {
  (void)f;
  return outbox_release_claim(store, text("p"));
}

static int delete_some(outbox_store *store, fixture *f) {
  (void)f;
  int64_t deleted;
  outbox_bytes ids[] = {text("one"), text("late"), text("four"), text("nobody")};
  return delete_any(store, ids, LENGTH(ids), &deleted);
}

static int retry_one(outbox_store *store, fixture *f) {
  bool found;
  return outbox_retry_entry(store, any(text("two")), f->now + SECOND, text("no"), &found);
}

static int bury_one(outbox_store *store, fixture *f) {
  bool found;
  (void)f;
  return outbox_bury_entry(store, any(text("two")), text("no"), &found);
}

static int requeue(outbox_store *store, fixture *f) {
  int64_t requeued;
  outbox_bytes ids[] = {text("dead"), text("nobody")};
  (void)f;
  return outbox_requeue_entries(store, ids, LENGTH(ids), &requeued);
}

static int purge(outbox_store *store, fixture *f) {
  int64_t purged;
  outbox_bytes ids[] = {text("dead"), text("nobody")};
  (void)f;
  return outbox_purge_entries(store, ids, LENGTH(ids), &purged);
}

static int look_around(outbox_store *store, fixture *f) {
  static int (*const LISTS[])(outbox_store *, outbox_bytes, int64_t, int64_t) = {
      outbox_ready_entries, outbox_delayed_entries, outbox_dead_entries};
  (void)f;
  outbox_lease lease;
  outbox_counts counts;
  int code = OUTBOX_OK;
  for (size_t i = 0; i < LENGTH(LISTS) && code == OUTBOX_OK; i++) {
    code = LISTS[i](store, i == 1 ? text("") : (outbox_bytes){NULL, 0}, 0, 100);
    if (code == OUTBOX_OK) code = read_all(store);
  }
  if (code == OUTBOX_OK) code = outbox_count_entries(store, &counts);
  if (code == OUTBOX_OK) code = outbox_leases(store);
  if (code == OUTBOX_OK)
    while ((code = outbox_next_lease(store, &lease)) == OUTBOX_ROW)
      continue;
  return code == OUTBOX_DONE ? OUTBOX_OK : code;
}

static int listen(outbox_store *store, fixture *f) {
  bool rung;
  int64_t look_again;
  (void)f;
  outbox_pollfd(store);
  return outbox_wait(store, 0, &rung, &look_again);
}

/* The work of a processor between two calls of its publisher, in one transaction. */
static int process_a_batch(outbox_store *store, fixture *f) {
  outbox_bytes ids[] = {text("one"), text("two")};
  int64_t deleted;
  bool done;
  int code = outbox_begin(store);
  if (code != OUTBOX_OK) return code;
  code = claim_more(store, f);
  if (code == OUTBOX_OK) code = outbox_renew_claim(store, text("p"), f->now + SECOND, &done);
  if (code == OUTBOX_OK) code = delete_any(store, ids, LENGTH(ids), &deleted);
  if (code == OUTBOX_OK)
    code = outbox_retry_entry(store, any(text("three")), f->now + SECOND, text("no"), &done);
  if (code == OUTBOX_OK) code = outbox_bury_entry(store, any(text("four")), text("never"), &done);
  if (code == OUTBOX_OK) code = outbox_get_claimed_entries(store, text("p"), 2, 1000);
  if (code == OUTBOX_OK) code = read_all(store);
  if (code == OUTBOX_OK) code = outbox_hold_batch(store, text("p"));
  if (code == OUTBOX_OK) return outbox_commit(store);
  outbox_rollback(store);
  return code;
}

/* The work of a processor on lanes: it takes a batch, and then settles it and takes the next. */
static int take_a_batch(outbox_store *store, fixture *f) {
  outbox_service service = {.processor_id = text("lane"),
                            .except = true,
                            .duration = 60 * SECOND,
                            .ordering = OUTBOX_ORDERING_KEY};
  outbox_want want = {.batch_size = 4, .batch_bytes = 1000000};
  outbox_progress progress;
  (void)f;
  int code = outbox_serve(store, &service);
  if (code == OUTBOX_OK || code == OUTBOX_MISUSE) /* it did so in an earlier try */
    code = outbox_advance(store, NULL, 0, &want, &progress);
  return code;
}

static int settle_a_batch(outbox_store *store, fixture *f) {
  static const enum outbox_outcome OUTCOMES[] = {OUTBOX_DELIVERED, OUTBOX_RETRY, OUTBOX_BURY,
                                                 OUTBOX_PUT_OFF};
  outbox_verdict verdicts[LENGTH(OUTCOMES)];
  outbox_want want = {.batch_size = 4};
  outbox_progress progress;
  for (size_t i = 0; i < LENGTH(OUTCOMES); i++)
    verdicts[i] =
        (outbox_verdict){.outcome = OUTCOMES[i], .at = f->now + SECOND, .error = text("no")};
  return outbox_advance(store, verdicts, LENGTH(verdicts), &want, &progress);
}

/* --- Databases ------------------------------------------------------------------------------- */

static void copy_file(const char *from, const char *to) {
  static char bytes[1 << 16];
  char beside[80];
  FILE *source = fopen(from, "rb"), *copy = fopen(to, "wb");
  assert_non_null(source);
  assert_non_null(copy);
  for (size_t size; (size = fread(bytes, 1, sizeof bytes, source)) > 0;)
    assert_int_equal(fwrite(bytes, 1, size, copy), size);
  fclose(source);
  assert_int_equal(fclose(copy), 0);
  snprintf(beside, sizeof beside, "%s-wal", to);
  remove(beside);
  snprintf(beside, sizeof beside, "%s-shm", to);
  remove(beside);
}

/* Makes the database that all trials copy. With `tables`, it has entries in every state. */
static void make_template(fixture *f, const char *path, bool tables) {
  outbox_options options = test_options(f);
  outbox_store *store;
  assert_int_equal(outbox_open(&store, path, &options), OUTBOX_OK);
  if (tables) {
    assert_ok(store, outbox_migrate(store));
    execute(outbox_connection(store), "CREATE TABLE orders (number INTEGER PRIMARY KEY)");
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

char *dump(sqlite3 *db) {
  static const char *const QUERIES[] = {
      "SELECT group_concat(name) FROM (SELECT name FROM sqlite_master ORDER BY name)",
      "SELECT group_concat(seq || id || namespace || ifnull(length(payload), 'no') || attempts ||"
      " ifnull(last_error, '-')) FROM (SELECT * FROM outbox_entries ORDER BY seq)",
      "SELECT group_concat(seq || id || due_at || ifnull(position, '-') || attempts)"
      " FROM (SELECT * FROM outbox_delayed ORDER BY seq)",
      "SELECT group_concat(seq || id || died_at || attempts)"
      " FROM (SELECT * FROM outbox_dead ORDER BY seq)",
      "SELECT group_concat(processor_id || classes || first_seq || last_seq || deadline ||"
      " ifnull(held, '-'))"
      " FROM (SELECT * FROM outbox_claims ORDER BY lease)",
      "SELECT group_concat(number) FROM (SELECT * FROM orders ORDER BY number)"};
  sqlite3_str *all = sqlite3_str_new(NULL);
  for (size_t i = 0; i < LENGTH(QUERIES); i++) {
    sqlite3_stmt *statement;
    if (sqlite3_prepare_v2(db, QUERIES[i], -1, &statement, NULL) != SQLITE_OK) continue;
    assert_int_equal(sqlite3_step(statement), SQLITE_ROW);
    sqlite3_str_appendf(all, "%s\n", sqlite3_column_text(statement, 0));
    sqlite3_finalize(statement);
  }
  return sqlite3_str_finish(all);
}

char *dump_file(const char *path) {
  sqlite3 *db;
  assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
  execute(db, "PRAGMA synchronous = OFF"); /* because the close checkpoints the log */
  assert_string_equal(string(db, "PRAGMA integrity_check"), "ok");
  char *all = dump(db);
  assert_int_equal(sqlite3_close(db), SQLITE_OK);
  return all;
}

/* --- One trial ------------------------------------------------------------------------------- */

typedef struct trial {
  const char *name;
  operation *run;
  operation *prepare; /* comes before it, and never fails; or NULL */
  bool tables;        /* the database has the outbox's tables already */
  bool opening;       /* opening the store is part of the trial */
  bool apart;         /* another store has the error message */
  char template[80];
  char *before, *after; /* dumps */
} trial;

static int count_descriptors(void) {
  int count = 0;
  DIR *directory = opendir("/dev/fd");
  assert_non_null(directory);
  while (readdir(directory) != NULL)
    count++;
  closedir(directory);
  return count;
}

/* Returns whether a call failed. If none did, the operation makes fewer than n such calls. */
static bool try_one(fixture *f, const trial *t, const trouble *trouble, int kind, int n,
                    bool for_ever) {
  outbox_options options = test_options(f);
  options.synchronous = OUTBOX_SYNCHRONOUS_FULL;
  outbox_store *store;
  copy_file(t->template, f->path);
  int descriptors = count_descriptors();
  int64_t memory = sqlite3_memory_used();

  if (t->opening) trouble->arm(kind, n, for_ever);
  int code = outbox_open(&store, f->path, &options);
  if (!t->opening) {
    assert_int_equal(code, OUTBOX_OK);
    if (t->prepare != NULL) assert_ok(store, t->prepare(store, f));
    trouble->arm(kind, n, for_ever);
  }
  bool opened = code == OUTBOX_OK;
  if (opened) code = t->run(store, f);
  bool failed = trouble->disarm();

  char where[100];
  snprintf(where, sizeof where, "%s, %s %d%s: %s", t->name, trouble->names[kind], n,
           for_ever ? " and on" : "", outbox_code_name(code));
  if (!failed && code != OUTBOX_OK) fail_msg("%s, though nothing failed", where);
  if (code == OUTBOX_MISUSE || (code != OUTBOX_OK && trouble->code != 0 && code != trouble->code))
    fail_msg("%s", where);
  if (code != OUTBOX_OK && store != NULL && !t->apart && outbox_error_message(store)[0] == '\0')
    fail_msg("%s, without a reason", where);
  if (opened) assert_ok(store, outbox_rollback(store));
  if (code == OUTBOX_OK || !t->opening) {
    char *now = dump_file(f->path);
    if (strcmp(now, code == OUTBOX_OK ? t->after : t->before) != 0)
      fail_msg("%s, and the database is\n%s", where, now);
    sqlite3_free(now);
  }
  if (code != OUTBOX_OK) { /* try again without failures */
    if (t->opening) {
      outbox_close(store);
      assert_int_equal(outbox_open(&store, f->path, &options), OUTBOX_OK);
    }
    assert_ok(store, t->run(store, f));
    char *now = dump_file(f->path);
    if (strcmp(now, t->after) != 0) fail_msg("%s, done again, leaves\n%s", where, now);
    sqlite3_free(now);
  }
  outbox_close(store);
  if (sqlite3_memory_used() != memory) fail_msg("%s, leaks memory", where);
  if (count_descriptors() != descriptors) fail_msg("%s, leaks a descriptor", where);
  return failed;
}

static int try_operation(fixture *f, trial t, const trouble *trouble) {
  int tried = 0;
  int64_t start = f->now;
  outbox_options options = test_options(f);
  outbox_store *store;
  snprintf(t.template, sizeof t.template, "%s/template.db", f->directory);
  remove(t.template);
  make_template(f, t.template, t.tables);
  copy_file(t.template, f->path);
  assert_int_equal(outbox_open(&store, f->path, &options), OUTBOX_OK);
  if (t.prepare != NULL) assert_ok(store, t.prepare(store, f));
  outbox_close(store);
  t.before = dump_file(f->path);
  copy_file(t.template, f->path);
  assert_int_equal(outbox_open(&store, f->path, &options), OUTBOX_OK);
  if (t.prepare != NULL) assert_ok(store, t.prepare(store, f));
  assert_ok(store, t.run(store, f));
  outbox_close(store);
  t.after = dump_file(f->path);
  for (int kind = 0; kind < trouble->kinds; kind++)
    for (int for_ever = 0; for_ever < (trouble->lasts(kind) ? 2 : 1); for_ever++)
      for (int n = 1; try_one(f, &t, trouble, kind, n, for_ever); n += trouble->step)
        tried++;
  sqlite3_free(t.before);
  sqlite3_free(t.after);
  f->now = start;
  return tried;
}

int try_all(fixture *f, const trouble *trouble) {
  static const trial TRIALS[] = {
      {.name = "open and migrate", .run = migrate, .opening = true},
      {.name = "migrate", .run = migrate},
      {.name = "open and publish", .run = publish_one, .tables = true, .opening = true},
      {.name = "publish one", .run = publish_one, .tables = true},
      {.name = "publish many", .run = publish_many, .tables = true},
      {.name = "publish with an order", .run = publish_with_an_order, .tables = true},
      {.name = "attach and publish",
       .run = publish_on_an_attached_store,
       .tables = true,
       .apart = true},
      {.name = "claim everything", .run = claim_everything, .tables = true},
      {.name = "claim a few", .run = claim_a_few, .tables = true},
      {.name = "claim more", .run = claim_more, .tables = true},
      {.name = "get", .run = get, .tables = true},
      {.name = "renew", .run = renew, .tables = true},
      {.name = "release", .run = release, .tables = true},
      {.name = "delete", .run = delete_some, .tables = true},
      {.name = "retry", .run = retry_one, .tables = true},
      {.name = "bury", .run = bury_one, .tables = true},
      {.name = "requeue", .run = requeue, .tables = true},
      {.name = "purge", .run = purge, .tables = true},
      {.name = "look around", .run = look_around, .tables = true},
      {.name = "listen", .run = listen, .tables = true},
      {.name = "process a batch", .run = process_a_batch, .tables = true},
      {.name = "take a batch", .run = take_a_batch, .tables = true},
      {.name = "settle a batch", .run = settle_a_batch, .prepare = take_a_batch, .tables = true},
  };
  int tried = 0;
  for (size_t i = 0; i < LENGTH(TRIALS); i++)
    tried += try_operation(f, TRIALS[i], trouble);
  return tried;
}
