/*
** Damaged files. An input damages a database that has entries in every state, and in some cases a
** write-ahead log. Or the input itself is the database file or the log. The target runs every
** operation on these files. Each call must return a valid code and, on an error, a message.
*/
#define _POSIX_C_SOURCE 200809L

#include <sqlite3.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "../support/identity.h"
#include "fuzz.h"
#include "outbox.h"

#define NOW INT64_C(1700000000000000)
#define SECOND INT64_C(1000000)
#define MAX_ROWS 1000 /* to read, because damage can make a tree endless */
#define MAX_BYTES 65536

typedef struct image {
  uint8_t bytes[MAX_BYTES];
  size_t size;
} image;

static int64_t now = NOW;
static char path[64], log_path[72], index_path[72];
static image whole;           /* a database without a log */
static image logged, its_log; /* the same database with more entries, a part of it in its log */

/* --- Files ----------------------------------------------------------------------------------- */

static void write_file(const char *name, const image *image) {
  FILE *file = fopen(name, "wb");
  if (file == NULL || fwrite(image->bytes, 1, image->size, file) != image->size ||
      fclose(file) != 0)
    fail("file %s cannot be written", name);
}

static void read_file(const char *name, image *image) {
  FILE *file = fopen(name, "rb");
  if (file == NULL) fail("file %s cannot be read", name);
  image->size = fread(image->bytes, 1, sizeof image->bytes, file);
  if (image->size == sizeof image->bytes) fail("file %s is too large", name);
  fclose(file);
}

static void remove_files(void) {
  unlink(path);
  unlink(log_path);
  unlink(index_path);
}

/* --- The operations -------------------------------------------------------------------------- */

static int read_clock(void *context, int64_t *time) {
  (void)context;
  *time = now;
  return 0;
}

static outbox_bytes text(const char *string) {
  return (outbox_bytes){string, strlen(string)};
}

/* Returns whether a call succeeded. Fails if its code is invalid or its message is missing. */
static bool check(outbox_store *store, const char *what, int code) {
  if (code == OUTBOX_OK) return true;
  if (code < OUTBOX_OK || code == OUTBOX_ROW || code == OUTBOX_DONE || code > OUTBOX_NEWER)
    fail("code of %s: %d", what, code);
  if (outbox_error_message(store)[0] == '\0') fail("message of %s is missing", what);
  return false;
}

#define TRY(call) check(store, #call, call)

/* Reads the rows to the end, and every byte of them, so that a bad pointer crashes. Copies up to
** `room` ids and returns how many. */
static size_t read_all(outbox_store *store, int code, char ids[][40], size_t room) {
  outbox_entry entry;
  size_t count = 0, rows = 0;
  unsigned sum = 0;
  if (!check(store, "reading", code)) return 0;
  while (rows < MAX_ROWS && (code = outbox_next(store, &entry)) == OUTBOX_ROW) {
    const outbox_bytes all[] = {entry.id,      entry.namespace, entry.key,
                                entry.payload, entry.headers,   entry.last_error};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
      for (size_t j = 0; j < all[i].size; j++)
        sum += ((const unsigned char *)all[i].data)[j];
    if (count < room && entry.id.data != NULL)
      snprintf(ids[count++], sizeof *ids, "%.*s", (int)(entry.id.size % 40),
               (const char *)entry.id.data);
    rows++;
  }
  if (code != OUTBOX_ROW && code != OUTBOX_DONE) check(store, "outbox_next", code);
  outbox_finish(store);
  return sum != 1 ? count : 0; /* so that the compiler keeps the sum */
}

static void read_leases(outbox_store *store) {
  outbox_lease lease;
  outbox_bytes name;
  int code = outbox_leases(store);
  if (!check(store, "outbox_leases", code)) return;
  for (int rows = 0; rows < MAX_ROWS && code != OUTBOX_DONE; rows++) {
    code = outbox_next_lease(store, &lease);
    if (code != OUTBOX_ROW && code != OUTBOX_DONE) {
      check(store, "outbox_next_lease", code);
      return;
    }
    for (int names = 0; code == OUTBOX_ROW && names < MAX_ROWS; names++)
      if (!outbox_next_namespace(&lease.namespaces, &name)) break;
  }
  outbox_finish(store);
}

