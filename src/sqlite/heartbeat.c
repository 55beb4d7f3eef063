/*
** The heartbeat: renews a claim while its owner cannot, in a publisher's call that blocks. A thread
** with a connection of its own moves the deadline by the time that has passed, so it needs no
** clock. The thread is started when it is first needed and lasts as long as the store. The
** heartbeat is started and stopped for every batch; this only sets a few fields.
*/
#define _POSIX_C_SOURCE 200809L

#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <time.h>

#include "operations.h"

static const char BEAT_SQL[] =
    "UPDATE @claims SET deadline = deadline + ?2, claimed_at = claimed_at + ?2"
    " WHERE processor_id = ?1";

/* What is in hand now counts as slow, not as lost with its processor. */
static const char MARK_SQL[] = "UPDATE @claims SET held = '" OVERTIME "' || held"
                               " WHERE processor_id = ?1 AND held NOT LIKE '" OVERTIME "%'";

struct heartbeat {
  pthread_t thread;
  pthread_mutex_t mutex;  /* guards the fields up to `capacity` */
  pthread_cond_t changed; /* the heartbeat was started, a write ended, or the end has come */
  bool ending, beating, writing;
  int64_t from, until;    /* when the deadline was moved last; when to give up */
  int64_t interval, next; /* between two renewals; when the next is due, or the mark */
  int64_t wakes_at;       /* when the thread looks by itself; INT64_MAX: never */
  char *processor_id;     /* `size` bytes, in room for `capacity` */
  size_t size, capacity;
  char *path, *beat_sql, *mark_sql; /* set before the thread starts; the rest is its own */
  lock_wait lock_wait;
  sqlite3 *db;
  sqlite3_stmt *beat, *mark;
};

/* --- The thread ------------------------------------------------------------------------------ */

static bool prepare(heartbeat *heartbeat, const char *sql, sqlite3_stmt **statement) {
  return sqlite3_prepare_v2(heartbeat->db, sql, -1, statement, NULL) == SQLITE_OK;
}

static bool connect(heartbeat *heartbeat) {
  if (heartbeat->db != NULL) return true;
  int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX;
  if (sqlite3_open_v2(heartbeat->path, &heartbeat->db, flags, NULL) != SQLITE_OK ||
      sqlite3_exec(heartbeat->db, "PRAGMA synchronous = NORMAL", NULL, NULL, NULL) != SQLITE_OK ||
      !prepare(heartbeat, heartbeat->beat_sql, &heartbeat->beat) ||
      !prepare(heartbeat, heartbeat->mark_sql, &heartbeat->mark)) {
    sqlite3_finalize(heartbeat->beat);
    sqlite3_close(heartbeat->db);
    heartbeat->beat = NULL;
    heartbeat->db = NULL;
    return false;
  }
  store_wait_for_locks(heartbeat->db, &heartbeat->lock_wait);
  return true;
}

static bool run(heartbeat *heartbeat, sqlite3_stmt *statement) {
  sqlite3_bind_text64(statement, 1, heartbeat->processor_id, heartbeat->size, SQLITE_STATIC,
                      SQLITE_UTF8);
  sqlite3_step(statement);
  return sqlite3_reset(statement) == SQLITE_OK;
}

/* Renews the claim or, after overtime, marks it. */
static bool write_claim(heartbeat *heartbeat, int64_t passed, bool overtime) {
  if (!connect(heartbeat)) return false;
  if (overtime) return run(heartbeat, heartbeat->mark);
  sqlite3_bind_int64(heartbeat->beat, 2, passed);
  return run(heartbeat, heartbeat->beat);
}

/* When the thread has something to do next. */
static void plan(heartbeat *heartbeat, int64_t now, int64_t interval) {
  heartbeat->next = clock_later(now, interval);
  if (heartbeat->next > heartbeat->until && now < heartbeat->until)
    heartbeat->next = heartbeat->until;
}

static void *beat(void *context) {
  heartbeat *heartbeat = context;
  pthread_mutex_lock(&heartbeat->mutex);
  while (!heartbeat->ending) {
    int64_t now = clock_monotonic();
    if (!heartbeat->beating) {
      heartbeat->wakes_at = INT64_MAX;
      pthread_cond_wait(&heartbeat->changed, &heartbeat->mutex);
    } else if (now < heartbeat->next) {
      struct timespec time = {.tv_sec = heartbeat->next / 1000000,
                              .tv_nsec = heartbeat->next % 1000000 * 1000};
      heartbeat->wakes_at = heartbeat->next;
      pthread_cond_timedwait(&heartbeat->changed, &heartbeat->mutex, &time);
    } else {
      bool overtime = now >= heartbeat->until;
      heartbeat->writing = true; /* keeps the processor id as it is */
      pthread_mutex_unlock(&heartbeat->mutex);
      bool written = write_claim(heartbeat, now - heartbeat->from, overtime);
      pthread_mutex_lock(&heartbeat->mutex);
      heartbeat->writing = false;
      if (written && overtime) heartbeat->beating = false;
      if (written) heartbeat->from = now;
      plan(heartbeat, now, heartbeat->interval / (written ? 1 : 4));
      pthread_cond_broadcast(&heartbeat->changed);
    }
  }
  pthread_mutex_unlock(&heartbeat->mutex);
  return NULL;
}

