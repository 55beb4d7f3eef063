/*
** The store: what it is made of, its clock, and how its connection waits for locks.
*/
#define _DEFAULT_SOURCE

#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "store.h"

int store_now(outbox_store *store, int64_t *now) {
  if (store->clock(store->clock_context, now) != 0)
    return store_fail(store, OUTBOX_CALLBACK, "the clock failed");
  return OUTBOX_OK;
}

int outbox_now(outbox_store *store, int64_t *now) {
  return store_now(store, now);
}

int store_now_inside(outbox_store *store, int64_t *now) {
  store->working = true;
  int code = store_now(store, now);
  store->working = false;
  return code;
}

#define PATIENT_FOR 50000 /* microseconds in which a connection asks for a lock once per ms */
#define EAGER 10          /* how many times as often it asks in the end */

/*
** SQLite's own handler asks less and less often, in the end every 100 ms. If a lock is rarely
** free, the connection that has waited longest then has the smallest chance to get it, and fails
** in the end. This one does the reverse: the longer it has waited, the more often it asks. It does
** so by and by: if all that have waited for a while asked as often as can be, they would keep the
** CPU from the one that has the lock.
*/
static int wait_for_lock(void *context, int count) {
  lock_wait *wait = context;
  int64_t now = clock_monotonic();
  if (count == 0) wait->since = now;
  int64_t waited = now - wait->since, often = waited / PATIENT_FOR;
  if (waited >= wait->timeout) return 0;
  often = often < 1 ? 1 : often > EAGER ? EAGER : often;
  nanosleep(&(struct timespec){.tv_nsec = (long)(1000000 / often)}, NULL);
  return 1;
}

void store_wait_for_locks(sqlite3 *db, lock_wait *wait) {
  sqlite3_busy_handler(db, wait_for_lock, wait);
}

/* Every call asks whose the store is. A page that a child finds wiped spares it a getpid(). */
static const char *make_page(void) {
#ifdef MADV_WIPEONFORK
  char *page = mmap(NULL, 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return NULL;
  *page = 1;
  if (madvise(page, 1, MADV_WIPEONFORK) == 0) return page;
  munmap(page, 1);
#endif
  return NULL;
}

bool store_is_ours(const outbox_store *store) {
  return store->page != NULL ? *store->page != 0 : store->pid == getpid();
}

static const outbox_options DEFAULTS = OUTBOX_DEFAULTS;

int store_make(outbox_store **out, const outbox_options *options) {
  if (options == NULL) options = &DEFAULTS;
  outbox_store *store = *out = sqlite3_malloc(sizeof *store);
  if (store == NULL) return OUTBOX_NOMEM;
  memset(store, 0, sizeof *store);
  store->pid = getpid();
  store->page = make_page();
  store->doorbell.fd = store->doorbell.file = -1;
  store->doorbell.version = -1; /* nothing has been seen: the first wait returns at once */
  store->doorbell.rung_at = store->doorbell.checked_at = INT64_MIN / 2;
  store->lock_wait.timeout = 1000 * (int64_t)options->busy_timeout;
  store->clock = options->clock != NULL ? options->clock : outbox_system_clock;
  store->clock_context = options->clock_context;
  store->id_generator = options->id_generator;
  store->id_generator_context = options->id_generator_context;
  const char *prefix = options->prefix != NULL ? options->prefix : DEFAULTS.prefix;
  if (!outbox_is_prefix((outbox_bytes){prefix, strlen(prefix)}))
    return store_fail(store, OUTBOX_MISUSE, "the prefix is not a plain identifier");
  store->prefix = sqlite3_mprintf("%s", prefix);
  return store->prefix != NULL ? OUTBOX_OK : store_fail_nomem(store);
}

void store_free(outbox_store *store) {
  if (store->page != NULL) munmap((void *)store->page, 1);
  sqlite3_free(store->prefix);
  sqlite3_free(store);
}

const char *outbox_prefix(const outbox_store *store) {
  return store->prefix;
}

struct sqlite3 *outbox_connection(outbox_store *store) {
  return store_is_ours(store) ? store->db : NULL;
}

bool outbox_in_transaction(outbox_store *store) {
  sqlite3 *db = outbox_connection(store);
  return db != NULL && !sqlite3_get_autocommit(db);
}
