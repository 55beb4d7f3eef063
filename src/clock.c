/*
** The clocks: the time of day, which is a store's default clock, and the time that passes.
*/
#define _POSIX_C_SOURCE 200809L

#include <time.h>

#include "clock.h"
#include "outbox.h"

static int64_t read_clock(clockid_t clock) {
  struct timespec time;
  clock_gettime(clock, &time);
  return (int64_t)time.tv_sec * 1000000 + time.tv_nsec / 1000;
}

int outbox_system_clock(void *context, int64_t *now) {
  (void)context;
  *now = read_clock(CLOCK_REALTIME);
  return 0;
}

int64_t clock_monotonic(void) {
  return read_clock(CLOCK_MONOTONIC);
}

int64_t clock_later(int64_t time, int64_t span) {
  return span < INT64_MAX - time ? time + span : INT64_MAX;
}