static void look(outbox_store *store) {
  static const outbox_bytes ALL = {NULL, 0};
  outbox_counts counts;
  TRY(outbox_count_entries(store, &counts));
  read_leases(store);
  read_all(store, outbox_ready_entries(store, ALL, INT64_MIN, 100), NULL, 0);
  read_all(store, outbox_delayed_entries(store, text("orders"), INT64_MIN, 100), NULL, 0);
  read_all(store, outbox_dead_entries(store, ALL, INT64_MIN, 100), NULL, 0);
}

static void publish(outbox_store *store) {
  outbox_message messages[20];
  memset(messages, 0, sizeof messages);
  for (int i = 0; i < 20; i++) {
    messages[i].key = text("7");
    messages[i].payload = text("new");
    if (i == 17) messages[i].deliver_at = NOW + SECOND;
    if (i == 18) messages[i].id = text("twenty");
  }
  TRY(outbox_publish(store, messages, 20));
}

static void process(outbox_store *store, const char *name, int64_t limit) {
  char names[8][40];
  outbox_bytes ids[8], processor = text(name);
  outbox_claimed claimed;
  int64_t deleted;
  bool done;
  TRY(outbox_claim_entries(store, processor, NOW + SECOND, limit, &claimed));
  read_all(store, outbox_get_claimed_entries(store, processor, 10, 1000), NULL, 0);
  size_t count = read_all(store, outbox_get_claimed_entries(store, processor, 8, 0), names, 8);
  for (size_t i = 0; i < count; i++)
    ids[i] = text(names[i]);
  TRY(outbox_hold_batch(store, processor));
  if (!TRY(outbox_begin(store))) return;
  TRY(outbox_renew_claim(store, processor, NOW + 2 * SECOND, &done));
  if (count > 2) TRY(outbox_retry_entry(store, any(ids[0]), NOW + SECOND, text("no"), &done));
  if (count > 2) TRY(outbox_bury_entry(store, any(ids[1]), text("never"), &done));
  TRY(delete_any(store, ids, count, &deleted));
  if (!TRY(outbox_commit(store))) TRY(outbox_rollback(store));
}

static void operate(outbox_store *store, bool waits) {
  const outbox_bytes ids[] = {text("one"), text("dead"), text("late"), text("nobody")};
  int64_t found, look_again;
  bool done;
  look(store);
  process(store, "p", 3);
  process(store, "q", 0);
  publish(store);
  TRY(outbox_requeue_entries(store, ids, 4, &found));
  TRY(outbox_begin(store));
  TRY(outbox_purge_entries(store, ids, 4, &found));
  TRY(outbox_rollback(store));
  TRY(outbox_purge_entries(store, ids, 4, &found));
  TRY(delete_any(store, ids, 4, &found));
  TRY(outbox_retry_entry(store, any(text("two")), NOW, (outbox_bytes){NULL, 0}, &done));
  if (waits) TRY(outbox_wait(store, 0, &done, &look_again));
  TRY(outbox_release_claim(store, text("p")));
  TRY(outbox_release_claim(store, text("q")));
  process(store, "r", 0);
  TRY(outbox_migrate(store));
  look(store);
}

/* Returns NULL if the file cannot be opened. */
static outbox_store *open_store(void) {
  outbox_store *store;
  outbox_options options = OUTBOX_DEFAULTS;
  options.synchronous = OUTBOX_SYNCHRONOUS_OFF;
  options.busy_timeout = 0;
  options.clock = read_clock;
  int code = outbox_open(&store, path, &options);
  if (check(store, "outbox_open", code)) return store;
  outbox_close(store);
  return NULL;
}

/* --- The images ------------------------------------------------------------------------------ */

static void publish_one(outbox_store *store, const char *id, const char *namespace, const char *key,
                        int64_t deliver_at) {
  outbox_message message = {.id = text(id),
                            .namespace = text(namespace),
                            .payload = text("something to tell"),
                            .headers = text("{\"to\":\"you\"}"),
                            .deliver_at = deliver_at};
  if (key != NULL) message.key = text(key);
  check(store, "outbox_publish", outbox_publish(store, &message, 1));
}

