/*
** Keeping a claim while its owner cannot renew it: in the middle of a publisher's call that blocks.
** A thread with a connection of its own moves the deadline on as time passes, so it needs no clock.
** It is begun when first needed and lasts as long as the store; to start and stop keeping, which
** happens for every batch, only sets two fields.
*/
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "store.h"

static const char KEEP_LEASES_SQL[] =
    "UPDATE @leases SET deadline = deadline + ?2, claimed_at = claimed_at + ?2"
    " WHERE processor_id = ?1";

struct keeper {
  pthread_t thread;
  pthread_mutex_t mutex;  /* of all below but what only the thread uses */
  pthread_cond_t changed; /* there is something to keep, or the end; or a renewal has ended */
  bool ending, keeping, renewing;
  int64_t from, until;    /* keeping: since when the deadline stands, and to go on until when */
  int64_t interval, next; /* and when to renew next */
  int64_t wakes_at;       /* when the thread will look by itself; INT64_MAX: never */
  char *processor_id;     /* room for `capacity` bytes */
  size_t size, capacity;
  char *path, *sql;
  lock_wait lock_wait;
  sqlite3 *db; /* the thread's own, and its statement */
  sqlite3_stmt *statement;
};

/* --- The thread ------------------------------------------------------------------------------ */

static bool renew(keeper *keeper, int64_t passed) {
  if (keeper->db == NULL) {
    int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX;
    if (sqlite3_open_v2(keeper->path, &keeper->db, flags, NULL) != SQLITE_OK ||
        sqlite3_exec(keeper->db, "PRAGMA synchronous = NORMAL", NULL, NULL, NULL) != SQLITE_OK ||
        sqlite3_prepare_v2(keeper->db, keeper->sql, -1, &keeper->statement, NULL) != SQLITE_OK) {
      sqlite3_close(keeper->db);
      keeper->db = NULL;
      return false;
    }
    outbox_wait_for_locks(keeper->db, &keeper->lock_wait);
  }
  sqlite3_bind_text64(keeper->statement, 1, keeper->processor_id, keeper->size, SQLITE_STATIC,
                      SQLITE_UTF8);
  sqlite3_bind_int64(keeper->statement, 2, passed);
  sqlite3_step(keeper->statement);
  return sqlite3_reset(keeper->statement) == SQLITE_OK;
}

static void *keep(void *context) {
  keeper *keeper = context;
  pthread_mutex_lock(&keeper->mutex);
  while (!keeper->ending) {
    int64_t now = outbox_monotonic();
    if (now >= keeper->until) keeper->keeping = false;
    if (!keeper->keeping) {
      keeper->wakes_at = INT64_MAX;
      pthread_cond_wait(&keeper->changed, &keeper->mutex);
    } else if (now < keeper->next) {
      struct timespec time = {.tv_sec = keeper->next / 1000000,
                              .tv_nsec = keeper->next % 1000000 * 1000};
      keeper->wakes_at = keeper->next;
      pthread_cond_timedwait(&keeper->changed, &keeper->mutex, &time);
    } else {
      keeper->renewing = true; /* so nobody changes what it renews with */
      pthread_mutex_unlock(&keeper->mutex);
      bool renewed = renew(keeper, now - keeper->from);
      pthread_mutex_lock(&keeper->mutex);
      keeper->renewing = false;
      if (renewed) keeper->from = now;
      keeper->next = outbox_later(now, keeper->interval / (renewed ? 1 : 4));
      pthread_cond_broadcast(&keeper->changed);
    }
  }
  pthread_mutex_unlock(&keeper->mutex);
  return NULL;
}

/* --- Its owner ------------------------------------------------------------------------------- */

static void free_keeper(keeper *keeper) {
  sqlite3_finalize(keeper->statement);
  sqlite3_close(keeper->db);
  pthread_cond_destroy(&keeper->changed);
  pthread_mutex_destroy(&keeper->mutex);
  sqlite3_free(keeper->processor_id);
  sqlite3_free(keeper->path);
  sqlite3_free(keeper->sql);
  sqlite3_free(keeper);
}

