#define _POSIX_C_SOURCE 200809L

#include <dirent.h>

#include "operations.h"
#include "trials.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))

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
      "SELECT group_concat(namespace || copy) FROM outbox_subscriptions",
      "SELECT group_concat(namespace || paused_at) FROM outbox_pauses",
      "SELECT group_concat(namespace || down_since || ifnull(error, '-')) FROM outbox_outages",
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
  const operation *operation;
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

  if (t->operation->opening) trouble->arm(kind, n, for_ever);
  int code = outbox_open(&store, f->path, &options);
  if (!t->operation->opening) {
    assert_int_equal(code, OUTBOX_OK);
    if (t->operation->prepare != NULL) assert_ok(store, t->operation->prepare(store, f));
    trouble->arm(kind, n, for_ever);
  }
  bool opened = code == OUTBOX_OK;
  if (opened) code = t->operation->run(store, f);
  bool failed = trouble->disarm();

  char where[100];
  snprintf(where, sizeof where, "%s, %s %d%s: %s", t->operation->name, trouble->names[kind], n,
           for_ever ? " and on" : "", outbox_code_name(code));
  if (!failed && code != OUTBOX_OK) fail_msg("%s, though nothing failed", where);
  if (code == OUTBOX_MISUSE || (code != OUTBOX_OK && trouble->code != 0 && code != trouble->code))
    fail_msg("%s", where);
  if (code != OUTBOX_OK && store != NULL && !t->operation->apart &&
      outbox_error_message(store)[0] == '\0')
    fail_msg("%s, without a reason", where);
  if (opened) assert_ok(store, outbox_rollback(store));
  if (code == OUTBOX_OK || !t->operation->opening) {
    char *now = dump_file(f->path);
    if (strcmp(now, code == OUTBOX_OK ? t->after : t->before) != 0)
      fail_msg("%s, and the database is\n%s", where, now);
    sqlite3_free(now);
  }
  if (code != OUTBOX_OK) { /* try again without failures */
    if (t->operation->opening) {
      outbox_close(store);
      assert_int_equal(outbox_open(&store, f->path, &options), OUTBOX_OK);
    }
    assert_ok(store, t->operation->run(store, f));
    char *now = dump_file(f->path);
    if (strcmp(now, t->after) != 0) fail_msg("%s, done again, leaves\n%s", where, now);
    sqlite3_free(now);
  }
  outbox_close(store);
  if (sqlite3_memory_used() != memory) fail_msg("%s, leaks memory", where);
  if (count_descriptors() != descriptors) fail_msg("%s, leaks a descriptor", where);
  return failed;
}

static int try_operation(fixture *f, const operation *operation, const trouble *trouble) {
  trial t = {.operation = operation};
  int tried = 0;
  int64_t start = f->now;
  outbox_options options = test_options(f);
  outbox_store *store;
  snprintf(t.template, sizeof t.template, "%s/template.db", f->directory);
  remove(t.template);
  make_template(f, t.template, t.operation->tables);
  copy_file(t.template, f->path);
  assert_int_equal(outbox_open(&store, f->path, &options), OUTBOX_OK);
  if (t.operation->prepare != NULL) assert_ok(store, t.operation->prepare(store, f));
  outbox_close(store);
  t.before = dump_file(f->path);
  copy_file(t.template, f->path);
  assert_int_equal(outbox_open(&store, f->path, &options), OUTBOX_OK);
  if (t.operation->prepare != NULL) assert_ok(store, t.operation->prepare(store, f));
  assert_ok(store, t.operation->run(store, f));
  outbox_close(store);
  t.after = dump_file(f->path);
  int step = operation->tables ? trouble->step : trouble->migrate_step;
  for (int kind = 0; kind < trouble->kinds; kind++)
    for (int for_ever = 0; for_ever < (trouble->lasts(kind) ? 2 : 1); for_ever++)
      for (int n = 1; try_one(f, &t, trouble, kind, n, for_ever); n += step)
        tried++;
  sqlite3_free(t.before);
  sqlite3_free(t.after);
  f->now = start;
  return tried;
}

int try_all(fixture *f, const trouble *trouble) {
  int tried = 0;
  for (size_t i = 0; i < operation_count; i++)
    tried += try_operation(f, &operations[i], trouble);
  return tried;
}