/* Uses the smallest pages. There are many then, and few of their bytes are unused. */
static void make_images(void) {
  static const char *const IDS[] = {"one",  "two",   "three", "four", "five",  "six",
                                    "dead", "again", "soon",  "ten",  "twenty"};
  outbox_claimed claimed;
  sqlite3 *db;
  bool done;
  remove_files();
  sqlite3_open(path, &db);
  sqlite3_exec(db, "PRAGMA page_size = 512; PRAGMA user_version = 1", NULL, NULL, NULL);
  sqlite3_close(db);
  outbox_store *store = open_store();
  TRY(outbox_migrate(store));
  for (size_t i = 0; i < sizeof IDS / sizeof *IDS; i++)
    publish_one(store, IDS[i], i % 2 ? "orders" : "", i % 3 ? "7" : NULL, 0);
  publish_one(store, "late", "orders", "7", NOW + 100 * SECOND);
  now = NOW - 10 * SECOND;
  publish_one(store, "due", "orders", "7", NOW - SECOND);
  TRY(outbox_claim_entries(store, text("q"), NOW - SECOND, 2, &claimed));
  read_all(store, outbox_get_claimed_entries(store, text("q"), 10, 0), NULL, 0);
  TRY(outbox_hold_batch(store, text("q")));
  now = NOW;
  TRY(outbox_bury_entry(store, any(text("dead")), text("hopeless"), &done));
  TRY(outbox_retry_entry(store, any(text("again")), NOW - 1, text("refused"), &done));
  TRY(outbox_retry_entry(store, any(text("soon")), NOW + SECOND, text("refused"), &done));
  outbox_close(store);
  read_file(path, &whole);

  store = open_store();
  TRY(outbox_claim_entries(store, text("p"), NOW + SECOND, 0, &claimed));
  read_all(store, outbox_get_claimed_entries(store, text("p"), 2, 0), NULL, 0);
  TRY(outbox_hold_batch(store, text("p")));
  publish(store);
  read_file(path, &logged);
  read_file(log_path, &its_log);
  outbox_close(store);
}

/* --- The target ------------------------------------------------------------------------------ */

static size_t choose_offset(input *in, size_t size) {
  size_t high = take(in), offset = high << 8 | take(in);
  return offset % size;
}

/* Replaces, repeats, copies or cuts off some bytes. */
static void damage(input *in, image *image) {
  static const uint8_t SMALLEST[8] = {0x80};
  size_t at = choose_offset(in, image->size), from, size;
  switch (choose(in, 7)) {
  case 0: image->bytes[at] = (uint8_t)take(in); break;
  case 1: image->bytes[at] ^= (uint8_t)(1 << choose(in, 8)); break;
  case 2:
    for (size = choose(in, 16); size > 0 && at < image->size; size--)
      image->bytes[at++] = (uint8_t)take(in);
    break;
  case 3:
    size = take(in);
    memset(image->bytes + at, (int)take(in), at + size < image->size ? size : image->size - at);
    break;
  case 4:
    from = choose_offset(in, image->size);
    size = (size_t)2 << choose(in, 9);
    if (at + size <= image->size && from + size <= image->size)
      memmove(image->bytes + at, image->bytes + from, size);
    break;
  case 5: /* an integer becomes about the smallest one */
    if (at + sizeof SMALLEST <= image->size) memcpy(image->bytes + at, SMALLEST, sizeof SMALLEST);
    break;
  default: image->size = at + 1;
  }
}

static void set(image *image, const input *in) {
  image->size = in->size < MAX_BYTES ? in->size : MAX_BYTES;
  memcpy(image->bytes, in->data, image->size);
}

static void prepare(void) {
  const char *directory = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
  snprintf(path, sizeof path, "%s/outbox_damage_%d", directory, (int)getpid());
  snprintf(log_path, sizeof log_path, "%s-wal", path);
  snprintf(index_path, sizeof index_path, "%s-shm", path);
  sqlite3_vfs_register(sqlite3_vfs_find("unix-excl"), 1); /* faster: locks in memory */
  make_images();
  atexit(remove_files);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  static image file, log;
  input in = {data, size};
  if (whole.size == 0) prepare();
  unsigned kind = take(&in);
  bool with_log = kind & 1;
  file = with_log ? logged : whole;
  log = its_log;
  if (kind >= 254)
    set(&file, &in);
  else if (kind >= 252)
    set(&log, &in);
  else
    while (in.size > 0 && file.size > 0)
      damage(&in, with_log && take(&in) & 1 ? &log : &file);
  remove_files();
  write_file(path, &file);
  if (with_log) write_file(log_path, &log);
  outbox_store *store = open_store();
  /* Few inputs wait, because the kernel is slow to close a watch on a file. */
  if (store != NULL) operate(store, kind % 64 > 61);
  outbox_close(store);
  return 0;
}
