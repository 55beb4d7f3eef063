/*
** Time as the engines measure it, in microseconds.
*/
#ifndef OUTBOX_CLOCK_H
#define OUTBOX_CLOCK_H

#include <stdint.h>

#pragma GCC visibility push(hidden)

/* The time since some moment in the past. A change of the system's clock does not disturb it. */
int64_t clock_monotonic(void);

/* time + span. A span of INT64_MAX is for ever: the sum never overflows but becomes INT64_MAX. */
int64_t clock_later(int64_t time, int64_t span);

#pragma GCC visibility pop

#endif