/* --- The owner ------------------------------------------------------------------------------- */

static void free_heartbeat(heartbeat *heartbeat) {
  sqlite3_finalize(heartbeat->beat);
  sqlite3_finalize(heartbeat->mark);
  sqlite3_close(heartbeat->db);
  pthread_cond_destroy(&heartbeat->changed);
  pthread_mutex_destroy(&heartbeat->mutex);
  sqlite3_free(heartbeat->processor_id);
  sqlite3_free(heartbeat->path);
  sqlite3_free(heartbeat->beat_sql);
  sqlite3_free(heartbeat->mark_sql);
  sqlite3_free(heartbeat);
}

/* Blocks all signals in the thread, because a handler may belong to an interpreter. */
static int start(heartbeat *heartbeat) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int failed = pthread_create(&heartbeat->thread, NULL, beat, heartbeat);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  return failed;
}

static int make_heartbeat(outbox_store *store, const char *path) {
  pthread_condattr_t monotonic_clock;
  heartbeat *heartbeat = sqlite3_malloc(sizeof *heartbeat);
  if (heartbeat == NULL) return store_fail_nomem(store);
  memset(heartbeat, 0, sizeof *heartbeat);
  heartbeat->wakes_at = INT64_MAX;
  pthread_mutex_init(&heartbeat->mutex, NULL);
  pthread_condattr_init(&monotonic_clock);
  pthread_condattr_setclock(&monotonic_clock, CLOCK_MONOTONIC);
  pthread_cond_init(&heartbeat->changed, &monotonic_clock);
  pthread_condattr_destroy(&monotonic_clock);
  heartbeat->lock_wait = store->lock_wait;
  heartbeat->path = sqlite3_mprintf("%s", path);
  heartbeat->beat_sql = sql_expand(store, BEAT_SQL);
  heartbeat->mark_sql = sql_expand(store, MARK_SQL);
  int code = OUTBOX_OK;
  if (heartbeat->path == NULL || heartbeat->beat_sql == NULL || heartbeat->mark_sql == NULL)
    code = store_fail_nomem(store);
  else if (start(heartbeat) != 0)
    code = store_fail(store, OUTBOX_ERROR, "no thread can be started for the heartbeat");
  if (code != OUTBOX_OK)
    free_heartbeat(heartbeat);
  else
    store->heartbeat = heartbeat;
  return code;
}

/* Waits until the thread is not writing, with the mutex locked. */
static void await_write(heartbeat *heartbeat) {
  while (heartbeat->writing)
    pthread_cond_wait(&heartbeat->changed, &heartbeat->mutex);
}

int outbox_start_heartbeat(outbox_store *store, outbox_bytes processor_id, int64_t interval,
                           int64_t max_duration) {
  int code = transaction_enter(store);
  const char *path = code == OUTBOX_OK ? sqlite3_db_filename(store->db, "main") : NULL;
  if (path == NULL || path[0] == '\0')
    return code; /* nobody else can claim in a database in memory */
  if (store->heartbeat == NULL) code = make_heartbeat(store, path);
  if (code != OUTBOX_OK) return code;
  heartbeat *heartbeat = store->heartbeat;
  pthread_mutex_lock(&heartbeat->mutex);
  await_write(heartbeat);
  if (processor_id.size >= heartbeat->capacity) {
    char *larger = sqlite3_realloc64(heartbeat->processor_id, processor_id.size + 1);
    if (larger == NULL) {
      code = store_fail_nomem(store);
    } else {
      heartbeat->processor_id = larger;
      heartbeat->capacity = processor_id.size + 1;
    }
  }
  if (code == OUTBOX_OK) {
    if (processor_id.size > 0)
      memcpy(heartbeat->processor_id, processor_id.data, processor_id.size);
    heartbeat->size = processor_id.size;
    heartbeat->interval = interval > 1000 ? interval : 1000;
    heartbeat->from = clock_monotonic();
    heartbeat->until = clock_later(heartbeat->from, max_duration);
    plan(heartbeat, heartbeat->from, heartbeat->interval);
    heartbeat->beating = true;
    /* A thread that wakes soon enough is left asleep: a signal for every batch costs too much. */
    if (heartbeat->next < heartbeat->wakes_at) pthread_cond_broadcast(&heartbeat->changed);
  }
  pthread_mutex_unlock(&heartbeat->mutex);
  return code;
}

void outbox_stop_heartbeat(outbox_store *store) {
  heartbeat *heartbeat = store->heartbeat;
  if (heartbeat == NULL || !store_is_ours(store)) return;
  pthread_mutex_lock(&heartbeat->mutex);
  await_write(heartbeat);
  heartbeat->beating = false;
  pthread_mutex_unlock(&heartbeat->mutex);
}

void heartbeat_close(outbox_store *store) {
  heartbeat *heartbeat = store->heartbeat;
  store->heartbeat = NULL;
  if (heartbeat == NULL || !store_is_ours(store)) return; /* the thread is the parent's */
  pthread_mutex_lock(&heartbeat->mutex);
  heartbeat->ending = true;
  pthread_cond_broadcast(&heartbeat->changed);
  pthread_mutex_unlock(&heartbeat->mutex);
  pthread_join(heartbeat->thread, NULL);
  free_heartbeat(heartbeat);
}
