/*
** The heartbeat: renews a claim while its owner cannot, in a publisher's call that blocks. The
** thread is started when it is first needed and lasts as long as the store. The heartbeat is
** started and stopped for every batch; this only sets a few fields.
*/
#define _POSIX_C_SOURCE 200809L

#include "heartbeat.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "clock.h"

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
  heartbeat_writer writer;
};

/* --- The thread ------------------------------------------------------------------------------ */

/* When the thread has something to do next. */
static void plan(heartbeat *heartbeat, int64_t now, int64_t interval) {
  heartbeat->next = clock_later(now, interval);
  if (heartbeat->next > heartbeat->until && now < heartbeat->until)
    heartbeat->next = heartbeat->until;
}

static bool write_claim(heartbeat *heartbeat, int64_t passed, bool overtime) {
  outbox_bytes processor_id = {heartbeat->processor_id, heartbeat->size};
  return heartbeat->writer.write(heartbeat->writer.context, processor_id, passed, overtime);
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
  pthread_cond_destroy(&heartbeat->changed);
  pthread_mutex_destroy(&heartbeat->mutex);
  heartbeat->writer.end(heartbeat->writer.context);
  free(heartbeat->processor_id);
  free(heartbeat);
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

int heartbeat_make(heartbeat **made, heartbeat_writer writer) {
  pthread_condattr_t monotonic_clock;
  heartbeat *it = calloc(1, sizeof *it);
  *made = NULL;
  if (it == NULL) {
    writer.end(writer.context);
    return OUTBOX_NOMEM;
  }
  it->wakes_at = INT64_MAX;
  it->writer = writer;
  pthread_mutex_init(&it->mutex, NULL);
  pthread_condattr_init(&monotonic_clock);
  pthread_condattr_setclock(&monotonic_clock, CLOCK_MONOTONIC);
  pthread_cond_init(&it->changed, &monotonic_clock);
  pthread_condattr_destroy(&monotonic_clock);
  if (start(it) != 0) {
    free_heartbeat(it);
    return OUTBOX_ERROR;
  }
  *made = it;
  return OUTBOX_OK;
}

/* Waits until the thread is not writing, with the mutex locked. */
static void await_write(heartbeat *heartbeat) {
  while (heartbeat->writing)
    pthread_cond_wait(&heartbeat->changed, &heartbeat->mutex);
}

int heartbeat_start(heartbeat *heartbeat, outbox_bytes processor_id, int64_t interval,
                    int64_t max_duration) {
  int code = OUTBOX_OK;
  pthread_mutex_lock(&heartbeat->mutex);
  await_write(heartbeat);
  if (processor_id.size >= heartbeat->capacity) {
    char *larger = realloc(heartbeat->processor_id, processor_id.size + 1);
    if (larger == NULL) {
      code = OUTBOX_NOMEM;
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

void heartbeat_stop(heartbeat *heartbeat) {
  pthread_mutex_lock(&heartbeat->mutex);
  await_write(heartbeat);
  heartbeat->beating = false;
  pthread_mutex_unlock(&heartbeat->mutex);
}

void heartbeat_end(heartbeat *heartbeat) {
  pthread_mutex_lock(&heartbeat->mutex);
  heartbeat->ending = true;
  pthread_cond_broadcast(&heartbeat->changed);
  pthread_mutex_unlock(&heartbeat->mutex);
  pthread_join(heartbeat->thread, NULL);
  free_heartbeat(heartbeat);
}
