#define _POSIX_C_SOURCE 200809L

#include <dirent.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support.h"

#define LENGTH(array) (sizeof(array) / sizeof *(array))

/* --- Fixture --------------------------------------------------------------------------------- */

static int read_clock(void *context, int64_t *now) {
  fixture *f = context;
  f->clock_calls++;
  *now = f->now;
  return f->clock_fails ? -1 : 0;
}

int set_up_without_store(void **state) {
  fixture *f = calloc(1, sizeof *f);
  if (f == NULL) return -1;
  strcpy(f->directory, "/tmp/outbox_core_XXXXXX");
  if (mkdtemp(f->directory) == NULL) {
    free(f);
    return -1;
  }
  snprintf(f->path, sizeof f->path, "%s/outbox.db", f->directory);
  f->now = NOW;
  *state = f;
  return 0;
}

int set_up(void **state) {
  if (set_up_without_store(state) != 0) return -1;
  fixture *f = *state;
  outbox_options options = test_options(f);
  if (try_open(f, &f->store, f->path, &options) != OUTBOX_OK) return -1;
  f->db = outbox_connection(f->store);
  return outbox_migrate(f->store) == OUTBOX_OK ? 0 : -1;
}

static int remove_directory(const char *path) {
  DIR *directory = opendir(path);
  if (directory == NULL) return -1;
  for (struct dirent *item; (item = readdir(directory)) != NULL;) {
    char name[sizeof item->d_name + 64];
    snprintf(name, sizeof name, "%s/%s", path, item->d_name);
    if (strcmp(item->d_name, ".") != 0 && strcmp(item->d_name, "..") != 0) remove(name);
  }
  closedir(directory);
  return rmdir(path);
}

int tear_down(void **state) {
  fixture *f = *state;
  for (size_t i = 0; i < LENGTH(f->stores); i++)
    outbox_close(f->stores[i]);
  for (size_t i = 0; i < LENGTH(f->connections); i++)
    sqlite3_close(f->connections[i]);
  int result = remove_directory(f->directory);
  free(f);
  return result;
}

outbox_options test_options(fixture *f) {
  outbox_options options = OUTBOX_DEFAULTS;
  options.synchronous = OUTBOX_SYNCHRONOUS_OFF; /* most tests do not cut the power */
  options.busy_timeout = 0;
  options.clock = read_clock;
  options.clock_context = f;
  return options;
}

int try_open(fixture *f, outbox_store **store, const char *path, const outbox_options *options) {
  size_t i = 0;
  while (i < LENGTH(f->stores) && f->stores[i] != NULL)
    i++;
  assert_true(i < LENGTH(f->stores));
  int code = outbox_open(&f->stores[i], path, options);
  *store = f->stores[i];
  return code;
}

outbox_store *open_store(fixture *f, const outbox_options *options) {
  outbox_store *store;
  int code = try_open(f, &store, f->path, options);
  assert_ok(store, code);
  return store;
}

void close_store(fixture *f, outbox_store *store) {
  for (size_t i = 0; i < LENGTH(f->stores); i++)
    if (f->stores[i] == store) f->stores[i] = NULL;
  outbox_close(store);
}

sqlite3 *connect_plainly(fixture *f) {
  size_t i = 0;
  while (i < LENGTH(f->connections) && f->connections[i] != NULL)
    i++;
  assert_true(i < LENGTH(f->connections));
  assert_int_equal(sqlite3_open(f->path, &f->connections[i]), SQLITE_OK);
  return f->connections[i];
}

void disconnect(fixture *f, sqlite3 *connection) {
  for (size_t i = 0; i < LENGTH(f->connections); i++)
    if (f->connections[i] == connection) f->connections[i] = NULL;
  sqlite3_close(connection);
}

/* --- Assertions ------------------------------------------------------------------------------ */

void check_code(const outbox_store *store, int actual, int expected, const char *file, int line) {
  if (actual == expected) return;
  print_error("%s, where %s was expected; the store's message: %s\n", outbox_code_name(actual),
              outbox_code_name(expected), store == NULL ? "-" : outbox_error_message(store));
  _fail(file, line);
}

