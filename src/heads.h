/*
** The known heads of a namespace: up to 256 entries that are the first of their keys, of a walk
** that begins at the first entry left behind. After a failure others are tried than the oldest, and
** only a head may be. 128 of them are the last that were met, the others a sample of those before.
*/
#ifndef OUTBOX_HEADS_H
#define OUTBOX_HEADS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(hidden)

enum { HEADS_MOST = 256, HEADS_TAIL = 128, HEADS_FEW = 1024 };

typedef struct heads {
  int64_t from, at;           /* after which place this round began, and how far it has come, */
  uint64_t sweep;             /* or at least so far as this walk did; 0: none */
  int64_t places[HEADS_MOST]; /* the sample, then the last that were met */
  size_t count, tail;         /* of all; of the last ones */
  bool fruitful, done;        /* this round: an entry came of it; it ended, and none came last */
  uint64_t passed;            /* how many have left the tail in this round */
  size_t keys; /* that were met in this round: by their hashes in `few`, then in `many` */
  uint32_t few[HEADS_FEW];
  unsigned char *many; /* a bit map of 128 KiB; a false hit only loses a head */
  void *(*reallocate)(void *items, uint64_t size);
} heads;

/* NULL: there is no memory. */
heads *heads_make(void *(*reallocate)(void *items, uint64_t size));
void heads_free(heads *heads);

/* Begins a round: the walk starts after the place `at`, and nothing is known. */
void heads_begin(heads *heads, int64_t at);

/* Whether a key was met in this round; from now on it was. A line of 0 is none, and never was. */
bool heads_met(heads *heads, uint64_t line);

/* Adds the next head that the walk has met. `random` is any number. */
void heads_add(heads *heads, int64_t place, uint64_t random);

/* Takes the newest head out, or any. NEVER: none is known. */
int64_t heads_take(heads *heads, bool newest, uint64_t random);

#pragma GCC visibility pop

#endif
