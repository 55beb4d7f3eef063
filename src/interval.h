/*
** Sets of places in the order of commits: intervals of seq, ascending, that do not overlap.
*/
#ifndef OUTBOX_INTERVAL_H
#define OUTBOX_INTERVAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

/* The places from `first` to `last`, both included. The engine says what `kind` and `id` mean. */
typedef struct interval {
  int64_t first, last;
  int kind;
  int64_t id;
} interval;

/* Empty if all fields but `reallocate` are zero. `reallocate` works as realloc does. */
typedef struct intervals {
  interval *items;
  size_t count;
  void *(*reallocate)(void *items, uint64_t size);
} intervals;

/* Adds an interval above all others. False: there is no memory. */
bool intervals_append(intervals *list, interval item);

/* The same, but joins it to the last interval where nothing lies between the two. */
bool intervals_join(intervals *list, interval item);

#pragma GCC visibility pop

#endif