bool is_long(void) {
  return getenv("OUTBOX_LONG") != NULL;
}

unsigned random_seed(void) {
  const char *given = getenv("OUTBOX_SEED");
  unsigned seed;
  sqlite3_randomness(sizeof seed, &seed);
  return given != NULL ? (unsigned)strtoul(given, NULL, 10) : seed;
}

void tally(const char *kind, int cases) {
  print_message("TALLY\t%s\t%d\t0\t0\n", kind, cases);
}

/* --- SQL ------------------------------------------------------------------------------------- */

void execute(sqlite3 *db, const char *sql) {
  if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK)
    fail_msg("%s: %s", sql, sqlite3_errmsg(db));
}

static sqlite3_stmt *first_row(sqlite3 *db, const char *sql) {
  sqlite3_stmt *statement;
  if (sqlite3_prepare_v2(db, sql, -1, &statement, NULL) != SQLITE_OK ||
      sqlite3_step(statement) != SQLITE_ROW)
    fail_msg("%s: %s", sql, sqlite3_errmsg(db));
  return statement;
}

int64_t number(sqlite3 *db, const char *sql) {
  sqlite3_stmt *statement = first_row(db, sql);
  int64_t result = sqlite3_column_int64(statement, 0);
  sqlite3_finalize(statement);
  return result;
}

const char *string(sqlite3 *db, const char *sql) {
  static char result[65536];
  sqlite3_stmt *statement = first_row(db, sql);
  const char *value = (const char *)sqlite3_column_text(statement, 0);
  snprintf(result, sizeof result, "%s", value != NULL ? value : "");
  sqlite3_finalize(statement);
  return result;
}

const char *ids_in(sqlite3 *db, const char *table) {
  char sql[128];
  snprintf(sql, sizeof sql,
           "SELECT group_concat(id, ' ') FROM (SELECT id FROM outbox_%s ORDER BY seq)", table);
  return string(db, sql);
}

/* --- Messages and entries -------------------------------------------------------------------- */

outbox_bytes text(const char *string) {
  return (outbox_bytes){string, strlen(string)};
}

outbox_message message(const char *id) {
  return (outbox_message){.id = text(id), .payload = text(id)};
}

bool same_bytes(outbox_bytes a, outbox_bytes b) {
  if (a.data == NULL || b.data == NULL) return a.data == b.data;
  return a.size == b.size && memcmp(a.data, b.data, a.size) == 0;
}

size_t split(const char *ids, outbox_bytes *words, size_t room) {
  size_t count = 0;
  for (ids += strspn(ids, " "); *ids != '\0'; ids += strspn(ids, " ")) {
    assert_true(count < room);
    words[count] = (outbox_bytes){ids, strcspn(ids, " ")};
    ids += words[count++].size;
  }
  return count;
}

void publish(outbox_store *store, const char *ids) {
  outbox_bytes words[64];
  size_t count = split(ids, words, LENGTH(words));
  for (size_t i = 0; i < count; i++) {
    outbox_message one = {.id = words[i], .payload = words[i]};
    assert_ok(store, outbox_publish(store, &one, 1));
  }
}

void publish_at(outbox_store *store, const char *id, int64_t deliver_at) {
  outbox_message one = message(id);
  one.deliver_at = deliver_at;
  assert_ok(store, outbox_publish(store, &one, 1));
}

bool claim(outbox_store *store, const char *processor, int64_t deadline) {
  return claim_some(store, processor, deadline, 0);
}

bool claim_some(outbox_store *store, const char *processor, int64_t deadline, int64_t limit) {
  outbox_claimed claimed;
  assert_ok(store, outbox_claim_entries(store, text(processor), deadline, limit, &claimed));
  return claimed.any;
}