/* Signals are for the process's other threads: a handler may belong to an interpreter. */
static int start(keeper *keeper) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int failed = pthread_create(&keeper->thread, NULL, keep, keeper);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return failed;
}

static int make_keeper(outbox_store *store, const char *path) {
  pthread_condattr_t monotonic_clock;
  keeper *keeper = sqlite3_malloc(sizeof *keeper);
  if (keeper == NULL) return outbox_fail(store, OUTBOX_NOMEM, "out of memory");
  memset(keeper, 0, sizeof *keeper);
  keeper->wakes_at = INT64_MAX;
  pthread_mutex_init(&keeper->mutex, NULL);
  pthread_condattr_init(&monotonic_clock);
  pthread_condattr_setclock(&monotonic_clock, CLOCK_MONOTONIC);
  pthread_cond_init(&keeper->changed, &monotonic_clock);
  pthread_condattr_destroy(&monotonic_clock);
  keeper->lock_wait = store->lock_wait;
  keeper->path = sqlite3_mprintf("%s", path);
  keeper->sql = outbox_expand(store, KEEP_LEASES_SQL);
  int code = OUTBOX_OK;
  if (keeper->path == NULL || keeper->sql == NULL)
    code = outbox_fail(store, OUTBOX_NOMEM, "out of memory");
  else if (start(keeper) != 0)
    code = outbox_fail(store, OUTBOX_ERROR, "no thread can be started to keep the claim");
  if (code != OUTBOX_OK)
    free_keeper(keeper);
  else
    store->keeper = keeper;
  return code;
}

/* Waits until the thread is not writing, with the mutex locked. */
static void await_renewal(keeper *keeper) {
  while (keeper->renewing)
    pthread_cond_wait(&keeper->changed, &keeper->mutex);
}

int outbox_keep_claim(outbox_store *store, outbox_bytes processor_id, int64_t interval,
                      int64_t at_most) {
  int code = outbox_enter(store);
  const char *path = code == OUTBOX_OK ? sqlite3_db_filename(store->db, "main") : NULL;
  if (path == NULL || path[0] == '\0') return code; /* nobody else can claim what is in memory */
  if (store->keeper == NULL) code = make_keeper(store, path);
  if (code != OUTBOX_OK) return code;
  keeper *keeper = store->keeper;
  pthread_mutex_lock(&keeper->mutex);
  await_renewal(keeper);
  if (processor_id.size >= keeper->capacity) {
    char *larger = sqlite3_realloc64(keeper->processor_id, processor_id.size + 1);
    if (larger == NULL) {
      code = outbox_fail(store, OUTBOX_NOMEM, "out of memory");
    } else {
      keeper->processor_id = larger;
      keeper->capacity = processor_id.size + 1;
    }
  }
  if (code == OUTBOX_OK) {
    memcpy(keeper->processor_id, processor_id.data, processor_id.size);
    keeper->size = processor_id.size;
    keeper->interval = interval > 1000 ? interval : 1000;
    keeper->from = outbox_monotonic();
    keeper->until = outbox_later(keeper->from, at_most);
    keeper->next = outbox_later(keeper->from, keeper->interval);
    keeper->keeping = true;
    /* It is left asleep if it wakes soon enough: to signal for every batch would cost too much. */
    if (keeper->next < keeper->wakes_at) pthread_cond_broadcast(&keeper->changed);
  }
  pthread_mutex_unlock(&keeper->mutex);
  return code;
}

void outbox_stop_keeping(outbox_store *store) {
  keeper *keeper = store->keeper;
  if (keeper == NULL || store->pid != getpid()) return;
  pthread_mutex_lock(&keeper->mutex);
  await_renewal(keeper);
  keeper->keeping = false;
  pthread_mutex_unlock(&keeper->mutex);
}

void outbox_close_keeper(outbox_store *store) {
  keeper *keeper = store->keeper;
  store->keeper = NULL;
  if (keeper == NULL || store->pid != getpid()) return; /* a child has no such thread */
  pthread_mutex_lock(&keeper->mutex);
  keeper->ending = true;
  pthread_cond_broadcast(&keeper->changed);
  pthread_mutex_unlock(&keeper->mutex);
  pthread_join(keeper->thread, NULL);
  free_keeper(keeper);
}