const char *read_ids(outbox_store *store) {
  static char ids[65536];
  size_t length = 0;
  outbox_entry entry;
  int code;
  ids[0] = '\0';
  while ((code = outbox_next(store, &entry)) == OUTBOX_ROW) {
    assert_true(length + entry.id.size + 2 < sizeof ids);
    if (length > 0) ids[length++] = ' ';
    memcpy(ids + length, entry.id.data, entry.id.size);
    ids[length += entry.id.size] = '\0';
  }
  assert_code(store, code, OUTBOX_DONE);
  return ids;
}

size_t read_identities(outbox_store *store, outbox_identity *entries, size_t size) {
  static char ids[65536];
  size_t count = 0, length = 0;
  outbox_entry entry;
  int code;
  while ((code = outbox_next(store, &entry)) == OUTBOX_ROW) {
    assert_true(count < size && length + entry.id.size < sizeof ids);
    memcpy(ids + length, entry.id.data, entry.id.size);
    entries[count++] = (outbox_identity){{ids + length, entry.id.size}, entry.seq};
    length += entry.id.size;
  }
  assert_code(store, code, OUTBOX_DONE);
  return count;
}

const char *claimed_ids(outbox_store *store, const char *processor) {
  assert_ok(store, outbox_get_claimed_entries(store, text(processor), 10000, 0));
  return read_ids(store);
}

outbox_progress advance_all(outbox_store *store, outbox_verdict verdict, const outbox_want *want) {
  outbox_verdict verdicts[64];
  outbox_progress progress;
  size_t count = 0;
  for (; outbox_batch(store, count) != NULL; count++)
    verdicts[count] = verdict;
  assert_ok(store, outbox_advance(store, verdicts, count, want, &progress));
  return progress;
}

const char *in_hand(outbox_store *store) {
  static char ids[400];
  const outbox_entry *entry;
  ids[0] = '\0';
  for (size_t i = 0; (entry = outbox_batch(store, i)) != NULL; i++)
    snprintf(ids + strlen(ids), sizeof ids - strlen(ids), "%s%.*s", i > 0 ? " " : "",
             (int)entry->id.size, (const char *)entry->id.data);
  return ids;
}

const char *leases(outbox_store *store) {
  static char list[4096];
  size_t length = 0;
  outbox_lease lease;
  int code;
  list[0] = '\0';
  assert_ok(store, outbox_leases(store));
  while ((code = outbox_next_lease(store, &lease)) == OUTBOX_ROW) {
    char places[48] = "lane";
    if (lease.first_seq > INT64_MIN || lease.last_seq < INT64_MAX)
      snprintf(places, sizeof places, "%lld-%lld", (long long)lease.first_seq,
               (long long)lease.last_seq);
    length += (size_t)snprintf(list + length, sizeof list - length, "%s%.*s:%s",
                               length > 0 ? " " : "", (int)lease.processor_id.size,
                               (const char *)lease.processor_id.data, places);
    assert_true(length < sizeof list);
  }
  assert_code(store, code, OUTBOX_DONE);
  return list;
}

int64_t delete_ids(outbox_store *store, const char *ids) {
  outbox_bytes words[512];
  int64_t deleted = -1;
  size_t count = split(ids, words, LENGTH(words));
  assert_ok(store, delete_any(store, words, count, &deleted));
  return deleted;
}

bool retry(outbox_store *store, const char *id, int64_t due_at) {
  bool found;
  assert_ok(store, outbox_retry_entry(store, any(text(id)), due_at, text("refused"), &found));
  return found;
}

bool bury(outbox_store *store, const char *id) {
  bool found;
  assert_ok(store, outbox_bury_entry(store, any(text(id)), text("hopeless"), &found));
  return found;
}

/* --- Processes ------------------------------------------------------------------------------- */

pid_t start_child(int (*body)(fixture *), fixture *f) {
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    char status[12];
    snprintf(status, sizeof status, "%d", body(f));
    /* Does not call _exit, because valgrind would report the parent's connections as leaks here. */
    execl("/bin/sh", "sh", "-c", "exit $0", status, (char *)NULL);
    _exit(127);
  }
  return child;
}

int wait_for(pid_t child) {
  int status;
  assert_int_equal(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}
